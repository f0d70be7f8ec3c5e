"""Modules and optimizers that former versions have saved are read, and go on.

``PYTHONPATH=tests/helpers python tests/torch/test_torch_old_pickles.py`` has written the file; what it holds is not
to be written again, but a new version may add a file of its own.
"""

import io
import pickle

import numpy as np
import pytest
import torch
from bit_cases import numbers
from old_files import Old
from torch_cases import DENSE, SPARSE

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")
OLD = Old("old_pickles_torch.npz.xz")
RULES = {name: rule for name, (rule, _) in (SPARSE | DENSE).items()} | {"RowwiseAdagrad": se.RowwiseAdagrad(lr=0.1)}
KINDS = {
    "Embedding": lambda **options: st.Embedding(11, 3, **options),
    "Embedding, padding": lambda **options: st.Embedding(11, 3, padding_idx=2, scale_grad_by_freq=True, **options),
    "EmbeddingBag": lambda **options: st.EmbeddingBag(11, 3, mode="sum", **options),
    "EmbeddingBag, mean": lambda **options: st.EmbeddingBag(11, 3, mode="mean", include_last_offset=True, **options),
}
LIMITED = {"Embedding, max_norm": lambda **options: st.Embedding(11, 3, max_norm=0.5, **options)}


def looked(module, step):
    ids = torch.tensor([[1, 3, 1], [2, 5 + step, 7]])
    if not isinstance(module, st.EmbeddingBag):
        return module(ids)
    return module(ids.reshape(-1), torch.tensor([0, 2, 2, 6] if module.include_last_offset else [0, 2, 2]))


def train(module, optimizer, steps):
    for step in steps:
        looked(module, step).pow(2).sum().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()


def made(kind, **options):
    module = (KINDS | LIMITED)[kind](**options)
    module.load_state_dict({"weight": torch.from_numpy(numbers((11, 3), np.float32, 1))})
    return module


def trained(kind, name, fused):
    module = made(kind, optimizer=RULES[name], fused=True) if fused else made(kind)
    optimizer = None if fused else st.Optimizer(module.parameters(), RULES[name])
    train(module, optimizer, range(3))
    return module, optimizer


def after(module, optimizer=None):
    """What comes of a module: of another step, if something takes one, else the gradient."""
    trains = module.fused or optimizer is not None
    train(module, optimizer, [3])
    yield "looked up", looked(module, 0).detach().numpy()
    if not trains:
        yield "gradient", module.weight.grad.to_dense().numpy()
    yield "weight", module.weight.detach().numpy().copy()
    if trains:
        state = module.table.state_dict()
        yield from ((name, np.asarray(value)) for name, value in state.items() if name != "weight")


def cases():
    found = [(kind, name, fused) for kind in ("Embedding", "EmbeddingBag") for name in RULES for fused in (True, False)]
    some = [(kind, "SparseAdam", fused) for kind in (*KINDS, *LIMITED) for fused in (True, False)]
    return {
        f"{kind}, {name}, {'fused' if fused else 'optimizer'}": (kind, name, fused)
        for kind, name, fused in found + some
    }


def tensors(saved):
    """A file of torch, read without running code."""
    return torch.load(io.BytesIO(saved), weights_only=True)


def written(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def restored(name, saved):
    """Make the objects anew, and load what `torch.save` wrote of their state dicts."""
    kind, rule, fused = cases()[name]
    module = (KINDS | LIMITED)[kind](**({"optimizer": RULES[rule], "fused": True} if fused else {}))
    module.load_state_dict(saved["module"])
    optimizer = None
    if fused:
        module.table.load_state_dict(saved["table"])
    else:
        optimizer = st.Optimizer(module.parameters(), type(RULES[rule])(lr=0.7, **MOMENTUM.get(rule, {})))
        optimizer.load_state_dict(saved["optimizer"])
    return module, optimizer


MOMENTUM = {"SGD with momentum": {"momentum": 0.5}}  # else it would be another form of SGD


def state_dicts(module, optimizer):
    found = {"module": module.state_dict()}
    return found | ({"table": module.table.state_dict()} if module.fused else {"optimizer": optimizer.state_dict()})


@pytest.mark.parametrize("name", cases())
def test_old_modules_and_optimizers_are_unpickled_and_go_on(name):
    module, optimizer = OLD.load(name)
    OLD.check(name, dict(after(module, optimizer)))


@pytest.mark.parametrize("name", cases())
def test_old_state_dicts_are_loaded_and_go_on(name):
    module, optimizer = restored(name, tensors(OLD.content(f"{name}, state")))
    OLD.check(name, dict(after(module, optimizer)))


@pytest.mark.parametrize("kind", [*KINDS, *LIMITED])
def test_old_modules_without_a_rule_are_unpickled(kind):
    OLD.check(f"{kind}, alone", dict(after(OLD.load(f"{kind}, alone"))))


@pytest.mark.parametrize("name", cases())
def test_new_state_dicts_have_the_same_names(name):
    def names(value):
        return {k: names(v) for k, v in value.items()} if isinstance(value, dict) else type(value)

    old, new = tensors(OLD.content(f"{name}, state")), state_dicts(*trained(*cases()[name]))
    assert names(dict(new["module"])) == names(dict(old["module"]))
    assert names(new.get("table", {})) == names(old.get("table", {}))
    if "optimizer" in old:
        assert names(new["optimizer"]["state"]) == names(old["optimizer"]["state"])
        assert [*map(names, new["optimizer"]["param_groups"])] == [*map(names, old["optimizer"]["param_groups"])]


def record():
    """Write what the present version saves."""
    for name, case in cases().items():
        module, optimizer = trained(*case)
        OLD.keep(name, pickle.dumps((module, optimizer), protocol=4))
        OLD.keep(f"{name}, state", written(state_dicts(module, optimizer)))
        OLD.put("after", name, dict(after(*OLD.load(name))))
    for kind in (*KINDS, *LIMITED):
        OLD.keep(f"{kind}, alone", pickle.dumps(made(kind), protocol=4))
        OLD.put("after", f"{kind}, alone", dict(after(OLD.load(f"{kind}, alone"))))
    OLD.save()


if __name__ == "__main__":
    record()

"""sparsembed.torch.Optimizer beside torch's optimizers, and what drives an optimizer: schedulers, scalers, files."""

import copy
import gc
import io
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_cases import DTYPES, close, grad, pair  # noqa: E402

import sparsembed as se  # noqa: E402
import sparsembed.torch as st  # noqa: E402

pytestmark = pytest.mark.usefixtures("strict_torch")
V, D = 30, 4
SPARSE = {
    "SparseAdam": (se.SparseAdam(lr=0.1, betas=(0.8, 0.9), eps=1e-4), torch.optim.SparseAdam),
    "Adagrad": (se.Adagrad(lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1, eps=1e-5), torch.optim.Adagrad),
    "SGD": (se.SGD(lr=0.1), torch.optim.SGD),
}
DENSE = {
    "Adam": (se.Adam(lr=0.1, betas=(0.8, 0.9), eps=1e-4), torch.optim.Adam),
    "AdamW": (se.AdamW(lr=0.1, weight_decay=0.1), torch.optim.AdamW),
    "SGD with momentum": (se.SGD(lr=0.1, momentum=0.9, weight_decay=0.01), torch.optim.SGD),
    "RMSprop": (se.RMSprop(lr=0.01), torch.optim.RMSprop),
}


def options_of(rule):
    return {name: value for name, value in vars(rule).items() if value != 0.0 or name == "lr"}


def lookups(kind, k):
    """Ids (and offsets, factors) of step k: repeats, rows that no step touches again, and one step without ids."""
    generator = torch.Generator().manual_seed(k)
    ids = torch.randint(0, 3 + k, (0 if k == 7 else 12,), generator=generator)
    if kind == "Embedding":
        return (ids,)
    offsets = torch.tensor([0, 0, min(5, len(ids)), len(ids)])
    return ids, offsets


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("name", [*SPARSE, *DENSE])
def test_twenty_steps(name, kind, padding_idx, dtype):
    """And a dense layer behind the table, that torch's Adam trains, and a scheduler."""
    rule, theirs = (SPARSE | DENSE)[name]
    options = {"mode": "sum"} if kind == "EmbeddingBag" else {}
    tables = pair(kind, V, D, sparse=name in SPARSE, padding_idx=padding_idx, dtype=dtype, **options)
    layers = []
    for _ in tables:
        torch.manual_seed(1)
        layers.append(torch.nn.Linear(D, 2, dtype=dtype))
    optimizers = [st.Optimizer(tables[0].parameters(), rule), theirs(tables[1].parameters(), **options_of(rule))]
    dense = [torch.optim.Adam(layer.parameters(), lr=0.01) for layer in layers]
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.95) for each in optimizers]
    for k in range(20):
        losses = []
        for table, layer, *drivers in zip(tables, layers, optimizers, dense, schedulers, strict=True):
            loss = layer(table(*lookups(kind, k))).pow(2).sum()
            for each in drivers[:2]:
                each.zero_grad()
            loss.backward()
            for each in drivers:
                each.step()
            losses.append(loss)
        close(*losses, terms=20 * 60)
    # float32: the roundings of 20 steps that depend on each other, of sums of dozens of gradients
    close(tables[0].weight, tables[1].weight, terms=20 * 60)
    assert tables[0].table.step == 20


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_per_sample_weights_and_max_norm_over_twenty_steps(kind):
    """torch scales rows when they are looked up, we when they are updated: outputs are the same."""
    options = {"mode": "sum"} if kind == "EmbeddingBag" else {}
    tables = pair(kind, V, D, sparse=True, max_norm=0.7, dtype=torch.float64, **options)
    factors = [torch.linspace(0.1, 1, 12, dtype=torch.float64).requires_grad_() for _ in tables]
    drivers = [st.Optimizer(tables[0].parameters(), se.SparseAdam(lr=0.1))]
    drivers += [torch.optim.SparseAdam(tables[1].parameters(), lr=0.1)]
    for k in [*range(7), *range(8, 20)]:
        outputs = []
        for table, given, optimizer in zip(tables, factors, drivers, strict=True):
            if kind == "Embedding":
                output = (table(*lookups(kind, k)) * given[:, None]).sum(0)
            else:
                output = table(*lookups(kind, k), per_sample_weights=given)
            optimizer.zero_grad()
            (output - 1).pow(2).sum().backward()
            optimizer.step()
            outputs.append(output)
        close(*outputs, terms=20 * 60)
        close(factors[0].grad, factors[1].grad, terms=2000 * 60)  # of magnitude 1,000: they are never reset
    close(tables[0](torch.arange(V)) if kind == "Embedding" else tables[0](torch.arange(V)[:, None]),
          tables[1](torch.arange(V)) if kind == "Embedding" else tables[1](torch.arange(V)[:, None]), 1200)  # fmt: skip


def trained(rule=SPARSE["SparseAdam"][0], steps=3, **options):
    torch.manual_seed(0)
    module = st.Embedding(V, D, **options)
    optimizer = st.Optimizer(module.parameters(), rule)
    train(module, optimizer, range(steps))
    return module, optimizer


def train(module, optimizer, steps):
    for k in steps:
        optimizer.zero_grad()
        module(*lookups("Embedding", k)).pow(2).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("rule", [SPARSE["SparseAdam"][0], DENSE["Adam"][0], se.RowwiseAdagrad(lr=0.1)], ids=str)
@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy", "pickle", "deepcopy, optimizer first"])
def test_training_goes_on_where_it_was_saved(how, rule):
    module, optimizer = trained(rule)
    if how in ("state_dict", "file"):
        saved = (module.state_dict(), optimizer.state_dict())
        if how == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file)  # with weights only
        other = st.Embedding(V, D)
        resumed = st.Optimizer(other.parameters(), type(rule)(lr=0.7))
        other.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
    elif how == "pickle":
        other, resumed = pickle.loads(pickle.dumps((module, optimizer)))
    elif how == "deepcopy":
        other, resumed = copy.deepcopy((module, optimizer))
    else:
        resumed, other = copy.deepcopy((optimizer, module))
    assert resumed.param_groups[0]["lr"] == rule.lr
    assert resumed.state_dict()["state"][0]["step"] == 3
    assert not resumed.state
    before = module.weight.detach().clone()
    train(other, resumed, range(3, 8))
    assert torch.equal(module.weight, before)
    train(module, optimizer, range(3, 8))
    assert torch.equal(module.weight, other.weight)
    assert module.table.step == other.table.step == 8
    for name, slot in module.table.state.items():
        np.testing.assert_array_equal(slot, other.table.state[name])


def test_the_state_of_torch_can_be_loaded():
    """SparseAdam has the same names and meaning."""
    ours, theirs = pair("Embedding", V, D, sparse=True)
    drivers = [st.Optimizer(ours.parameters(), se.SparseAdam(lr=0.1)), torch.optim.SparseAdam(theirs.parameters(), 0.1)]
    train(theirs, drivers[1], range(3))
    ours.load_state_dict(theirs.state_dict())
    saved = drivers[1].state_dict()
    del saved["param_groups"][0]["maximize"]
    drivers[0].load_state_dict(saved)
    for module, driver in zip((ours, theirs), drivers, strict=True):
        train(module, driver, range(3, 6))
    close(ours.weight, theirs.weight, terms=200)


def test_what_load_state_dict_refuses():
    module, optimizer = trained()
    saved = optimizer.state_dict()
    before = module.table.state_dict()
    for change, error in (
        (lambda s: s["state"][0].pop("exp_avg"), KeyError),
        (lambda s: s["state"][0].update(exp_avg=torch.ones(V, D + 1)), ValueError),
        (lambda s: s["param_groups"].append({}), ValueError),
        (lambda s: s["param_groups"][0].pop("betas"), KeyError),
        (lambda s: s["param_groups"][0].update(momentum=0.9), TypeError),
    ):
        wrong = copy.deepcopy(saved)
        change(wrong)
        with pytest.raises(error):
            optimizer.load_state_dict(wrong)
    after = module.table.state_dict()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    train(module, optimizer, [3])
    assert module.table.step == 4


def test_state_dict_is_a_copy_and_leaves_no_state_behind():
    module, optimizer = trained()
    saved = optimizer.state_dict()
    before = saved["state"][0]["exp_avg"].clone()
    train(module, optimizer, [3])
    assert torch.equal(saved["state"][0]["exp_avg"], before)
    assert saved["state"][0]["step"] == 3
    assert not optimizer.state


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 / (k + 1)),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=20),  # changes betas, too
    "warm-up": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=4), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        [4],
    ),
}


@pytest.mark.filterwarnings("ignore:.*epoch parameter.*:UserWarning")  # of SequentialLR itself
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("rule", ["SparseAdam", "Adam"])
def test_schedulers(name, rule):
    ours, theirs = pair("Embedding", V, D, sparse=rule == "SparseAdam")
    drivers = [st.Optimizer(ours.parameters(), getattr(se, rule)(lr=0.1))]
    drivers += [getattr(torch.optim, rule)(theirs.parameters(), lr=0.1)]
    schedulers = [SCHEDULERS[name](each) for each in drivers]
    for k in range(10):
        for module, driver, scheduler in zip((ours, theirs), drivers, schedulers, strict=True):
            train(module, driver, [k])
            scheduler.step()
        assert drivers[0].param_groups[0]["lr"] == drivers[1].param_groups[0]["lr"]
    close(ours.weight, theirs.weight, terms=600)


def test_reduce_on_plateau_and_changes_by_hand():
    module, optimizer = trained(se.SGD(lr=1.0), steps=0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    rates = []
    for change in (None, "plateau", 0.1, torch.tensor(0.3)):
        if change == "plateau":
            scheduler.step(1.0)
            scheduler.step(1.0)
        elif change is not None:
            optimizer.param_groups[0]["lr"] = change
        before = module.weight.detach()[5].clone()
        optimizer.zero_grad()
        module(torch.tensor([5])).sum().backward()
        optimizer.step()
        rates.append(float((before - module.weight.detach()[5])[0]))
    np.testing.assert_allclose(rates, [1.0, 0.5, 0.1, 0.3], rtol=1e-6)


def test_a_learning_rate_that_is_a_function():
    rule = se.SGD(lr=lambda step: 1.0 / step)
    module, optimizer = trained(rule, steps=0)
    for k in range(1, 4):
        assert optimizer.param_groups[0]["lr"] == 1 / k
        before = module.weight.detach()[5].clone()
        optimizer.zero_grad()
        module(torch.tensor([5])).sum().backward()
        optimizer.step()
        close(before - module.weight[5], torch.full((D,), 1 / k))
    saved = optimizer.state_dict()
    other = st.Optimizer(module.parameters(), rule)
    other.load_state_dict(saved)
    assert module.table.step == 3
    train(module, other, [0])
    other.param_groups[0]["lr"] = 0.1
    module(torch.tensor([5])).sum().backward()
    with pytest.raises(ValueError, match="schedule it in one place"):
        other.step()


def test_groups_have_their_own_rules_and_rates():
    modules = [st.Embedding(V, D) for _ in range(3)]
    groups = [
        {"params": modules[0].weight},
        {"params": [modules[1].weight], "lr": 1.0},
        {"params": modules[2].parameters(), "rule": se.SparseAdam(eps=1e-3), "betas": [0.5, 0.6]},
    ]
    optimizer = st.Optimizer(groups, se.SGD(lr=0.1))
    assert [module.optimizer for module in modules] == [
        se.SGD(lr=0.1), se.SGD(lr=1.0), se.SparseAdam(eps=1e-3, betas=(0.5, 0.6))
    ]  # fmt: skip
    assert set(optimizer.param_groups[2]) == {"params", "lr", "betas", "eps"}
    assert optimizer.param_groups[2]["lr"] == 1e-3
    before = [module.weight.detach().clone() for module in modules]
    for module in modules:
        module(torch.tensor([1])).sum().backward()
    optimizer.step()
    changes = [float((b - m.weight.detach())[1, 0]) for b, m in zip(before, modules, strict=True)]
    np.testing.assert_allclose(changes[:2], [0.1, 1.0], rtol=1e-6)
    assert 0 < changes[2] < 2e-3
    optimizer.load_state_dict(optimizer.state_dict())
    late = st.Embedding(V, D)
    optimizer.add_param_group({"params": late.parameters(), "lr": 0.5})
    assert late.optimizer == se.SGD(lr=0.5)
    named = st.Optimizer(late.named_parameters(), se.SGD(lr=0.1))
    assert named.state_dict()["param_groups"][0]["param_names"] == ["weight"]


def test_a_step_without_gradient_is_no_step_of_that_table():
    """As for torch's optimizers, sparse and dense."""
    for rule, theirs in ((SPARSE["SparseAdam"]), DENSE["Adam"]):
        modules = [st.Embedding(V, D) for _ in range(2)]
        others = [torch.nn.Embedding(V, D, sparse=theirs is torch.optim.SparseAdam) for _ in range(2)]
        for module, other in zip(modules, others, strict=True):
            other.load_state_dict(module.state_dict())
        optimizer = st.Optimizer([module.weight for module in modules], rule)
        reference = theirs([other.weight for other in others], **options_of(rule))
        for k in range(6):
            optimizer.zero_grad()
            reference.zero_grad()
            for tables in (modules, others):
                for table in tables[: 1 + k % 2]:
                    table(*lookups("Embedding", k)).pow(2).sum().backward()
            optimizer.step()
            reference.step()
        assert [module.table.step for module in modules] == [6, 3]
        for module, other in zip(modules, others, strict=True):
            close(module.weight, other.weight, terms=600)
    optimizer.zero_grad(set_to_none=False)  # a gradient of zero is one, of a dense optimizer and of ours
    optimizer.step()
    assert [module.table.step for module in modules] == [7, 4]


def test_closure():
    module, optimizer = trained(se.SGD(lr=0.1), steps=0)

    def closure():
        optimizer.zero_grad()
        loss = module(torch.tensor([5, 6])).pow(2).sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert module.table.step == 5


def test_accumulation():
    """Two half batches are a batch."""
    (one, first), (two, second) = trained(steps=0), trained(steps=0)
    for k in range(3):
        first.zero_grad()
        second.zero_grad()
        (ids,) = lookups("Embedding", k)
        one(ids).pow(2).sum().backward()
        for half in (ids[:5], ids[5:]):
            two(half).pow(2).sum().backward()
        first.step()
        second.step()
    close(one.weight, two.weight, terms=100)
    assert two.table.step == 3


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_grad_scaler(scale):
    """Unscales sparse gradients, and skips a step with an infinite one."""
    (one, first), (two, second) = trained(steps=0), trained(steps=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100)
    for k in range(4):
        first.zero_grad()
        second.zero_grad()
        (ids,) = lookups("Embedding", k)
        factor = float("inf") if k == 2 else 1.0
        scaler.scale(one(ids).pow(2).sum() * factor).backward()
        scaler.unscale_(first)
        st.clip_grad_norm_(one.parameters(), 1e6)
        scaler.step(first)
        scaler.update()
        if k != 2:
            two(ids).pow(2).sum().backward()
            second.step()
    assert one.table.step == 3
    assert scaler.get_scale() == scale / 2
    close(one.weight, two.weight, terms=100)


def test_hooks_see_and_change_the_gradient():
    module, optimizer = trained(se.SGD(lr=1.0), steps=0)
    seen = []
    module.weight.register_hook(lambda g: seen.append(g) or g * 2)
    before = module.weight.detach()[5].clone()
    module(torch.tensor([5])).sum().backward()
    optimizer.step()
    assert seen[0].is_sparse
    close(before - module.weight[5], torch.full((D,), 2.0))


def test_uncoalesced_gradients_from_elsewhere():
    module, optimizer = trained(se.SGD(lr=1.0), steps=0)
    before = module.weight.detach().clone()
    torch.nn.functional.embedding(torch.tensor([5, 4, 5]), module.weight, sparse=True).sum().backward()
    optimizer.step()
    change = (before - module.weight).detach()[:, 0]
    assert change[[4, 5]].tolist() == pytest.approx([1, 2])


def test_dense_gradients_are_refused():
    module = st.Embedding(V, D)
    before = module.weight.detach().clone()
    first = st.Embedding(V, D)
    optimizer = st.Optimizer([first.weight, module.weight], se.SGD(lr=0.1))
    (module.weight.sum() + module(torch.tensor([1])).sum() + first(torch.tensor([1])).sum()).backward()
    with pytest.raises(RuntimeError, match="dense gradient"):
        optimizer.step()
    assert torch.equal(module.weight, before)
    assert first.table.step == 0


def test_another_optimizer_takes_over():
    module, optimizer = trained()
    other = st.Optimizer(module.parameters(), se.SGD(lr=0.1))
    assert module.table.step == 0
    module(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="another Optimizer"):
        optimizer.step()
    other.step()
    assert module.table.step == 1
    del other
    gc.collect()
    train(module, st.Optimizer(module.parameters(), se.SGD(lr=0.1)), [1])


def test_frozen_and_unfrozen():
    module, optimizer = trained(steps=1)
    module.requires_grad_(False)
    before = module.weight.detach().clone()
    optimizer.zero_grad()
    assert not module(torch.tensor([1])).requires_grad
    optimizer.step()
    assert torch.equal(module.weight, before)
    module.requires_grad_(True)
    for _ in range(2):
        module(torch.tensor([1])).sum().backward()
    assert module.weight.grad.is_coalesced()
    optimizer.step()
    assert module.table.step == 2


def test_flush_brings_parameters_up_to_date():
    module, optimizer = trained(se.Adam(lr=0.1))
    optimizer.zero_grad()
    module(torch.tensor([V - 1])).sum().backward()
    optimizer.step()
    parameter = next(module.parameters())
    stale = parameter.detach().clone()
    optimizer.flush()
    assert not torch.equal(parameter, stale)
    assert torch.equal(module.weight, parameter)


def test_what_is_refused():
    linear, module = torch.nn.Linear(2, 2), st.Embedding(V, D)
    with pytest.raises(ValueError, match=r"params\[1\] is no weight of .*dense_parameters"):
        st.Optimizer([module.weight, linear.weight], se.SGD(lr=0.1))
    assert module.optimizer is None
    for rule in ("adam", None, torch.optim.SparseAdam):
        with pytest.raises(TypeError, match="rule must be a sparsembed rule"):
            st.Optimizer([module.weight], rule)
    with pytest.raises(TypeError, match=r"'maximize'.* no hyperparameters of SGD"):
        st.Optimizer([{"params": module.weight, "maximize": True}], se.SGD(lr=0.1))
    with pytest.raises(TypeError, match="rule of a group"):
        st.Optimizer([{"params": module.weight, "rule": 1}], se.SGD(lr=0.1))
    with pytest.raises(ValueError, match="max_norm does not go with"):
        st.Optimizer(st.Embedding(V, D, max_norm=1.0).parameters(), se.Adam(lr=0.1))
    with pytest.raises(ValueError, match="empty parameter list"):
        st.Optimizer([], se.SGD(lr=0.1))
    optimizer = st.Optimizer([module.weight], se.SGD(lr=0.1))
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group([module.weight])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": module.weight})
    optimizer.param_groups[0]["lr"] = -1.0
    module(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    assert grad(module).sum() == D


@pytest.mark.parametrize("module", [st.Embedding, st.EmbeddingBag])
def test_a_batch_without_ids_adds_to_others(module):
    embedding = module(6, 3)
    st.Optimizer([embedding.weight], se.SGD(lr=1.0))
    none, some = torch.zeros((0, 2), dtype=torch.long), torch.tensor([[1, 2], [1, 4]])
    embedding(some).sum().backward()
    expected = embedding.weight.grad.to_dense()
    for batches in ((none, some), (some, none), (none, none, some)):
        embedding.weight.grad = None
        for ids in batches:
            embedding(ids).sum().backward()
        torch.testing.assert_close(embedding.weight.grad.to_dense(), expected)

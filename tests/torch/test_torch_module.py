"""The life of a module: saved, copied, moved, shared with workers, compiled; its table follows."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from programs import python
from torch_cases import close, grad

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")
V, D = 20, 4
IDS = torch.tensor([[3, 1], [1, 7]])
MODULES = {
    "Embedding": lambda **options: st.Embedding(V, D, **options),
    "EmbeddingBag": lambda **options: st.EmbeddingBag(V, D, mode="sum", **options),
}
RULES = [se.SparseAdam(lr=0.1), se.Adam(lr=0.1), se.SGD(lr=0.1, momentum=0.9), se.RowwiseAdagrad(lr=0.1)]


def fused(kind="Embedding", rule=RULES[1]):
    return MODULES[kind](fused=True, optimizer=rule)


def train(module, steps=3):
    for _ in range(steps):
        module(IDS).pow(2).sum().backward()
    return module


def same(a, b):
    """Whether two fused modules have the same rows, state and step, now and after another step."""
    for _ in range(2):
        one, other = a.table.state_dict(), b.table.state_dict()
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
        train(a, 1)
        train(b, 1)


def apart(a, b):
    """Whether training one leaves the other alone."""
    before = b.weight.detach().clone()
    train(a, 1)
    assert torch.equal(b.weight, before)
    assert not np.shares_memory(a.table.weight, b.table.weight)


def in_step(module):
    """Whether weight and table are the same memory."""
    assert module.table.weight.ctypes.data == module.weight.data_ptr()
    ids = IDS[:, 0]
    found = module(ids) if isinstance(module, st.Embedding) else module(ids[:, None])
    assert torch.equal(found, module.weight[ids])


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_whole_and_apart(how, rule, kind):
    module = train(fused(kind, rule))
    if how == "deepcopy":
        other = copy.deepcopy(module)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert other.fused
    assert other.optimizer == rule
    same(module, other)
    apart(module, other)
    in_step(other)


@pytest.mark.parametrize("kind", MODULES)
def test_copies_of_unfused_modules(kind):
    module = MODULES[kind](padding_idx=1)
    module(IDS).sum().backward()
    for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))):
        assert other.weight.requires_grad
        assert torch.equal(other.weight, module.weight)
        other.zero_grad()
        other(IDS).sum().backward()
        other(IDS).sum().backward()
        assert other.weight.grad.is_coalesced()
        in_step(other)
    assert copy.copy(module).weight is module.weight
    assert copy.copy(module).table is module.table


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("mine", [{}, {"fused": True, "optimizer": RULES[1]}], ids=["unfused", "fused"])
def test_state_dict_goes_both_ways(kind, mine):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(V, D, padding_idx=2)
    theirs.weight.data[2] = 5
    ours = MODULES[kind](padding_idx=2, **mine)
    if mine:
        train(ours)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(ours.weight, theirs.weight)  # the padding row, too
    train(ours, 2)
    assert list(ours.state_dict()) == ["weight"]
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True)["weight"], ours.weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict({"weight": torch.ones(V + 1, D)})


def test_load_state_dict_restarts_the_history_and_keeps_the_state():
    """Rows that are loaded do not catch up with steps from before; moments go on, as an optimizer's do in torch."""
    module, weight = train(fused(), 7), torch.randn(V, D)
    module(torch.tensor([9])).sum().backward()  # the rows of IDS have a step to catch up with
    module.load_state_dict({"weight": weight})
    assert torch.equal(module.weight, weight)
    assert module.table.step == 8
    module(torch.tensor([15])).sum().backward()
    assert not torch.equal(module.weight[IDS], weight[IDS])  # their moments move them on


@pytest.mark.parametrize("how", ["load_state_dict(assign=True)", "weight =", "weight.data =", "parameter.data ="])
def test_weight_may_be_replaced(how):
    module, weight = train(fused("EmbeddingBag", RULES[0])), torch.randn(V, D)
    if how == "weight =":
        module.weight = torch.nn.Parameter(weight)
    elif how == "weight.data =":
        module.weight.data = weight
    elif how == "parameter.data =":
        next(module.parameters()).data = weight
    else:
        module.load_state_dict({"weight": weight}, assign=True)
    in_step(module)
    assert module.table.step == 3  # rule and state stay
    assert module.weight.data_ptr() == weight.data_ptr()
    before = weight.clone()
    train(module, 1)
    assert not torch.equal(weight, before)


def test_memory_replaced_behind_the_back_of_rows_that_catch_up():
    module = train(fused())
    parameter = next(module.parameters())
    module(torch.tensor([9])).sum().backward()
    with torch._C.DisableTorchFunctionSubclass():  # as code that is not Python does
        parameter.data = torch.randn(V, D)
    with pytest.raises(RuntimeError, match="brings them up to date"):
        module(IDS)


def test_reading_weight_and_state_dict_bring_rows_up_to_date():
    module, dense = fused(), torch.nn.Embedding(V, D)
    dense.load_state_dict(module.state_dict())
    optimizer = torch.optim.Adam(dense.parameters(), lr=0.1)
    for ids in (IDS, IDS + 1, IDS + 12):
        optimizer.zero_grad()
        for each in (module, dense):
            each(ids).pow(2).sum().backward()
        optimizer.step()
    close(module.state_dict()["weight"], dense.weight, terms=100)
    module(IDS).pow(2).sum().backward()
    optimizer.zero_grad()
    dense(IDS).pow(2).sum().backward()
    optimizer.step()
    close(module.weight, dense.weight, terms=100)
    close(module(torch.arange(V)), dense.weight, terms=100)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_double_and_float(kind, overwrite):
    torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
    try:
        module = train(fused(kind))
        moments = module.table.state["exp_avg"].copy()
        module.double()
        in_step(module)
        assert module.table.weight.dtype == np.float64
        np.testing.assert_array_equal(module.table.state["exp_avg"], moments.astype(np.float64))
        assert module.table.step == 3
        train(module)
        assert module.table.step == 6
        module.float()
        in_step(module)
        assert module.table.state["exp_avg"].dtype == np.float32
        train(module)
        assert module.table.step == 9
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def test_double_converts_the_gradient_and_the_optimizer_goes_on():
    module = st.Embedding(V, D)
    optimizer = st.Optimizer(module.parameters(), se.Adagrad(lr=0.1))
    module(IDS).sum().backward()
    optimizer.step()
    module.double()
    assert module.weight.grad.dtype == torch.float64
    optimizer.step()
    assert module.table.step == 2
    assert module.table.state["sum"].dtype == np.float64


@pytest.mark.parametrize("to", ["half", "bfloat16", "meta"])
def test_what_weight_cannot_become(to):
    model = torch.nn.Sequential(st.Embedding(V, D))
    before = model[0].weight.detach().clone()
    with pytest.raises(TypeError, match=r"expected host memory|must be torch.float32 or torch.float64"):
        model.to("meta") if to == "meta" else getattr(model, to)()
    in_step(model[0])
    assert torch.equal(model[0].weight, before)


def test_to_empty_and_share_memory():
    module = train(fused())
    weight = module.weight.detach().clone()
    module.share_memory()
    assert module.weight.is_shared()
    assert torch.equal(module.weight, weight)
    in_step(module)
    train(module, 1)
    assert not torch.equal(module.weight, weight)
    assert module.weight.is_shared()
    module.to_empty(device="cpu")
    torch.nn.init.uniform_(module.weight)  # memory that nobody has written to may hold NaN, which equals nothing
    in_step(module)


class Looked(torch.utils.data.Dataset):
    """Looks rows up in a worker."""

    def __init__(self, modules):
        self.modules = modules

    def __len__(self):
        return 3

    def __getitem__(self, i):
        with torch.no_grad():
            return torch.cat([module(IDS + i).reshape(-1) for module in self.modules])


@pytest.mark.filterwarnings("ignore:.*fork")  # of Python >= 3.12, and of JAX if a test before imported it
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_data_loader_workers(how):
    """And training goes on in the parent, whose weight torch moves to shared memory when it spawns."""
    modules = [train(fused()), train(st.EmbeddingBag(V, D, mode="sum")), fused("EmbeddingBag", RULES[0])]
    data = Looked(modules)
    expected = [data[i] for i in range(3)]
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=how)
    for found, each in zip(loader, expected, strict=True):
        assert torch.equal(found, each)
    for module in modules:
        assert next(module.parameters()).is_shared() == (how == "spawn")
        in_step(module)
        train(module, 1)
        in_step(module)
    assert modules[0].table.step == 4


class Net(torch.nn.Module):
    def __init__(self, table, bag):
        super().__init__()
        self.before, self.after = torch.nn.Linear(D, D), torch.nn.Linear(D, 1)
        self.table, self.bag = table, bag

    def forward(self, ids, dense):
        return self.after(torch.relu(self.before(dense)) + self.table(ids))

    def both(self, ids, dense):
        return self.after(self.before(dense) + self.table(ids) + self.bag(ids[:, None]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's compiler
@pytest.mark.parametrize("mode", ["unfused", "fused"])
def test_compiled_models_break_once_for_each_lookup(mode):
    options = {"fused": True, "optimizer": se.SGD(lr=0.1)} if mode == "fused" else {}
    torch.manual_seed(0)
    net = Net(st.Embedding(V, D, **options), st.EmbeddingBag(V, D, **options))
    other = copy.deepcopy(net)
    ids, dense = torch.tensor([3, 1, 3]), torch.randn(3, D)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(net.forward)(ids, dense)
    assert (explained.graph_count, explained.graph_break_count) == (2, 1)
    assert torch._dynamo.explain(net.both)(ids, dense).graph_break_count == 2
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager")
    for _ in range(3):
        outputs = [each(ids, dense) for each in (compiled, other)]
        assert torch.equal(*outputs)
        for output in outputs:
            output.sum().backward()
    if mode == "unfused":
        close(grad(net.table), grad(other.table))
    else:
        assert net.table.table.step == 3
    assert torch.equal(net.table.weight, other.table.weight)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        torch.compile(net, backend="eager", fullgraph=True)(ids, dense)
    torch._dynamo.reset()


def test_importing_does_not_load_the_compiler():
    script = "import sys, sparsembed.torch as st, torch; st.Embedding(3, 2)(torch.tensor([1])).sum().backward()"
    assert python(script + "; print('torch._dynamo' in sys.modules)").split() == ["False"]


@pytest.mark.parametrize("kind", MODULES)
def test_autocast(kind):
    """float32 out, as torch's; gradients that come back in bfloat16 arrive as float32."""
    module, layer = MODULES[kind](), torch.nn.Linear(D, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(IDS)
        assert output.dtype == torch.float32
        result = layer(output)
        assert result.dtype == torch.bfloat16
        result.sum().backward()
    assert module.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("mine", [{}, {"fused": True, "optimizer": RULES[1]}], ids=["unfused", "fused"])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_nothing_is_recorded_without_gradients(kind, mine, guard):
    module = MODULES[kind](**mine)
    expected = module(IDS)
    with guard():
        output = module.eval()(IDS)
    assert not output.requires_grad
    assert output.grad_fn is None
    assert torch.equal(output, expected)
    train(module, 1)


def test_modules_that_share_a_weight_share_a_table():
    one, two = st.Embedding(V, D), st.EmbeddingBag(V, D, mode="sum")
    two.weight = one.weight
    model = torch.nn.ModuleList([one, two])
    (parameter,) = st.table_parameters(model)
    optimizer = st.Optimizer([parameter], se.Adam(lr=0.1))
    (one(IDS).sum() + two(IDS).sum()).backward()
    optimizer.step()
    assert one.table is two.table
    assert one.table.step == 1
    other = copy.deepcopy(model)
    assert other[0].weight is other[1].weight
    assert other[0].table is other[1].table
    apart = st.Embedding(V, D, padding_idx=1)
    with pytest.raises(RuntimeError, match="must agree"):
        apart.load_state_dict({"weight": parameter}, assign=True)
    in_step(apart)
    assert apart.weight is not parameter


UNUSABLE = {
    "half": (torch.ones(V, D, dtype=torch.float16), "must be torch.float32 or torch.float64, got torch.float16"),
    "meta": (torch.ones(V, D, device="meta"), "expected host memory"),
    "expanded": (torch.ones(1, D).expand(V, D), "uses some memory for two elements"),
}


@pytest.mark.parametrize("how", ["load_state_dict(assign=True)", "weight ="])
@pytest.mark.parametrize("mine", [{}, {"fused": True, "optimizer": RULES[1]}], ids=["unfused", "fused"])
@pytest.mark.parametrize("case", UNUSABLE)
def test_a_weight_that_no_table_can_lie_in_is_refused_and_the_old_one_kept(case, mine, how):
    weight, message = UNUSABLE[case]
    module = MODULES["Embedding"](**mine)
    before, parameter = module.weight.detach().clone(), module.weight
    if how == "weight =":
        with pytest.raises((TypeError, ValueError), match=message):
            module.weight = torch.nn.Parameter(weight)
    else:
        with pytest.raises(RuntimeError, match=message):
            module.load_state_dict({"weight": weight}, assign=True)
    assert module.weight is parameter
    assert torch.equal(module.weight, before)
    in_step(module)
    train(module, 1)


def test_a_fused_table_keeps_its_shape():
    module = fused()
    with pytest.raises(ValueError, match=r"must keep its shape \(20, 4\), got \(21, 4\)"):
        module.weight = torch.nn.Parameter(torch.ones(V + 1, D))
    same(module, copy.deepcopy(module))


def test_a_weight_that_is_no_parameter_is_refused():
    module = st.Embedding(V, D)
    torch.nn.utils.parametrize.register_parametrization(module, "weight", torch.nn.Identity())
    with pytest.raises(RuntimeError, match="cannot be parametrized"):
        module(IDS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fused": True}, ValueError, "needs optimizer="),
        ({"optimizer": RULES[0]}, ValueError, "optimizer= is for fused=True"),
        ({"fused": 1, "optimizer": RULES[0]}, TypeError, "fused must be True or False"),
        ({"fused": True, "optimizer": "adam"}, TypeError, "optimizer must be a sparsembed optimizer"),
        ({"fused": True, "optimizer": RULES[1], "max_norm": 1.0}, ValueError, "max_norm does not go with"),
    ],
)
@pytest.mark.parametrize("kind", MODULES)
def test_options_that_exclude_each_other(kind, options, error, message):
    with pytest.raises(error, match=message):
        MODULES[kind](**options)
    if options.get("optimizer") == RULES[0] and options.get("fused") is True:
        return
    with pytest.raises(ValueError, match="cannot be frozen"):
        getattr(st, kind).from_pretrained(torch.ones(3, 2), fused=True, optimizer=RULES[0])

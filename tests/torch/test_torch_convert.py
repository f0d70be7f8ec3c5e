"""convert: the embeddings of a model become tables, in place, or are left with a reason."""

import copy
import pickle
import re

import pytest
import torch
from torch.nn.utils import parametrizations, prune
from torch_cases import close

import sparsembed as se
import sparsembed.torch as st
from sparsembed.torch import _convert
from sparsembed.torch._weight import TABLES

pytestmark = pytest.mark.usefixtures("strict_torch")
V, D = 12, 4
IDS = torch.tensor([[3, 1, 3], [0, 7, 1]])


class Model(torch.nn.Module):
    """Embeddings of all kinds: nested, shared, with a shared weight, frozen, in float64."""

    def __init__(self, sparse=False):
        super().__init__()
        options = {"sparse": sparse}
        self.words = torch.nn.Embedding(V, D, padding_idx=0, **options)
        self.bags = torch.nn.ModuleDict({m: torch.nn.EmbeddingBag(V, D, mode=m) for m in ("sum", "mean", "max")})
        self.frozen = torch.nn.Embedding.from_pretrained(torch.randn(V, D))
        self.exact = torch.nn.Embedding(V, D, scale_grad_by_freq=True, dtype=torch.float64)
        self.again = torch.nn.Sequential(self.words)
        self.twin = torch.nn.Embedding(V, D, padding_idx=0, **options)
        self.twin.weight = self.words.weight
        self.output = torch.nn.Linear(D, 1)

    def forward(self, ids):
        found = [each(ids) for each in (self.words, self.again, self.twin, self.frozen, self.exact)]
        total = sum(each.float().sum(1) for each in found) + sum(bag(ids) for bag in self.bags.values())
        return self.output(total).squeeze(1)


def made(**options):
    torch.manual_seed(0)
    return Model(**options)


def tables(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, st.Embedding | st.EmbeddingBag)}


def test_names_weights_and_modules_stay():
    model, twin = made(), made()
    model.eval()
    model.words.train()
    before = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    places = {name: each.data_ptr() for name, each in parameters.items()}
    result, left = st.convert(model)
    assert result is model
    assert left == []
    assert {*tables(model)} == {"words", "bags.sum", "bags.mean", "bags.max", "frozen", "exact", "twin"}
    after = dict(model.named_modules(remove_duplicate=False))
    assert [*after] == [*before]
    assert all(after[name] is before[name] for name in before)
    found = dict(model.named_parameters(remove_duplicate=False))
    assert all(found[name] is parameters[name] and found[name].data_ptr() == places[name] for name in parameters)
    assert [name for name, each in after.items() if each.training] == ["words", "again.0"]
    assert not model.frozen.weight.requires_grad
    assert model.exact(IDS).dtype == torch.float64
    assert model.words.table is model.twin.table is model.again[0].table
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    twin.load_state_dict(model.state_dict())
    model.load_state_dict(twin.state_dict())
    assert "padding_idx=0" in repr(model.words)


@pytest.mark.parametrize("fused", [False, True])
def test_training_is_that_of_the_dense_optimizer(fused):
    model, twin = made(), made()
    rule = se.Adam(lr=0.05)
    options = {"fused": True, "optimizer": rule} if fused else {}
    assert st.convert(model, **options) == (model, [])
    optimizers = [torch.optim.Adam(st.dense_parameters(model), lr=0.05)]
    if not fused:
        optimizers.append(st.Optimizer(st.table_parameters(model), rule))
    others = [torch.optim.Adam(twin.parameters(), lr=0.05)]
    for k in range(5):
        for each, its in ((model, optimizers), (twin, others)):
            for optimizer in its:
                optimizer.zero_grad()
            (each((IDS + k) % V).pow(2).sum() * 0.1).backward()
            for optimizer in its:
                optimizer.step()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        close(mine.float(), theirs.float(), terms=2000)  # also the float64 table computes with float32 gradients
    assert model.words.table.step == model.bags["max"].table.step == 5
    assert model.words.fused is fused
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(other(IDS), model(IDS))
        assert {*tables(other)} == {*tables(model)}
        assert other.words.table is other.twin.table


@pytest.mark.parametrize("kind", [torch.nn.Embedding, torch.nn.EmbeddingBag])
def test_a_model_may_be_an_embedding(kind):
    module = kind(V, D)
    assert st.convert(module) == (module, [])
    assert type(module) is getattr(st, kind.__name__)
    table = module.table
    assert st.convert(module) == (module, [])  # there is nothing left to do
    assert module.table is table
    module(IDS).sum().backward()
    assert module.weight.grad.is_sparse


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # ids require no gradient
def test_hooks_of_modules_stay():
    module, seen = torch.nn.Embedding(V, D), []
    handle = module.register_forward_hook(lambda m, given, out: seen.append("forward"))
    module.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append("backward"))
    module.note = "mine"
    st.convert(module)
    module(IDS).sum().backward()
    handle.remove()
    module(IDS)
    assert seen == ["forward", "backward"]
    assert module.note == "mine"


def test_rows_are_shortened_where_there_is_a_max_norm():
    model, twin = (torch.nn.Embedding(V, D, max_norm=0.5, _weight=torch.ones(V, D)) for _ in range(2))
    st.convert(model)
    close(model(IDS), twin(IDS))
    close(model.weight.norm(dim=1), torch.full((V,), 0.5))


class Own(torch.nn.Embedding):
    pass


def tied():
    model = torch.nn.Sequential(torch.nn.Embedding(V, D), torch.nn.Linear(D, V, bias=False))
    model[1].weight = model[0].weight
    return model


def in_one_memory():
    model = torch.nn.Sequential(torch.nn.Embedding(V, D), torch.nn.Linear(D, V, bias=False))
    model[1].weight.data = model[0].weight.data
    return model


def shared(*options):
    model = torch.nn.ModuleList([torch.nn.Embedding(V, D, **each) for each in options])
    model[1].weight = model[0].weight
    return model


def with_table():
    model = torch.nn.ModuleList([st.Embedding(V, D, padding_idx=1), torch.nn.Embedding(V, D)])
    model[1].weight = model[0].weight
    return model


def with_own_code_sharing():
    model = torch.nn.ModuleList([torch.nn.Embedding(V, D), Own(V, D)])
    model[1].weight = model[0].weight
    return model


def one(change=None, **options):
    model = torch.nn.ModuleList([torch.nn.Embedding(V, D, **options)])
    if change is not None:
        change(model[0])
    return model


def replaced(module):
    module.forward = lambda ids: torch.zeros(D)


def with_gradient(module):
    module(IDS).sum().backward()


def of_own_class(module):
    module.weight = type("Mine", (torch.nn.Parameter,), {})(module.weight.data)


def inference(module):
    with torch.inference_mode():
        module.weight = torch.nn.Parameter(torch.zeros(V, D), requires_grad=False)


def both(bag, **options):
    return torch.nn.ModuleList([bag(V, D, **options)])


FUSED = {"fused": True, "optimizer": se.Adam(lr=0.1)}
LEFT = [
    (tied, {}, {"0": r"its weight is 1\.weight, too, which gets dense gradients"}),
    (in_one_memory, {}, {"0": r"its memory is that of 1\.weight"}),
    (lambda: shared({}, {"padding_idx": 1}), {}, {"0": r"is 1\.weight, too, of a module w", "1": r"is 0\.weight, too"}),
    (with_table, {}, {"1": "that of a table with other options"}),
    (with_own_code_sharing, {}, {"0": r"its weight is 1\.weight, too, which was left", "1": "it is a Own, a subclass"}),
    (lambda: one(lambda m: prune.random_unstructured(m, "weight", 0.5)), {}, {"0": "parametrized, pruned"}),
    (lambda: one(parametrizations.spectral_norm), {}, {"0": "parametrized, pruned"}),
    (lambda: one(lambda m: m.register_buffer("counts", torch.zeros(V))), {}, {"0": "it has counts beside its weight"}),
    (lambda: one(replaced), {}, {"0": "its forward was replaced"}),
    (lambda: one(with_gradient), {}, {"0": r"zero_grad\(set_to_none=True\)"}),
    (lambda: one(of_own_class), {}, {"0": r"its weight is a Mine, expected a torch.nn.Parameter"}),
    (lambda: one(inference), {}, {"0": "inference mode"}),
    (lambda: one(lambda m: m.weight.register_hook(lambda g: 2 * g)), {}, {"0": "its weight has hooks"}),
    (lambda: one(dtype=torch.bfloat16), {}, {"0": "float32 or torch.float64, got torch.bfloat16"}),
    (lambda: one(dtype=torch.float16), {}, {"0": "float32 or torch.float64, got torch.float16"}),
    (lambda: one(device="meta"), {}, {"0": "meta device and has no numbers yet"}),
    (lambda: one(max_norm=1.0), FUSED, {"0": "max_norm does not go with Adam"}),
    (lambda: both(torch.nn.EmbeddingBag, mode="max", scale_grad_by_freq=True), {}, {"0": "does not scale gradients"}),
    (lambda: torch.nn.ModuleList([torch.nn.Embedding(0, D)]), {}, {"0": "num_embeddings must be at least 1"}),
    (lambda: torch.nn.DataParallel(torch.nn.Embedding(V, D)), {}, {"module": "convert first, then wrap"}),
]


@pytest.mark.parametrize(("make", "options", "reasons"), LEFT, ids=[str(next(iter(r.values()))) for *_, r in LEFT])
def test_what_is_left(make, options, reasons):
    model = make()
    kinds = [type(each) for each in model.modules()]
    _, left = st.convert(model, **options)
    assert [name for name, _ in left] == [*reasons]
    for name, reason in left:
        assert re.search(reasons[name], reason), reason
    assert [type(each) for each in model.modules()] == kinds


@pytest.mark.parametrize("options", [{}, FUSED], ids=["unfused", "fused"])
def test_what_has_sparse_gradients_already(options):
    """Hooks of a weight and gradients stay, if the optimizer sees them."""
    model = torch.nn.Embedding(V, D, sparse=True)
    model.weight.register_hook(lambda grad: 2 * grad)
    model(IDS).sum().backward()
    _, left = st.convert(model, **options)
    assert [name for name, _ in left] == ([""] if options else [])
    if not options:
        model(IDS).sum().backward()
        assert model.weight.grad.to_dense()[7].tolist() == [4.0] * D


def test_memory_that_runs_out_leaves_the_model(monkeypatch):
    model, made_of = made(), _convert.ParameterTable
    calls = []

    def table(weight, *arguments):
        calls.append(weight)
        if len(calls) == 4:
            raise MemoryError
        return made_of(weight, *arguments)

    monkeypatch.setattr(_convert, "ParameterTable", table)
    kinds = [type(each) for each in model.modules()]
    with pytest.raises(MemoryError):
        st.convert(model, **FUSED)
    assert [type(each) for each in model.modules()] == kinds
    assert not any(each in TABLES for each in model.parameters())
    monkeypatch.undo()
    assert st.convert(model) == (model, [])  # and another way works afterwards
    model(IDS).sum().backward()


def test_the_step_refuses_the_gradient_of_a_weight_that_code_uses_by_itself():
    """Which cannot be seen from outside."""
    module, _ = st.convert(torch.nn.Embedding(V, D))
    optimizer = st.Optimizer([module.weight], se.SGD(lr=0.1))
    (module(IDS).sum() + (torch.ones(1, D) @ module.weight.T).sum()).backward()
    with pytest.raises(RuntimeError, match="dense gradient"):
        optimizer.step()


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ({}, {}, TypeError, "model must be a torch.nn.Module, got dict"),
        (None, {}, TypeError, "got NoneType"),
        (one(), {"fused": True}, ValueError, "needs optimizer="),
        (one(), {"optimizer": se.SGD(lr=0.1)}, ValueError, "for fused=True"),
        (one(), {"optimizer": "adam", "fused": True}, TypeError, "optimizer must be a sparsembed optimizer"),
        (one(), {"fused": 1}, TypeError, "fused must be True or False"),
    ],
)
def test_arguments_that_do_not_fit(model, options, error, message):
    with pytest.raises(error, match=message):
        st.convert(model, **options)
    if isinstance(model, torch.nn.Module):
        assert tables(model) == {}

"""sparsembed.torch.dot beside the same scores of torch.nn.Embedding, which makes all rows."""

import copy

import pytest
import torch
from torch_cases import DTYPES, INTS, close

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")
V, D, PADDING = 20, 5, 3
OFFSETS = torch.tensor([0, 0, 4, 11])


def scores_of(module, ids, x, offsets=None):
    """The scores, by looking all rows up."""
    rows = torch.nn.functional.embedding(ids, module.weight, module.padding_idx)
    if offsets is None:
        scores = (rows * x[:, None]).sum(-1)
    else:
        lengths = torch.cat([offsets, torch.tensor([len(ids)])]).diff()
        scores = (rows * x.repeat_interleave(lengths, dim=0)).sum(-1)
    return scores if module.padding_idx is None else scores * (ids != module.padding_idx)


def inputs(ints=torch.int64, dtype=torch.float32, ragged=False):
    make = torch.Generator().manual_seed(2)
    ids = torch.randint(V, (12,) if ragged else (4, 3), dtype=ints, generator=make)
    x = torch.randn(4, D, dtype=dtype, generator=make).requires_grad_()
    return ids, x, OFFSETS if ragged else None


def modules(kind="Embedding", dtype=torch.float32, padding_idx=PADDING, **options):
    ours = getattr(st, kind)(V, D, padding_idx=padding_idx, dtype=dtype, **options)
    theirs = torch.nn.Embedding(V, D, padding_idx=padding_idx, dtype=dtype)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
    return ours, theirs


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("padding_idx", [None, PADDING])
@pytest.mark.parametrize("ints", INTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_scores_and_both_gradients(kind, dtype, ints, padding_idx, ragged):
    ours, theirs = modules(kind, dtype, padding_idx)
    (ids, x, offsets), push = inputs(ints, dtype, ragged), torch.linspace(-1, 1, 12, dtype=dtype)
    other = x.detach().clone().requires_grad_()
    got, want = st.dot(ours, ids, x, offsets), scores_of(theirs, ids, other, offsets)
    assert got.shape == ids.shape
    close(got, want)
    for scores in (got, want):
        (scores * push.view(ids.shape)).sum().backward()
    close(x.grad, other.grad)
    assert ours.weight.grad.is_sparse
    close(ours.weight.grad.to_dense(), theirs.weight.grad)


@pytest.mark.parametrize("ragged", [False, True])
def test_gradcheck(ragged):
    module = st.Embedding(V, D, padding_idx=PADDING, dtype=torch.float64)
    ids, x, offsets = inputs(dtype=torch.float64, ragged=ragged)
    assert torch.autograd.gradcheck(
        lambda vectors: st.dot(module, ids, vectors, offsets), [x], check_batched_grad=False
    )

    def of_weight(weight):
        module.weight = torch.nn.Parameter(weight.detach().clone())
        found = st.dot(module, ids, x.detach(), offsets)
        (gradient,) = torch.autograd.grad(found, [module.weight], torch.ones_like(found))
        return found.detach(), gradient.to_dense()

    weight = module.weight.detach().clone()
    weight[PADDING] = 0
    before, gradient = of_weight(weight)
    for r, c in [(int(ids.flatten()[0]), 0), (int(ids.flatten()[-1]), D - 1), (PADDING, 1)]:
        moved = weight.clone()
        moved[r, c] += 1e-6
        assert abs(float((of_weight(moved)[0] - before).sum()) / 1e-6 - float(gradient[r, c])) < 1e-6


@pytest.mark.parametrize("rule", [se.SGD(lr=0.1), se.SparseAdam(lr=0.1), se.Adam(lr=0.1)], ids=repr)
@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_fused_steps_are_those_of_the_optimizer(kind, rule):
    """And of a table without torch; lookups and scores of one pass are one step."""
    fused = getattr(st, kind)(V, D, padding_idx=PADDING, optimizer=rule, fused=True)
    plain = getattr(st, kind)(V, D, padding_idx=PADDING)
    plain.load_state_dict(fused.state_dict())
    optimizer = st.Optimizer([plain.weight], rule)
    for seed in range(4):
        ids = torch.randint(V, (6, 3), generator=torch.Generator().manual_seed(seed))
        x = torch.randn(6, D, generator=torch.Generator().manual_seed(seed))
        found = []
        for module in (fused, plain):
            vectors = x.clone().requires_grad_()
            scores = st.dot(module, ids, vectors).sigmoid().sum() + st.dot(module, ids[:2], vectors[:2]).pow(2).sum()
            scores.backward()
            found.append(vectors.grad)
        optimizer.step()
        optimizer.zero_grad()
        close(*found)
    assert fused.table.step == plain.table.step == 4
    close(fused.weight, plain.weight, terms=256)


def test_rows_that_have_missed_steps():
    fused = st.Embedding(V, D, optimizer=se.Adam(lr=0.1), fused=True)
    for k in range(5):
        fused(torch.tensor([k, k + 1])).sum().backward()
    ids, x, _ = inputs()
    with torch.no_grad():
        got = st.dot(fused, ids, x)
        held = fused.table._contents.steps.copy()
        close(got, scores_of(fused, ids, x))
    assert held[1] == 0  # no pass over the table was needed for the scores


def test_eval_mode_takes_no_step_and_no_grad_records_nothing():
    fused = st.Embedding(V, D, optimizer=se.SGD(lr=0.1), fused=True).eval()
    ids, x, _ = inputs()
    before = fused.weight.detach().clone()
    st.dot(fused, ids, x).sum().backward()
    assert x.grad is not None
    assert fused.table.step == 0
    assert torch.equal(fused.weight, before)
    with torch.no_grad():
        assert not st.dot(fused, ids, x).requires_grad
    fused.requires_grad_(False)
    assert st.dot(fused, ids, x).requires_grad  # for x
    assert not st.dot(fused, ids, x.detach()).requires_grad


def test_rows_longer_than_max_norm_are_shortened_copies():
    ours = st.Embedding(V, D, max_norm=0.5)
    with torch.no_grad():
        ours.weight.mul_(100)
    ids, x, _ = inputs()
    rows = ours(ids).detach()
    assert float(rows.norm(dim=-1).max()) < 0.51
    close(st.dot(ours, ids, x), (rows * x[:, None]).sum(-1))
    st.dot(ours, ids, x).sum().backward()
    close(x.grad, rows.sum(1))


def test_a_step_between_forward_and_backward_is_refused():
    module = st.Embedding(V, D)
    optimizer = st.Optimizer([module.weight], se.SGD(lr=0.1))
    ids, x, _ = inputs()
    scores, again = st.dot(module, ids, x), st.dot(module, ids, x.detach())
    again.sum().backward()  # needs no rows
    optimizer.step()
    with pytest.raises(RuntimeError, match="between forward and backward"):
        scores.sum().backward()
    scores = st.dot(module, ids, x * 1)
    other = x * 1
    scores = st.dot(module, ids, other)
    other.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        scores.sum().backward()


def test_second_derivatives_are_refused():
    module, (ids, x, _) = st.Embedding(V, D), inputs()
    (gradient,) = torch.autograd.grad(st.dot(module, ids, x).pow(2).sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.sum().backward()


def test_vectors_of_another_dtype_are_converted():
    module, (ids, x, _) = st.Embedding(V, D), inputs(dtype=torch.float64)
    scores = st.dot(module, ids, x)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert x.grad.dtype == torch.float64
    wide = torch.randn(4, 2 * D)[:, ::2]
    close(st.dot(module, ids, wide), scores_of(module, ids, wide))


class Scorer(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.embedding = module

    def forward(self, ids, x, offsets=None):
        return st.dot(self.embedding, ids, x, offsets)


@pytest.mark.parametrize("ragged", [False, True])
def test_exported_and_transformed(ragged):
    module, (ids, x, offsets) = Scorer(st.Embedding(V, D, padding_idx=PADDING)), inputs(ragged=ragged)
    want = module(ids, x, offsets).detach()
    program = torch.export.export(copy.deepcopy(module), (ids, x.detach(), offsets))
    close(program.module()(ids, x.detach(), offsets), want)
    module.requires_grad_(False)
    gradient = torch.func.grad(lambda vectors: module(ids, vectors, offsets).sum())(x.detach())
    module(ids, x, offsets).sum().backward()
    close(gradient, x.grad)
    module.requires_grad_(True)
    with pytest.raises(NotImplementedError, match="frozen"):
        torch.func.grad(lambda vectors: module(ids, vectors, offsets).sum())(x.detach())


def test_a_row_of_padding_may_hold_anything():
    module, (ids, x, _) = Scorer(st.Embedding(V, D, padding_idx=PADDING)), inputs()
    ids[0, 0] = PADDING
    with torch.no_grad():
        module.embedding.weight[PADDING] = torch.nan
    exported = torch.export.export(copy.deepcopy(module), (ids, x.detach())).module()
    for each in (module, exported):
        x.grad = None
        each(ids, x).sum().backward()
        assert torch.isfinite(x.grad).all()


RECORDED = {
    "exported": lambda module, *given: torch.export.export(module, given),
    "of torch.func": lambda module, ids, x, *more: torch.func.vmap(lambda v: module(ids, v, *more))(x[None]),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_recorded_programs_check_shapes(kind):
    module, (ids, x, _) = Scorer(st.Embedding(V, D)).requires_grad_(False), inputs()
    with pytest.raises(ValueError, match=r"x must have shape \(4, 5\)"):
        RECORDED[kind](module, ids, x.detach()[:1])
    with pytest.raises(ValueError, match="offsets must be None"):
        RECORDED[kind](module, ids, x.detach(), OFFSETS)
    with pytest.raises(ValueError, match=r"input\[:, None\]"):
        RECORDED[kind](module, ids[0], x.detach())


IDS, X, _ = inputs()
REFUSED = {
    "module": (lambda m: st.dot(torch.nn.Embedding(V, D), IDS, X), TypeError, "module must be.*convert"),
    "ids": (lambda m: st.dot(m, IDS.float(), X), TypeError, "input must be int32 or int64"),
    "one axis": (lambda m: st.dot(m, IDS[0], X), ValueError, r"input\[:, None\]"),
    "x": (lambda m: st.dot(m, IDS, None), TypeError, "x must be a tensor of floats, got NoneType"),
    "x of NumPy": (
        lambda m: st.dot(m, IDS, X.detach().numpy()),
        TypeError,
        "x must be a tensor of floats, got ndarray",
    ),
    "x of integers": (lambda m: st.dot(m, IDS, X.long()), TypeError, "x must be a tensor of floats, got torch.int64"),
    "shape of x": (lambda m: st.dot(m, IDS, X[:2]), ValueError, r"x must have shape \(4, 5\).*\(2, 5\)"),
    "outside": (lambda m: st.dot(m, IDS + V, X), IndexError, r"input\[0, 0\] is"),
    "offsets": (lambda m: st.dot(m, IDS, X, OFFSETS), ValueError, "offsets must be None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call(st.Embedding(V, D))

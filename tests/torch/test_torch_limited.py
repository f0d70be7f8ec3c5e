"""max_norm where rows are written from outside: lookups find them shortened, and the next step shortens them."""

import copy

import pytest
import torch
from torch_cases import close, grad

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")
V, D = 20, 4
KINDS = ["Embedding", "sum", "mean", "max"]


def large():
    return torch.randn(V, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 3


def by_init(module):
    torch.manual_seed(5)
    torch.nn.init.normal_(module.weight, std=3)


def by_copy(module):
    with torch.no_grad():
        next(module.parameters()).copy_(large())


def by_data(module):
    module.weight.data.copy_(large())


def by_memory(module):
    module.weight.data = large()


def by_numpy(module):
    module.weight.detach().numpy()[:] = large().numpy()


def by_optimizer(module):
    parameter = next(module.parameters())
    parameter.grad = parameter.detach() - large()
    torch.optim.SGD([parameter], lr=1.0).step()
    parameter.grad = None


WAYS = [by_init, by_copy, by_data, by_memory, by_numpy, by_optimizer]


def modules(kind, fused=False, **options):
    """Ours and torch's, whose rows are short."""
    name = "Embedding" if kind == "Embedding" else "EmbeddingBag"
    options |= {"max_norm": 1.0, "dtype": torch.float64} | ({} if kind == "Embedding" else {"mode": kind})
    own = {"fused": True, "optimizer": se.SGD(lr=0.5)} if fused else {}
    ours, theirs = getattr(st, name)(V, D, **options, **own), getattr(torch.nn, name)(V, D, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def lookup(kind, k):
    """Arguments of step k, of which bags have weights in mode sum."""
    generator = torch.Generator().manual_seed(k)
    ids = torch.randint(0, V, (5, 3), generator=generator)
    if kind != "sum":
        return (ids,), None
    factors = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    return (ids, None, factors.requires_grad_()), factors


def looked(module, kind, k):
    """Look up, and go backward with numbers of order one; returns the output and the weights' gradient."""
    arguments, factors = lookup(kind, k)
    output = module(*arguments)
    (output * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)).sum().backward()
    return output, factors


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_lookups_and_steps_are_those_of_torch(kind, write, padding_idx, fused):
    """Which shortens the rows of a lookup in place."""
    ours, theirs = modules(kind, fused, padding_idx=padding_idx)
    drivers = [torch.optim.SGD(theirs.parameters(), lr=0.5)]
    drivers += [] if fused else [st.Optimizer(ours.parameters(), se.SGD(lr=0.5))]
    for k in range(6):
        if k % 3 == 0:
            for module in (ours, theirs):
                write(module)
        (mine, my_factors), (its, its_factors) = (looked(module, kind, k) for module in (ours, theirs))
        close(mine, its, terms=600)
        if my_factors is not None:
            close(my_factors.grad, its_factors.grad, terms=600)
        if not fused:
            close(grad(ours), grad(theirs), terms=600)
        for each in drivers:
            each.step()
            each.zero_grad()
    everything = torch.arange(V).view(-1, 1)
    close(ours(everything), theirs(everything), terms=600)


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_does_not_write(kind, write):
    """So that a graph which has used the weight before stays valid, unlike torch's (pytorch#26596)."""
    ours, _ = modules(kind)
    write(ours)
    parameter = next(ours.parameters())
    before = parameter.detach().clone()
    assert (before.norm(dim=1) > 1).any()
    layer = torch.ones(D, dtype=torch.float64, requires_grad=True)
    used = (parameter @ layer).sum()
    for _ in range(2):
        ours(*lookup(kind, 1)[0])
        assert torch.equal(parameter, before)
    used.backward()
    close(layer.grad, before.sum(0))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("write", WAYS)
def test_the_next_step_shortens_all_rows(write, fused):
    ours, _ = modules("Embedding", fused)
    optimizer = None if fused else st.Optimizer(ours.parameters(), se.SGD(lr=0.5))
    write(ours)
    parameter = next(ours.parameters())
    stale = (parameter @ torch.ones(D, dtype=torch.float64, requires_grad=True)).sum()
    ours(torch.tensor([1])).sum().backward()
    if optimizer is not None:
        optimizer.step()
    assert (parameter.detach().norm(dim=1) <= 1).all()
    assert (parameter.detach().norm(dim=1) > 0.99).sum() > V // 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # and torch knows
        stale.backward()


@pytest.mark.parametrize("write", WAYS)
def test_the_table_of_the_engine_has_no_long_rows(write):
    ours, _ = modules("Embedding")
    write(ours)
    assert (torch.from_numpy(ours.table.weight).norm(dim=1) <= 1).all()
    twin = copy.deepcopy(ours)
    assert torch.equal(twin(torch.arange(V)), ours(torch.arange(V)))


def test_copies_of_modules_whose_rows_are_long():
    ours, _ = modules("Embedding")
    by_data(ours)
    expected = ours(torch.arange(V))
    twin = copy.deepcopy(ours)
    close(twin(torch.arange(V)), expected)
    assert (expected.norm(dim=1) <= 1).all()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_no_ids_at_all(kind):
    ours, _ = modules(kind)
    by_data(ours)
    none = torch.zeros((2, 0), dtype=torch.int64)
    output = ours(none) if kind != "sum" else ours(none, None, torch.ones(2, 0, requires_grad=True))
    assert torch.equal(output, torch.zeros(2, D, dtype=torch.float64))
    output.sum().backward()
    with pytest.raises(IndexError, match=r"input\[0, 0\] is 20"):
        ours(torch.tensor([[V]]))


def test_under_inference_mode():
    with torch.inference_mode():
        ours = st.Embedding(V, D, max_norm=1.0, dtype=torch.float64)
        ours.weight.copy_(large())
        assert (ours(torch.arange(V)).norm(dim=1) <= 1).all()

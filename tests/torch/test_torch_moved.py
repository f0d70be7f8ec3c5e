"""Weights whose memory torch moves while a graph, or a table in somebody's hands, is alive."""

from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

import sparsembed as se
import sparsembed.torch as st

N = 200_000  # rows: their memory goes back to the system when it is freed, so that reading it ends the process


def shared(module):
    module._parameters["weight"].share_memory_()


def pickled(module):
    """As for a worker that is spawned: torch moves the weight to shared memory, in place."""
    torch.multiprocessing.reductions.init_reductions()
    ForkingPickler.dumps(module)


def replaced(module):
    module.weight.data = module.weight.data.clone()


MOVES = pytest.mark.parametrize("move", [shared, pickled, replaced])


@MOVES
@pytest.mark.parametrize("kind", [st.Embedding, st.EmbeddingBag])
def test_a_fused_step_finds_a_weight_that_moved(move, kind):
    module = kind(N, 4, fused=True, optimizer=se.SGD(lr=1.0), _weight=torch.zeros(N, 4))
    loss = module(torch.tensor([[N - 1, 5]])).sum()
    held = module.table
    move(module)
    loss.backward()
    assert held.step == 1
    assert (module.weight[[N - 1, 5]] < 0).all()
    np.testing.assert_array_equal(held.lookup([N - 1]), module.weight[[N - 1]].detach())
    held.update([7], np.ones((1, 4), np.float32))
    assert (module.weight[7] == -1).all()
    assert held.weight.sum() == module.weight.sum()


@MOVES
@pytest.mark.parametrize("fused", [False, True])
def test_rows_that_moved_are_not_compared_again(move, fused):
    options = {"fused": True, "optimizer": se.SGD(lr=1.0)} if fused else {}
    for mode, factors in (("max", None), ("sum", torch.ones(1, 2, requires_grad=True))):
        module = st.EmbeddingBag(N, 4, mode=mode, **options)
        loss = module(torch.tensor([[N - 1, 5]]), per_sample_weights=factors).sum()
        move(module)
        with pytest.raises(RuntimeError, match="or moved"):
            loss.backward()
        module(torch.tensor([[N - 1, 5]]), per_sample_weights=factors).sum().backward()


@MOVES
def test_an_unfused_step_finds_a_weight_that_moved(move):
    module = st.Embedding(N, 4, _weight=torch.zeros(N, 4))
    optimizer = st.Optimizer(module.parameters(), se.SGD(lr=1.0))
    module(torch.tensor([N - 1, 5])).sum().backward()
    move(module)
    optimizer.step()
    assert (module.weight[[N - 1, 5]] == -1).all()


def test_forward_does_not_write_to_a_weight_it_meets_first():
    weight = torch.nn.Parameter(torch.full((3, 2), 10.0))
    module = st.Embedding(3, 2, max_norm=1.0)
    module.weight = weight
    squares = (weight**2).sum()
    version = weight._version
    assert torch.allclose(module(torch.tensor([1])).norm(), torch.tensor(1.0))
    assert (weight == 10).all()
    assert weight._version == version
    (gradient,) = torch.autograd.grad(squares, weight)
    assert (gradient == 20).all()
    given = torch.full((3, 2), 10.0, requires_grad=True)
    torch.func.functional_call(module, {"weight": given}, (torch.tensor([1]),))
    assert (given == 10).all()


@pytest.mark.parametrize("kind", [st.Embedding, st.EmbeddingBag])
@pytest.mark.parametrize("fused", [False, True])
def test_freezing_between_forward_and_backward(kind, fused):
    options = {"fused": True, "optimizer": se.SGD(lr=1.0)} if fused else {}
    module = kind(4, 2, _weight=torch.zeros(4, 2), **options)
    loss = module(torch.tensor([[1]])).sum()
    module.requires_grad_(False)
    loss.backward()
    assert (module.weight == 0).all()
    assert module.weight.grad is None


def test_a_gradient_from_elsewhere_is_refused_whatever_came_before():
    def fused():
        return st.Embedding(3, 2, fused=True, optimizer=se.SGD(lr=1.0), _weight=torch.zeros(3, 2))

    module = fused()
    with pytest.raises(RuntimeError, match="something other than its lookups"):
        module.weight.pow(2).sum().backward()
    module = fused()
    torch.func.functional_call(module, {"weight": torch.zeros(3, 2, requires_grad=True)}, (torch.tensor([1]),))
    with pytest.raises(RuntimeError, match="something other than its lookups"):
        (module(torch.tensor([1])).sum() + module.weight.sum()).backward()
    assert module.weight.grad is None

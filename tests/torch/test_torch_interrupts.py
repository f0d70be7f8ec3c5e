"""An exception at every line of the host's code, of a step that torch asks for: the table steps, or it does not."""

import numpy as np
import pytest
import torch
from injected import Injected, OutOfMemoryError, free_for_others, held, raised

import sparsembed as se
import sparsembed.torch as st

RULES = {"SparseAdam": se.SparseAdam(lr=0.1), "Adam": se.Adam(lr=0.1), "momentum": se.SGD(lr=0.1, momentum=0.5)}
IDS = torch.tensor([[1, 2, 1], [5, 2, 0]])


def unfused(rule):
    """A module after two steps, and the third one to take."""
    torch.manual_seed(0)
    module = st.Embedding(9, 4)
    optimizer = st.Optimizer(module.parameters(), rule)
    for ids in (IDS, IDS[:1], IDS[1:]):
        optimizer.zero_grad()
        module(ids).pow(2).sum().backward()
        if ids is not IDS[1:]:
            optimizer.step()
    return module, optimizer.step


def fused(rule):
    torch.manual_seed(0)
    module = st.EmbeddingBag(9, 4, mode="sum", optimizer=rule, fused=True)
    for ids in (IDS, IDS[:1]):
        module(ids).pow(2).sum().backward()
    loss = module(IDS[1:]).pow(2).sum()
    return module, loss.backward


def onward(module, step):
    """What comes of a module: rows as they are read, and its state."""
    table = module.table
    found = [module(IDS).detach().numpy().tobytes()]
    table.update(np.array([1, 3]), np.ones((2, 4), np.float32))
    return [*found, table.weight.tobytes(), held(table)]


@pytest.mark.parametrize("make", [unfused, fused])
@pytest.mark.parametrize("rule", RULES)
def test_an_exception_at_every_line_of_a_step(rule, make):
    ends, fresh = make(RULES[rule]), make(RULES[rule])
    ends[1]()
    possible = [held(fresh[0].table), held(ends[0].table)]
    futures = [onward(*fresh), onward(*ends)]
    assert futures[0] != futures[1]
    k = 0
    while True:
        module, step = make(RULES[rule])
        tracer, came = raised(step, k, Injected() if k % 2 else OutOfMemoryError())
        if tracer.where is None:
            break
        now = held(module.table)
        assert now in (possible if came else possible[1:]), f"half done by an exception at {tracer.where}"
        assert free_for_others(module.table), f"locked by an exception at {tracer.where}"
        assert onward(module, step) in futures, f"wrong later on by an exception at {tracer.where}"
        k += 1
    assert k > 10

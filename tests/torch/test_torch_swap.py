"""Modules whose parameters torch converts by swapping tensors (torch.__future__)."""

import pytest
import torch
from torch_cases import DENSE, DIM, ROWS, SPARSE, options_of

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch", "swapping")


@pytest.fixture
def swapping():
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def step(module, optimizer, *ids):
    if optimizer is not None:
        optimizer.zero_grad()
    module(torch.tensor(ids)).pow(2).sum().backward()
    if optimizer is not None:
        optimizer.step()


def load(module):
    module.load_state_dict({"weight": torch.ones_like(module.weight)})


CHANGES = [lambda m: m.double(), lambda m: m.float(), load, lambda m: m.double().float(), lambda m: m.share_memory()]


@pytest.mark.parametrize("change", CHANGES, ids=["double", "float", "load", "there and back", "share"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["SparseAdam", "Adam"])
def test_training_goes_on_in_swapped_parameters(name, fused, change):
    rule, kind = (SPARSE | DENSE)[name]
    own = {"fused": True, "optimizer": rule} if fused else {}
    torch.manual_seed(0)
    module = st.Embedding(ROWS, DIM, **own)
    parameter = module._parameters["weight"]
    other = torch.nn.Embedding(ROWS, DIM, sparse=name == "SparseAdam", _weight=module.weight.detach().clone())
    optimizers = [None if fused else st.Optimizer(module.parameters(), rule)]
    optimizers.append(kind(other.parameters(), **options_of(rule)))
    both = [*zip((module, other), optimizers, strict=True)]
    for each in both:
        step(*each, 1, 2, 2)
        step(*each, 3)
        each[0].zero_grad()  # torch swaps no sparse gradients
    change(module)
    other.to(module.weight.dtype)
    if change is load:
        load(other)
    for state in optimizers[1].state.values():
        state.update({k: v.to(module.weight.dtype) for k, v in state.items() if k != "step"})
    assert module._parameters["weight"] is parameter
    for each in both:
        step(*each, 4)
        step(*each, 1)
    torch.testing.assert_close(module.weight.detach(), other.weight.detach(), rtol=1e-5, atol=1e-5)
    assert module.table.step == 4
    for ids in ([1, 2], [2, 2]):  # and its gradient is still watched
        if not fused:
            module(torch.tensor(ids)).sum().backward()
            assert module.weight.grad.is_coalesced()
    if fused:
        with pytest.raises(RuntimeError, match="something other than its lookups"):
            module.weight.sum().backward()
    with torch.no_grad():
        norms = [next(each.parameters()).norm() for each in (module, other)]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=1e-5)


def test_modules_that_share_a_weight_share_it_afterwards():
    one, other = st.Embedding(ROWS, DIM), st.Embedding(ROWS, DIM)
    other.weight = one.weight
    torch.nn.ModuleList([one, other]).double()
    assert one.weight is other.weight
    assert one.table is other.table
    assert one(torch.tensor([1])).dtype == torch.float64


def test_what_cannot_be_converted_leaves_the_table():
    module = st.Embedding(ROWS, DIM)
    optimizer = st.Optimizer(module.parameters(), se.Adam(lr=0.1))
    step(module, optimizer, 1)
    with pytest.raises(TypeError, match=r"torch\.float16"):
        module.half()
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict({"weight": torch.zeros(ROWS + 1, DIM)})
    step(module, optimizer, 2)
    assert module.table.step == 2

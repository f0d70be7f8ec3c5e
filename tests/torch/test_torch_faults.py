"""Weights that grow, gradients that others hold, norms that overflow, options of modules that are gone, processes."""

import copy
import gc

import numpy as np
import pytest
import torch
from torch_cases import DENSE, DIM, ROWS, SPARSE, close

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")
T = torch.tensor
RULES = {"SGD": se.SGD(lr=1.0), "SparseAdam": SPARSE["SparseAdam"][0], "Adam": DENSE["Adam"][0]}


def grow(module):
    module.weight.data = torch.nn.functional.pad(module.weight.data, (0, 0, 0, 2))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("wrong", [grow, lambda m: setattr(m.weight, "data", m.weight.data.half())])
def test_a_weight_that_grew_is_refused_and_can_be_put_back(name, fused, wrong):
    own = {"fused": True, "optimizer": RULES[name]} if fused else {}
    torch.manual_seed(0)
    module = st.Embedding(ROWS, DIM, **own)
    other = st.Embedding(ROWS, DIM)
    optimizer = st.Optimizer([other.weight, *st.table_parameters(module)], RULES[name])
    twin, its, twins = copy.deepcopy((module, other, optimizer))

    def step(module, other, optimizer, *ids):
        optimizer.zero_grad()
        (module(T(ids)).pow(2).sum() + other(T(ids)).pow(2).sum()).backward()
        optimizer.step()

    for ids in ([1, 2], [3]):
        step(module, other, optimizer, *ids)
        step(twin, its, twins, *ids)
    loss = other(T([1])).sum()
    old = module.weight.detach().clone()
    assert torch.equal(twin.weight, old)  # whose rows catch up at the same step, to the same bits
    wrong(module)
    for use in (
        lambda: module(T([1])),
        lambda: module(T([ROWS + 1])),
        lambda: module.table,
        module.state_dict,
        lambda: module.load_state_dict({"weight": old}),
        lambda: st.clip_grad_norm_(module.parameters(), 1.0),
    ):
        with pytest.raises((ValueError, TypeError), match=r"shape|float64|size"):
            use()
    if not fused:
        optimizer.zero_grad()
        loss.backward()
        with pytest.raises((ValueError, TypeError), match=r"shape|float64"):
            optimizer.step()
    assert other.table.step == 2
    assert module.weight.shape[0] >= ROWS  # reading shows what is there
    module.weight.data = old
    assert module.table.step == 2
    for ids in ([4], [1, 5]):
        step(module, other, optimizer, *ids)
        step(twin, its, twins, *ids)
    assert torch.equal(module.weight, twin.weight)
    assert torch.equal(other.weight, its.weight)
    for slot, expected in zip(module.table.state.values(), twin.table.state.values(), strict=True):
        np.testing.assert_array_equal(slot, expected)


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_a_gradient_that_is_held_stays_the_gradient(kind):
    """As torch's, which accumulates in place."""
    held = []
    for package in (st, torch.nn):
        options = {} if package is st else {"sparse": True}
        module = getattr(package, kind)(6, 2, **options)
        module(T([[1]])).sum().backward()
        module.zero_grad(set_to_none=False)
        gradient = module.weight.grad
        for ids in ([[3, 3]], [[5, 1]], [[3, 4]]):
            module(T(ids)).sum().backward()
            assert gradient is module.weight.grad
        st.clip_grad_norm_([module.weight], 0.5)
        assert gradient is module.weight.grad
        held.append(gradient.to_dense())
    torch.testing.assert_close(*held)


def test_a_gradient_of_torch_that_is_clipped_is_merged_in_place():
    module = torch.nn.Embedding(6, 2, sparse=True)
    module(T([3, 3, 1])).sum().backward()
    gradient = module.weight.grad
    st.clip_grad_norm_(module.parameters(), 1.0)
    assert gradient is module.weight.grad
    torch.testing.assert_close(gradient.to_dense().norm(), T(1.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_type", [2.0, 3.0, 8.0])
@pytest.mark.parametrize(("dtype", "big"), [(torch.float32, 6e31), (torch.float64, 6e290)])
def test_a_norm_overflows_only_if_it_is_too_large(norm_type, dtype, big):
    module, linear = st.Embedding(3, 4, dtype=dtype), torch.nn.Linear(1, 1, bias=False, dtype=dtype)
    (module(T([1])) * big).sum().backward()
    linear.weight.grad = torch.full((1, 1), big, dtype=dtype)
    norm = st.clip_grad_norm_([module.weight, linear.weight], 1.0, norm_type, error_if_nonfinite=True)
    share = 5 ** (-1 / norm_type)
    close(norm / big, torch.full((), 1 / share, dtype=dtype))
    assert norm.dtype == dtype
    close(module.weight.grad.values(), torch.full((1, 4), share, dtype=dtype))
    close(linear.weight.grad, torch.full((1, 1), share, dtype=dtype))


def test_norms_beyond_float32():
    module = st.Embedding(3, 4)
    (module(T([1])) * 3e38).sum().backward()
    assert st.clip_grad_norm_(module.parameters(), 1.0).item() == pytest.approx(6e38)
    torch.testing.assert_close(module.weight.grad.values(), torch.full((1, 4), 0.5), rtol=1e-5, atol=0.0)
    for value in (float("inf"), float("nan")):
        module.zero_grad()
        (module(T([1])) * value).sum().backward()
        with pytest.raises(RuntimeError, match="expected a finite number"):
            st.clip_grad_norm_(module.parameters(), 1.0, error_if_nonfinite=True)
        assert not torch.isfinite(st.clip_grad_norm_(module.parameters(), 1.0))


def call(module, weight, ids):
    return torch.func.functional_call(module, {"weight": weight}, (T(ids),))


@pytest.mark.parametrize("kept", [False, True])
def test_options_of_modules_that_have_the_weight_no_more(kept):
    weight = torch.ones(4, 3, requires_grad=True)
    plain, padded = st.Embedding(4, 3), st.Embedding(4, 3, padding_idx=2)
    call(plain, weight, [1, 2]).sum().backward()
    assert weight.grad.to_dense().sum() == 6
    if not kept:
        del plain
        gc.collect()
    weight.grad = None
    call(padded, weight, [1, 2]).sum().backward()
    assert weight.grad.to_dense().sum() == 3  # the padding row gets none
    if kept:  # and back
        weight.grad = None
        call(plain, weight, [1, 2]).sum().backward()
        assert weight.grad.to_dense().sum() == 6
    last = st.EmbeddingBag(4, 3, max_norm=1.0)
    assert call(last, weight, [[1, 2]]).norm() < 1.00001
    assert (weight == 1).all()


def test_options_of_modules_that_share_a_weight_now():
    one, other = st.Embedding(4, 3), st.Embedding(4, 3, padding_idx=2)
    with pytest.raises(ValueError, match="must agree in options"):
        other.weight = one.weight
    one.weight = torch.nn.Parameter(torch.zeros(4, 3))  # which leaves the first one
    kept = st.Embedding(4, 3)
    parameter = kept.weight
    kept.weight = torch.nn.Parameter(torch.zeros(4, 3))
    other.weight = parameter
    assert other.table.padding_idx == 2
    optimizer = st.Optimizer(other.parameters(), se.Adam(lr=0.1))
    other(T([1])).sum().backward()
    optimizer.step()
    other.weight = torch.nn.Parameter(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="must agree in options"):  # the optimizer's state would be of other options
        kept.weight = parameter


@pytest.mark.parametrize("mode", ["max", "sum"])
def test_a_step_of_the_table_itself_between_forward_and_backward(mode):
    """It tells torch nothing, and changes the rows that backward compares or multiplies with."""
    bag = st.EmbeddingBag(4, 2, mode=mode, fused=True, optimizer=se.SGD(lr=1.0))
    factors = torch.ones(1, 2, requires_grad=True) if mode == "sum" else None
    loss = bag(T([[1, 2]]), per_sample_weights=factors).sum()
    bag.table.update(T([1]), torch.ones(1, 2))
    before = bag.weight.detach().clone()
    with pytest.raises(RuntimeError, match="rows of the table were changed"):
        loss.backward()
    assert torch.equal(bag.weight, before)


@pytest.fixture
def process_group(tmp_path):
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
def test_data_parallel(process_group, options):
    parallel = torch.nn.parallel.DistributedDataParallel
    fused = torch.nn.Sequential(st.Embedding(4, 2, fused=True, optimizer=se.SGD(lr=1.0)), torch.nn.Linear(2, 1))
    model = parallel(fused, **options)
    with pytest.raises(RuntimeError, match=r"fused table cannot be trained in DistributedDataParallel.*Optimizer"):
        model(T([1]))
    with torch.no_grad():
        assert model(T([1])).shape == (1, 1)
    assert fused[0].table.step == 0
    own = torch.nn.Sequential(st.Embedding(4, 2), torch.nn.Linear(2, 1))
    expected = copy.deepcopy(own)
    for name in ("SGD", "Adam"):
        results = []
        for each, called in ((own, parallel(own, **options)), (expected, expected)):
            optimizer = st.Optimizer(st.table_parameters(each), RULES[name])
            for ids in ([1, 2], [2, 3], [0]):
                each.zero_grad()
                called(T(ids)).sum().backward()
                optimizer.step()
            results.append(each[0].weight.detach())
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_with_the_negative_bit(fused):
    """torch keeps conjugates as a bit, and so the gradient of an imaginary part, as in ComplEx."""
    options = {"fused": True, "optimizer": se.SGD(lr=1.0)} if fused else {}
    factor = torch.complex(T([[1.0, 2.0], [3.0, 4.0]]), T([[5.0, 6.0], [7.0, 8.0]]))
    weights = []
    for package, own in ((st, options), (torch.nn, {})):
        parts = [package.Embedding(3, 2, _weight=torch.ones(3, 2), **own) for _ in range(2)]
        real, imaginary = (part(T([0, 1])) for part in parts)
        (factor * torch.complex(real, imaginary).conj()).real.sum().backward()
        gradients = [part.weight.grad for part in parts]
        if fused and package is st:
            weights.append([part.weight.detach() for part in parts])
        elif fused:
            weights.append([torch.ones(3, 2) - each for each in gradients])
        else:
            weights.append([each.to_dense() for each in gradients])
    torch.testing.assert_close(*weights)


def test_the_table_does_not_decide_whose_arrays_a_gradient_of_bags_has():
    bags, grad = se.Bags(np.array([1]), np.array([0, 1])), np.ones((1, 5), np.float32)
    gradient = se.pool_gradient(bags, grad, 40, "max", weight=torch.ones(40, 5))
    assert type(gradient.values) is type(gradient.rows) is np.ndarray
    gradient = se.pool_gradient(bags, torch.from_numpy(grad), 40, "max", weight=np.ones((40, 5), np.float32))
    assert type(gradient.values) is torch.Tensor

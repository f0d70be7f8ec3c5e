"""max_norm, scale_grad_by_freq and sparse tensors as torch has them.  Runs where torch is installed.

torch is not the oracle (that is `sparsembed.reference`): where it is wrong, our documented behaviour is asserted
instead, and the test says so.
"""

import math

import numpy as np
import pytest
from strategies import EPS, dense, numbers, pick_ids

import sparsembed as se

torch = pytest.importorskip("torch")
DTYPES = [np.float32, np.float64]
V, D = 40, 9
FREQ = {"scale_grad_by_freq": True}


@pytest.fixture(autouse=True)
def _strict_torch():
    """Torch says everything every time, and checks its sparse tensors (it warns until told either way)."""
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    with torch.sparse.check_sparse_tensor_invariants():
        yield
    torch.set_warn_always(always)


def close(actual, expected, terms=32):
    """To the rounding of a few dozen operations on numbers of order one."""
    actual, expected = np.asarray(actual), np.asarray(expected.detach())
    tolerance = terms * EPS[expected.dtype]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, strict=True)


RULES = [
    (se.SGD(lr=0.5), lambda p: torch.optim.SGD(p, lr=0.5)),
    (se.SparseAdam(lr=0.1), lambda p: torch.optim.SparseAdam(p, lr=0.1)),
    (se.Adagrad(lr=0.3), lambda p: torch.optim.Adagrad(p, lr=0.3)),
]


@pytest.mark.parametrize(("rule", "optimizer"), RULES, ids=[str(rule) for rule, _ in RULES])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [2.0, 1.0, math.inf, 3.0])
@pytest.mark.parametrize("padding", [None, 0])
def test_every_lookup_of_twenty_steps_with_max_norm(rule, optimizer, dtype, p, padding, rng):
    """torch scales rows when they are looked up, we scale them before: every lookup sees the same."""
    weight, most = numbers(rng, (V, D), dtype), 1.2
    weight[0] = 0
    module = torch.nn.Embedding.from_pretrained(
        torch.tensor(weight), freeze=False, sparse=True, padding_idx=padding, max_norm=most, norm_type=p
    )
    theirs = optimizer(module.parameters())
    ours = se.EmbeddingTable.from_array(weight.copy(), rule, padding_idx=padding, max_norm=most, norm_type=p)
    clipped = 0
    for step in range(20):
        ids = pick_ids(rng, 0 if step == 7 else 30, V, "hot")
        grad_out = numbers(rng, (len(ids), D), dtype)
        theirs.zero_grad()
        out = module(torch.tensor(ids))
        close(ours.lookup(ids), out, terms=40 * (step + 1))
        out.backward(torch.tensor(grad_out))
        theirs.step()
        clipped += bool((np.linalg.norm(module.weight.detach(), p, axis=1) > most * (1 + 1e-6)).any())
        ours.update(ids, grad_out)
    assert clipped == 20  # before the next lookup, torch's own table has rows that are too large
    close(ours.lookup(np.arange(V)), module(torch.arange(V)), terms=1000)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_pooling_with_max_norm(dtype, mode, rng):
    weight, ids, offsets = numbers(rng, (V, D), dtype), pick_ids(rng, 60, V, "zipf"), np.array([0, 0, 20, 60])
    bag = torch.nn.EmbeddingBag.from_pretrained(
        torch.tensor(weight), freeze=False, mode=mode, max_norm=1.2, include_last_offset=True
    )
    table = se.EmbeddingTable.from_array(weight, se.SGD(lr=0.5), max_norm=1.2)
    theirs = torch.optim.SGD(bag.parameters(), lr=0.5)
    for _ in range(3):
        grad_out = numbers(rng, (3, D), dtype)
        theirs.zero_grad()
        out = bag(torch.tensor(ids), torch.tensor(offsets))
        close(table.pool(se.Bags(ids, offsets), mode), out, terms=200)
        out.backward(torch.tensor(grad_out))
        theirs.step()
        table.update_pooled(se.Bags(ids, offsets), grad_out, mode)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 0])
def test_lookups_scaled_by_frequency(dtype, padding, rng):
    weight, ids = numbers(rng, (V, D), dtype), pick_ids(rng, 300, V, "zipf").reshape(3, 100)
    module = torch.nn.Embedding.from_pretrained(
        torch.tensor(weight), freeze=False, padding_idx=padding, scale_grad_by_freq=True
    )
    grad_out = numbers(rng, (3, 100, D), dtype)
    module(torch.tensor(ids)).backward(torch.tensor(grad_out))
    close(dense(se.coalesce(ids, grad_out, V, padding_idx=padding, **FREQ)), module.weight.grad, terms=100)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_scaled_by_frequency(dtype, mode, rng):
    """Every id equally often: else torch 2.13 is wrong on the CPU, see the next test."""
    ids = np.concatenate([rng.permutation(V) for _ in range(3)])
    offsets = np.array([0, 7, 7, 50, 3 * V])
    module = torch.nn.EmbeddingBag(
        V,
        D,
        mode=mode,
        scale_grad_by_freq=True,
        include_last_offset=True,
        dtype=torch.from_numpy(np.zeros(1, dtype)).dtype,
    )
    grad_out = numbers(rng, (4, D), dtype)
    module(torch.tensor(ids), torch.tensor(offsets)).backward(torch.tensor(grad_out))
    close(dense(se.pool_gradient(se.Bags(ids, offsets), grad_out, V, mode, **FREQ)), module.weight.grad)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_mixed_counts_are_right_where_torch_is_not(mode):
    """Row 2 occurs once: its gradient is that of its bag.  torch 2.13 on the CPU divides it by 3, row 1's count.

    https://github.com/pytorch/pytorch/issues/190063.  With lookups instead of bags torch is right.
    """
    ids, offsets, grad_out = np.array([1, 1, 1, 2]), np.array([0, 2, 4]), np.array([[1.0], [1.0]])
    bags = se.Bags(ids, offsets)
    found = dense(se.pool_gradient(bags, grad_out, 3, mode, **FREQ))
    share = 0.5 if mode == "mean" else 1.0
    np.testing.assert_allclose(found.ravel(), [0, share, share], rtol=1e-15)
    weight = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    rows = torch.nn.functional.embedding(torch.tensor(ids), weight, scale_grad_by_freq=True).reshape(2, 2, 1)
    (rows.mean(1) if mode == "mean" else rows.sum(1)).backward(torch.tensor(grad_out))
    close(found, weight.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_twenty_steps_scaled_by_frequency(dtype, rng):
    """With sparse updates, for which torch refuses the option: its dense gradient is the one to equal."""
    weight = numbers(rng, (V, D), dtype)
    module = torch.nn.Embedding.from_pretrained(torch.tensor(weight), freeze=False, scale_grad_by_freq=True)
    theirs = torch.optim.SGD(module.parameters(), lr=0.5)
    ours = se.EmbeddingTable.from_array(weight, se.SGD(lr=0.5), **FREQ)
    for _ in range(20):
        ids = pick_ids(rng, 60, V, "hot")
        grad_out = numbers(rng, (60, D), dtype)
        theirs.zero_grad()
        module(torch.tensor(ids)).backward(torch.tensor(grad_out))
        theirs.step()
        ours.update(ids, grad_out)
    close(ours.weight, module.weight, terms=20 * 60)


def sparse_gradient(rng, dtype, n=300, padding=None):
    """The gradient that nn.Embedding(sparse=True) leaves, and what it is of."""
    ids, grad_out = pick_ids(rng, n, V, "hot"), numbers(rng, (n, D), dtype)
    weight = torch.tensor(numbers(rng, (V, D), dtype))
    module = torch.nn.Embedding.from_pretrained(weight, freeze=False, sparse=True, padding_idx=padding)
    module(torch.tensor(ids)).backward(torch.tensor(grad_out))
    return module.weight.grad, ids, grad_out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 0])
def test_from_an_uncoalesced_tensor(dtype, padding, rng):
    """Summed as `coalesce` sums, in order and in chunks, whatever torch does."""
    tensor, ids, grad_out = sparse_gradient(rng, dtype, n=3000, padding=padding)
    assert not tensor.is_coalesced()
    found = se.RowGradient.from_torch(tensor)
    expected = se.coalesce(ids, grad_out, V, padding_idx=padding)
    assert (found.num_rows, found.dim) == (V, D)
    assert type(found.rows) is type(found.values) is torch.Tensor
    np.testing.assert_array_equal(found.rows.numpy(), expected.rows)
    np.testing.assert_array_equal(found.values.numpy(), expected.values)
    close(dense(expected), tensor.to_dense(), terms=3000)
    assert not tensor.is_coalesced()


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_a_coalesced_tensor_without_a_copy(dtype, rng):
    tensor = sparse_gradient(rng, dtype)[0].coalesce()
    found = se.RowGradient.from_torch(tensor)
    assert found._values.ctypes.data == tensor.values().data_ptr()
    assert found._rows.ctypes.data == tensor.indices().data_ptr()
    back = found.to_torch()
    assert torch.equal(back.indices(), tensor.indices())
    assert torch.equal(back.values(), tensor.values())
    back.values()[:] = 7  # the caller's tensor is not within reach
    assert not (tensor.values() == 7).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("idtype", [np.int32, np.int64])
def test_to_a_tensor(dtype, idtype, rng):
    ids = pick_ids(rng, 300, V, "zipf").astype(idtype)
    gradient = se.coalesce(ids, numbers(rng, (300, D), dtype), V)
    tensor = gradient.to_torch()
    assert tensor.is_coalesced()
    assert (tensor.layout, tuple(tensor.shape), tensor.sparse_dim()) == (torch.sparse_coo, (V, D), 1)
    assert tensor.values().data_ptr() == gradient.values.ctypes.data  # not copied
    np.testing.assert_array_equal(tensor.to_dense().numpy(), dense(gradient), strict=True)
    np.testing.assert_array_equal(dense(gradient + se.RowGradient.from_torch(tensor)), 2 * dense(gradient))


def test_tensors_without_rows_or_of_half_precision():
    empty = se.coalesce([], np.zeros((0, D), np.float32), V).to_torch()
    assert (empty._nnz(), tuple(empty.shape)) == (0, (V, D))
    assert se.RowGradient.from_torch(empty).values.shape == (0, D)
    half = torch.sparse_coo_tensor([[3, 3]], torch.full((2, D), 60000, dtype=torch.float16), (V, D))
    found = se.RowGradient.from_torch(half)
    assert found.values.dtype == torch.float32
    assert (found.values == 120_000).all()  # which float16 cannot hold


@pytest.mark.parametrize("dtype", DTYPES)
def test_torchs_optimizer_takes_our_gradient(dtype, rng):
    """And it steps as with its own, of the same values."""
    weight = numbers(rng, (V, D), dtype)
    parameters = [torch.nn.Parameter(torch.tensor(weight)) for _ in range(2)]
    optimizers = [torch.optim.SparseAdam([each], lr=0.1) for each in parameters]
    for _ in range(3):
        tensor, *_ = sparse_gradient(rng, dtype)
        for parameter, each, grad in zip(
            parameters, optimizers, (tensor, se.RowGradient.from_torch(tensor).to_torch()), strict=True
        ):
            parameter.grad = grad
            each.step()
    close(parameters[0].detach(), parameters[1], terms=300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_global_norm_with_dense_gradients_of_torch(dtype, max_norm, rng):
    """Gradients of kind torch and dense tensors, contiguous or not, as torch's clip_grad_norm_ does it."""
    tensor, *_ = sparse_gradient(rng, dtype)
    ours = se.RowGradient.from_torch(tensor.coalesce())
    before = tensor.coalesce().values().clone()
    kind = before.dtype
    grads = [torch.randn(4, 3, dtype=kind), torch.randn(6, 5, dtype=kind).T, torch.randn(8, dtype=kind)[::2]]
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in (tensor.to_dense(), *grads)]
    for parameter, grad in zip(parameters, (tensor.to_dense(), *grads), strict=True):
        parameter.grad = grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    shared = tensor.coalesce().values()
    pointers = [grad.data_ptr() for grad in grads]
    found = se.clip_by_global_norm([ours], max_norm, dense=grads)
    close(np.asarray(found, dtype), norm, terms=64)
    assert type(ours.values) is torch.Tensor
    # torch divides by norm + 1e-6
    tolerance = 64 * EPS[np.dtype(dtype)] + 2e-6 / found
    np.testing.assert_allclose(dense_torch(ours), parameters[0].grad, rtol=tolerance, atol=1e-7)
    for grad, parameter, pointer in zip(grads, parameters[1:], pointers, strict=True):
        np.testing.assert_allclose(grad, parameter.grad, rtol=tolerance)
        assert grad.data_ptr() == pointer  # in place
    assert torch.equal(shared, before)  # values that the gradient shared with the caller are as they were


def dense_torch(gradient):
    return gradient.to_torch().to_dense().numpy()

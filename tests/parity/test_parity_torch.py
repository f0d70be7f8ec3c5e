"""The same numbers as torch, and torch tensors in, torch tensors out.  Runs where torch is installed.

torch is not the oracle (that is `sparsembed.reference`): where it is wrong, our documented
behaviour is asserted instead, and the test says so.
"""

import copy

import numpy as np
import pytest
from strategies import EPS, dense, numbers, pick_ids

import sparsembed as se

torch = pytest.importorskip("torch")
DTYPES = [np.float32, np.float64]
V, D = 40, 9


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


def batch(rng, dtype, n=150):
    """Weights, zipf ids with padding row 0 among them, bags (some empty), gradients."""
    weight = numbers(rng, (V, D), dtype)
    weight[0] = 0
    ids = pick_ids(rng, n, V, "zipf")
    offsets = np.array([0, 0, 3, 50, 51, 51, 90, n, n])
    return weight, ids, offsets


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 0])
def test_embedding(dtype, padding, rng):
    weight, ids, _ = batch(rng, dtype)
    ids = ids.reshape(5, 30)
    module = torch.nn.Embedding.from_pretrained(torch.tensor(weight), freeze=False, padding_idx=padding)
    out = module(torch.tensor(ids))
    np.testing.assert_array_equal(se.gather(weight, ids), out.detach().numpy(), strict=True)
    grad_out = numbers(rng, out.shape, dtype)
    out.backward(torch.tensor(grad_out))
    close(dense(se.coalesce(ids, grad_out, V, padding_idx=padding)), module.weight.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "weighted"])
def test_embedding_bag(dtype, padding, mode, rng):
    weight, ids, offsets = batch(rng, dtype)
    factors = numbers(rng, len(ids), dtype) if mode == "weighted" else None
    mode = "sum" if mode == "weighted" else mode
    module = torch.nn.EmbeddingBag.from_pretrained(
        torch.tensor(weight), freeze=False, mode=mode, padding_idx=padding, include_last_offset=True
    )
    given = None if factors is None else torch.tensor(factors, requires_grad=True)
    out = module(torch.tensor(ids), torch.tensor(offsets), per_sample_weights=given)
    bags = se.Bags(ids, offsets, factors)
    close(se.pool(weight, bags, mode, padding_idx=padding), out)
    grad_out = numbers(rng, out.shape, dtype)
    out.backward(torch.tensor(grad_out))
    where = {"weight": weight} if mode == "max" else {}
    close(dense(se.pool_gradient(bags, grad_out, V, mode, padding_idx=padding, **where)), module.weight.grad)
    if given is not None:
        close(se.per_sample_weights_gradient(weight, bags, grad_out, padding_idx=padding), given.grad)


def test_max_propagates_nan_where_torch_drops_it():
    """torch 2.13 keeps a NaN only in first place; ours, like a sum, always shows it."""
    weight = np.array([[1.0], [np.nan], [2.0]])
    for ids in ([1, 0, 2], [0, 1, 2], [0, 2, 1]):
        assert np.isnan(se.pool(weight, se.Bags(np.array(ids), [0, 3]), "max")).all()


OPTIMIZERS = [
    (se.SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    (se.SparseAdam(lr=0.1), lambda p: torch.optim.SparseAdam(p, lr=0.1)),
    (
        se.SparseAdam(lr=0.02, betas=(0.7, 0.9), eps=1e-3),
        lambda p: torch.optim.SparseAdam(p, lr=0.02, betas=(0.7, 0.9), eps=1e-3),
    ),
    (se.Adagrad(lr=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    (
        se.Adagrad(lr=0.1, lr_decay=0.3, initial_accumulator_value=0.2, eps=1e-5),
        lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.3, initial_accumulator_value=0.2, eps=1e-5),
    ),
]


@pytest.mark.parametrize(("rule", "optimizer"), OPTIMIZERS, ids=[str(rule) for rule, _ in OPTIMIZERS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 0])
def test_twenty_steps(rule, optimizer, dtype, padding, rng):
    """Sparse gradients with repeated ids, and a learning rate schedule in the last ten steps."""
    weight, *_ = batch(rng, dtype)
    module = torch.nn.Embedding.from_pretrained(torch.tensor(weight), freeze=False, sparse=True, padding_idx=padding)
    theirs, base = optimizer(module.parameters()), rule.lr
    scheduled = {"lr": lambda step: base if step <= 10 else base / step}
    ours = se.EmbeddingTable.from_array(weight, type(rule)(**{**vars(rule), **scheduled}), padding_idx=padding)
    for step in range(1, 21):
        ids = pick_ids(rng, 0 if step == 7 else 60, V, "hot")
        grad_out = numbers(rng, (len(ids), D), dtype)
        theirs.param_groups[0]["lr"] = ours.optimizer.rate(step)
        theirs.zero_grad()
        module(torch.tensor(ids)).backward(torch.tensor(grad_out))
        theirs.step()
        ours.update(ids, grad_out)
    # float32: the roundings of 20 steps, of sums of 60 gradients each
    close(ours.weight, module.weight, terms=20 * 60)
    state = theirs.state[module.weight]
    for name, slot in ours.state.items():
        initial = getattr(rule, "initial_accumulator_value", 0)
        close(slot + slot.dtype.type(initial), state[name], terms=20 * 60)


TOUCHED = [  # eps is zero for Adam: SparseAdam adds it to another root
    (
        se.SGD(lr=0.1, touched_weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    ),
    (
        se.SGD(lr=0.1, momentum=0.8, nesterov=True, touched_weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    (
        se.Adagrad(lr=0.1, lr_decay=0.1, touched_weight_decay=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1, weight_decay=0.1),
    ),
    (
        se.SparseAdam(lr=0.1, eps=0.0, touched_weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, eps=0.0, weight_decay=0.1),
    ),
]


@pytest.mark.parametrize(("rule", "optimizer"), TOUCHED, ids=[str(rule) for rule, _ in TOUCHED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decay_of_touched_rows_is_that_of_all_where_all_are_touched(rule, optimizer, dtype, rng):
    """And the rows that no batch touches do not decay."""
    weight, *_ = batch(rng, dtype)
    parameter = torch.nn.Parameter(torch.tensor(weight[: V // 2]))
    theirs, ours = optimizer([parameter]), se.EmbeddingTable.from_array(weight.copy(), rule)
    for _ in range(10):
        ids = np.concatenate([rng.permutation(V // 2), pick_ids(rng, 60, V // 2, "hot")])
        grad_out = numbers(rng, (len(ids), D), dtype)
        parameter.grad = torch.zeros_like(parameter).index_add_(0, torch.tensor(ids), torch.tensor(grad_out))
        theirs.step()
        ours.update(ids, grad_out)
    close(ours.weight[: V // 2], parameter, terms=10 * 60)
    np.testing.assert_array_equal(ours.weight[V // 2 :], weight[V // 2 :])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tensors_in_tensors_out(dtype, rng):
    """With a table of NumPy memory or of torch's, whose gradients torch tracks or not."""
    ids = torch.tensor([[3, 1], [1, 0]], dtype=dtype)
    bags = se.Bags(ids.reshape(-1), torch.tensor([0, 3, 4]), torch.tensor([1.0, 2.0, 0.5, 1.0], requires_grad=True))
    grad_out = torch.tensor(numbers(rng, (2, 2, D), np.float32))
    for weight in (numbers(rng, (V, D), np.float32), torch.randn(V, D), torch.nn.Parameter(torch.randn(V, D))):
        array = np.asarray(weight.detach() if isinstance(weight, torch.Tensor) else weight)
        gradient = se.coalesce(ids, grad_out, V)
        results = [
            (se.gather(weight, ids), se.gather(array, ids.numpy())),
            (se.gather(weight, se.plan(ids, V)), se.gather(array, ids.numpy())),
            (se.gather(weight, [ids, ids[0]])[1], se.gather(array, ids.numpy()[0])),
            (se.pool(weight, bags), se.reference.pool(array, bags).astype(np.float32)),
            (se.per_sample_weights_gradient(weight, bags, grad_out[0]), None),
            (gradient.rows, np.array([0, 1, 3])),
            (gradient.values, None),
            ((gradient + gradient).scale(0.5).values, gradient.values.numpy()),
            (se.pool_gradient(bags, grad_out[0], V).values, None),
        ]
        for result, expected in results:
            assert type(result) is torch.Tensor
            assert not result.requires_grad
            if expected is not None:
                np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_a_tensor_is_trained_in_place(rng):
    """The table is the tensor's memory, of any strides."""
    for weight in (
        torch.randn(V, D),
        torch.nn.Parameter(torch.randn(V, D)),
        torch.randn(D, V).T,
        torch.randn(2 * V, D)[::2],
    ):
        before, ids = weight.detach().clone(), torch.tensor([3, 1, 3])
        table = se.EmbeddingTable.from_array(weight, se.SGD(lr=1.0))
        assert table.weight.ctypes.data == weight.data_ptr()
        table.update(ids, torch.ones(3, D))
        np.testing.assert_array_equal(weight.detach()[:4], before[:4] - torch.tensor([[0.0], [1], [0], [2]]))
        assert torch.equal(table.lookup(ids), weight.detach()[ids])
        out = torch.empty(3, D)
        assert se.gather(weight, ids, out=out) is out
        assert torch.equal(out, weight.detach()[ids])


def test_a_result_is_a_tensor_of_its_own():
    weight = torch.ones(V, D)
    vectors = se.gather(weight, torch.tensor([1, 2]))
    vectors += 1
    assert (weight == 1).all()
    copy.deepcopy(vectors)


def test_a_gradient_of_tensors_made_by_the_caller():
    """As it is for tensors that an engine other than ours has coalesced."""
    sparse = torch.sparse_coo_tensor([[1, 4, 1]], torch.ones(3, D), (V, D)).coalesce()
    gradient = se.RowGradient(sparse.indices()[0], sparse.values(), V)
    assert torch.equal(gradient.rows, torch.tensor([1, 4]))
    assert torch.equal(gradient.values, sparse.values())  # no warning of a tensor over read-only memory


def test_autograd_function(rng):
    """What an adapter for torch needs: forward, backward for table and weights, equal to torch's own."""
    weight, ids, offsets = batch(rng, np.float64)
    factors = numbers(rng, len(ids), np.float64)

    class Pool(torch.autograd.Function):
        @staticmethod
        def forward(ctx, table, given):
            ctx.saved = table, se.Bags(torch.tensor(ids), torch.tensor(offsets), given)
            return se.pool(*ctx.saved)

        @staticmethod
        def backward(ctx, grad_out):
            table, bags = ctx.saved
            gradient = se.pool_gradient(bags, grad_out, V)
            sparse = torch.sparse_coo_tensor(gradient.rows[None], gradient.values, (V, D))
            return sparse.to_dense(), se.per_sample_weights_gradient(table, bags, grad_out)

    inputs = [torch.tensor(array, requires_grad=True) for array in (weight, factors)]
    assert torch.autograd.gradcheck(Pool.apply, inputs)

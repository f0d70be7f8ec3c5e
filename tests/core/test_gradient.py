"""coalesce, scatter_add and RowGradient: gradients of some rows, as values."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import COMBOS, INPUTS, TRAINED, arrange, assert_close, dense, lookups, numbers, pick_ids

import sparsembed as se
from sparsembed import reference


def make(rng, num_rows=30, n=40, dim=5, dtype=np.float32):
    return se.coalesce(rng.integers(0, num_rows, n), numbers(rng, (n, dim), dtype, grid=True), num_rows)


@given(lookups(COMBOS), st.booleans())
def test_coalesce(case, padded):
    num_rows, padding = len(case.weight), 0 if padded else None
    gradient = se.coalesce(case.ids, case.grad_out, num_rows, padding_idx=padding)
    np.testing.assert_array_equal(gradient.rows, np.setdiff1d(case.ids, [padding] if padded else []))
    assert (gradient.num_rows, gradient.dim) == case.weight.shape
    assert gradient.rows.dtype == case.ids.dtype
    assert gradient.values.dtype == case.grad_out.dtype
    expected = reference.coalesce(case.ids, case.grad_out, num_rows)
    scale = reference.coalesce(case.ids, np.abs(case.grad_out), num_rows)
    counts = np.bincount(case.ids.reshape(-1), minlength=num_rows)[:, None]
    assert_close(gradient.values, expected[gradient.rows], scale[gradient.rows], counts[gradient.rows])


@given(lookups(TRAINED))
def test_coalesce_is_linear(case):
    """Doubling is exact in floating point, and so is taking a plan or a list instead of the ids."""
    num_rows = len(case.weight)
    once = se.coalesce(case.ids, case.grad_out, num_rows)
    plan = se.plan(case.ids, num_rows)
    for ids, grad in (
        (case.ids, 2 * case.grad_out),
        (plan, 2 * case.grad_out),
        ([case.ids], [2 * case.grad_out]),
        ([plan, case.ids[..., :0]], [2 * case.grad_out, case.grad_out[..., :0, :]])
        if case.ids.ndim
        else (plan, 2 * case.grad_out),
    ):
        twice = se.coalesce(ids, grad, num_rows)
        np.testing.assert_array_equal(twice.rows, once.rows)
        np.testing.assert_array_equal(twice.values, 2 * once.values)


@pytest.mark.parametrize("n", [3, 511, 512, 513, 1024, 1025, 3000])
def test_order_of_summation(n, rng):
    """In the order of the ids, in chunks of 512: a result that repeats bit for bit."""
    grad, ids = numbers(rng, (2 * n, 4), np.float32), np.repeat([[5, 3]], n, axis=0).reshape(-1)
    values = se.coalesce(ids, grad, 9).values
    for row, own in zip(values, (grad[1::2], grad[::2]), strict=True):
        chunks = [np.cumsum(own[i : i + 512], axis=0)[-1] for i in range(0, n, 512)]
        np.testing.assert_array_equal(row, np.cumsum(chunks, axis=0)[-1])


@pytest.mark.parametrize("num_rows", [2**31 - 1, 2**40, 2**62])
@pytest.mark.parametrize("n", [4, 5000])
def test_coalesce_of_a_huge_table(num_rows, n, rng):
    """A gradient costs what its rows cost, whatever the size of the table."""
    ids = np.concatenate([rng.integers(0, num_rows, n - 2), [num_rows - 1, num_rows - 1]])
    gradient = se.coalesce(ids, numbers(rng, (n, 2), np.float64, grid=True), num_rows)
    np.testing.assert_array_equal(gradient.rows, np.unique(ids))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pattern", ["unique", "zipf", "hot"])
def test_large(dtype, pattern, rng):
    ids, grad = pick_ids(rng, 20_000, 30_000, pattern), numbers(rng, (20_000, 33), dtype, grid=True)
    np.testing.assert_array_equal(dense(se.coalesce(ids, grad, 30_000)), reference.coalesce(ids, grad, 30_000))


@given(lookups(TRAINED), st.sampled_from([1.0, -0.5, 0.0, 3.0]))
def test_scatter_add(case, alpha):
    weight, num_rows = case.weight.copy(), len(case.weight)
    assert se.scatter_add(weight, case.ids, case.grad_out, alpha) is None
    scale = np.abs(case.weight) + reference.coalesce(case.ids, np.abs(alpha * case.grad_out), num_rows)
    counts = np.bincount(case.ids.reshape(-1), minlength=num_rows)[:, None]
    assert_close(weight, reference.scatter_add(case.weight, case.ids, case.grad_out, alpha), scale, counts)
    assert weight[counts[:, 0] == 0].tobytes() == case.weight[counts[:, 0] == 0].tobytes()
    planned = case.weight.copy()
    se.scatter_add(planned, [se.plan(case.ids, num_rows)], [case.grad_out], alpha)
    np.testing.assert_array_equal(planned, weight)


@given(lookups(TRAINED, grid=True), st.integers(0, 2600), st.data())
def test_sum(case, cut, data):
    """The gradient of a batch is the sum of those of its parts, in any order."""
    num_rows, dim = case.weight.shape
    ids, grad = case.ids.reshape(-1), case.grad_out.reshape(-1, dim)
    first, second = se.coalesce(ids[:cut], grad[:cut], num_rows), se.coalesce(ids[cut:], grad[cut:], num_rows)
    whole, before = se.coalesce(ids, grad, num_rows), first.values.copy()
    for total in (first + second, second + first):
        np.testing.assert_array_equal(total.rows, whole.rows)
        np.testing.assert_array_equal(total.values, whole.values, strict=True)
    np.testing.assert_array_equal(first.values, before)


def test_sum_of_rows_of_two_dtypes():
    one = se.coalesce(np.array([1, 3], np.int32), np.ones((2, 1)), 5)
    two = se.coalesce(np.array([3, 4], np.int64), np.ones((2, 1)), 5)
    for total in (one + two, two + one):
        np.testing.assert_array_equal(dense(total).ravel(), [0, 1, 0, 2, 1])


@pytest.mark.parametrize("factor", [0.5, -2, 0, np.float32(3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale(dtype, factor, rng):
    gradient = make(rng, dtype=dtype)
    before = gradient.values.copy()
    scaled = gradient.scale(factor)
    np.testing.assert_array_equal(scaled.values, before * dtype(factor), strict=True)
    np.testing.assert_array_equal(scaled.rows, gradient.rows)
    np.testing.assert_array_equal(gradient.values, before)


@pytest.mark.parametrize("dim", [1, 3, 16, 33])
def test_norm_is_accumulated_in_float64(dim, rng):
    values = numbers(rng, (9000, dim), np.float32) * np.float32(1e-3)
    values[7] = 1e4
    gradient = se.RowGradient(np.arange(9000), values, 9000)
    expected = math.sqrt(math.fsum(np.square(values.ravel(), dtype=np.float64)))
    assert math.isclose(gradient.norm(), expected, rel_tol=1e-13)


def test_norm_of_nothing():
    assert se.coalesce([], np.zeros((0, 3)), 5).norm() == 0
    assert se.clip_by_global_norm([], 1.0) == 0


def test_norm_neither_over_nor_underflows_float32():
    for size in (1e30, 1e-30):
        values = np.array([[3 * size], [4 * size]], np.float32)
        assert math.isclose(se.RowGradient([0, 1], values, 2).norm(), 5 * size, rel_tol=1e-6)


def test_made_by_the_caller():
    rows, values = np.array([1, 4], np.int32), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    gradient = se.RowGradient(rows, values, 6)
    assert np.shares_memory(gradient.values, values)
    table = se.EmbeddingTable.from_array(np.zeros((6, 2), np.float32), se.SGD(lr=1.0))
    table.apply(gradient)
    np.testing.assert_array_equal(table.weight[[1, 4]], -values)
    assert repr(gradient) == "RowGradient(2 of 6 rows, dim=2, float32)"


@pytest.mark.parametrize("travel", [copy.deepcopy, copy.copy, lambda gradient: pickle.loads(pickle.dumps(gradient))])
def test_gradients_travel(travel, rng):
    gradient = make(rng)
    np.testing.assert_array_equal(dense(travel(gradient) + gradient), 2 * dense(gradient))


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 20.0, 1e9, 0.0])
@pytest.mark.parametrize("layout", [each for each in INPUTS if each not in ("read-only", "memory-mapped")])
def test_clip_by_global_norm(max_norm, layout, rng):
    one, two = make(rng), make(rng, dim=3, dtype=np.float64)
    arrays = [arrange(numbers(rng, (4, 5), np.float32), layout), np.float64([1, 2, 3]), np.array(7.0)]
    parts = [one.values, two.values, *arrays]
    before = [np.array(part) for part in parts]
    norm = math.sqrt(math.fsum(float(x) ** 2 for part in before for x in part.ravel()))
    assert math.isclose(se.clip_by_global_norm([one, two], max_norm, dense=arrays), norm, rel_tol=1e-12)
    for now, then in zip([one.values, two.values, *arrays], before, strict=True):
        if norm <= max_norm:
            np.testing.assert_array_equal(now, then)
        else:
            rtol = 1e-6 if then.dtype == np.float32 else 1e-14
            np.testing.assert_allclose(now, then * (max_norm / norm), rtol=rtol)
            assert now.dtype == then.dtype


def test_clipping_one_gradient_leaves_those_it_was_made_of(rng):
    part = make(rng)
    total, before = part + make(rng), part.values.copy()
    assert se.clip_by_global_norm([total], 0.1) > 0.1
    assert math.isclose(total.norm(), 0.1, rel_tol=1e-6)
    np.testing.assert_array_equal(part.values, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clipping_refuses_what_is_not_finite(bad, rng):
    good, array = make(rng), np.array([bad])
    before = good.values.copy()
    with pytest.raises(ValueError, match="norm"):
        se.clip_by_global_norm([good], 0.1, dense=[array])
    np.testing.assert_array_equal(good.values, before)


def test_mixed_dtypes_are_summed_in_the_wider(rng):
    ids = np.array([3, 1, 3])
    narrow, wide = rng.standard_normal((3, 5), np.float32), rng.standard_normal((3, 5))
    for grads in ([narrow, wide], [wide, narrow]):
        total = se.coalesce([ids, ids], grads, 6)
        assert total.values.dtype == np.float64
        dense = se.reference.coalesce(ids, narrow, 6) + se.reference.coalesce(ids, wide, 6)
        np.testing.assert_allclose(total.values, dense[[1, 3]], rtol=1e-14)


def test_builtin_sum(rng):
    parts = [se.coalesce(rng.integers(0, 9, 4), rng.standard_normal((4, 3)), 9) for _ in range(3)]
    np.testing.assert_array_equal(sum(parts).values, (parts[0] + parts[1] + parts[2]).values)
    with pytest.raises(TypeError):
        1 + parts[0]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint8, np.uint16, np.uint32, np.uint64, ">i4", ">i8"])
def test_ids_of_any_integers(dtype, rng):
    """Narrow, unsigned and foreign ids are those of int64, wherever ids are taken."""
    ids = rng.integers(0, 9, (4, 3)).astype(dtype)
    wide, grad, weight = ids.astype(np.int64), rng.standard_normal((4, 3, 2)), rng.standard_normal((9, 2))
    expected = se.reference.coalesce(wide, grad, 9)
    found = se.coalesce(ids, grad, 9)
    assert found.rows.dtype == np.int64
    np.testing.assert_allclose(found.to_dense(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(se.gather(weight, ids), weight[wide])
    np.testing.assert_array_equal(se.plan(ids, 9).rows, found.rows)
    one, two = (se.EmbeddingTable.from_array(weight.copy(), se.SGD(lr=0.5)) for _ in range(2))
    one.update([ids, ids[0]], [grad, grad[0]])
    two.update([wide, wide[0]], [grad, grad[0]])
    np.testing.assert_array_equal(one.weight, two.weight)
    offsets = np.array([0, 5, 12]).astype(dtype)
    pooled = se.pool(weight, se.Bags(ids.reshape(-1), offsets))
    np.testing.assert_array_equal(pooled, se.pool(weight, se.Bags(wide.reshape(-1), [0, 5, 12])))
    values = se.RowGradient(np.array([1, 4]).astype(dtype), grad[0, :2], 9).to_dense()
    np.testing.assert_array_equal(values[[1, 4]], grad[0, :2])

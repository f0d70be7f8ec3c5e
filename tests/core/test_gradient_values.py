"""RowGradient as a value: clipping, checks for mixed precision, accumulation, and the forms of other libraries."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from strategies import EPS, INPUTS, TRAINED, arrange, dense, generators, lookups, numbers

import sparsembed as se
from sparsembed import reference

DTYPES = [np.float32, np.float64]


def make(rng, num_rows=30, n=40, dim=5, dtype=np.float32):
    return se.coalesce(rng.integers(0, num_rows, n), numbers(rng, (n, dim), dtype), num_rows)


def norms(rows):
    return np.linalg.norm(np.asarray(rows, np.float64), axis=1)


def assert_like(found, gradient, values):
    """Another gradient of the same rows with these values, and the first one as it was."""
    assert type(found) is se.RowGradient
    assert found.num_rows == gradient.num_rows
    np.testing.assert_array_equal(found.rows, gradient.rows)
    np.testing.assert_array_equal(found.values, values, strict=True)
    assert not np.shares_memory(found.values, gradient.values)


# ---------------------------------------------------------------------- clipping and mixed precision


@given(lookups(TRAINED), st.sampled_from([0.0, 0.1, 1.0, 2.5, 1e9]))
def test_clip_rows(case, most):
    gradient = se.coalesce(case.ids, case.grad_out, len(case.weight))
    before = gradient.values.copy()
    clipped = gradient.clip_rows(most)
    np.testing.assert_array_equal(gradient.values, before)
    long = norms(before)
    factor = np.where(long > most, most / np.where(long > 0, long, 1), 1.0)[:, None]
    np.testing.assert_allclose(clipped.values, before * factor, rtol=4 * EPS[before.dtype] + 2.0**-47)
    np.testing.assert_array_equal(clipped.values[long <= most], before[long <= most])
    assert norms(clipped.values).max(initial=0) <= most
    assert_like(clipped.clip_rows(most), clipped, clipped.values)  # once is enough


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_rows_of_rows_that_are_not_finite(dtype):
    values = np.array([[np.nan, 5, 5], [np.inf, 1, -np.inf], [30, 40, 0]], dtype)
    clipped = se.RowGradient([0, 3, 4], values, 9).clip_rows(1.0)
    np.testing.assert_array_equal(clipped.values[:2], values[:2])
    np.testing.assert_allclose(clipped.values[2], [0.6, 0.8, 0], rtol=1e-6)


@given(lookups(TRAINED), st.sampled_from([0.0, 0.25, 1.0, 1e300]))
def test_clip_values(case, limit):
    gradient = se.coalesce(case.ids, case.grad_out, len(case.weight))
    before = gradient.values.copy()
    expected = np.minimum(np.maximum(before.astype(np.float64), -limit), limit).astype(before.dtype)
    assert_like(gradient.clip_values(limit), gradient, expected)
    np.testing.assert_array_equal(gradient.values, before)


def test_clip_values_of_what_is_not_finite():
    clipped = se.RowGradient([0], np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32), 1).clip_values(2)
    np.testing.assert_array_equal(clipped.values, np.array([[np.nan, 2, -2, 0.5]], np.float32), strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_finite(dtype):
    assert se.coalesce([], np.zeros((0, 3), dtype), 5).is_finite()
    values = np.full((2, 3), np.finfo(dtype).max)
    assert se.RowGradient([0, 3], values, 9).is_finite()  # though their squares are not
    for bad in (np.nan, np.inf, -np.inf):
        values[1, 2] = bad
        found = se.RowGradient([0, 3], values, 9).is_finite()
        assert found is False


@pytest.mark.parametrize("scale", [1.0, 1024.0, 65536, 3.0, np.float32(7), 2.0**-10])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unscale(scale, dtype, rng):
    gradient = make(rng, dtype=dtype)
    before = gradient.values.copy()
    assert_like(gradient.unscale(scale), gradient, before / dtype(scale))
    np.testing.assert_array_equal(gradient.values, before)
    scaled = gradient.scale(2.0**16)  # what a scaled loss gives
    np.testing.assert_array_equal(scaled.unscale(2.0**16).values, before)


def test_half_precision_is_unscaled_in_float32():
    """The smallest float16, divided by a scale, is zero in float16."""
    tiny = np.array([[6e-8, 65504.0]], np.float16)
    found = se.coalesce([3], tiny, 9).unscale(65536.0)
    np.testing.assert_array_equal(found.values, tiny.astype(np.float32) / 65536, strict=True)
    assert (found.values > 0).all()


def test_a_step_that_overflowed_is_found_and_skipped():
    """What a loss scaler does: look, then divide, then step."""
    table = se.EmbeddingTable.from_array(np.zeros((4, 2), np.float32), se.SGD(lr=1.0))
    for grad in ([[1024.0, 2048.0]], [[np.inf, 1.0]]):
        gradient = table.gradient([1], np.array(grad, np.float16)).unscale(1024.0)
        if gradient.is_finite():
            table.apply(gradient)
    assert not se.RowGradient([0], np.array([[1e38]], np.float32), 1).unscale(1e-3).is_finite()
    np.testing.assert_array_equal(table.weight[1], [-1, -2])


# ---------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulating_the_same_rows_takes_the_memory_of_one(dtype, rng):
    """50 micro-batches of the same 20 rows: 20 rows."""
    rows = np.sort(rng.permutation(1000)[:20])
    total, expected = 0, np.zeros((20, 7))
    for _ in range(50):
        ids = rng.permutation(np.concatenate([rows, rows[:5]]))
        grad = numbers(rng, (25, 7), dtype, grid=True)
        total = total + se.coalesce(ids, grad, 1000)
        expected += reference.coalesce(ids, grad, 1000)[rows]
        assert total.values.shape == (20, 7)
        owner = total.values if total.values.base is None else total.values.base
        assert owner.nbytes <= total.values.nbytes + 64  # and nothing is kept behind the view
    np.testing.assert_array_equal(total.rows, rows)
    np.testing.assert_array_equal(total.values, expected)


# ---------------------------------------------------------------------- global norm


@pytest.mark.parametrize("layout", [each for each in INPUTS if each not in ("read-only", "memory-mapped")])
def test_values_that_are_shared_with_the_caller(layout, rng):
    """Dense arrays are scaled in place, values of a gradient are not: they are the caller's."""
    values, other = arrange(numbers(rng, (3, 4), np.float64), layout), numbers(rng, (2, 2), np.float64)
    before = values.copy()
    gradient = se.RowGradient([1, 4, 5], values, 9)
    norm = se.clip_by_global_norm([gradient], 0.5, dense=[other, values])
    expected = np.sqrt(2 * (before**2).sum() + (other**2).sum() / (0.5 / norm) ** 2)
    np.testing.assert_allclose(norm, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient.values, before * (0.5 / norm), rtol=1e-12)
    np.testing.assert_allclose(values, before * (0.5 / norm), rtol=1e-12)  # as a dense array, once
    apart = se.RowGradient([1, 4, 5], values, 9)
    now = values.copy()
    se.clip_by_global_norm([apart], 0.1)
    np.testing.assert_array_equal(values, now)
    np.testing.assert_allclose(apart.norm(), 0.1, rtol=1e-12)


@pytest.mark.parametrize("exponent", [-320, -300, -160, -150, 0, 150, 160, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_any_magnitude(dtype, exponent, rng):
    """Squares of float64 leave its range from 1e154 on; the norm is right wherever it is a number."""
    info = np.finfo(dtype)
    size = max(min(10.0**exponent, float(info.max) / 1e4), float(info.smallest_subnormal) * 2.0**20)
    values, other = numbers(rng, (7, 5), dtype) * dtype(size), numbers(rng, (3,), dtype) * dtype(size)
    gradient = se.RowGradient(np.arange(7), values.copy(), 9)
    alone, both = (float(np.linalg.norm(np.longdouble(each))) for each in (values, np.append(values, other)))
    atol = float(info.smallest_subnormal)
    np.testing.assert_allclose(gradient.norm(), alone, rtol=1e-14, atol=5e-324)
    norm = se.clip_by_global_norm([gradient], math.inf, dense=[other])
    np.testing.assert_allclose(norm, both, rtol=1e-14, atol=5e-324)
    np.testing.assert_array_equal(gradient.values, values)
    se.clip_by_global_norm([gradient], norm / 4, dense=[other])
    np.testing.assert_allclose(gradient.values, values / 4, rtol=4 * EPS[np.dtype(dtype)], atol=atol)


def test_an_infinite_limit_measures_only(rng):
    gradient, other = make(rng), numbers(rng, (4,), np.float64)
    before, dense_before = gradient.values.copy(), other.copy()
    expected = math.sqrt((before.astype(np.float64) ** 2).sum() + (other**2).sum())
    for limit in (math.inf, np.float64("inf")):
        np.testing.assert_allclose(se.clip_by_global_norm([gradient], limit, dense=[other]), expected, rtol=1e-12)
    np.testing.assert_array_equal(gradient.values, before)
    np.testing.assert_array_equal(other, dense_before)
    for limit in (math.nan, -math.inf, -1.0):
        with pytest.raises(ValueError, match="max_norm must be finite"):
            se.clip_by_global_norm([gradient], limit)


@pytest.mark.parametrize(("bad", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "inf")])
def test_a_norm_that_is_no_number_is_refused(bad, shown, rng):
    gradient, other = make(rng, dtype=np.float64), np.array([1.0, bad])
    for limit in (1.0, math.inf):
        with pytest.raises(ValueError, match=f"the norm of the gradients is {shown}"):
            se.clip_by_global_norm([gradient], limit, dense=[other])
    huge = se.RowGradient([0, 1], np.full((2, 40), np.finfo(np.float64).max), 2)
    assert huge.norm() == math.inf  # which no float64 can hold
    assert se.RowGradient([0], np.array([[1e308, 1e308]]), 2).norm() == pytest.approx(math.sqrt(2) * 1e308)
    assert se.coalesce([], np.zeros((0, 3)), 5).norm() == 0


def test_values_without_columns():
    with pytest.raises(ValueError, match=r"values must have shape \(1, dim\), with dim at least 1, .*got \(1, 0\)"):
        se.RowGradient([1], np.zeros((1, 0)), 3)


# ---------------------------------------------------------------------- other libraries' forms


@given(lookups(TRAINED))
def test_slices_with_repeats_are_summed_as_coalesce_does(case):
    ids, grad = case.ids.reshape(-1), case.grad_out.reshape(-1, case.weight.shape[1])
    expected = se.coalesce(ids, grad, len(case.weight))
    shape = case.weight.shape
    parts = {"values": grad, "indices": ids, "dense_shape": np.array(shape)}
    for slices in ((grad, ids, shape), [grad, ids, list(shape)], SimpleNamespace(**parts)):
        found = se.RowGradient.from_indexed_slices(slices)
        np.testing.assert_array_equal(found.rows, expected.rows, strict=True)
        np.testing.assert_array_equal(found.values, expected.values, strict=True)
        assert found.num_rows == shape[0]


@pytest.mark.parametrize("ids", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_back_and_forth(ids, dtype, rng):
    gradient = se.coalesce(rng.integers(0, 30, 40).astype(ids), numbers(rng, (40, 5), dtype), 30)
    slices = gradient.to_indexed_slices()
    assert slices._fields == ("values", "indices", "dense_shape")  # the order of tf.IndexedSlices
    assert slices.dense_shape == (30, 5)
    assert np.shares_memory(slices.values, gradient.values)
    found = se.RowGradient.from_indexed_slices(slices)
    assert np.shares_memory(found.values, gradient.values)
    np.testing.assert_array_equal(found.rows, gradient.rows, strict=True)
    np.testing.assert_array_equal(dense(found + gradient), 2 * dense(gradient))


@given(lookups(TRAINED))
def test_csr_back_and_forth(case):
    gradient = se.coalesce(case.ids, case.grad_out, len(case.weight))
    matrix = gradient.to_scipy()
    matrix.check_format(full_check=True)
    assert matrix.format == "csr"
    assert matrix.has_canonical_format
    assert matrix.shape == case.weight.shape
    np.testing.assert_array_equal(matrix.toarray(), dense(gradient), strict=True)
    found = se.RowGradient.from_scipy(matrix)
    np.testing.assert_array_equal(found.rows, gradient.rows)
    np.testing.assert_array_equal(found.values, gradient.values, strict=True)


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
@pytest.mark.parametrize("dtype", DTYPES)
def test_csr_of_any_pattern(kind, dtype, rng):
    """Scattered elements in any order, some stored twice, some zero, empty rows, more room than is used."""
    rows, columns = np.sort(rng.integers(0, 8, 60)) * 3, rng.integers(0, 5, 60)
    values = numbers(rng, 60, dtype, grid=True)
    offsets = np.searchsorted(rows, np.arange(31)).astype(np.int32)
    room = np.zeros(9)
    matrix = kind(
        (np.append(values, room).astype(dtype), np.append(columns, room).astype(np.int32), offsets), shape=(30, 5)
    )
    saved = [array.copy() for array in (matrix.data, matrix.indices, matrix.indptr)]
    expected = np.zeros((30, 5), dtype)
    np.add.at(expected, (rows, columns), values)
    gradient = se.RowGradient.from_scipy(matrix)
    np.testing.assert_array_equal(gradient.rows, np.unique(rows))
    np.testing.assert_array_equal(dense(gradient), expected, strict=True)
    for now, then in zip((matrix.data, matrix.indices, matrix.indptr), saved, strict=True):
        np.testing.assert_array_equal(now, then, strict=True)


def test_csr_times_weights_is_a_step(rng):
    """The sparse form is what it says: subtracting it from a table is a step of SGD."""
    weight = numbers(rng, (30, 5), np.float64)
    gradient = make(rng, dtype=np.float64)
    table = se.EmbeddingTable.from_array(weight.copy(), se.SGD(lr=0.5))
    table.apply(se.RowGradient.from_scipy(gradient.to_scipy()))
    np.testing.assert_allclose(table.weight, weight - (0.5 * gradient.to_scipy()).toarray(), rtol=1e-14, atol=1e-15)


def test_torch_that_is_not_imported(monkeypatch, rng):
    """No library is imported for a caller who has not imported it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"torch.*not imported.*rows and values"):
        make(rng).to_torch()
    with pytest.raises(TypeError, match="ndarray"):
        se.RowGradient.from_torch(np.eye(3))


# ---------------------------------------------------------------------- arithmetic


def pairs(rng, dtype):
    return [se.coalesce(rng.integers(0, 9, 12), rng.standard_normal((12, 3)).astype(dtype), 9) for _ in range(2)]


@given(st.sampled_from([np.float32, np.float64]), st.floats(-8, 8), generators)
def test_arithmetic_is_that_of_dense_gradients(dtype, number, rng):
    a, b = pairs(rng, dtype)
    one, two = a.to_dense(), b.to_dense()
    assert one.dtype == a.dtype == dtype
    for kind in (float, np.float64, np.float32):
        factor = kind(number)
        for each in (a * factor, factor * a):
            np.testing.assert_array_equal(each.values, a.scale(factor).values, strict=True)
            assert isinstance(each, se.RowGradient)
        if abs(factor) > 1e-30:
            np.testing.assert_array_equal((a / factor).to_dense(), one / dtype(factor))
    np.testing.assert_array_equal((-a).to_dense(), -one)
    np.testing.assert_array_equal((a - b).to_dense(), one - two)
    np.testing.assert_array_equal((a - b).values, (a + -b).values)
    np.testing.assert_array_equal(a.rows, np.flatnonzero(one.any(axis=1)))
    np.testing.assert_array_equal((a * 3).rows, a.rows)


def test_parts_of_a_gradient(rng):
    gradient, _ = pairs(rng, np.float32)
    rows, values = gradient
    assert (rows is gradient.rows, values is gradient.values) == (True, True)
    assert (gradient.shape, gradient.dtype) == ((9, 3), np.float32)
    assert gradient.nbytes == rows.nbytes + values.nbytes
    reference = np.zeros((9, 3))
    reference[rows] = values
    np.testing.assert_array_equal(gradient.to_dense(), reference)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda g: g * np.ones(2), TypeError, "must be a number, got"),
        (lambda g: np.ones(2) * g, TypeError, "must be a number, got"),
        (lambda g: g * "x", TypeError, "must be a number, got"),
        (lambda g: g * True, TypeError, "must be a number, got"),
        (lambda g: g * g, TypeError, "must be a number, got"),
        (lambda g: g - 1, TypeError, "RowGradient"),
        (lambda g: 0 - g, TypeError, "RowGradient"),
        (lambda g: 1 / g, TypeError, "RowGradient"),
        (lambda g: g / g, TypeError, "must be a number, got"),
        (lambda g: g / None, TypeError, "must be a number, got"),
        (lambda g: g / 0, ValueError, "divisor must .*not be zero, got 0"),
        (lambda g: g / np.inf, ValueError, "divisor must be finite"),
        (lambda g: g / 1e-320, ValueError, "divisor must fit into float64"),
        (lambda g: g * np.nan, ValueError, "factor must be finite"),
        (lambda g: g - se.RowGradient([0], np.ones((1, 2)), 9), ValueError, "equal shape"),
        (lambda g: g - se.RowGradient([0], np.ones((1, 3), np.float32), 9), TypeError, "one dtype"),
    ],
)
def test_wrong_arithmetic(call, error, says, rng):
    with pytest.raises(error, match=says):
        call(pairs(rng, np.float64)[0])


def test_a_gradient_of_tensors_becomes_a_dense_tensor():
    torch = pytest.importorskip("torch")
    gradient = se.coalesce(torch.tensor([1, 1]), torch.ones(2, 2), 3)
    assert torch.equal(gradient.to_dense(), torch.tensor([[0.0, 0], [2, 2], [0, 0]]))
    assert torch.equal(gradient.to_dense(), gradient.to_torch().to_dense())

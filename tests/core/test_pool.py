"""pool and its gradients: sum, mean, sqrtn, max, weights, padding, empty bags."""

import numpy as np
import pytest
from hypothesis import given
from strategies import COMBOS, MODES, TRAINED, Pooled, arrange, assert_close, dense, numbers, pick_ids, pooled

import sparsembed as se
from sparsembed import reference


def wide(array):
    return np.abs(array.astype(np.float64))


def check_pool(case, result):
    """Compare with the reference; a maximum is one of the numbers, so it is exact."""
    assert result.dtype == np.result_type(case.weight.dtype, np.float32)
    expected = reference.pool(case.weight, case.bags, case.mode, case.padding_idx)
    factors, _, bag_of = case.factors()
    scale = np.zeros_like(expected)
    if case.mode != "max":
        np.add.at(scale, bag_of, factors[:, None] * wide(case.weight)[case.bags.ids])
    assert_close(result, expected, scale, np.diff(case.bags.offsets)[:, None])


def check_gradient(case):
    """Compare `pool_gradient` with the reference."""
    weight = case.weight if case.mode == "max" else None
    num_rows, padding = len(case.weight), case.padding_idx
    gradient = se.pool_gradient(case.bags, case.grad_out, num_rows, case.mode, padding_idx=padding, weight=weight)
    expected = reference.pool_gradient(case.bags, case.grad_out, num_rows, case.mode, padding, weight)
    factors, _, bag_of = case.factors()
    scale = reference.coalesce(case.bags.ids, factors[:, None] * wide(case.grad_out)[bag_of], num_rows)
    assert_close(dense(gradient), expected, scale, np.bincount(case.bags.ids, minlength=num_rows)[:, None])
    np.testing.assert_array_equal(gradient.rows, np.setdiff1d(case.bags.ids, [] if padding is None else [padding]))


@given(pooled())
def test_pool(case):
    result = se.pool(case.weight, case.bags, case.mode, padding_idx=case.padding_idx)
    check_pool(case, result)
    out = np.empty_like(result)
    assert se.pool(case.weight, case.bags, case.mode, out=out, padding_idx=case.padding_idx) is out
    np.testing.assert_array_equal(out, result)


@given(pooled())
def test_pool_gradient(case):
    check_gradient(case)


@given(pooled(combos=TRAINED))
def test_table_pool(case):
    """A table pools like the function, with its own padding, whose row is zero."""
    table = se.EmbeddingTable.from_array(case.weight, padding_idx=case.padding_idx)
    expected = se.pool(case.weight, case.bags, case.mode, padding_idx=case.padding_idx)
    np.testing.assert_array_equal(table.pool(case.bags, case.mode), expected, strict=True)


@given(pooled(modes=["sum", "mean", "sqrtn"]))
def test_per_sample_weights_gradient(case):
    where = case.weight, case.bags, case.grad_out, case.mode
    result = se.per_sample_weights_gradient(*where, padding_idx=case.padding_idx)
    assert result.dtype == np.result_type(case.weight.dtype, np.float32)
    expected = reference.per_sample_weights_gradient(*where, case.padding_idx)
    # The occurrence's own dot product and, but for sums, what the divisor takes back from the bag.
    factors, divisors, bag_of = case.factors()
    dots = (wide(case.weight)[case.bags.ids] * wide(case.grad_out)[bag_of]).sum(axis=1)
    pulls = np.bincount(bag_of, factors * dots, minlength=len(case.bags))[bag_of] * (case.mode != "sum")
    terms = case.weight.shape[1] + np.diff(case.bags.offsets)[bag_of]
    assert_close(result, expected, (dots + pulls) / divisors, terms)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("dtype", "id_dtype", "layouts"), COMBOS)
def test_large(dtype, id_dtype, layouts, mode, rng):
    """Many blocks on several threads, with prefetch across bags, and hot rows."""
    weight, lengths = arrange(numbers(rng, (500, 33), dtype), layouts[-1]), rng.integers(0, 40, 3000)
    ids = pick_ids(rng, lengths.sum(), 500, "zipf").astype(id_dtype)
    bags = se.Bags(ids, np.cumsum([0, *lengths]))
    result = se.pool(weight, bags, mode)
    case = Pooled(weight, bags, numbers(rng, result.shape, result.dtype), mode, None)
    check_pool(case, result)
    check_gradient(case)


def test_rows_are_added_in_the_order_of_the_bag(rng):
    """One rounding per row, left to right, with and without a padding id that does not occur."""
    weight, ids = numbers(rng, (100, 7), np.float32), rng.integers(0, 99, 61)
    factors = numbers(rng, 61, np.float32)
    for weights in (None, factors):
        rows = weight[ids] if weights is None else weights[:, None] * weight[ids]
        expected = np.cumsum(rows, axis=0, dtype=np.float32)[-1:]
        bags = se.Bags(ids, [0, 61], weights)
        np.testing.assert_array_equal(se.pool(weight, bags), expected)
        np.testing.assert_array_equal(se.pool(weight, bags, padding_idx=99), expected)


@pytest.mark.parametrize("mode", MODES)
def test_padding_equals_leaving_out(mode, rng):
    weight, ids = numbers(rng, (9, 4), np.float64), rng.integers(0, 9, (20, 6))
    padded = se.Bags(ids.ravel(), np.arange(0, 121, 6))
    assert (se.Bags.from_padded(ids, 3).ids != 3).all()
    expected = se.pool(weight, se.Bags.from_padded(ids, padding_idx=3), mode)
    np.testing.assert_array_equal(se.pool(weight, padded, mode, padding_idx=3), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_padding_ignores_what_the_row_holds(mode, garbage):
    weight = np.array([[1.0], [garbage], [3.0]])
    bags = se.Bags.from_lists([[1, 0, 1, 2], [1], []])
    expected = {"sum": 4, "mean": 2, "sqrtn": 4 / np.sqrt(2), "max": 3}[mode]
    np.testing.assert_allclose(se.pool(weight, bags, mode, padding_idx=1), [[expected], [0], [0]], rtol=1e-15)
    if mode != "max":
        slopes = se.per_sample_weights_gradient(weight, bags, np.ones((3, 1)), mode, padding_idx=1)
        assert np.isfinite(slopes).all()
        assert (slopes[[0, 2, 4]] == 0).all()


@pytest.mark.parametrize("mode", ["mean", "sqrtn"])
def test_a_divisor_of_zero_gives_zeros(mode):
    weights = [[0.0, 0.0], [1.0, -1.0] if mode == "mean" else [0.0, -0.0]]
    bags = se.Bags.from_lists([[0, 1], [1, 2]], weights)
    weight = np.arange(6.0).reshape(3, 2)
    assert not se.pool(weight, bags, mode).any()
    assert not se.pool_gradient(bags, np.ones((2, 2)), 3, mode).values.any()
    assert not se.per_sample_weights_gradient(weight, bags, np.ones((2, 2)), mode).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_max_propagates_nan_from_any_place(dtype, at):
    """torch drops a NaN that is not the first of its bag."""
    weight = np.array([[5.0, 1.0], [4.0, np.nan], [6.0, 3.0]], dtype)
    ids = np.roll([1, 0, 2], at)
    bags = se.Bags(ids, [0, 3])
    np.testing.assert_array_equal(se.pool(weight, bags, "max"), [[6, np.nan]])
    gradient = se.pool_gradient(bags, np.array([[1.0, 2.0]]), 3, "max", weight=weight)
    np.testing.assert_array_equal(dense(gradient), [[0, 0], [0, 2], [1, 0]])


def test_max_of_ties_goes_to_the_first_occurrence():
    weight = np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 2.0]])
    bags = se.Bags.from_lists([[2, 1, 0], [0, 1]])
    gradient = se.pool_gradient(bags, np.array([[1.0, 2.0], [4.0, 8.0]]), 3, "max", weight=weight)
    np.testing.assert_array_equal(dense(gradient), [[4, 8], [1, 0], [0, 2]])


def test_max_of_negative_rows_is_negative():
    weight = np.array([[-3.0], [-5.0], [-np.inf]])
    bags = se.Bags.from_lists([[0, 1], [1], [2], []])
    np.testing.assert_array_equal(se.pool(weight, bags, "max"), [[-3], [-5], [-np.inf], [0]])


@pytest.mark.parametrize("mode", MODES)
def test_no_bags(mode):
    weight, bags = np.ones((3, 2)), se.Bags(np.zeros(0, np.int64), [0])
    where = {"weight": weight} if mode == "max" else {}
    assert se.pool(weight, bags, mode).shape == (0, 2)
    assert se.pool_gradient(bags, np.zeros((0, 2)), 3, mode, **where).values.shape == (0, 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 3, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 100, 127, 128, 200])
def test_sums_in_registers_have_the_bits_of_sums_in_memory(dim, dtype):
    """Rows whose numbers lie apart take the plain loop; and nothing is written beside a row."""
    rng = np.random.default_rng(dim)
    weight = rng.standard_normal((50, dim)).astype(dtype)
    apart = np.repeat(weight, 2, axis=1)[:, ::2]
    assert not apart.flags.c_contiguous or dim == 1
    weights = rng.standard_normal(200) if dim % 2 else None
    bags = se.Bags(rng.integers(0, 50, 200), np.array([0, 7, 7, 8, 40, 200]), weights)
    expected, kind = se.pool(apart, bags, padding_idx=3), np.result_type(dtype, np.float32)
    room = np.full((7, dim), 7, kind)
    se.pool(weight, bags, padding_idx=3, out=room[1:6])
    np.testing.assert_array_equal(room[1:6], expected)
    assert (room[[0, 6]] == 7).all()

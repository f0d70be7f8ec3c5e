"""scale_grad_by_freq: a row's gradient is the mean over its occurrences in the step."""

import numpy as np
import pytest
from hypothesis import given
from strategies import ALL_RULES, COMBOS, MODES, TRAINED, assert_close, dense, lookups, numbers, pick_ids, pooled, typed

import sparsembed as se
from sparsembed import reference

FREQ = {"scale_grad_by_freq": True}


def test_the_reference_by_hand():
    found = reference.coalesce([2, 0, 2, 2], [[3.0], [5.0], [6.0], [9.0]], 4, **FREQ)
    np.testing.assert_allclose(found, [[5], [0], [6], [0]], rtol=1e-15)
    # Bags (1, 1), (1, 2): row 1 occurs three times, row 2 once.
    bags = se.Bags(np.array([1, 1, 1, 2]), np.array([0, 2, 4]))
    found = reference.pool_gradient(bags, np.array([[6.0], [8.0]]), 3, "mean", **FREQ)
    np.testing.assert_allclose(found.ravel(), [0, (3 + 3 + 4) / 3, 4], rtol=1e-15)
    weighted = se.Bags(bags.ids, bags.offsets, np.array([1.0, 2.0, 3.0, 0.5]))
    found = reference.pool_gradient(weighted, np.array([[6.0], [8.0]]), 3, **FREQ)
    np.testing.assert_allclose(found.ravel(), [0, (6 + 12 + 24) / 3, 4], rtol=1e-15)
    # Column 0 is won by the first occurrence and the third, column 1 by the first and row 2.
    weight = np.array([[0.0, 0.0], [5.0, 1.0], [2.0, 3.0]])
    found = reference.pool_gradient(bags, np.array([[6.0, 9.0], [12.0, 7.0]]), 3, "max", weight=weight, **FREQ)
    np.testing.assert_allclose(found, [[0, 0], [6, 3], [0, 7]], rtol=1e-15)
    # Without: what it has always been.
    np.testing.assert_array_equal(reference.coalesce([2, 0, 2], [[3.0], [5.0], [6.0]], 3).ravel(), [5, 0, 9])


def test_a_step_by_hand():
    table = se.EmbeddingTable.from_array(np.zeros((4, 1)), se.SGD(lr=1.0), padding_idx=3, **FREQ)
    table.update([[2, 0], [2, 3]], np.array([[[3.0], [5.0]], [[7.0], [9.0]]]))
    np.testing.assert_array_equal(table.weight.ravel(), [-5, 0, -5, 0])


@given(lookups(COMBOS))
def test_coalesce(case):
    num_rows = len(case.weight)
    gradient = se.coalesce(case.ids, case.grad_out, num_rows, **FREQ)
    np.testing.assert_array_equal(gradient.rows, np.unique(case.ids))
    expected = reference.coalesce(case.ids, case.grad_out, num_rows, **FREQ)
    scale = reference.coalesce(case.ids, np.abs(case.grad_out), num_rows, **FREQ)
    counts = np.bincount(case.ids.reshape(-1), minlength=num_rows)[:, None]
    assert_close(gradient.values, expected[gradient.rows], scale[gradient.rows], counts[gradient.rows])
    assert gradient.values.dtype == case.grad_out.dtype


@given(lookups(TRAINED))
def test_it_is_the_sum_over_the_count(case):
    """To the bit, and for a plan or a list as for the ids."""
    num_rows = len(case.weight)
    plain = se.coalesce(case.ids, case.grad_out, num_rows)
    counts = np.bincount(case.ids.reshape(-1), minlength=num_rows)[plain.rows, None].astype(case.grad_out.dtype)
    for ids, grad in ((case.ids, case.grad_out), (se.plan(case.ids, num_rows), case.grad_out)):
        found = se.coalesce(ids, grad, num_rows, **FREQ)
        np.testing.assert_array_equal(found.values, plain.values / counts, strict=True)
    if case.ids.ndim and case.ids.shape[0] > 1:
        parts = [case.ids[:1], case.ids[1:]], [case.grad_out[:1], case.grad_out[1:]]
        np.testing.assert_array_equal(se.coalesce(*parts, num_rows, **FREQ).values, plain.values / counts)
    unscaled = se.coalesce(case.ids, case.grad_out, num_rows, scale_grad_by_freq=False)
    np.testing.assert_array_equal(unscaled.values, plain.values)


@given(pooled(combos=TRAINED))
def test_pool_gradient(case):
    num_rows = len(case.weight)
    where = {"weight": case.weight} if case.mode == "max" else {}
    given_ = (case.bags, case.grad_out, num_rows, case.mode)
    gradient = se.pool_gradient(*given_, padding_idx=case.padding_idx, **where, **FREQ)
    plain = se.pool_gradient(*given_, padding_idx=case.padding_idx, **where)
    counts = np.bincount(case.bags.ids, minlength=num_rows)[gradient.rows, None]
    np.testing.assert_array_equal(gradient.rows, np.setdiff1d(case.bags.ids, [case.padding_idx]))
    np.testing.assert_array_equal(gradient.values, plain.values / counts.astype(plain.values.dtype))
    expected = reference.pool_gradient(*given_, padding_idx=case.padding_idx, **where, **FREQ)
    factors, _, bag_of = case.factors()
    occurrences = np.abs(case.grad_out)[bag_of] * factors[:, None]
    if case.mode == "max":
        occurrences = np.abs(case.grad_out)[bag_of]
    scale = reference.coalesce(case.bags.ids, occurrences, num_rows, **FREQ)
    # A divisor is itself a sum of up to 1100 numbers.
    lengths = np.diff(case.bags.offsets).max(initial=0)
    assert_close(dense(gradient), expected, scale, np.bincount(case.bags.ids, minlength=num_rows)[:, None] + lengths)


def bags_of(ids, cut, weights=None):
    return se.Bags(ids, np.array([0, cut, cut, len(ids)]), weights)


@pytest.mark.parametrize("mode", [*MODES, "weighted"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_counts_are_of_all_sets_of_bags_together(mode, dtype, rng):
    ids = [pick_ids(rng, n, 20, "zipf") for n in (30, 40, 700)]
    weights = [numbers(rng, len(each), dtype) if mode == "weighted" else None for each in ids]
    mode = "sum" if mode == "weighted" else mode
    bags = [bags_of(each, 9, w) for each, w in zip(ids, weights, strict=True)]
    grads = [numbers(rng, (3, 4), dtype) for _ in ids]
    start = numbers(rng, (20, 4), dtype, grid=True)
    table = se.EmbeddingTable.from_array(start.copy(), se.SGD(lr=1.0), padding_idx=2, **FREQ)
    start[2] = 0
    table.update_pooled(bags, grads, mode)
    total, size = np.zeros((20, 4)), np.zeros((20, 4))
    for each, grad in zip(bags, grads, strict=True):
        where = {"weight": start} if mode == "max" else {}
        total += reference.pool_gradient(each, grad, 20, mode, 2, **where)
        absolute = None if each.per_sample_weights is None else np.abs(each.per_sample_weights)
        size += reference.pool_gradient(se.Bags(each.ids, each.offsets, absolute), np.abs(grad), 20, "sum", 2)
    counts = np.maximum(np.bincount(np.concatenate(ids), minlength=20), 1)[:, None]
    bound = 2000 * np.finfo(dtype).eps * (np.abs(start) + size)
    assert (np.abs(table.weight - (start - total / counts)) <= bound).all()
    assert counts.max() > 100


@pytest.mark.parametrize("mode", MODES)
def test_pooling_outside_gives_the_same_gradient(mode, rng):
    """Looking the rows up, pooling them elsewhere and updating the lookups is the same step."""
    ids, offsets = pick_ids(rng, 60, 12, "zipf"), np.array([0, 5, 5, 22, 60])
    bags, grad = se.Bags(ids, offsets), numbers(rng, (4, 3), np.float64)
    start = numbers(rng, (12, 3), np.float64)
    inside, outside = (se.EmbeddingTable.from_array(start.copy(), se.SparseAdam(lr=0.1), **FREQ) for _ in range(2))
    inside.update_pooled(bags, grad, mode)
    own = se.Bags(np.arange(60), offsets)  # every occurrence a row of its own
    of_each = reference.pool_gradient(own, grad, 60, mode, weight=start[ids])
    outside.update(ids, of_each)
    np.testing.assert_allclose(inside.weight, outside.weight, rtol=1e-12)


@pytest.mark.parametrize(("rule", "dtype"), typed(ALL_RULES), ids=lambda each: getattr(each, "__name__", str(each)))
def test_steps(rule, dtype, rng):
    """With padding, a hot row of 1000, an empty step, and the rules' own state."""
    start = numbers(rng, (30, 5), dtype)
    table = se.EmbeddingTable.from_array(start.copy(), rule, padding_idx=3, **FREQ)
    weight, state = table.weight.astype(np.float64), {name: np.array(s) for name, s in table.state.items()}
    for step, n in enumerate([40, 0, 2000, 7], 1):
        ids, grad = pick_ids(rng, n, 30, "hot"), numbers(rng, (n, 5), dtype)
        table.update(ids, grad)
        weight, state = reference.update(rule, weight, state, ids, grad, step, 3, **FREQ)
    tolerance = 1e-4 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(table.weight, weight, rtol=tolerance, atol=tolerance)
    for name, slot in table.state.items():
        np.testing.assert_allclose(slot, state[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", [se.Adam(lr=0.1), se.SGD(lr=0.1, momentum=0.9), se.SGD(lr=0.1)], ids=str)
def test_apply_does_not_scale_again(rule, rng):
    """A gradient of the table is scaled already, and `apply` of it is `update`."""
    ids, grad = pick_ids(rng, 900, 30, "hot"), numbers(rng, (900, 5), np.float32)
    one, two = (se.EmbeddingTable(30, 5, rule, padding_idx=3, rng=0, **FREQ) for _ in range(2))
    one.update(ids, grad)
    gradient = two.gradient(ids, grad)
    np.testing.assert_array_equal(gradient.values, se.coalesce(ids, grad, 30, padding_idx=3, **FREQ).values)
    two.apply(gradient)
    np.testing.assert_array_equal(one.weight, two.weight)
    plain = se.EmbeddingTable(30, 5, rule, padding_idx=3, rng=0)
    plain.apply(gradient)
    np.testing.assert_array_equal(plain.weight, two.weight)


def test_bits_do_not_depend_on_threads_or_blocks(rng):
    """Many blocks, two hot rows; every row has the bits that it has alone."""
    ids, grad = pick_ids(rng, 50_000, 4000, "zipf"), numbers(rng, (50_000, 24), np.float32)
    gradient = se.coalesce(ids, grad, 4000, **FREQ)
    for row in (0, 1, 77):
        alone = se.coalesce(ids[ids == row], grad[ids == row], 4000, **FREQ)
        np.testing.assert_array_equal(gradient.values[gradient.rows == row], alone.values)

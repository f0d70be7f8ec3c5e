"""Plan: ids sorted once into rows and segments."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import INPUTS, PATTERNS, arrange, id_arrays, pick_ids, table_sizes

import sparsembed as se
from sparsembed._cpu import sorting
from sparsembed._cpu.gradients import Gradients
from sparsembed._cpu.launch import segment_sum
from sparsembed._cpu.sorting import sort


def check(plan, flat):
    """Compare with NumPy's stable sort."""
    rows, counts = np.unique(flat, return_counts=True)
    np.testing.assert_array_equal(plan.rows, rows)
    np.testing.assert_array_equal(plan.order, np.argsort(flat, kind="stable"))
    np.testing.assert_array_equal(plan.segment_offsets, np.cumsum([0, *counts]))
    assert plan.rows.dtype == flat.dtype
    assert plan.order.dtype == plan.segment_offsets.dtype == np.int32
    assert not any(array.flags.writeable for array in (plan.rows, plan.order, plan.segment_offsets))


@given(st.data(), table_sizes, st.sampled_from([np.int32, np.int64]))
def test_plan(data, num_rows, dtype):
    ids = data.draw(id_arrays(num_rows, dtype))
    plan = se.plan(ids, num_rows)
    check(plan, ids.reshape(-1))
    assert plan.ids is ids
    assert plan.num_rows == num_rows


@given(st.data(), table_sizes, st.sampled_from([np.int32, np.int64]))
def test_plan_of_several_lookups(data, num_rows, dtype):
    ids = data.draw(st.lists(id_arrays(num_rows, dtype).filter(np.ndim), min_size=1, max_size=4))
    check(se.plan(ids, num_rows), np.concatenate([each.reshape(-1) for each in ids]))


# Around 48 insertion sort ends, around 4096 digits widen; 2**k and 2**k + 1 rows differ by a bit.
SIZES = [1, 2, 47, 48, 49, 255, 257, 4096, 4097, 20_000, 70_000]
NUM_ROWS = [1, 2, 3, 255, 256, 257, 2047, 2048, 2049, 2**16, 2**22 + 1, 2**31 - 1]


@pytest.mark.parametrize("num_rows", [*NUM_ROWS, 2**31, 2**33 + 1, 2**50, 2**60, 2**62, 2**63 - 1])
def test_sizes(num_rows, rng):
    for dtype in (np.int32, np.int64) if num_rows in NUM_ROWS else (np.int64,):
        for n in SIZES:
            for pattern in PATTERNS[:1] + PATTERNS[2:]:
                ids = pick_ids(rng, n, num_rows, pattern)
                ids[-1] = num_rows - 1
                check(se.plan(ids.astype(dtype), num_rows), ids.astype(dtype))


@pytest.mark.parametrize("n", SIZES)
def test_sorted_and_reversed_ids(n):
    for ids in (np.arange(n), np.arange(n)[::-1], np.arange(n) // 2):
        check(se.plan(ids, n), ids)


@pytest.mark.parametrize("layout", INPUTS)
def test_layouts(layout, rng):
    ids = rng.integers(0, 9, (6, 7, 2))
    check(se.plan(arrange(ids, layout), 9), ids.ravel())


def test_lookups_of_two_dtypes():
    plan = se.plan([np.array([4, 1], np.int32), np.array([[2], [4]], np.int64)], 5)
    check(plan, np.array([4, 1, 2, 4]))


@pytest.mark.parametrize("ids", [[], np.zeros((0, 3), np.int32), [np.zeros(0, np.int64), np.zeros((2, 0), np.int64)]])
def test_no_ids(ids):
    plan = se.plan(ids, 5)
    assert len(plan.rows) == len(plan.order) == 0
    np.testing.assert_array_equal(plan.segment_offsets, [0])


def test_numbers_and_lists():
    check(se.plan([3, 1, 3], 4), np.array([3, 1, 3]))
    check(se.plan(2, 4), np.array([2]))
    assert repr(se.plan([[3, 1], [3, 3]], 4)) == "Plan(4 ids, 2 unique rows, num_rows=4)"


def test_a_plan_of_plans_is_their_plan():
    a, b = np.array([3, 1]), np.array([[2, 3]])
    check(se.plan([se.plan(a, 4), se.plan(b, 4)], 4), np.array([3, 1, 2, 3]))
    check(se.plan(se.plan(a, 4), 4), a)


@pytest.mark.parametrize("travel", [copy.deepcopy, copy.copy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_plans_travel(travel):
    """To and from the worker processes of a data loader; `check` wants them read-only."""
    check(travel(se.plan([3, 1, 3], 4)), np.array([3, 1, 3]))


@pytest.mark.parametrize("n", [20, 5000])
def test_plans_and_gradients_keep_their_memory(n, rng):
    """Updates reuse the memory that they sorted in, but never that of a plan or gradient somebody holds."""
    table = se.EmbeddingTable(99, 2, se.SGD(lr=1.0), rng=0)
    ids, grad = rng.integers(0, 99, n), rng.standard_normal((n, 2))
    plan, gradient, copies = se.plan(ids, 99), table.gradient(ids, grad), []
    for _ in range(3):
        table.update(plan, grad)
        table.apply(gradient)
        se.scatter_add(table.weight, plan, grad)
        copies += [se.coalesce(ids, grad, 99), se.coalesce(plan, grad, 99), table.gradient(ids, grad)]
        for other in (rng.integers(0, 99, n), rng.integers(0, 99, n)):
            table.update(other, grad)
            se.scatter_add(table.weight, other, grad)
    check(plan, ids)
    for each in (gradient, *copies):
        np.testing.assert_array_equal(each.rows, np.unique(ids))


def test_bags_take_a_plan(rng):
    ids, grad = rng.integers(0, 9, 12), rng.standard_normal((3, 2))
    offsets = np.array([0, 5, 5, 12])
    one = se.pool_gradient(se.Bags(ids, offsets), grad, 9)
    two = se.pool_gradient(se.Bags(se.plan(ids, 9), offsets), grad, 9)
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.values, two.values)


@pytest.mark.parametrize("position", [0, 19_999, 40_001, 79_999])
@pytest.mark.parametrize("bad", [-1, 50, 2**31 - 1])
def test_an_id_out_of_range_is_named_however_many_threads_sort(position, bad, rng):
    ids = rng.integers(0, 50, 80_000).astype(np.int32)
    ids[position] = bad
    with pytest.raises(IndexError, match=rf"ids\[{position}\] is {bad}, expected 0 <= id < 50"):
        se.plan(ids, 50)
    table = se.EmbeddingTable(50, 2, se.SGD(lr=1.0), rng=0)
    before = table.weight.copy()
    with pytest.raises(IndexError, match=rf"bags.ids\[{position}\] is {bad}"):
        table.update_pooled(se.Bags(ids, np.arange(0, 80_001, 4)), np.ones((20_000, 2)))
    with pytest.raises(IndexError, match=rf"ids\[1\]\[{position // 2}, {position % 2}\] is {bad}"):
        table.update([np.zeros(5, np.int32), ids.reshape(-1, 2)], [np.ones((5, 2)), np.ones((40_000, 2, 2))])
    np.testing.assert_array_equal(table.weight, before)
    assert table.step == 0


def by_rows(ids, num_rows, **how):
    return sort([(ids, ids.shape)], ("ids",), num_rows, kept=True, **how)


def sums(rows, grad):
    return segment_sum(None, rows, Gradients([grad], [len(grad)]))[1]


LABELS = {  # name: labels of n occurrences
    "increasing": lambda rng, n: np.sort(rng.integers(0, n, n)),
    "equal": lambda rng, n: np.full(n, 7),
    "shuffled": lambda rng, n: rng.permutation(n),
    "repeated": lambda rng, n: rng.integers(0, max(n // 9, 1), n),
    "negative": lambda rng, n: rng.integers(-n, n, n),
    "far apart": lambda rng, n: rng.integers(-(2**63), 2**63 - 1, n),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("num_rows", [3, 5000, 2**62])
def test_equal_ids_are_in_the_order_of_their_labels(name, num_rows, rng):
    for n in (0, 1, 2, 40, 5000, 70_000):
        ids, labels = rng.integers(0, num_rows, n), LABELS[name](rng, n)
        found = by_rows(ids, num_rows, labels=labels)
        expected = np.lexsort((np.arange(n), labels, ids))
        np.testing.assert_array_equal(found.order, expected)
        rows, counts = np.unique(ids, return_counts=True)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.offsets, np.cumsum([0, *counts]))
        offsets = np.array([0, n // 5, n // 5, n // 2, n])
        by_bag = by_rows(ids, num_rows, bag_offsets=offsets, labels=labels)
        np.testing.assert_array_equal(by_bag.order, np.repeat(np.arange(4), np.diff(offsets))[expected])


@pytest.mark.parametrize("n", [30, 20_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_do_not_depend_on_the_order_in_which_occurrences_arrive(n, dtype, rng):
    """Bit for bit those of the batch in the order of the labels, rows with several chunks included."""
    ids, grad = rng.integers(0, 40, n), rng.standard_normal((n, 9)).astype(dtype)
    ids[::3] = 7
    expected = sums(by_rows(ids, 40), grad)
    for _ in range(3):
        labels = rng.permutation(n)
        found = sums(by_rows(ids[labels], 40, labels=labels), grad[labels])
        np.testing.assert_array_equal(found, expected, strict=True)
    assert (sums(by_rows(ids[labels], 40), grad[labels]) != expected).any()


def test_an_id_out_of_range_is_named_with_labels_too():
    with pytest.raises(IndexError, match=r"ids\[1\] is 9"):
        by_rows(np.array([3, 9, 1]), 5, labels=np.array([2, 1, 0]))


def test_ids_of_a_plan_are_not_checked_again(monkeypatch, rng):
    ids, weight = rng.integers(0, 40, 9), rng.standard_normal((40, 3))
    plans = [se.plan(ids, 40), se.plan([ids, ids[:4]], 40)]
    monkeypatch.setattr(sorting, "first_outside", lambda *_: pytest.fail("ids were checked again"))
    np.testing.assert_array_equal(se.gather(weight, plans[0]), weight[ids])
    for found, each in zip(se.gather(weight, plans[1]), (ids, ids[:4]), strict=True):
        np.testing.assert_array_equal(found, weight[each])


def test_a_plan_for_a_larger_table_is_refused_by_a_lookup():
    for plan in (se.plan(np.array([3, 7]), 9), se.plan([np.array([3]), np.array([7])], 9)):
        with pytest.raises(IndexError, match="plan holds id 7, expected 0 <= id < 5"):
            se.gather(np.ones((5, 2)), plan)

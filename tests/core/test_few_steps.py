"""Calls with few ids go another way than others, and give the same bits and the same errors."""

import itertools

import numpy as np
import pytest
from every import EVERY
from general import take_the_general_way
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import PATTERNS, dims, generators, numbers, pick_ids, table_sizes

import sparsembed as se
from sparsembed import functional
from sparsembed._cpu import few, launch, prepared, sorting

RULES = [
    se.SGD(lr=0.5),
    se.RowwiseAdagrad(lr=0.1, weight_decay=0.01, weight_decay_mode="l2"),
    se.SparseAdam(lr=0.1),
    se.PartialRowwiseAdam(lr=0.1, weight_decay=0.01),
    se.SGD(lr=0.1, momentum=0.9),
    se.Adam(lr=0.1),
]
SINGLE, DOUBLE = [(np.float32, np.int32), (np.float32, np.int64)], [(np.float64, np.int32), (np.float64, np.int64)]
# What kernels are compiled for: rule, dtypes of numbers and ids, `scale_grad_by_freq`, `max_norm`.  Each case takes 10
# to 20 s, so these are some that have each pair of dtype, frequency and limit, and three rules with both of each.
# Those without options share their dtypes with `test_bits`, which trains all rules.
COVERING = [
    (RULES[0], SINGLE[0], False, None),
    (RULES[0], DOUBLE[1], True, 1.5),
    (RULES[1], DOUBLE[1], False, None),
    (RULES[1], SINGLE[1], True, 1.5),
    (RULES[2], SINGLE[1], False, 1.5),
    (RULES[2], DOUBLE[0], True, None),
    (RULES[3], DOUBLE[1], False, None),
    (RULES[4], SINGLE[1], False, None),
    (RULES[5], DOUBLE[0], True, None),
]
PRODUCT = [
    (rule, pair, by_freq, limit)
    for rule, pair, by_freq, limit in itertools.product(RULES, (SINGLE[1], DOUBLE[0]), (False, True), (None, 1.5))
    if limit is None or rule.catch_up is None
]
COUNTS = st.one_of(st.integers(1, 60), st.sampled_from([200, 513, 1100, 1600]))  # 512 occurrences of a row: hot


def both_ways(work):
    """Return the results of some work in one compiled call, and by the general way."""
    found = work()
    with pytest.MonkeyPatch.context() as patch:
        take_the_general_way(patch)
        return found, work()


def assert_same_bits(found, wanted):
    assert len(found) == len(wanted)
    for mine, its in zip(found, wanted, strict=True):
        assert (mine.dtype, mine.shape) == (its.dtype, its.shape)
        np.testing.assert_array_equal(mine.view(f"u{mine.itemsize}"), its.view(f"u{its.itemsize}"))


def state_of(table):
    return [np.ascontiguousarray(each) for each in (table.weight, *table.state.values(), np.array([table.step]))]


@st.composite
def batches(draw, dtype, index):
    """Return what a step needs: a generator, rows, dim, and ids of two lookups."""
    rng = draw(generators)
    rows, dim = draw(table_sizes), draw(dims)
    ids = [pick_ids(rng, draw(COUNTS), rows, draw(st.sampled_from(PATTERNS))).astype(index) for _ in range(2)]
    return rng, rows, dim, ids


def offsets_of(rng, n):
    return np.sort(np.r_[0, rng.integers(0, n + 1, min(n, 40)), n]).astype(np.int64)


@settings(max_examples=60)
@given(st.sampled_from(PRODUCT if EVERY else COVERING), st.sampled_from([None, 0]), st.data())
def test_steps_have_the_same_bits(case, padding, data):
    rule, (dtype, index), by_freq, limit = case
    rng, rows, dim, ids = data.draw(batches(dtype, index))
    weight, grads = numbers(rng, (rows, dim), dtype), [numbers(rng, (len(each), dim), dtype) for each in ids]
    offsets = offsets_of(rng, len(ids[0]))
    bag_grads = numbers(rng, (len(offsets) - 1, dim), dtype)
    bags = se.Bags(ids[0], offsets)

    def steps():
        options = {"scale_grad_by_freq": by_freq, "padding_idx": padding, "max_norm": limit}
        table = se.EmbeddingTable.from_array(weight, rule, copy=True, **options)
        table.update(ids[0], grads[0])
        table.update(ids, grads)
        for mode in ("sum", "mean", "sqrtn"):
            table.update_pooled(bags, bag_grads, mode)
        rows = table.lookup(ids[0])  # which have missed steps, if the rule says so
        table.update(ids[1].reshape(-1, 1), grads[1].reshape(-1, 1, dim))
        return [rows, table.lookup(ids[1].reshape(1, -1)), *state_of(table)]

    assert_same_bits(*both_ways(steps))


@settings(max_examples=60)
@given(st.sampled_from([SINGLE[1], DOUBLE[0]]), st.sampled_from([None, 0]), st.booleans(), st.data())
def test_stateless_functions_have_the_same_bits(pair, padding, by_freq, data):
    dtype, index = pair
    rng, rows, dim, (ids, _) = data.draw(batches(dtype, index))
    weight, grads = numbers(rng, (rows, dim), dtype), numbers(rng, (len(ids), dim), dtype)

    def calls():
        added = weight.copy()
        se.scatter_add(added, ids, grads, alpha=0.3)
        plan = se.plan(ids, rows)
        gradient = se.coalesce(ids, grads, rows, padding_idx=padding, scale_grad_by_freq=by_freq)
        return [added, plan.rows, plan.order, plan.segment_offsets, gradient.rows, gradient.values]

    assert_same_bits(*both_ways(calls))


def table_of(rule=None):
    return se.EmbeddingTable.from_array(np.ones((50, 4), np.float32), rule or se.SparseAdam(lr=0.1), padding_idx=0)


def test_calls_with_few_ids_take_one_compiled_call(monkeypatch):
    """The general way is not taken, whatever the form of the ids."""

    def refuse(*arguments, **options):
        raise AssertionError("the general way was taken")

    ways = ((launch, "_update_rows"), (launch, "segment_sum"), (sorting, "_sort"), (functional, "_rows"))
    for module, name in ways:
        monkeypatch.setattr(module, name, refuse)
    ids, grad = np.array([3, 7, 3]), np.ones((3, 4), np.float32)
    for rule in (se.SparseAdam(lr=0.1), se.Adam(lr=0.1), se.SGD(lr=0.1)):
        table = table_of(rule)
        for given_ids, given_grad in (
            (ids, grad),
            (ids.astype(np.int32), grad),
            ([ids], [grad]),
            ([ids, ids], [grad, grad]),
        ):
            table.update(given_ids, given_grad)
        table.update(ids.reshape(3, 1), grad.reshape(3, 1, 4))
        assert table.lookup(ids.reshape(1, 3)).shape == (1, 3, 4)
        table.update_pooled(se.Bags(ids, [0, 1, 3]), grad[:2], "mean")
        assert table.step == 6
    table.update(se.plan(ids, 50), grad)
    table.gradient(ids, grad)
    se.scatter_add(np.ones((50, 4), np.float32), ids, grad)
    se.coalesce(ids, grad, 50)
    with pytest.raises(AssertionError, match="general way"):
        table.update(np.arange(prepared.MOST + 1) % 50, np.ones((prepared.MOST + 1, 4), np.float32))


@pytest.mark.parametrize("bad", [-1, 50, 2**62])
@pytest.mark.parametrize("rule", [se.SparseAdam(lr=0.1), se.Adam(lr=0.1)], ids=["SparseAdam", "Adam"])
def test_an_id_out_of_range_changes_nothing(rule, bad):
    table = table_of(rule)
    ids, grad = np.array([3, 7, bad, 3]), np.ones((4, 4), np.float32)
    table.update(ids[:2], grad[:2])
    before = [each.copy() for each in state_of(table)]
    for work in (
        lambda: table.lookup(ids),
        lambda: table.update(ids, grad),
        lambda: table.update([ids, ids], [grad, grad]),
        lambda: table.update_pooled(se.Bags(ids, [0, 4]), grad[:1]),
        lambda: se.scatter_add(table.weight, ids, grad),
        lambda: se.coalesce(ids, grad, 50),
        lambda: se.plan(ids, 50),
    ):
        messages = []
        for way in (lambda patch: None, take_the_general_way):
            with pytest.MonkeyPatch.context() as patch:
                way(patch)
                with pytest.raises(IndexError) as raised:
                    work()
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
        assert str(bad) in messages[0]
    assert_same_bits(state_of(table), before)
    table.update(ids[:2], grad[:2])
    assert table.step == 2


def test_a_gradient_in_the_memory_of_the_table_is_copied():
    """Two ids of which the first changes the gradient of the second, if it is read late."""

    def step():
        weight = np.arange(12, dtype=np.float32).reshape(3, 4)
        table = se.EmbeddingTable.from_array(weight, se.SGD(lr=1.0))
        table.update([1, 2], weight[:2])
        se.scatter_add(weight, np.array([1, 2]), weight[:2])
        return [weight]

    found, wanted = both_ways(step)
    assert_same_bits(found, wanted)


def test_what_calls_with_few_ids_keep_is_forgotten_with_the_contents():
    """A table that gets other arrays must not write to the old ones."""
    ids, grad = np.array([3, 7]), np.ones((2, 4), np.float32)
    table = table_of(se.SparseAdam(lr=0.1))
    table.update(ids, grad)
    table._contents.grow(np.zeros((5, 4), np.float32))
    table.update(np.array([52, 3]), grad)
    assert table.weight[52, 0] < 0
    table._contents.watch = seen = [].append
    table.update(ids, grad)
    assert table.step == 3
    assert seen.__self__[0].tolist() == [3, 7]
    table.weight.flags.writeable = False
    table._contents.watch = None
    with pytest.raises(ValueError, match="read-only"):
        table.update(ids, grad)


def test_huge_num_rows_and_alpha_take_the_general_way():
    ids, grad = np.array([2**61, 5]), np.ones((2, 1))
    assert se.coalesce(ids, grad, 2**62).rows.tolist() == [5, 2**61]
    with pytest.raises(ValueError, match="alpha"):
        se.scatter_add(np.ones((3, 1), np.float32), np.array([1]), np.ones((1, 1), np.float32), alpha=1e300)
    assert few.sort_few(np.zeros(0, np.int64), 5, None) is None


def test_bags_and_rows_that_do_not_fit_one_key_are_sorted_all_the_same():
    """70,000 bags, most of them empty, take 17 bits of a key, and rows of such a table 48."""
    ids, offsets = np.array([2**47 + 5, 3, 2**47 + 5]), np.r_[np.zeros(70_000, np.int64), 1, 3]
    gradient = se.pool_gradient(se.Bags(ids, offsets), np.ones((70_001, 1)), 2**48)
    assert gradient.rows.tolist() == [3, 2**47 + 5]
    assert gradient.values.tolist() == [[1.0], [2.0]]

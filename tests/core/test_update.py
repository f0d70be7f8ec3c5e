"""One optimizer step on the touched rows: every rule, every way to say it.

Gradients lie on a grid of eighths, so that their sums are exact in any order, in float32 and in
float64; what the bounds allow is the rounding of the rule itself, one step at a time.
"""

import numpy as np
import pytest
from bit_cases import pairs_of
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    ALL_RULES,
    GAP,
    INPUTS,
    LAYOUTS,
    RULE_TERMS,
    TWO_TRAINED,
    arrange,
    assert_close,
    dense,
    id_arrays,
    lookups,
    numbers,
    pick_ids,
    pooled,
)

import sparsembed as se
from sparsembed import reference

each_rule = pytest.mark.parametrize("rule", ALL_RULES, ids=str)
SAMPLE = [se.RowwiseAdagrad(lr=0.1), se.SparseAdam(lr=0.1)]  # for what does not depend on the rule


def trained(rule):
    """Return what `lookups` and `pooled` draw from for a rule."""
    return [(*pair, ["contiguous"]) for pair in pairs_of(rule)]


def make(weight, rule, padding_idx=None):
    return se.EmbeddingTable.from_array(weight, rule, copy=True, padding_idx=padding_idx)


def snapshot(table):
    return table.weight.copy(), {name: slot.copy() for name, slot in table.state.items()}


def check_step(table, before, ids, grad_out):
    """Compare a table with the reference's step from where it was before."""
    rule, (weight, state), padding = table.optimizer, before, table.padding_idx
    expected, slots = reference.update(rule, weight, state, ids, grad_out, table.step, padding)
    assert_close(table.weight, expected, np.abs(weight) + np.abs(expected) + rule.rate(table.step), RULE_TERMS)
    pulls = 0.0
    if decay := getattr(rule, "touched_weight_decay", 0.0):
        # g + decay * w may cancel: its rounding is that of both terms, and so is the rounding of its square
        terms = np.abs(reference.coalesce(ids, grad_out, len(weight))) + decay * np.abs(weight)
        pulls = terms + terms**2
    for name, slot in table.state.items():
        assert_close(slot, slots[name], np.abs(state[name]) + np.abs(slots[name]) + pulls, RULE_TERMS)
    kept = np.setdiff1d(np.arange(table.num_rows), ids)
    if padding is not None:
        kept = np.union1d(kept, padding)
        assert not table.weight[padding].any()
        assert not any(slot[padding].any() for slot in table.state.values())
    for now, then in ((table.weight, weight), *((table.state[name], state[name]) for name in state)):
        assert now[kept].tobytes() == then[kept].tobytes()


def assert_same(one, two):
    """Two tables went through the same steps, bit for bit."""
    assert one.step == two.step
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@each_rule
@given(data=st.data())
def test_steps(rule, data):
    first = data.draw(lookups(trained(rule), grid=True))
    num_rows, dim = first.weight.shape
    padding = data.draw(st.none() | st.integers(0, num_rows - 1))
    rng = np.random.default_rng(dim)
    more = [data.draw(id_arrays(num_rows, first.ids.dtype)) for _ in range(data.draw(st.integers(0, 3)))]
    later = [(ids, numbers(rng, (*ids.shape, dim), first.weight.dtype, grid=True)) for ids in more]
    table = make(first.weight, rule, padding)
    for step, (ids, grad) in enumerate([(first.ids, first.grad_out), *later], 1):
        before = snapshot(table)
        table.update(ids, grad)
        assert table.step == step
        check_step(table, before, ids, grad)


@pytest.mark.parametrize("rule", SAMPLE, ids=str)
@given(data=st.data())
def test_update_pooled(rule, data):
    case = data.draw(pooled(combos=trained(rule)))
    table = make(case.weight, rule, case.padding_idx)
    ids = np.unique(case.bags.ids)
    for _ in range(2):
        grad_out = np.round(case.grad_out * 8) / 8 if case.mode in ("sum", "max") else case.grad_out
        weight = table.weight.copy() if case.mode == "max" else None
        where = case.bags, grad_out, table.num_rows, case.mode, case.padding_idx, weight
        dense = reference.pool_gradient(*where).astype(table.weight.dtype)
        before = snapshot(table)
        table.update_pooled(case.bags, grad_out, case.mode)
        if case.mode in ("sum", "max"):
            check_step(table, before, ids, dense[ids])
        twin = make(case.weight, rule, case.padding_idx)
        twin.load_state_dict({"weight": before[0], **before[1], "step": table.step - 1})
        kwargs = {"padding_idx": case.padding_idx, "weight": weight}
        twin.apply(se.pool_gradient(case.bags, grad_out, table.num_rows, case.mode, **kwargs))
        assert_same(table, twin)


@pytest.mark.parametrize("rule", SAMPLE, ids=str)
@given(data=st.data())
def test_several_lookups_are_one_step(rule, data):
    first = data.draw(lookups(trained(rule), grid=True))
    num_rows, dim = first.weight.shape
    rng, padding = np.random.default_rng(0), data.draw(st.none() | st.just(0))
    lists = st.lists(st.sampled_from([np.int32, np.int64]).flatmap(lambda kind: id_arrays(num_rows, kind)), max_size=4)
    ids = [np.atleast_1d(first.ids), *data.draw(lists)]  # a list of numbers alone is one lookup
    grads = [numbers(rng, (*each.shape, dim), first.weight.dtype) for each in ids]
    joined = np.concatenate([each.reshape(-1) for each in ids]), np.concatenate([g.reshape(-1, dim) for g in grads])
    single = make(first.weight, rule, padding)
    single.update(*joined)
    for form in (ids, tuple(ids), se.plan(ids, num_rows), [se.plan(each, num_rows) for each in ids]):
        table = make(first.weight, rule, padding)
        table.update(form, grads)
        assert table.step == 1
        assert_same(table, single)
    table = make(first.weight, rule, padding)
    table.apply(table.gradient(ids, grads))
    assert_same(table, single)


@pytest.mark.parametrize(
    "ids", [1, [1, 2], (1, 2), [[1, 2], [2, 0]], ((1, 2), (2, 0)), [np.int64(1), np.array(2)], (np.array(2),)]
)
def test_numbers_lists_and_tuples_are_one_lookup(ids):
    shape = np.shape(ids)
    grad = np.arange(2.0 * np.prod(shape)).reshape(*shape, 2)
    for form in (ids, se.plan(ids, 3)):
        table = se.EmbeddingTable.from_array(np.zeros((3, 2)), se.SGD(lr=1.0))
        table.update(form, grad)
        np.testing.assert_array_equal(table.weight, -reference.coalesce(ids, grad, 3))
        assert table.lookup(form).shape == (*shape, 2)
        np.testing.assert_array_equal(dense(table.gradient(form, grad)), reference.coalesce(ids, grad, 3))


def test_lists_of_lists_beside_a_list_of_gradients_are_several_lookups():
    """Ragged lists cannot be one array; two lists of one length would fit either."""
    table = se.EmbeddingTable.from_array(np.zeros((4, 1)), se.SGD(lr=1.0))
    table.update([[1, 2], [3]], [np.ones((2, 1)), np.ones((1, 1))])
    table.update([[1, 2], [3, 3]], [np.ones((2, 1)), np.ones((2, 1))])
    np.testing.assert_array_equal(table.weight.ravel(), [0, -2, -2, -3])


@given(pooled(combos=TWO_TRAINED), st.integers(0, 12))
def test_several_pooled_lookups_are_one_step(case, cut):
    """Cutting the bags into two sets changes nothing."""
    bags, cut = case.bags, min(cut, len(case.bags))
    at, given = bags.offsets[cut], bags.per_sample_weights
    parts = [slice(None, at), slice(at, None)], [bags.offsets[: cut + 1], bags.offsets[cut:] - at]
    pieces = [se.Bags(bags.ids[p], o, None if given is None else given[p]) for p, o in zip(*parts, strict=True)]
    grad_out = np.round(case.grad_out * 8) / 8  # "max" sums each set first
    one, two = (make(case.weight, SAMPLE[1], case.padding_idx) for _ in range(2))
    one.update_pooled(bags, grad_out, case.mode)
    two.update_pooled(pieces, [grad_out[:cut], grad_out[cut:]], case.mode)
    assert_same(one, two)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_weighted_and_plain_bags_in_one_step(mode, rng):
    weight, ids, offsets = numbers(rng, (9, 3), np.float64), rng.integers(0, 9, 12), [0, 4, 4, 12]
    sets = [se.Bags(ids, offsets), se.Bags(ids[::-1], offsets, numbers(rng, 12, np.float64))]
    grads = [numbers(rng, (3, 3), np.float64) for _ in sets]
    for order in (slice(None), slice(None, None, -1)):
        one, two = make(weight, se.SGD(lr=1.0)), make(weight, se.SGD(lr=1.0))
        one.update_pooled(sets[order], grads[order], mode)
        two.apply(se.pool_gradient(sets[0], grads[0], 9, mode) + se.pool_gradient(sets[1], grads[1], 9, mode))
        np.testing.assert_allclose(one.weight, two.weight, rtol=1e-13, atol=1e-13)


@each_rule
@given(data=st.data())
def test_gradient_and_apply_equal_update(rule, data):
    case = data.draw(lookups(TWO_TRAINED[:1]))
    one, two = make(case.weight, rule, 0), make(case.weight, rule, 0)
    for _ in range(2):
        one.update(case.ids, case.grad_out)
        gradient = two.gradient(case.ids, case.grad_out)
        assert 0 not in gradient.rows
        two.apply(gradient)
        assert_same(one, two)


@pytest.mark.parametrize("rule", SAMPLE, ids=str)
def test_accumulated_gradients_equal_one_update(rule, rng):
    weight, ids = numbers(rng, (40, 5), np.float32), rng.integers(0, 40, (4, 30))
    grads = numbers(rng, (4, 30, 5), np.float32, grid=True)
    one, two = make(weight, rule, 3), make(weight, rule, 3)
    one.update(ids, grads)
    first, *rest = [two.gradient(*batch) for batch in zip(ids, grads, strict=True)]
    two.apply(sum(rest, first))
    assert_same(one, two)


@given(lookups(TWO_TRAINED))
def test_a_plan_serves_several_tables(case):
    """Of any size above its ids, any dim and any optimizer."""
    plan = se.plan(case.ids, len(case.weight))
    wide = np.concatenate([case.weight, case.weight], axis=1)
    tall = np.concatenate([case.weight, case.weight])
    wide_grad = np.concatenate([case.grad_out, case.grad_out], axis=-1)
    for weight, grad, rule in (
        (case.weight, case.grad_out, SAMPLE[0]),
        (wide, wide_grad, SAMPLE[1]),
        (tall, case.grad_out, SAMPLE[1]),
    ):
        one, two = make(weight, rule), make(weight, rule)
        one.update(case.ids, grad)
        two.update(plan, grad)
        assert_same(one, two)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", SAMPLE, ids=str)
def test_a_table_of_any_layout(rule, layout, rng):
    """The caller's memory is updated in place, and nothing between its elements."""
    weight = numbers(rng, (40, 18), np.float32)
    adopted = arrange(weight, layout)
    mine, plain = se.EmbeddingTable.from_array(adopted, rule, padding_idx=2), make(weight, rule, 2)
    outside = adopted.base.copy() if adopted.base is not None else adopted.copy()
    for _ in range(3):
        ids = rng.integers(0, 40, 60)
        grad = numbers(rng, (60, 18), np.float32)
        mine.update(ids, grad)
        plain.update(ids, grad)
        np.testing.assert_array_equal(adopted, plain.weight)
    if adopted.base is not None:
        gaps = outside == GAP
        assert gaps.sum() == outside.size - weight.size
        assert (adopted.base[gaps] == GAP).all()


@pytest.mark.parametrize("layout", INPUTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_gradients_of_any_layout_and_dtype(dtype, layout, rng):
    weight, ids = numbers(rng, (9, 3), np.float32), rng.integers(0, 9, (6, 5))
    grad = numbers(rng, (6, 5, 3), dtype)
    one, two = make(weight, SAMPLE[1]), make(weight, SAMPLE[1])
    given = arrange(grad, layout)
    one.update(arrange(ids, layout), given)
    two.update(ids, grad.astype(np.float32))
    assert_same(one, two)
    np.testing.assert_array_equal(given, grad)


def test_broadcast_and_shared_gradients(rng):
    """A gradient may repeat its memory, or be the table itself."""
    weight, ids = numbers(rng, (6, 2), np.float32), np.array([1, 5, 1, 0, 2, 3])
    for grad in (np.broadcast_to(np.float32([1, 2]), (6, 2)), weight):
        table = make(weight, se.SGD(lr=1.0))
        table.update(ids, table.weight if grad is weight else grad)
        np.testing.assert_allclose(table.weight, weight - reference.coalesce(ids, grad, 6), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_whose_rows_lie_apart(dtype, rng):
    """Cut out of larger arrays, backward, or one row again and again; also on several threads, with hot rows."""
    n, dim = 20_000, 40
    ids = pick_ids(rng, n, 3_000, "hot")
    wide = numbers(rng, (n, 2 * dim + 1), np.float32, grid=True)
    one, many = wide[0, :dim], numbers(rng, (2 * n, dim), np.float32, grid=True)
    bags = se.Bags(ids, np.arange(0, n + 1, 4))
    weight = numbers(rng, (3_000, dim), dtype)
    for grad in (wide[:, 3 : 3 + dim], many[::2], many[::-2], np.broadcast_to(one, (n, dim))):
        whole = np.ascontiguousarray(grad)
        for rule in SAMPLE:
            cut, plain = make(weight, rule), make(weight, rule)
            for table, gradient in ((cut, grad), (plain, whole)):
                table.update(ids, gradient)
                table.update([ids[:7], ids[7:n]], [gradient[:7], gradient[7:]])
                table.update_pooled(bags, gradient[: n // 4], "mean")
            assert_same(cut, plain)
        summed = se.coalesce([ids, ids], [grad, whole.astype(np.float64)], 3_000).values
        np.testing.assert_array_equal(summed, se.coalesce([ids, ids], [whole, whole.astype(np.float64)], 3_000).values)


def test_memory_mapped_table(tmp_path, rng):
    weight = numbers(rng, (9, 4), np.float32)
    weight.tofile(tmp_path / "weight")
    mapped = np.memmap(tmp_path / "weight", np.float32, "r+", shape=(9, 4))
    table, twin = se.EmbeddingTable.from_array(mapped, SAMPLE[1]), make(weight, SAMPLE[1])
    for each in (table, twin):
        each.update([3, 3, 8], np.ones((3, 4)))
    mapped.flush()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "weight", np.float32).reshape(9, 4), twin.weight)


@each_rule
def test_large(rule, rng):
    """Many blocks on several threads; some rows are hot, one of them padding."""
    table = make(numbers(rng, (20_000, 33), np.float32), rule, padding_idx=0)
    for pattern in ("zipf", "unique", "hot"):
        ids = pick_ids(rng, 20_000, 20_000, pattern)
        grad = numbers(rng, (20_000, 33), np.float32, grid=True)
        before = snapshot(table)
        table.update(ids, grad)
        check_step(table, before, ids, grad)

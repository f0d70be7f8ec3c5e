"""Rows besides lookups and steps: blocks, set_rows, take, astype, and what a table tells of itself."""

import copy
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
from dense_cases import DIM, ROWS, Dense, agree, each_rule, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ALL_RULES, assert_close, pooled

import sparsembed as se
from sparsembed import reference


def trained(rule, trace, dtype=np.float32, seed=0, padding_idx=1):
    """A table and its dense twin after a trace, in which rows miss steps."""
    start = np.random.default_rng(seed).standard_normal((ROWS, DIM)).astype(dtype)
    table = se.EmbeddingTable.from_array(start, rule, copy=True, padding_idx=padding_idx)
    dense = Dense(rule, start, padding_idx)
    dense.weight[padding_idx] = dense.start[padding_idx] = 0
    for ids, grad in trace:
        table.update(ids, grad.astype(dtype))
        dense.update(ids, grad.astype(dtype))
    return table, dense


def everything(table):
    return [np.asarray(value) for value in table.state_dict().values()]


@each_rule
@settings(max_examples=8, deadline=None)
@given(traces(), st.integers(1, 12), st.integers(0, 99))
def test_blocks_are_the_rows_of_the_dense_optimizer(rule, trace, size, seed):
    table, dense = trained(rule, trace, np.float64, seed)
    before = copy.deepcopy(vars(table._contents)["steps"]), table._contents.table.array.copy()
    found = list(table.blocks(size))
    assert [first for first, _ in found] == list(range(0, ROWS, size))
    assert {len(vectors) for _, vectors in found[:-1]} <= {size}
    together = np.concatenate([vectors for _, vectors in found])
    np.testing.assert_array_equal(together, table.lookup(np.arange(ROWS)))
    np.testing.assert_array_equal(table._contents.table.array, before[1])  # nothing was written
    np.testing.assert_array_equal(table._contents.steps, before[0])
    agree(table, dense)


@each_rule
@settings(max_examples=8, deadline=None)
@given(traces(), traces(), st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=12), st.integers(0, 99))
def test_rows_that_are_taken_go_on_as_they_would_have(rule, trace, later, rows, seed):
    rows = [r for k, r in enumerate(rows) if r != 1 or 1 not in rows[:k]]
    table, dense = trained(rule, trace, np.float64, seed)
    array = table._contents.table.array.copy()
    some = table.take(rows)
    np.testing.assert_array_equal(table._contents.table.array, array)
    assert some.padding_idx == (rows.index(1) if 1 in rows else None)
    assert (some.step, some.optimizer) == (table.step, table.optimizer)
    dense.weight, dense.start = dense.weight[rows], dense.start[rows]
    dense.state = {name: slot[rows] for name, slot in dense.state.items()}
    dense.padding = some.padding_idx
    agree(some, dense)
    for ids, grad in later[:40]:
        kept = ids < len(rows)
        some.update(ids[kept], grad[kept])
        dense.update(ids[kept], grad[kept])
    agree(some, dense)


@each_rule
@settings(max_examples=8, deadline=None)
@given(traces(), traces(), st.sets(st.sampled_from([0, *range(2, ROWS)])), st.booleans(), st.integers(0, 99))
def test_rows_that_are_set_go_on_from_there(rule, trace, later, rows, reset, seed):
    table, dense = trained(rule, trace, np.float64, seed)
    rows = list(rows)
    vectors = np.random.default_rng(seed).standard_normal((len(rows), DIM))
    table.set_rows(rows, vectors, reset=reset)
    dense.weight[rows] = vectors
    if reset:
        for slot in dense.state.values():
            slot[rows] = 0
    dense.moved = max(dense.moved, np.abs(dense.weight - dense.start).max())
    np.testing.assert_array_equal(table.lookup(rows).reshape(-1, DIM), vectors)
    agree(table, dense)
    for ids, grad in later[:40]:
        table.update(ids, grad)
        dense.update(ids, grad)
    agree(table, dense)


@each_rule
@settings(max_examples=5, deadline=None)
@given(traces(), st.integers(0, 99))
def test_another_dtype_and_a_fresh_state(rule, trace, seed):
    table, dense = trained(rule, trace, np.float32, seed)
    wide = table.astype(np.float64)
    assert (wide.step, wide.optimizer, wide.padding_idx) == (table.step, table.optimizer, 1)
    for mine, its in zip(everything(table), everything(wide), strict=True):
        np.testing.assert_array_equal(mine, its)
    narrow = wide.astype("float32")
    for mine, its in zip(everything(table), everything(narrow), strict=True):
        assert mine.dtype == its.dtype
        np.testing.assert_array_equal(mine, its)
    agree(narrow, dense)
    weight = table.weight.copy()
    table.reset_state()
    fresh = se.EmbeddingTable.from_array(weight, rule, copy=True, padding_idx=1)
    for ids, grad in trace[:20]:
        for each in (table, fresh):
            each.update(ids, grad.astype(np.float32))
    for mine, its in zip(everything(table), everything(fresh), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("rule", ALL_RULES, ids=repr)
def test_rules_that_touch_only_the_rows_of_a_batch(rule, rng):
    table = se.EmbeddingTable(ROWS, DIM, rule, rng=0)
    other = se.EmbeddingTable(ROWS, DIM, rule, rng=0)
    steps = [(rng.integers(0, ROWS, 6), rng.standard_normal((6, DIM)).astype(np.float32)) for _ in range(6)]
    for ids, grad in steps[:3]:
        table.update(ids, grad)
        other.update(ids, grad)
    some = table.take(np.arange(ROWS)[::-1])
    for ids, grad in steps[3:]:
        some.update(ROWS - 1 - ids, grad)
        other.update(ids, grad)
    for mine, its in zip(everything(some), everything(other), strict=True):
        np.testing.assert_array_equal(mine[::-1] if mine.ndim else mine, its)
    state = {name: slot.copy() for name, slot in some.state.items()}
    some.set_rows([2], np.ones((1, DIM)))
    for name, slot in some.state.items():
        np.testing.assert_array_equal(slot, state[name])
    some.set_rows([2, 5], np.ones((2, DIM)), reset=True)
    for slot in some.state.values():
        assert not slot[[2, 5]].any()
    np.testing.assert_array_equal(some.lookup([2, 5]), np.ones((2, DIM), np.float32))


@settings(deadline=None)
@given(pooled(), st.booleans())
def test_the_gradient_of_bags_is_that_of_the_table(case, by_freq):
    options = {"padding_idx": case.padding_idx, "scale_grad_by_freq": by_freq}
    rule = None if case.weight.dtype == np.float16 else se.SGD(0.5)
    tables = [se.EmbeddingTable.from_array(case.weight, rule, copy=True, **options) for _ in range(2)]
    gradient = tables[0].gradient_pooled(case.bags, case.grad_out, case.mode)
    weight = tables[0].weight.copy()
    want = reference.pool_gradient(
        case.bags, case.grad_out, len(weight), case.mode, case.padding_idx, weight, scale_grad_by_freq=by_freq
    )
    shares, _, bag_of = case.factors()
    grads = np.abs(np.asarray(case.grad_out, np.float64))
    size = reference.scatter_add(np.zeros(weight.shape), case.bags.ids, shares[:, None] * grads[bag_of])
    found = np.zeros(weight.shape, gradient.dtype)
    found[gradient.rows] = gradient.values
    if case.padding_idx is not None:
        want[case.padding_idx] = 0
    counts = np.bincount(case.bags.ids, minlength=len(weight))[:, None]
    assert_close(found, want, size, counts + 3)
    if rule is None:
        return
    tables[0].apply(gradient)
    tables[1].update_pooled(case.bags, case.grad_out, case.mode)
    np.testing.assert_array_equal(tables[0].weight, tables[1].weight)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_several_bags_are_one_gradient(mode, rng):
    bags = [se.Bags(rng.integers(0, ROWS, n), [0, n // 2, n]) for n in (6, 9)]
    grads = [rng.standard_normal((2, DIM)) for _ in bags]
    tables = [se.EmbeddingTable(ROWS, DIM, se.Adam(0.1), dtype=np.float64, rng=0, padding_idx=2) for _ in range(2)]
    for _ in range(3):
        tables[0].apply(tables[0].gradient_pooled(bags, grads, mode))
        tables[1].update_pooled(bags, grads, mode)
    for mine, its in zip(*map(everything, tables), strict=True):
        np.testing.assert_array_equal(mine, its)
    with pytest.raises(ValueError, match="finite"):
        tables[0].gradient_pooled(bags, [grads[0], grads[1] * np.nan], mode, check_finite=True)
    with pytest.raises(TypeError, match="check_finite must be True or False"):
        tables[0].gradient_pooled(bags, grads, mode, check_finite=1)


def test_what_a_table_tells_of_itself():
    table = se.EmbeddingTable(5, 3, se.SparseAdam(0.1), rng=0)
    assert (len(table), table.shape, table.nbytes) == (5, (5, 3), 5 * 3 * 4 * 3)
    np.testing.assert_array_equal(np.stack(list(table)), table.weight)
    assert np.shares_memory(np.asarray(table), table.weight)
    copied = np.array(table, np.float64)
    np.testing.assert_array_equal(copied, table.weight)
    copied[:] = 0
    assert table.weight.any()
    with pytest.raises(ValueError, match="copy"):
        np.asarray(table, np.float64, copy=False)
    assert table[2].shape == (3,)
    with pytest.raises(TypeError, match=r"pass a list, table\[\[1, 2\]\]"):
        table[1, 2]


def test_an_array_of_a_table_is_up_to_date():
    table = se.EmbeddingTable.from_array(np.zeros((2, 1)), se.Adam(lr=0.1))
    for ids in [[0], [1]]:
        table.update(ids, np.ones((1, 1)))
    now = table.lookup([0, 1])
    np.testing.assert_array_equal(np.asarray(table), now)


def test_an_optimizer_may_come_later_and_change_after_a_reset(rng):
    grad = rng.standard_normal((2, 3))
    table = se.EmbeddingTable(5, 3, dtype=np.float64, padding_idx=0, rng=0)
    same = se.EmbeddingTable(5, 3, se.Adagrad(0.1), dtype=np.float64, padding_idx=0, rng=0)
    table.optimizer = se.Adam(0.1)  # before the first step any class will do
    table.optimizer = se.Adagrad(0.1)
    for each in (table, same):
        each.update([1, 2], grad)
    for mine, its in zip(everything(table), everything(same), strict=True):
        np.testing.assert_array_equal(mine, its)
    before = everything(table)
    with pytest.raises(ValueError, match=r"call reset_state\(\) first"):
        table.optimizer = se.SGD(0.1)
    for mine, its in zip(everything(table), before, strict=True):
        np.testing.assert_array_equal(mine, its)
    table.reset_state()
    table.optimizer = se.SGD(0.1)
    assert (table.step, table.state) == (0, {})
    table.update([1, 2], grad)
    limited = se.EmbeddingTable(5, 3, max_norm=1.0)
    with pytest.raises(ValueError, match="max_norm does not go with"):
        limited.optimizer = se.Adam(0.1)
    with pytest.raises(TypeError, match="float16"):
        se.EmbeddingTable(5, 3, dtype=np.float16).optimizer = se.SGD(0.1)
    array = np.ones((5, 3))
    array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        se.EmbeddingTable.from_array(array).optimizer = se.SGD(0.1)


@pytest.mark.parametrize("rule", [se.SGD(0.1), se.Adagrad(0.1), se.SparseAdam(0.1)], ids=repr)
def test_decay_of_touched_rows_may_begin_and_end_between_steps(rule, rng):
    weight = rng.standard_normal((5, 3))
    table, state = se.EmbeddingTable.from_array(weight.copy(), rule), {name: np.zeros((5, 3)) for name in rule.slots}
    for step, decay in enumerate((0.0, 0.5, 0.5, 0.0, 0.2), 1):
        table.optimizer = now = replace(rule, touched_weight_decay=decay) if decay else rule
        ids, grad = rng.integers(0, 5, 4), rng.standard_normal((4, 3))
        table.update(ids, grad)
        weight, state = reference.update(now, weight, state, ids, grad, step)
    np.testing.assert_allclose(table.weight, weight, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="must keep the state"):
        table.optimizer = se.SGD(0.1, momentum=0.9)


def test_weights_only():
    trained, reader = (se.EmbeddingTable(5, 3, rule, rng=rng) for rule, rng in ((se.Adam(0.1), 0), (None, 1)))
    trained.update([1, 3], np.ones((2, 3), np.float32))
    reader.load_state_dict(trained.state_dict(), strict=False)
    np.testing.assert_array_equal(reader.weight, trained.weight)
    assert reader.step == 0
    other = se.EmbeddingTable(5, 3, se.Adagrad(0.1), rng=1)
    other.update([1, 3], np.ones((2, 3), np.float32))
    other.load_state_dict(trained.state_dict(), strict=False)
    np.testing.assert_array_equal(other.weight, trained.weight)
    assert (other.step, other.state["sum"].any()) == (0, False)
    whole = se.EmbeddingTable(5, 3, se.Adam(0.1), rng=1)
    whole.load_state_dict(trained.state_dict(), strict=False)  # it has all of the state: nothing is left out
    for mine, its in zip(everything(whole), everything(trained), strict=True):
        np.testing.assert_array_equal(mine, its)
    with pytest.raises(KeyError, match="missing or left over"):
        reader.load_state_dict(trained.state_dict())
    with pytest.raises(KeyError, match="'weight'"):
        reader.load_state_dict({"weights": 1}, strict=False)
    with pytest.raises(ValueError, match="state_dict"):
        reader.load_state_dict({"weight": np.ones((4, 3), np.float32)}, strict=False)
    with pytest.raises(TypeError, match="strict must be True or False"):
        reader.load_state_dict(trained.state_dict(), strict=None)


def test_an_initializer_gets_a_generator():
    def normal(shape, *, dtype, rng):
        assert isinstance(rng, np.random.Generator)
        return rng.standard_normal(shape).astype(dtype)

    for rng in (0, None, np.random.SeedSequence(3), np.random.default_rng(4)):
        se.EmbeddingTable(5, 3, initializer=normal, rng=rng)
    one, two = (se.EmbeddingTable(5, 3, initializer=normal, rng=7).weight for _ in range(2))
    np.testing.assert_array_equal(one, two)


ROW = np.ones((1, DIM))
REFUSED = {
    "twice": (ValueError, "once, got 3 2 times, first at 0", lambda t: t.set_rows([3, 4, 3], np.ones((3, DIM)))),
    "padding": (ValueError, "padding_idx", lambda t: t.set_rows([3, 1], np.ones((2, DIM)))),
    "outside": (IndexError, "ids", lambda t: t.set_rows([ROWS], ROW)),
    "shape": (ValueError, "vectors must be a float array of shape \\(1, 3\\)", lambda t: t.set_rows([3], np.ones(DIM))),
    "kind": (TypeError, "vectors must hold numbers, got complex128", lambda t: t.set_rows([3], np.full((1, DIM), 1j))),
    "None": (TypeError, "vectors must hold numbers, got None", lambda t: t.set_rows([3], None)),
    "too large": (ValueError, "fit into float32", lambda t: t.set_rows([3], np.full((1, DIM), 1e300))),
    "no optimizer": (ValueError, "optimizer must be an optimizer, got None", lambda t: setattr(t, "optimizer", None)),
    "scalars": (TypeError, r"table\[\[1, 2\]\]", lambda t: t[tuple(np.array([1, 2]))]),
    "a column": (TypeError, "table.weight", lambda t: t[1, :]),
    "as an array": (TypeError, "weight must be an array, got an EmbeddingTable", lambda t: se.gather(t, [1])),
    "as a gradient": (TypeError, "grad_out must be an array, got an EmbeddingTable", lambda t: t.update([1], t)),
    "as out": (TypeError, "out must be an array", lambda t: se.gather(np.ones((9, 3)), np.zeros(ROWS, int), out=t)),
    "clipped": (TypeError, r"dense\[0\] must be an array", lambda t: se.clip_by_global_norm([], 1.0, dense=[t])),
    "a part of a state": (
        KeyError,
        "a part of a state",
        lambda t: t.load_state_dict({"weight": np.ones((ROWS, DIM)), "exp_avg": np.ones((ROWS, DIM))}, strict=False),
    ),
    "two axes": (ValueError, r"ids must have shape \(n,\)", lambda t: t.set_rows([[3]], ROW)),
    "reset": (TypeError, "reset must be True or False", lambda t: t.set_rows([3], ROW, reset=1)),
    "no rows": (ValueError, "at least one row", lambda t: t.take(np.zeros(0, np.int64))),
    "padding twice": (ValueError, "padding_idx 1 2 times", lambda t: t.take([1, 2, 1])),
    "row outside": (IndexError, "rows", lambda t: t.take([-1])),
    "floats": (TypeError, "rows", lambda t: t.take([0.5])),
    "size": (ValueError, "size must be at least 1", lambda t: t.blocks(0)),
    "size of another kind": (TypeError, "size", lambda t: t.blocks(1.5)),
    "rounding": (ValueError, "rounding must be None", lambda t: t.astype("float64", rounding="nearest")),
    "dtype": (TypeError, "dtype must be float32", lambda t: t.astype(int)),
    "an optimizer with halves": (TypeError, "float16", lambda t: t.astype("float16")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_changes(what):
    error, words, call = REFUSED[what]
    table, _ = trained(se.Adam(0.1), [([0, 3], np.ones((2, DIM))), ([4], np.ones((1, DIM)))])
    before = table._contents.table.array.copy()
    with pytest.raises(error, match=words):
        call(table)
    np.testing.assert_array_equal(table._contents.table.array, before)


def test_rows_of_a_limited_table_are_scaled(rng):
    table = se.EmbeddingTable(5, 3, se.SGD(0.1), max_norm=1.0)
    table.set_rows([2], np.full((1, 3), 10.0))
    np.testing.assert_allclose(np.linalg.norm(table[2]), 1.0, rtol=1e-5)


def test_a_read_only_table_takes_no_rows():
    array = np.ones((5, 3))
    array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        se.EmbeddingTable.from_array(array).set_rows([1], np.ones((1, 3)))


def test_no_rows_are_set():
    table = se.EmbeddingTable(5, 3, rng=0)
    weight = table.weight.copy()
    table.set_rows(np.zeros(0, np.int64), np.zeros((0, 3)))
    np.testing.assert_array_equal(table.weight, weight)


@pytest.mark.parametrize("rng", ["x", 1.5, True, np.random], ids=str)
def test_what_is_no_generator_is_named(rng):
    for make in (
        lambda: se.EmbeddingTable(4, 2, rng=rng),
        lambda: se.EmbeddingTable.from_array(np.ones((4, 2)), rng=rng),
    ):
        with pytest.raises(TypeError, match="rng must be None, an integer"):
            make()


def test_arrays_of_which_only_a_copy_is_known_are_not_trained_later():
    class Copies:
        def __array__(self, dtype=None, copy=None):
            return np.ones((3, 2))

    for source in (Copies(), [[1.0, 2.0]] * 3):
        table = se.EmbeddingTable.from_array(source)
        with pytest.raises(TypeError, match="copy=True"):
            table.optimizer = se.SGD(0.1)
        with pytest.raises(TypeError, match="copy=True"):
            table.set_rows([1], np.ones((1, 2)))
    shared = np.lib.stride_tricks.as_strided(np.zeros(4), (3, 2), (8, 8))
    with pytest.raises(ValueError, match="two elements"):
        se.EmbeddingTable.from_array(shared).optimizer = se.SGD(0.1)
    owned = se.EmbeddingTable.from_array([[1.0, 2.0]] * 3, copy=True)
    owned.optimizer = se.SGD(0.1)
    owned.update([1], np.ones((1, 2)))
    assert owned.step == 1


def test_a_step_without_an_optimizer_is_not_lost_in_silence():
    table = se.EmbeddingTable(3, 2)
    table.load_state_dict({"weight": np.ones((3, 2), np.float32), "step": 7})
    with pytest.raises(ValueError, match=r"at step 7.*reset_state"):
        table.optimizer = se.SGD(0.1)
    table.reset_state()
    table.optimizer = se.SGD(0.1)
    assert (table.step, table.weight.sum()) == (0, 6)


def test_keys_of_others_beside_a_whole_state_are_left_out():
    table, other = (se.EmbeddingTable(4, 2, se.Adam(0.1), rng=k) for k in range(2))
    table.update([1], np.ones((1, 2), np.float32))
    other.load_state_dict(table.state_dict() | {"epoch": 3}, strict=False)
    for mine, its in zip(everything(table), everything(other), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_learning_rate_that_cannot_be_copied_is_shared():
    class Schedule:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, step):
            return 0.1

    table = se.EmbeddingTable(4, 2, se.SGD(Schedule(), momentum=0.9), rng=0)
    for ids in ([0, 1], [1]):
        table.update(ids, np.ones((len(ids), 2), np.float32))
    some = table.take([0, 1])
    assert some.optimizer.lr is table.optimizer.lr
    np.testing.assert_array_equal(some.lookup([0, 1]), table.lookup([0, 1]))
    table.set_rows([0], np.ones((1, 2)))
    np.testing.assert_array_equal(table[0], [1, 1])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_an_interrupt_leaves_state_and_step_together():
    """Signals come at any time in the call: it is whole, or it was not."""

    class Alarm(BaseException):
        pass

    def alarm(*_):
        raise Alarm

    table, seen = se.EmbeddingTable(64, 8, se.Adam(0.1), rng=0), 0
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        for k in range(600):
            if table.step == 0:
                table.update(np.arange(64), np.ones((64, 8), np.float32))
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + k % 150))
                table.reset_state()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                seen += 1
            contents = table._contents
            state = [bool(each.any()) for each in (contents.state, contents.last, contents.steps[:2])]
            assert len(set(state)) == 1, k
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen

"""Rules that equal a dense optimizer: at every step every row is read as if it had been stepped each time."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsembed as se
from sparsembed import _formulas
from sparsembed.rules import _history

ROWS, DIM = 9, 3
SCHEDULES = {
    "constant": lambda step: 1e-2,
    "cosine": lambda step: 1e-2 * (1 + math.cos(step / 40)),
    "warm-up": lambda step: 1e-4 * min(step, 100),
    "tenfold jump": lambda step: 1e-3 if step < 60 else 1e-2,
    "nothing at first": lambda step: 0.0 if step < 30 else 1e-2,
}
DENSE = [
    *(getattr(se, name)() for name in se.rules.__all__ if getattr(se.rules, name).catch_up is not None),
    se.Adam(betas=(0.0, 0.9)),
    se.Adam(betas=(0.7, 0.95), eps=1e-10),
    se.Adam(eps=1e-3),
    se.Adam(betas=(0.0, 0.0)),
    se.Adam(betas=(0.5, 0.3), eps=1e-12),
    se.AdamW(weight_decay=0.1),
    se.AdamW(weight_decay=200.0),  # weights change sign, or vanish
    se.RMSprop(alpha=0.0),
    se.SGD(1e-2, weight_decay=0.1),
    se.SGD(1e-2, weight_decay=100.0),
    se.SGD(1e-2, momentum=0.9),
    se.SGD(1e-2, momentum=0.9, nesterov=True),
    se.SGD(1e-2, momentum=0.5, dampening=0.3),
    se.SGD(1e-2, momentum=0.9, weight_decay=1e-3),
    se.SGD(1e-2, momentum=0.9, weight_decay=1.0),  # rows swing around zero
    se.SGD(1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    se.SGD(1e-2, momentum=0.9, touched_weight_decay=0.1),
    se.SGD(1e-2, momentum=0.9, nesterov=True, touched_weight_decay=1.0),  # would swing, if rows at rest did decay
]
each_rule = pytest.mark.parametrize("rule", DENSE, ids=str)


class Dense:
    """The dense optimizer in float64, with padding rows left alone."""

    def __init__(self, rule, weight, padding_idx=None):
        self.rule, self.weight, self.padding, self.step = rule, np.array(weight, np.float64), padding_idx, 0
        self.state = {name: np.zeros(weight.shape) for name in rule.slots}
        self.start, self.moved = self.weight.copy(), 0.0
        self.largest = dict.fromkeys(rule.slots, 0.0)  # of each slot, ever

    def update(self, ids, grad, rule=None):
        self.step += 1
        arguments = (self.weight, self.state, ids, grad, self.step, self.padding)
        self.weight, self.state = se.reference.update(rule or self.rule, *arguments)
        for name, slot in self.state.items():
            self.largest[name] = max(self.largest[name], float(np.abs(slot).max()))
        self.moved = max(self.moved, float(np.abs(self.weight - self.start).max()))

    def rounding(self, dtype):
        """Four roundings of a weight a step: of the factor, the product, the change and their sum."""
        return self.step * 4 * np.finfo(dtype).eps / 2 * max(np.abs(self.weight).max(), np.abs(self.start).max())


def agree(table, dense):
    now = table.lookup(np.arange(table.num_rows))
    dtype = now.dtype
    tolerance = {4: 1e-5, 8: 1e-12}[dtype.itemsize]
    error = np.abs(now - dense.weight).max()
    assert error <= tolerance * dense.moved + dense.rounding(dtype), f"step {dense.step}: off by {error:.1e}"


@st.composite
def traces(draw, rows=ROWS):
    """Steps with few ids, and pauses."""
    seed, steps = draw(st.integers(0, 2**32)), draw(st.integers(1, 250))
    rng, trace, pause = np.random.default_rng(seed), [], 0
    size = 10.0 ** draw(st.integers(-6, 1))
    for _ in range(steps):
        if pause == 0 and rng.random() < 0.1:
            pause = int(rng.integers(1, 120))
        n = 0 if pause else int(rng.integers(0, 5))
        pause = max(pause - 1, 0)
        trace.append((rng.integers(0, rows, n), size * rng.standard_normal((n, DIM))))
    return trace


@each_rule
@settings(max_examples=12, deadline=None)
@given(traces(), st.sampled_from(sorted(SCHEDULES)), st.sampled_from([np.float32, np.float64]), st.integers(0, 99))
def test_every_row_at_every_step(rule, trace, schedule, dtype, seed):
    rule = replace(rule, lr=SCHEDULES[schedule])
    start = np.random.default_rng(seed).standard_normal((ROWS, DIM)).astype(dtype)
    table, dense = se.EmbeddingTable.from_array(start, rule, copy=True, padding_idx=1), Dense(rule, start, 1)
    dense.weight[1] = dense.start[1] = 0
    for ids, grad in trace:
        table.update(ids, grad.astype(dtype))
        dense.update(ids, grad.astype(dtype))
        agree(table, dense)
    now = table.lookup(np.arange(ROWS))
    np.testing.assert_array_equal(table.weight, now)  # bringing all rows up to date changes nothing that is read
    for name, slot in table.state.items():
        atol = dense.largest[name] * {4: 1e-6, 8: 1e-14}[slot.itemsize]
        np.testing.assert_allclose(slot, dense.state[name], rtol={4: 1e-4, 8: 1e-12}[slot.itemsize], atol=atol)


HAND = {  # three steps of one weight that starts at 1, with gradients 2, 0 and -1, each number by hand
    se.SGD(0.5, weight_decay=0.1): [1 - 0.5 * 2.1, -0.05 * 0.95, -0.0475 - 0.5 * (-1 - 0.00475)],
    se.SGD(0.5, momentum=0.5): [0.0, -0.5, -0.5 - 0.5 * (0.25 * 2 - 1)],
    se.SGD(0.5, momentum=0.5, dampening=0.5): [0.0, -0.5, -0.5 - 0.5 * (0.5 - 0.5)],
    se.SGD(0.5, momentum=0.5, nesterov=True): [
        1 - 0.5 * (2 + 0.5 * 2),
        -0.5 - 0.5 * 0.5,
        -0.75 - 0.5 * (-1 + 0.5 * -0.5),
    ],
    # b: 2 + 0.1, then 0.5 * 2.1 + 0.1 * -0.05, then 0.5 * 1.045 - 1 + 0.1 * -0.5725
    se.SGD(0.5, momentum=0.5, weight_decay=0.1): [-0.05, -0.5725, -0.5725 - 0.5 * (0.5225 - 1.05725)],
    # v: 4 / 2, 1, 1 / 2 + 1 / 2
    se.RMSprop(0.5, alpha=0.5, eps=0.0): [1 - 1 / math.sqrt(2), 1 - 1 / math.sqrt(2), 1.5 - 1 / math.sqrt(2)],
    # m: 1, 1/2, -1/4 over 1/2, 3/4, 7/8; v: 2, 1, 1 over the same
    se.Adam(0.5, betas=(0.5, 0.5), eps=0.0): [
        0.5,
        0.5 - 0.5 * (2 / 3) / math.sqrt(4 / 3),
        0.5 - 0.5 * (2 / 3) / math.sqrt(4 / 3) + 0.5 * (2 / 7) / math.sqrt(8 / 7),
    ],
    # the same steps behind a factor 0.9
    se.AdamW(0.5, betas=(0.5, 0.5), eps=0.0, weight_decay=0.2): [
        0.9 - 0.5,
        0.36 - 0.5 * (2 / 3) / math.sqrt(4 / 3),
        0.9 * (0.36 - 0.5 * (2 / 3) / math.sqrt(4 / 3)) + 0.5 * (2 / 7) / math.sqrt(8 / 7),
    ],
}


@pytest.mark.parametrize("rule", HAND, ids=str)
def test_by_hand(rule):
    table, dense = se.EmbeddingTable.from_array(np.ones((2, 1)), rule), Dense(rule, np.ones((2, 1)))
    for grad, want in zip((2.0, 0.0, -1.0), HAND[rule], strict=True):
        ids = [0] if grad else [1]  # row 0 is left out where its gradient is zero
        for each in (table, dense):
            each.update(ids, np.full((1, 1), grad))
        assert table.lookup([0])[0, 0] == pytest.approx(want, rel=1e-14, abs=1e-15)
        assert dense.weight[0, 0] == pytest.approx(want, rel=1e-14, abs=1e-15)


@each_rule
def test_long_gaps_and_the_end_of_a_history(rule, monkeypatch, rng):
    """Rows that rest for 1,800 steps, over several histories."""
    monkeypatch.setattr(_history, "LONGEST", 900)
    start = rng.standard_normal((4, DIM))
    table, dense = se.EmbeddingTable.from_array(start, rule, copy=True), Dense(rule, start)
    for step in range(2200):
        ids = np.array([0, 1, 2, 3] if step in (3, 400, 2199) else [0] if step % 97 == 0 else [], np.int64)
        grad = rng.standard_normal((len(ids), DIM))
        table.update(ids, grad)
        dense.update(ids, grad)
        if step % 331 == 0 or step > 2197:
            agree(table, dense)
    assert table._contents.history.base > 0
    assert table._contents.history.newest <= 901


def test_a_hundred_thousand_steps(rng):
    rule, start = se.AdamW(lr=1e-3, weight_decay=0.1), rng.standard_normal((3, 1))
    table = se.EmbeddingTable.from_array(start, rule, copy=True)
    weight, state = start.copy(), [np.zeros((3, 1)), np.zeros((3, 1))]
    for step in range(1, 100_001):
        ids = np.flatnonzero([True, step % 1000 == 1, step == 5])
        dense = np.zeros((3, 1))
        dense[ids] = math.sin(step)
        table.update(ids, dense[ids])
        weight, state = _formulas.take_step(rule, weight, state, dense, step)
    np.testing.assert_allclose(table.lookup(np.arange(3)), weight, rtol=0, atol=1e-12)
    assert table.step == 100_000
    assert table._contents.last.dtype == np.int32
    assert (
        table._contents.history.nbytes < 2 * _history.LONGEST * (9 + 6 + 6) * 8
    )  # bounded, whatever the number of steps


@each_rule
def test_pooling_reads_rows_up_to_date(rule, rng):
    start = rng.standard_normal((ROWS, DIM))
    lazy, eager = (se.EmbeddingTable.from_array(start, rule, copy=True) for _ in range(2))
    ids = rng.integers(0, ROWS, 14)
    bags = se.Bags(ids, np.array([0, 4, 4, 9, 14]))
    for mode in ("sum", "mean", "sqrtn", "max"):
        for table in (lazy, eager):
            table.update(ids[:3], np.ones((3, DIM)))
            table.update([ids[4]], np.ones((1, DIM)))
        eager.flush()
        grad = rng.standard_normal((4, DIM))
        np.testing.assert_allclose(lazy.pool(bags, mode), eager.pool(bags, mode), rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(lazy.pool(bags, mode), se.pool(eager.weight, bags, mode), rtol=1e-13, atol=1e-14)
        for table in (lazy, eager):
            table.update_pooled(bags, grad, mode)
            table.update_pooled([bags, bags], [grad, -grad / 2], mode)
    np.testing.assert_allclose(lazy.weight, eager.weight, rtol=1e-11, atol=1e-12)


def test_reading_writes_nothing(rng):
    memory = rng.standard_normal((ROWS, DIM))
    table = se.EmbeddingTable.from_array(memory, se.Adam(lr=0.1))
    table.update([1], np.ones((1, DIM)))
    table.update([2], np.ones((1, DIM)))
    before = memory.copy(), table._contents.state.copy(), table._contents.last.copy()
    assert not np.array_equal(table.lookup([1])[0], memory[1])  # it has moved on since
    table.pool(se.Bags.from_lists([[1, 2]]))
    for old, new in zip(before, (memory, table._contents.state, table._contents.last), strict=True):
        np.testing.assert_array_equal(old, new)
    assert table.weight is memory or np.shares_memory(table.weight, memory)
    np.testing.assert_array_equal(table.lookup([1])[0], memory[1])


def test_many_readers_see_the_same(rng):
    start = rng.standard_normal((2000, 16)).astype(np.float32)
    table = se.EmbeddingTable.from_array(start, se.AdamW(lr=0.1), copy=True)
    for _ in range(5):
        table.update(rng.integers(0, 2000, 300), rng.standard_normal((300, 16), np.float32))
    ids, seen = rng.integers(0, 2000, 5000), []
    readers = [threading.Thread(target=lambda: seen.append(table.lookup(ids))) for _ in range(8)]
    for each in readers:
        each.start()
    for each in readers:
        each.join()
    for each in seen:
        np.testing.assert_array_equal(each, table.weight[ids])
    assert len(seen) == 8


def test_readers_and_a_thread_that_brings_rows_up_to_date(rng):
    table = se.EmbeddingTable.from_array(rng.standard_normal((3000, 8)), se.AdamW(lr=0.1), copy=True)
    ids, wrong = rng.integers(0, 3000, 2000), []
    for _ in range(15):
        table.update(ids[:50], np.ones((50, 8)))
        table.update(ids[50:60], np.ones((10, 8)))
        expected = table.lookup(ids)
        start = threading.Barrier(4)

        def read(expected=expected, start=start):
            start.wait()
            wrong.extend(1 for _ in range(5) if not np.array_equal(table.lookup(ids), expected))

        readers = [threading.Thread(target=read) for _ in range(3)]
        for each in readers:
            each.start()
        start.wait()
        np.testing.assert_array_equal(table.weight[ids], expected)
        for each in readers:
            each.join()
    assert not wrong


def test_a_schedule_is_asked_once_a_step():
    asked = []
    rule = se.Adam(lr=lambda step: asked.append(step) or 0.1)
    table = se.EmbeddingTable(4, 2, optimizer=rule, rng=0)
    for _ in range(3):
        table.update([1], np.ones((1, 2), np.float32))
        table.lookup([1, 2])
    assert asked == [1, 2, 3]


@each_rule
def test_saving_and_loading_midway(rule, rng):
    start = rng.standard_normal((ROWS, DIM))
    whole, first = (se.EmbeddingTable.from_array(start, rule, copy=True) for _ in range(2))
    second = se.EmbeddingTable(ROWS, DIM, optimizer=rule, dtype=np.float64, rng=0)
    batches = [(rng.integers(0, ROWS, 2), rng.standard_normal((2, DIM))) for _ in range(40)]
    for number, batch in enumerate(batches):
        whole.update(*batch)
        if number == 20:
            second.load_state_dict(first.state_dict())
        (first if number < 20 else second).update(*batch)
    np.testing.assert_allclose(second.weight, whole.weight, rtol=1e-12, atol=1e-13)
    assert second.step == whole.step == 40


def test_changing_the_optimizer_between_steps(rng):
    start, rule = rng.standard_normal((ROWS, DIM)), se.Adam(lr=0.1)
    table, dense = se.EmbeddingTable.from_array(start, rule, copy=True), Dense(rule, start)
    for number in range(60):
        if number % 7 == 3:
            rule = replace(rule, lr=rule.lr / 2)
        if number == 30:
            rule = replace(rule, betas=(0.5, 0.9), eps=1e-4)
        table.optimizer = rule
        ids, grad = rng.integers(0, ROWS, 2), rng.standard_normal((2, DIM))
        table.update(ids, grad)
        dense.update(ids, grad, rule)
        agree(table, dense)
    with pytest.raises(ValueError, match="optimizer must keep the state of Adam"):
        table.optimizer = se.SparseAdam()
    assert table.optimizer == rule


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: se.Adam(weight_decay=0.1), "use AdamW"),
        (lambda: se.Adam(betas=(0.999, 0.99)), "SparseAdam"),
        (lambda: se.AdamW(betas=(0.9999, 0.9999)), "SparseAdam"),
        (lambda: se.Adam(betas=(0.1, 0.0101)), "SparseAdam"),
        (lambda: replace(se.SGD(0.1, weight_decay=0.1), momentum=0.9), "make a new SGD"),
        (lambda: se.SGD(0.1, momentum=0.9999), "come to rest"),
        (lambda: se.SGD(0.1, nesterov=True), "needs momentum"),
        (lambda: se.SGD(0.1, momentum=0.9, dampening=0.1, nesterov=True), "no dampening"),
        (lambda: se.SGD(0.1, momentum=0.9, dampening=2.0), "at most 1"),
        (lambda: se.FTRL(lr=0.0), "greater than zero"),
        (lambda: se.RMSprop(alpha=1.0), "below 1"),
    ],
)
def test_what_cannot_be_exact_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_more_steps_than_int32_holds_are_refused():
    table = se.EmbeddingTable.from_array(np.ones((2, 1)), se.RMSprop())
    saved = table.state_dict()
    with pytest.raises(ValueError, match="at most 2147483646"):
        table.load_state_dict(saved | {"step": 2**31, "weight": np.full((2, 1), 7.0)})
    np.testing.assert_array_equal(table.weight, 1.0)
    table.load_state_dict(saved | {"step": 2**31 - 2})
    with pytest.raises(ValueError, match="holds no more"):
        table.update([0], np.ones((1, 1)))
    assert table.lookup([0])[0, 0] == 1


def test_a_schedule_may_read_the_table():
    table = se.EmbeddingTable.from_array(np.ones((2, 1)), None)
    rule = se.Adam(lr=lambda step: float(abs(table.weight).mean()) / 10)
    table = se.EmbeddingTable.from_array(np.ones((2, 1)), rule)
    for _ in range(3):
        table.update([0], np.ones((1, 1)))
    assert np.isfinite(table.weight).all()


def test_float32_when_the_learning_rate_grows_a_thousandfold():
    """Rows that rest move most by their late steps."""
    rule = se.Adam(lr=lambda step: 0.0 if step <= 300 else 10.0 if 330 < step <= 340 else 0.01)
    rng = np.random.default_rng(1)
    start = np.zeros((5, 3), np.float32)
    table, dense = se.EmbeddingTable.from_array(start, rule, copy=True), Dense(rule, start)
    for step in range(500):
        ids = rng.integers(0, 5, 2) if rng.random() < 0.02 or step == 0 else np.zeros(0, np.int64)
        grad = rng.standard_normal((len(ids), 3)).astype(np.float32)
        table.update(ids, grad)
        dense.update(ids, grad)
        agree(table, dense)


def test_without_eps_in_float32():
    """Moments of the series overflow float32; without eps only the first counts."""
    rule, rng = se.Adam(lr=0.01, betas=(0.5, 0.3), eps=0.0), np.random.default_rng(0)
    start = rng.standard_normal((2, 4)).astype(np.float32)
    table, dense = se.EmbeddingTable.from_array(start, rule, copy=True), Dense(rule, start)
    for step in range(70):
        ids = np.array([0, 1] if step == 0 else [1], np.int64)
        grad = rng.standard_normal((len(ids), 4)).astype(np.float32)
        table.update(ids, grad)
        dense.update(ids, grad)
        agree(table, dense)


def test_rows_that_were_never_touched_decay():
    table = se.EmbeddingTable.from_array(np.ones((3, 2)), se.AdamW(lr=0.1, weight_decay=0.5))
    for _ in range(10):
        table.update([0], np.ones((1, 2)))
    np.testing.assert_allclose(table.lookup([2])[0], 0.95**10, rtol=1e-14)


def test_memory_of_a_row():
    assert se.EmbeddingTable(1000, 8, optimizer=se.Adam())._contents.last.nbytes == 4000
    assert se.EmbeddingTable(1000, 8, optimizer=se.SparseAdam())._contents.last.nbytes == 0
    assert se.EmbeddingTable(1000, 8, optimizer=se.SGD(0.1))._contents.last.nbytes == 0

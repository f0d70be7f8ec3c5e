"""Batches that cover a large part of a table: every row steps, as the dense optimizer steps it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from dense_cases import DIM, Dense, agree, each_rule

import sparsembed as se
from sparsembed.kernels.cpu._rows import whole_step
from sparsembed.rules._catch_up import CatchUp
from sparsembed.rules._history import History

ROWS = 80
TWO = [se.AdamW(lr=1e-2, weight_decay=0.1), se.SGD(1e-2, momentum=0.9)]


def step_by_step(table):
    """Let the table take the general way, with any number of ids."""
    table._contents.watch = lambda rows: None
    return table


def batches(rng, steps, dtype=np.float64, dim=DIM):
    """Batches of all sizes: none, few rows, half of the rows, most rows, and each row often."""
    for _ in range(steps):
        ids = rng.permutation(ROWS)[: rng.choice([0, 3, 39, 40, 80])]
        ids = np.concatenate([ids, rng.choice(ids, 2 * len(ids))]) if len(ids) and rng.random() < 0.3 else ids
        yield ids, rng.standard_normal((len(ids), dim)).astype(dtype)


def covers(ids, rule):
    at_rest = getattr(rule, "touched_weight_decay", 0.0)  # rows at rest do not take the step of the others
    return not at_rest and 2 * len(np.unique(ids[ids != 7])) >= ROWS  # 7 is padding


@each_rule
def test_every_row_at_every_step(rule, rng):
    start = rng.standard_normal((ROWS, DIM))
    table, dense = se.EmbeddingTable.from_array(start, rule, copy=True, padding_idx=7), Dense(rule, start, 7)
    dense.weight[7] = dense.start[7] = 0
    for ids, grad in batches(rng, 60):
        table.update(ids, grad)
        dense.update(ids, grad)
        assert table._contents.some_missed != covers(ids, rule)
        agree(table, dense)
    np.testing.assert_array_equal(table.weight[7], 0)
    for name, slot in table.state.items():
        np.testing.assert_allclose(slot, dense.state[name], rtol=1e-12, atol=1e-14 * dense.largest[name])


@pytest.mark.parametrize("rule", TWO, ids=str)
@pytest.mark.parametrize("options", [{}, {"scale_grad_by_freq": True}], ids=str)
def test_few_ids_and_many_have_the_same_bits(rule, options, rng):
    start = rng.standard_normal((ROWS, 17), np.float32)
    few, many = (se.EmbeddingTable.from_array(start, rule, copy=True, **options) for _ in range(2))
    step_by_step(many)
    for ids, grad in batches(rng, 40, np.float32, 17):
        few.update(ids, grad)
        many.update(ids, grad)
        assert few._contents.steps.tolist() == many._contents.steps.tolist()
        np.testing.assert_array_equal(few.lookup(np.arange(ROWS)), many.lookup(np.arange(ROWS)))
    few, many = few.state_dict(), many.state_dict()
    for name in few:
        np.testing.assert_array_equal(few[name], many[name])


@pytest.mark.parametrize("n", [39, 40, 41])
def test_the_padding_row_does_not_count(n, rng):
    """So that a gradient as a value, which has no padding row, has the bits of the update."""
    start = rng.standard_normal((ROWS, 17), np.float32)
    tables = [se.EmbeddingTable.from_array(start, TWO[0], copy=True, padding_idx=0) for _ in range(3)]
    step_by_step(tables[2])
    for _ in range(5):
        ids, grad = rng.permutation(np.arange(1, ROWS))[:n], rng.standard_normal((n, 17), np.float32)
        ids[3] = 0
        tables[0].update(ids, grad)
        tables[1].apply(tables[1].gradient(ids, grad))
        tables[2].update(ids, grad)
        assert [each._contents.some_missed for each in tables] == [n < 41] * 3
    for table in tables[1:]:
        np.testing.assert_array_equal(table.weight, tables[0].weight)


class DriftHyper(NamedTuple):
    rate: float


@dataclass(frozen=True)
class Drift(se.rules.Rule):
    """Rows shrink less in each step; `advance` uses the base that it was made with."""

    lr: float = 0.25
    Hyper = DriftHyper

    class catching_up(CatchUp):  # noqa: N801
        Gap = DriftHyper

        @staticmethod
        def history(rule, dtype, base):
            def advance(history, t):
                return t, history.entries[t - 1 : t] * (1 - rule.lr / (base + t))

            return History(1, 1, np.zeros((1, 1)), 0, advance, dtype, base, product=0, first=(1.0,))

        @staticmethod
        def gap(entries, first, newest, ages, reach, out, hp):
            out[0] = entries[newest, 0] / entries[first, 0]

        @staticmethod
        def catch_up(w, s, c, hp):
            return c.rate * w, s

    def hyper(self, step):
        return (1 - self.lr / step,)

    @staticmethod
    def step(w, g, s, a, hp):
        return hp.rate * w, s


def test_a_history_starts_anew_with_functions_of_its_own_base():
    table = se.EmbeddingTable.from_array(np.ones((2, 1)), Drift())
    for step in range(6):
        table.update([0], np.zeros((1, 1)))
        if step == 2:
            table.flush()
    np.testing.assert_allclose(*table.lookup([0, 1]), rtol=1e-14)


def test_any_number_of_threads_has_the_same_bits(rng):
    start = rng.standard_normal((3000, 64), np.float32)
    tables = [step_by_step(se.EmbeddingTable.from_array(start, TWO[0], copy=True)) for _ in range(2)]
    before = se.get_num_threads()
    for n in (3000, 10, 2000, 2999, 1499, 1500):
        ids, grad = rng.permutation(3000)[:n], rng.standard_normal((n, 64), np.float32)
        for table, threads in zip(tables, (1, before), strict=True):
            se.set_num_threads(threads)
            try:
                table.update(ids, grad)
            finally:
                se.set_num_threads(before)
        assert tables[0]._contents.some_missed == (n < 1500)
    for name, array in tables[0].state_dict().items():
        np.testing.assert_array_equal(tables[1].state_dict()[name], array)


def test_readers_of_a_table_that_missed_nothing(rng):
    """Lookups, pools and scores read such a table as one whose rows never miss a step; then rows miss steps again."""
    table = se.EmbeddingTable.from_array(rng.standard_normal((ROWS, 8)), se.Adam(lr=0.1), copy=True)
    bags, x = se.Bags.from_lists([[3, 4], [], [5] * 9]), rng.standard_normal((3, 8))
    for n in (ROWS, 2, 2):
        table.update(np.arange(n), rng.standard_normal((n, 8)))
        assert table._contents.some_missed == (n == 2)
        found = table.lookup(bags.ids), table.lookup(se.plan(bags.ids, ROWS)), table.pool(bags), table.dot(bags, x)
        same = table.take(np.arange(ROWS)).weight
        wanted = same[bags.ids], same[bags.ids], se.pool(same, bags), se.dot(same, bags, x)
        for mine, its in zip(found, wanted, strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-13, atol=1e-14)


def test_sizes_alone_decide():
    assert [n for n in range(200) if whole_step(n, 100)] == list(range(50, 200))
    assert not whole_step(63, 63)
    assert whole_step(2**31, 2**32)
    assert not whole_step(2**31 - 1, 2**32)


def test_an_id_out_of_range_moves_no_row(rng):
    start = rng.standard_normal((ROWS, DIM))
    table = se.EmbeddingTable.from_array(start, se.AdamW(lr=0.1, weight_decay=0.1), copy=True)
    with pytest.raises(IndexError):
        table.update(np.arange(ROWS + 1), np.ones((ROWS + 1, DIM)))
    np.testing.assert_array_equal(table.weight, start)
    assert table.step == 0

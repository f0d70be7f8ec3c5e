"""What tables of files, keys and shards need: arrays adopted, rows grown and reset, rows of a step named."""

import numpy as np
import pytest
from strategies import ALL_RULES

import sparsembed as se

ROWS, DIM = 30, 5
IDS = [np.random.default_rng(k).integers(0, ROWS, 8) for k in range(6)]
GRAD = [np.random.default_rng(k).standard_normal((8, DIM)).astype(np.float32) for k in range(6)]


def trained(rule, steps=range(3)):
    table = se.EmbeddingTable(ROWS, DIM, rule, rng=0)
    for k in steps:
        table.update(IDS[k], GRAD[k])
    return table


@pytest.mark.parametrize("rule", ALL_RULES, ids=repr)
def test_rows_behind_those_there_are_do_not_change_them(rule):
    """They start fresh, and steps before them do not touch them."""
    table, alone = trained(rule), trained(rule)
    fresh = np.random.default_rng(9).standard_normal((4, DIM)).astype(np.float32)
    table._contents.grow(fresh)
    assert table.num_rows == ROWS + 4
    np.testing.assert_array_equal(table.lookup(np.arange(ROWS, ROWS + 4)), fresh)
    own = se.EmbeddingTable.from_array(fresh, rule, copy=True)
    own._contents.steps[:] = 3, 3, 1  # a table that begins at step 3
    own._contents.last[:] = 3
    for k in (3, 4):
        more = np.array([ROWS + k - 3, ROWS + k - 3])
        table.update([IDS[k], more], [GRAD[k], GRAD[k][:2]])
        alone.update(IDS[k], GRAD[k])
        own.update(more - ROWS, GRAD[k][:2])
    np.testing.assert_array_equal(table.weight[:ROWS], alone.weight)
    np.testing.assert_array_equal(table.weight[ROWS:], own.weight)
    for name, slot in table.state.items():
        np.testing.assert_array_equal(slot[:ROWS], alone.state[name])
        np.testing.assert_array_equal(slot[ROWS:], own.state[name])


@pytest.mark.parametrize("rule", ALL_RULES, ids=repr)
def test_rows_that_are_reset_start_again(rule):
    table, other = trained(rule), trained(rule)
    rows, fresh = np.array([3, 7]), np.ones((2, DIM), np.float32)
    table._contents.reset(rows, fresh)
    np.testing.assert_array_equal(table.lookup(rows), fresh)
    for slot in table.state.values():
        assert not slot[rows].any()
    kept = np.setdiff1d(np.arange(ROWS), rows)
    np.testing.assert_array_equal(table.lookup(kept), other.lookup(kept))


def test_arrays_of_state_that_are_adopted_are_those_that_steps_change():
    table, other = trained(se.SparseAdam(0.1)), trained(se.SparseAdam(0.1))
    state = table._contents.state.copy()
    table._contents.adopt({"state": state})
    table.update(IDS[3], GRAD[3])
    other.update(IDS[3], GRAD[3])
    assert np.shares_memory(table.state["exp_avg"], state)
    np.testing.assert_array_equal(state, other._contents.state)
    with pytest.raises(ValueError, match="state must be a C-contiguous and aligned float32 array of shape"):
        table._contents.adopt({"state": state[:, :1]})


def test_the_rows_of_each_step_are_named_before_they_are_written():
    table, seen = trained(se.SGD(0.1)), []
    table._contents.watch = lambda rows: seen.append((table.step, rows.tolist()))
    table.update(IDS[3], GRAD[3])
    table.apply(table.gradient(IDS[4], GRAD[4]))
    table.update([], np.empty((0, DIM), np.float32))
    assert seen == [(3, np.unique(IDS[3]).tolist()), (4, np.unique(IDS[4]).tolist()), (5, [])]


def test_rows_of_a_step_that_are_kept_stay_what_they_are():
    """The memory of a sort is used again by the next one."""
    table, kept = trained(se.SGD(0.1)), []
    table._contents.watch = kept.append
    for k in (3, 4, 5):
        table.update(IDS[k], GRAD[k])
    for rows, k in zip(kept, (3, 4, 5), strict=True):
        np.testing.assert_array_equal(rows, np.unique(IDS[k]))


def test_new_rows_are_what_the_options_promise():
    table = se.EmbeddingTable(ROWS, DIM, se.SGD(0.1), rng=0, max_norm=1.0, padding_idx=2)
    long = np.full((2, DIM), 9, np.float32)
    table._contents.grow(long)
    table._contents.reset(np.array([2, 5]), long)
    norms = np.linalg.norm(table.weight, axis=1)
    assert norms.max() <= 1
    assert norms[2] == 0
    assert norms[5] > 0.99
    assert (long == 9).all()


def test_only_arrays_of_state_are_adopted():
    table = trained(se.SparseAdam(0.1))
    with pytest.raises(KeyError, match="must be named state, row_state or last"):
        table._contents.adopt({"given": np.zeros((ROWS, DIM))})

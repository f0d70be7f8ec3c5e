"""Saved states are whole: of one step, beside other threads, and after the table has gone on."""

import copy
import pickle
import threading

import numpy as np
import pytest

import sparsembed as se

ROWS, DIM = 20_000, 8


@pytest.mark.parametrize("rule", [se.SGD(lr=1.0), se.SGD(lr=1.0, momentum=0.5)], ids=["SGD", "momentum"])
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_a_state_saved_beside_an_updating_thread_is_of_one_step(how, rule):
    """All gradients are one, so every weight is a function of the step."""
    table = se.EmbeddingTable.from_array(np.zeros((ROWS, DIM)), rule)
    twin = se.EmbeddingTable.from_array(np.zeros((1, 1)), rule)
    ids, ones, stop = np.arange(ROWS), np.ones((ROWS, DIM)), threading.Event()
    steps = 60
    expected = [0.0]
    for _ in range(steps):
        twin.update([0], np.ones((1, 1)))
        expected.append(float(twin.weight[0, 0]))

    def train():
        while table.step < steps and not stop.is_set():
            table.update(ids, ones)

    thread = threading.Thread(target=train)
    thread.start()
    seen = set()
    try:
        while thread.is_alive():
            if how == "state_dict":
                saved = table.state_dict()
            else:
                saved = (copy.deepcopy(table) if how == "deepcopy" else pickle.loads(pickle.dumps(table))).state_dict()
            seen.add(saved["step"])
            np.testing.assert_array_equal(saved["weight"], np.full((ROWS, DIM), expected[saved["step"]]))
    finally:
        stop.set()
        thread.join()
    assert seen


@pytest.mark.parametrize(
    "rule",
    [
        se.AdamW(lr=0.1, weight_decay=0.1),
        se.SGD(lr=0.1, weight_decay=0.1),
        se.SGD(lr=0.1, weight_decay=0.1, momentum=0.5),
        se.Adam(lr=0.1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_state_of_step_zero_goes_on_as_it_did_at_first(rule, steps):
    table = se.EmbeddingTable.from_array(np.ones((3, 2)), rule)
    start, grad = table.state_dict(), np.ones((1, 2))
    runs = []
    for _ in range(2):
        for step in range(steps):
            table.update([step % 2], grad)
        runs.append((table.weight.copy(), {name: slot.copy() for name, slot in table.state.items()}, table.step))
        table.load_state_dict(start)
        np.testing.assert_array_equal(table.weight, start["weight"])
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert runs[0][2] == runs[1][2] == steps
    for name in runs[0][1]:
        np.testing.assert_array_equal(runs[0][1][name], runs[1][1][name])


def test_decay_of_untouched_rows_after_a_state_of_step_zero_is_restored():
    table = se.EmbeddingTable.from_array(np.ones((2, 1)), se.AdamW(lr=0.1, weight_decay=0.1))
    start = table.state_dict()
    for _ in range(2):
        table.update([0], np.ones((1, 1)))
        np.testing.assert_allclose(table.weight.ravel(), [0.89, 0.99], rtol=1e-7)
        table.load_state_dict(start)


@pytest.mark.parametrize("rule", [se.SGD(lr=0.1), se.SparseAdam(), se.Adagrad()], ids=repr)
@pytest.mark.parametrize("step", [2**31 - 1, 2**31, 2**40, 2**63 - 2])
def test_steps_beyond_int32_are_restored_pickled_and_copied(rule, step):
    table = se.EmbeddingTable.from_array(np.zeros((2, 1)), rule)
    saved = table.state_dict() | {"weight": np.ones((2, 1)), "step": step}
    table.load_state_dict(saved)
    for each in (table, copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert each.step == step
        np.testing.assert_array_equal(each.weight, saved["weight"])
    table.update([0], np.ones((1, 1)))
    assert table.step == step + 1


def test_the_last_step_that_int64_counts_is_the_last_that_is_taken():
    table = se.EmbeddingTable.from_array(np.ones((2, 1)), se.SGD(lr=0.1))
    table.load_state_dict(table.state_dict() | {"step": 2**63 - 1})
    with pytest.raises(ValueError, match="int64 holds no more"):
        table.update([0], np.ones((1, 1)))
    assert table.step == 2**63 - 1
    np.testing.assert_array_equal(table.weight, 1)
    with pytest.raises(ValueError, match=r"below 2\*\*63"):
        table.load_state_dict(table.state_dict() | {"step": 2**63})


SQUARES = {
    se.Adagrad(): "sum",
    se.RowwiseAdagrad(): "sum",
    se.SparseAdam(): "exp_avg_sq",
    se.Adam(): "exp_avg_sq",
    se.AdamW(): "exp_avg_sq",
    se.RMSprop(): "square_avg",
    se.FTRL(): "n",
    se.LAMB(): "exp_avg_sq",
    se.PartialRowwiseAdam(): "exp_avg_sq",
}


@pytest.mark.parametrize("rule", SQUARES, ids=repr)
def test_negative_sums_of_squares_are_refused(rule):
    table = se.EmbeddingTable.from_array(np.ones((3, 2)), rule)
    table.update([0], np.ones((1, 2)))
    before = table.state_dict()
    saved = copy.deepcopy(before)
    saved[SQUARES[rule]][1] = -1e-3
    with pytest.raises(ValueError, match=rf"{SQUARES[rule]}.*must not be negative, got -0.001 at \[1"):
        table.load_state_dict(saved | {"weight": np.zeros((3, 2)), "step": 7})
    after = table.state_dict()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    saved[SQUARES[rule]][0] = np.nan
    with pytest.raises(ValueError, match="must not be negative"):  # beside NaN, too
        table.load_state_dict(saved)
    saved[SQUARES[rule]][1] = np.nan  # a run that has diverged can be looked at
    table.load_state_dict(saved)


@pytest.mark.parametrize("layout", ["c", "fortran", "columns", "reversed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_states_are_restored_into_and_from_any_layout(layout, dtype, rng):
    def arranged(array):
        if layout == "fortran":
            return np.asfortranarray(array)
        if layout == "columns":
            wide = np.zeros((len(array), 2 * array.shape[1]), array.dtype)
            wide[:, ::2] = array
            return wide[:, ::2]
        return array[::-1, ::-1].copy()[::-1, ::-1] if layout == "reversed" else array

    source = se.EmbeddingTable.from_array(rng.standard_normal((70, 3)).astype(dtype), se.PartialRowwiseAdam())
    source.update(rng.integers(0, 70, 30), rng.standard_normal((30, 3)).astype(dtype))
    saved = source.state_dict()
    table = se.EmbeddingTable.from_array(arranged(np.zeros((70, 3), dtype)), se.PartialRowwiseAdam(), padding_idx=4)
    table.load_state_dict({k: v if k == "step" or v.ndim == 1 else arranged(v) for k, v in saved.items()})
    np.testing.assert_array_equal(np.delete(table.weight, 4, 0), np.delete(saved["weight"], 4, 0))
    assert not table.weight[4].any()
    for name, slot in table.state.items():
        np.testing.assert_array_equal(slot, saved[name])
    assert table.step == saved["step"] == 1


def test_a_restored_table_keeps_its_largest_norm_and_leaves_the_state_alone(rng):
    saved = se.EmbeddingTable.from_array(3 + rng.random((50, 4)), se.SGD(lr=0.1)).state_dict()
    kept = saved["weight"].copy()
    table = se.EmbeddingTable(50, 4, se.SGD(lr=0.1), dtype=np.float64, max_norm=1.0)
    table.load_state_dict(saved)
    np.testing.assert_array_equal(saved["weight"], kept)
    np.testing.assert_allclose(table.weight, se.reference.clip_rows(kept, 1.0))
    assert np.linalg.norm(table.weight, axis=1).max() <= 1


def test_an_optimizer_that_is_set_by_another_thread_is_never_mixed_with_the_old_one():
    table = se.EmbeddingTable.from_array(np.zeros((500, 4)), se.Adam(lr=0.01))
    stop, errors = threading.Event(), []

    def change():
        try:
            while not stop.is_set():
                table.optimizer = se.Adam(lr=0.01, eps=1e-3)
                table.optimizer = se.Adam(lr=0.02)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=change)
    thread.start()
    rng = np.random.default_rng(0)
    for _ in range(100):
        table.update(rng.integers(0, 500, 50), rng.standard_normal((50, 4)))
    stop.set()
    thread.join()
    assert not errors
    assert table.step == 100
    assert np.isfinite(table.weight).all()

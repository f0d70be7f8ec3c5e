"""EmbeddingTable: what it holds, saving and restoring, memory, and the step."""

import copy
import math
import pickle

import numpy as np
import pytest
from strategies import ALL_RULES, LAYOUTS, arrange, numbers

import sparsembed as se

each_rule = pytest.mark.parametrize("rule", ALL_RULES, ids=str)


def train(table, seed, steps=4):
    """Some steps, one of them without ids, one pooled."""
    rng = np.random.default_rng(seed)
    for n in [0, *rng.integers(1, 60, steps)]:
        table.update(rng.integers(0, table.num_rows, n), numbers(rng, (n, table.dim), table.weight.dtype))
    bags = se.Bags(rng.integers(0, table.num_rows, 9), [0, 4, 4, 9])
    table.update_pooled(bags, numbers(rng, (3, table.dim), table.weight.dtype), "mean")
    return table


def make(rule, dtype=np.float32, rng=0):
    return se.EmbeddingTable(30, 5, rule, dtype=dtype, padding_idx=2, rng=rng)


def assert_same(one, two):
    assert (one.step, one.padding_idx, one.optimizer) == (two.step, two.padding_idx, two.optimizer)
    assert list(one.state) == list(two.state)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def through_pickle(table):
    return pickle.loads(pickle.dumps(table))


def through_state_dict(table):
    return load(table, table.state_dict())


def through_npz(table, path):
    np.savez(path, **table.state_dict())
    with np.load(path) as saved:
        return load(table, saved)


def load(table, saved):
    fresh = make(table.optimizer, table.weight.dtype, rng=1)
    fresh.load_state_dict(saved)
    return fresh


@each_rule
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_continues_bit_for_bit(rule, dtype, tmp_path):
    table = train(make(rule, dtype), seed=1)
    copies = [
        copy.deepcopy(table),
        copy.copy(table),
        through_pickle(table),
        through_state_dict(table),
        through_npz(table, tmp_path / "saved.npz"),
    ]
    for each in copies:
        assert_same(each, table)
    train(table, seed=2)
    for each in copies:
        assert each.step == 6  # independent of the original
        assert_same(train(each, seed=2), table)
        assert each.weight.ctypes.data % 64 == 0


@each_rule
def test_state_dict_is_a_copy(rule):
    table = make(rule)
    saved = table.state_dict()
    assert list(saved) == ["weight", "step", *rule.slots, *rule.row_slots]
    before = {name: np.array(value) for name, value in saved.items()}
    train(table, seed=1)
    for name, value in saved.items():
        np.testing.assert_array_equal(value, before[name])
    assert saved["step"] == 0


def test_loading_keeps_the_memory():
    """The arrays that the caller holds are written to, not replaced."""
    weight = np.ones((30, 5), np.float32)
    table = se.EmbeddingTable.from_array(weight, se.SparseAdam(), padding_idx=2)
    other = train(make(se.SparseAdam()), seed=3)
    table.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(weight, other.weight)
    assert table.weight is weight or np.shares_memory(table.weight, weight)


def test_a_table_without_optimizer_is_saved_too():
    table = se.EmbeddingTable(5, 2, dtype=np.float16, rng=0)
    assert table.state == {}
    np.testing.assert_array_equal(through_pickle(table).weight, table.weight, strict=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_strided_table_is_saved_too(layout, rng):
    weight = numbers(rng, (6, 4), np.float32)
    table = se.EmbeddingTable.from_array(arrange(weight, layout), se.SparseAdam())
    table.update([1, 1, 3], np.ones((3, 4)))
    for twin in (through_pickle(table), copy.deepcopy(table)):
        assert_same(twin, table)
        assert twin.weight.flags.c_contiguous
        assert not np.shares_memory(twin.weight, table.weight)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_array(layout, rng):
    weight = arrange(numbers(rng, (6, 4), np.float64), layout)
    before = weight.copy()
    adopted = se.EmbeddingTable.from_array(weight, se.SGD(lr=1.0))
    owned = se.EmbeddingTable.from_array(weight, se.SGD(lr=1.0), copy=True, padding_idx=0)
    assert np.shares_memory(adopted.weight, weight)
    assert adopted.weight.ctypes.data == weight.ctypes.data
    assert adopted.weight.strides == weight.strides
    assert not np.shares_memory(owned.weight, weight)
    np.testing.assert_array_equal(weight, before)
    assert not owned.weight[0].any()
    for table in (owned, adopted):
        table.update([3, 3], np.ones((2, 4)))
        np.testing.assert_array_equal(table.weight[3], before[3] - 2)
    np.testing.assert_array_equal(weight[3], before[3] - 2)


def test_a_read_only_array_can_be_read_or_copied():
    weight = arrange(np.ones((3, 2), np.float32), "read-only")
    assert se.EmbeddingTable.from_array(weight).lookup(1).sum() == 2
    table = se.EmbeddingTable.from_array(weight, se.SGD(lr=1.0), copy=True)
    table.update([1], np.ones((1, 2)))
    assert not table.weight[1].any()


@pytest.mark.parametrize("dim", [1, 3, 16, 17])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tables_and_large_results_start_on_a_cache_line(dim, dtype, rng):
    table = se.EmbeddingTable(33, dim, se.SparseAdam(), dtype=dtype, rng=0)
    bags, ids = se.Bags(rng.integers(0, 33, 7), [0, 3, 7]), rng.integers(0, 33, (2, 3))
    grad = numbers(rng, (2, dim), dtype)
    gradient = table.gradient(ids, numbers(rng, (2, 3, dim), dtype))
    arrays = [
        table.weight,
        table.state["exp_avg"],
        table.lookup(rng.integers(0, 33, 1 << 20)),  # small results need not: that takes 1.5 us of a call
        gradient.scale(2).values,
        (gradient + gradient).values,
        se.pool_gradient(bags, grad, 33).values,
        se.EmbeddingTable.from_array(table.weight, copy=True).weight,
    ]
    assert [array.ctypes.data % 64 for array in arrays] == [0] * len(arrays)


def test_what_a_table_holds():
    table = se.EmbeddingTable(7, 3, se.SparseAdam(lr=0.5), padding_idx=4, rng=0)
    assert (table.num_rows, table.dim, table.padding_idx, table.step) == (7, 3, 4, 0)
    assert table.optimizer == se.SparseAdam(lr=0.5)
    assert table.weight.shape == (7, 3)
    assert table.weight.dtype == np.float32
    assert table.weight is table.weight
    assert {name: slot.shape for name, slot in table.state.items()} == {"exp_avg": (7, 3), "exp_avg_sq": (7, 3)}
    assert not any(slot.any() for slot in table.state.values())
    rowwise = se.EmbeddingTable(7, 3, se.RowwiseAdagrad(), rng=0)
    assert rowwise.state["sum"].shape == (7,)


def test_state_is_a_view():
    table = make(se.Adagrad(lr=1.0, eps=0.0))
    table.state["sum"][3] = 3
    before = table.weight[3].copy()
    table.update([3], np.ones((1, 5)))
    np.testing.assert_allclose(table.weight[3], before - 0.5, rtol=1e-6)
    assert (table.state["sum"][3] == 4).all()


REPRS = [
    (se.EmbeddingTable(1, 1), "EmbeddingTable(1 x 1 float32, None, step 0, 4.0 B)"),
    (se.EmbeddingTable(256, 1), "EmbeddingTable(256 x 1 float32, None, step 0, 1.0 KiB)"),
    (
        se.EmbeddingTable(1024, 128, se.SGD(lr=0.5), dtype=np.float64, padding_idx=3),
        "EmbeddingTable(1024 x 128 float64, SGD(lr=0.5), step 0, padding_idx=3, 1.0 MiB)",
    ),
    (
        se.EmbeddingTable(64, 2, se.RowwiseAdagrad(lr=0.5)),
        "EmbeddingTable(64 x 2 float32, RowwiseAdagrad(lr=0.5, eps=1e-08, weight_decay=0.0, "
        "weight_decay_mode='decoupled'), step 0, 768.0 B)",
    ),
]


@pytest.mark.parametrize(("table", "text"), REPRS, ids=range(len(REPRS)))
def test_repr(table, text):
    assert repr(table) == text


@pytest.mark.parametrize("update", ["update", "update_pooled", "apply"])
def test_the_learning_rate_is_a_function_of_the_step(update):
    """The first update is step 1; one without ids is a step, too."""
    asked = []

    def lr(step):
        asked.append(step)
        return 10.0**-step

    table = se.EmbeddingTable.from_array(np.zeros((3, 1)), se.SGD(lr=lr))
    expected = 0.0
    for step, count in enumerate([1, 0, 2, 1], 1):
        ids, grad = np.ones(count, np.int64), np.ones((count, 1))
        if update == "update":
            table.update(ids, grad)
        elif update == "apply":
            table.apply(table.gradient(ids, grad))
        else:
            table.update_pooled(se.Bags(ids, [0, len(ids)]), np.ones((1, 1)))
        expected -= count * 10.0**-step
        assert table.step == step
        assert math.isclose(table.weight[1, 0], expected, rel_tol=1e-14)
    assert asked == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "empty", [([], np.zeros((0, 5))), ([np.zeros(0, int)] * 2, [np.zeros((0, 5))] * 2), (2, np.ones(5))]
)
@each_rule
def test_an_update_without_rows_is_a_step(rule, empty):
    """No ids, or padding alone: nothing but the step changes, and the next step is the second."""
    table = make(rule)
    before = table.state_dict()
    table.update(*empty)
    after = table.state_dict()
    assert after.pop("step") == 1
    assert all(np.array_equal(after[name], before[name]) for name in after)
    grad = np.ones((1, 5))
    table.update([3], grad)
    expected, _ = se.reference.update(rule, before["weight"], {k: before[k] for k in table.state}, [3], grad, 2)
    np.testing.assert_allclose(table.weight[3], expected[3], rtol=1e-5)


def test_load_state_dict_of_its_own_arrays():
    table = se.EmbeddingTable(4, 2, optimizer=se.SparseAdam(), rng=0)
    table.update([0], np.ones((1, 2), np.float32))
    first, second = table.state["exp_avg"].copy(), table.state["exp_avg_sq"].copy()
    own = {"weight": table.weight, "step": 1}
    table.load_state_dict(own | {"exp_avg": table.state["exp_avg_sq"], "exp_avg_sq": table.state["exp_avg"]})
    np.testing.assert_array_equal(table.state["exp_avg"], second)
    np.testing.assert_array_equal(table.state["exp_avg_sq"], first)
    with pytest.raises(KeyError, match="missing or left over"):
        table.load_state_dict({1: 2, "zz": 3})

"""max_norm: no lookup finds a row that is larger, and only updates write."""

import copy
import math
import pickle

import numpy as np
import pytest
from bit_cases import pairs_of
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALL_RULES, EPS, LAYOUTS, TWO_TRAINED, arrange, lookups, numbers, pick_ids, pooled

import sparsembed as se
from sparsembed import reference

NORM_TYPES = [2.0, 1.0, math.inf, 3.0, 0.5]
CATCH_UP = [se.Adam(), se.AdamW(), se.SGD(lr=0.1, momentum=0.9), se.SGD(lr=0.1, weight_decay=0.1), se.RMSprop()]
ALL = np.arange(30)


def norms(rows, p=2.0):
    return np.linalg.norm(np.asarray(rows, np.float64), p, axis=-1)


def close(actual, expected, terms=64):
    tolerance = terms * EPS[np.asarray(actual).dtype]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def train(table, seed, steps=4):
    rng = np.random.default_rng(seed)
    for n in [0, *rng.integers(1, 60, steps)]:
        table.update(rng.integers(0, table.num_rows, n), numbers(rng, (n, table.dim), table.weight.dtype))
    return table


def test_by_hand():
    weight = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [0.0, -2.0]])
    table = se.EmbeddingTable.from_array(weight, se.SGD(lr=1.0), max_norm=1.0)
    np.testing.assert_allclose(weight, [[0.6, 0.8], [0.3, 0.4], [0, 0], [0, -1]], rtol=1e-7)
    table.update([1, 1], np.array([[-1.0, 0.0], [-1.7, -4.0]]))  # (0.3, 0.4) + (2.7, 4) = (3, 4.4)
    long = math.hypot(3, 4.4)
    np.testing.assert_allclose(weight[1], [3 / long, 4.4 / long], rtol=1e-7)
    np.testing.assert_allclose(weight[0], [0.6 * 5 / (5 + 1e-7), 0.8 * 5 / (5 + 1e-7)], rtol=1e-14)


@pytest.mark.parametrize("p", NORM_TYPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [1, 16, 33])
def test_every_row_is_clipped_when_the_table_is_made(p, dtype, layout, dim, rng):
    weight = arrange(numbers(rng, (30, dim), dtype) * rng.choice([1e-4, 1, 30], (30, 1)).astype(dtype), layout)
    before, most = weight.copy(), 1.5
    table = se.EmbeddingTable.from_array(weight, max_norm=most, norm_type=p, padding_idx=0)
    assert np.shares_memory(table.weight, weight)
    close(weight[1:], reference.clip_rows(before, most, p)[1:])
    assert not weight[0].any()
    small = norms(before, p) <= most
    np.testing.assert_array_equal(weight[1:][small[1:]], before[1:][small[1:]])  # as they were, to the bit
    assert 1 <= small.sum() < 30
    assert norms(weight, p).max() <= most


def test_only_a_copy_is_clipped(rng):
    weight = numbers(rng, (30, 5), np.float32)
    before = weight.copy()
    table = se.EmbeddingTable.from_array(weight, max_norm=0.1, copy=True)
    np.testing.assert_array_equal(weight, before)
    assert norms(table.weight).max() <= 0.1
    fresh = se.EmbeddingTable(30, 5, max_norm=0.01, rng=0)
    close(fresh.weight, reference.clip_rows(se.EmbeddingTable(30, 5, rng=0).weight, 0.01))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", NORM_TYPES)
@pytest.mark.parametrize("exponent", [-200, -30, 30, 200])
def test_norms_neither_over_nor_underflow(dtype, p, exponent):
    """Just below the limit nothing changes; just above it, a large row is scaled and a tiny one vanishes.

    The latter because 1e-7 is added to the norm whatever the norm, as in torch.
    """
    size = 10.0**exponent if dtype == np.float64 else 10.0 ** (exponent / abs(exponent) * 30)
    rows = (np.array([[3.0, -4.0, 12.0], [1.0, 1.0, 1.0]]) * size).astype(dtype)
    for row in rows:
        norm = float(np.linalg.norm(row.astype(np.float64) / size, p) * size)
        below = se.EmbeddingTable.from_array(row[None], max_norm=norm * 1.001, norm_type=p, copy=True)
        np.testing.assert_array_equal(below.weight[0], row)
        above = se.EmbeddingTable.from_array(row[None], max_norm=norm * 0.5, norm_type=p, copy=True)
        expected = row.astype(np.float64) * (norm * 0.5 / (norm + 1e-7))
        np.testing.assert_allclose(above.weight[0], expected.astype(dtype), rtol=1e-6 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("p", NORM_TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays(p, bad):
    weight = np.array([[5.0, bad, 1.0], [bad, 5.0, 1.0], [5.0, 5.0, 5.0]], np.float32)
    before = weight.copy()
    se.EmbeddingTable.from_array(weight, max_norm=1.0, norm_type=p)
    np.testing.assert_array_equal(weight[:2], before[:2])
    assert norms(weight[2], p) <= 1


@given(st.data(), st.sampled_from(NORM_TYPES), st.sampled_from(ALL_RULES), st.floats(0.3, 4), st.booleans())
def test_update(data, p, rule, most, padded):
    case = data.draw(lookups([(*pair, ["contiguous"]) for pair in pairs_of(rule)]))
    weight, padding = case.weight.copy(), 0 if padded else None
    table = se.EmbeddingTable.from_array(weight, rule, max_norm=most, norm_type=p, padding_idx=padding)
    start, state = weight.copy(), {name: np.array(slot) for name, slot in table.state.items()}
    grad = np.array(case.grad_out)
    table.update(case.ids, grad)
    expected, slots = reference.update(rule, start, state, case.ids, grad, 1, padding, max_norm=most, norm_type=p)
    size = 1 + reference.coalesce(case.ids, np.abs(grad), len(weight)).max()
    tolerance = 2000 * EPS[weight.dtype]
    np.testing.assert_allclose(weight, expected, rtol=tolerance, atol=tolerance * min(size, most + 1))
    for name, slot in table.state.items():
        np.testing.assert_allclose(slot, slots[name], rtol=tolerance, atol=tolerance * size**2)
    assert norms(weight, p).max() <= most
    untouched = np.setdiff1d(np.arange(len(weight)), case.ids)
    np.testing.assert_array_equal(weight[untouched], start[untouched])


@given(pooled(combos=TWO_TRAINED), st.sampled_from([2.0, math.inf]))
def test_update_pooled_and_apply(case, p):
    """All ways to take a step clip alike."""
    tables = [
        se.EmbeddingTable.from_array(
            case.weight, se.SGD(lr=1.0), copy=True, padding_idx=case.padding_idx, max_norm=1.25, norm_type=p
        )
        for _ in range(2)
    ]
    start = tables[0].weight.copy()
    tables[0].update_pooled(case.bags, case.grad_out, case.mode)
    where = {"weight": start} if case.mode == "max" else {}
    gradient = se.pool_gradient(case.bags, case.grad_out, len(start), case.mode, padding_idx=case.padding_idx, **where)
    tables[1].apply(gradient)
    plain = se.EmbeddingTable.from_array(start, se.SGD(lr=1.0), copy=True)
    plain.apply(gradient)
    close(tables[0].weight, reference.clip_rows(plain.weight, 1.25, p))
    np.testing.assert_array_equal(tables[1].weight, tables[0].weight)
    assert norms(tables[0].weight, p).max() <= 1.25


@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
def test_off_leaves_the_bits(rule):
    """A limit that nothing reaches changes nothing."""
    off, far = (train(se.EmbeddingTable(30, 5, rule, rng=0, max_norm=most), 1) for most in (None, 1e9))
    np.testing.assert_array_equal(off.weight, far.weight)
    near = train(se.EmbeddingTable(30, 5, rule, rng=0, max_norm=0.02), 1)
    assert norms(near.weight).max() <= 0.02 < norms(off.weight).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", NORM_TYPES)
def test_a_clipped_row_is_not_clipped_again(dtype, p, rng):
    """Rounding does not bring a row above the limit, so that saving and loading keeps all bits."""
    sizes = 10 ** rng.uniform(-3, 7, (4000, 1))
    weight = (numbers(rng, (4000, 24), np.float64) * sizes).astype(dtype)
    table = se.EmbeddingTable.from_array(weight, max_norm=0.7, norm_type=p)
    once = weight.copy()
    table.load_state_dict(table.state_dict())
    np.testing.assert_array_equal(weight, once)
    assert norms(weight, p).max() <= 0.7


@pytest.mark.parametrize("travel", [copy.deepcopy, copy.copy, lambda table: pickle.loads(pickle.dumps(table))])
def test_options_travel(travel):
    options = {"max_norm": 0.1, "norm_type": math.inf, "scale_grad_by_freq": True}
    table = train(se.EmbeddingTable(30, 5, se.SparseAdam(lr=0.1), padding_idx=2, rng=0, **options), 1)
    twin = travel(table)
    assert {name: getattr(twin, name) for name in options} == options
    assert (twin.padding_idx, twin.step, twin.optimizer) == (2, table.step, table.optimizer)
    np.testing.assert_array_equal(twin.weight, table.weight)
    np.testing.assert_array_equal(train(twin, 2).weight, train(table, 2).weight)
    assert "padding_idx=2, max_norm=0.1, norm_type=inf, scale_grad_by_freq=True" in repr(twin)


def test_defaults():
    table = se.EmbeddingTable(3, 2, rng=0)
    assert (table.max_norm, table.norm_type, table.scale_grad_by_freq) == (None, 2.0, False)


def test_loading_clips(rng):
    big = {"weight": numbers(rng, (30, 5), np.float32) * 9, "step": 4}
    table = se.EmbeddingTable(30, 5, se.SGD(lr=0.1), max_norm=1.0, padding_idx=2, rng=0)
    table.load_state_dict(big)
    assert norms(table.weight).max() <= 1
    assert not table.weight[2].any()
    assert table.step == 4
    assert norms(big["weight"]).max() > 1  # the caller's


def test_setting_the_optimizer_keeps_the_limit():
    table = se.EmbeddingTable(30, 5, se.SGD(lr=0.1), max_norm=0.1, rng=0)
    table.optimizer = se.SGD(lr=100.0)
    assert norms(train(table, 1).weight).max() <= 0.1
    with pytest.raises(ValueError, match="state"):
        table.optimizer = se.SGD(lr=1.0, momentum=0.9)


def test_lookups_do_not_write(rng):
    table = train(se.EmbeddingTable(30, 5, se.SparseAdam(lr=0.1), max_norm=0.1, rng=0), 1)
    saved = table.state_dict()
    ids = pick_ids(rng, 60, 30, "hot")
    table.lookup(ids)
    table.pool(se.Bags(ids, [0, 7, 60]), "mean")
    table.gradient(ids, numbers(rng, (60, 5), np.float32))
    for name, value in table.state_dict().items():
        np.testing.assert_array_equal(value, saved[name])


@pytest.mark.parametrize("rule", CATCH_UP, ids=str)
def test_rules_whose_rows_move_between_updates_are_refused(rule):
    weight = np.ones((8, 3), np.float32)
    for make in (
        lambda: se.EmbeddingTable(8, 3, rule, max_norm=1.0),
        lambda: se.EmbeddingTable.from_array(weight, rule, max_norm=1.0),
    ):
        with pytest.raises(ValueError, match=r"(?s)max_norm does not go with.*SparseAdam"):
            make()
    assert (weight == 1).all()
    assert se.EmbeddingTable(8, 3, rule, norm_type=1.0, scale_grad_by_freq=True).step == 0


def test_tables_that_cannot_be_written_to():
    with pytest.raises(ValueError, match=r"read-only.*copy=True"):
        se.EmbeddingTable.from_array(np.broadcast_to(np.ones((8, 1)), (8, 3)), max_norm=1.0)
    with pytest.raises(TypeError, match=r"max_norm.*float16"):
        se.EmbeddingTable(8, 3, dtype=np.float16, max_norm=1.0)


def test_bits_do_not_depend_on_blocks(rng):
    """A large table, whose clip runs in blocks, equals its parts."""
    weight = numbers(rng, (9000, 40), np.float32)
    whole = se.EmbeddingTable.from_array(weight, max_norm=5.0, copy=True)
    for part in (slice(0, 100), slice(8990, 9000)):
        small = se.EmbeddingTable.from_array(weight[part], max_norm=5.0, copy=True)
        np.testing.assert_array_equal(small.weight, whole.weight[part])

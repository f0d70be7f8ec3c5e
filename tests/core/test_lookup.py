"""gather and EmbeddingTable.lookup: copies of rows, so every comparison is exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import COMBOS, INPUTS, LAYOUTS, arrange, lookups, numbers

import sparsembed as se

WEIGHT = np.arange(12, dtype=np.float32).reshape(6, 2)


def check(actual, weight, ids):
    """Compare with NumPy and with the reference, exactly."""
    wide = np.asarray(weight, np.result_type(weight.dtype, np.float32))
    np.testing.assert_array_equal(actual, wide[np.asarray(ids)], strict=True)
    np.testing.assert_array_equal(actual, se.reference.gather(weight, ids))


@given(lookups())
def test_gather(batch):
    before = batch.weight.copy()
    check(se.gather(batch.weight, batch.ids), batch.weight, batch.ids)
    np.testing.assert_array_equal(batch.weight, before)


@given(lookups())
def test_gather_out(batch):
    out = np.empty((*batch.ids.shape, batch.weight.shape[1]), np.result_type(batch.weight.dtype, np.float32))
    assert se.gather(batch.weight, batch.ids, out=out) is out
    check(out, batch.weight, batch.ids)


@given(lookups())
def test_gather_plan(batch):
    plan = se.plan(batch.ids, len(batch.weight))
    check(se.gather(batch.weight, plan), batch.weight, batch.ids)


@given(lookups(), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_several_lookups(batch, lengths):
    """A list of arrays, of plans, or the plan of a list gives a list of results."""
    flat = batch.ids.reshape(-1)
    several = [batch.ids, *(flat[:n] for n in lengths)]
    num_rows = len(batch.weight)
    for ids in (several, tuple(several), [se.plan(each, num_rows) for each in several], se.plan(several, num_rows)):
        results = se.gather(batch.weight, ids)
        assert len(results) == len(several)
        for result, each in zip(results, several, strict=True):
            check(result, batch.weight, each)


@given(lookups())
def test_table_lookup(batch):
    table = se.EmbeddingTable.from_array(batch.weight)
    check(table.lookup(batch.ids), batch.weight, batch.ids)
    check(table[batch.ids], batch.weight, batch.ids)
    assert table.step == 0


@pytest.mark.parametrize("layout", [each for each in INPUTS if each != "unaligned"])  # which is refused
@pytest.mark.parametrize("dim", [1, 5, 16])
def test_every_layout_of_the_table(layout, dim, rng):
    weight = arrange(numbers(rng, (50, dim), np.float32), layout)
    ids = rng.integers(0, 50, (4, 9))
    check(se.gather(weight, ids), weight, ids)


@pytest.mark.parametrize("layout", INPUTS)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (0, 3), (4, 5), (2, 3, 4), (2, 1, 3, 2)])
def test_every_layout_of_the_ids(layout, shape, rng):
    ids = arrange(rng.integers(0, 6, shape), layout)
    check(se.gather(WEIGHT, ids), WEIGHT, ids)


@pytest.mark.parametrize("ids", [3, [1, 5, 1], [[0, 1], [2, 2]], [], np.int32(4), (1, 2), np.array(2), [np.int64(3)]])
def test_numbers_and_lists_are_ids(ids):
    array = np.asarray(ids, np.int64)
    check(se.gather(WEIGHT, ids), WEIGHT, array)


@pytest.mark.parametrize("dim", [16, 17, 64, 96, 300])
@pytest.mark.parametrize(("dtype", "id_dtype", "layouts"), COMBOS)
def test_large(dtype, id_dtype, layouts, dim, rng):
    """Many blocks on several threads; from 4 MiB on, rows of whole cache lines bypass the cache."""
    weight = arrange(numbers(rng, (3001, dim), dtype), layouts[-1])
    n = (5 << 20) // (dim * np.dtype(np.result_type(dtype, np.float32)).itemsize)
    ids = rng.integers(0, 3001, n).astype(id_dtype)
    result = se.gather(weight, ids)
    np.testing.assert_array_equal(result, weight[ids])
    raw = np.empty(result.nbytes + 4, np.uint8)  # not on a cache line
    out = raw[4:].view(result.dtype).reshape(result.shape)
    if out.flags.aligned:
        np.testing.assert_array_equal(se.gather(weight, ids, out=out), result)


def test_float16_is_converted_exactly():
    """Every float16, subnormals, infinities and NaN included."""
    weight = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 8)
    result = se.gather(weight, np.arange(len(weight)))
    with np.errstate(invalid="ignore"):
        expected = weight.astype(np.float32)
    np.testing.assert_array_equal(result, expected, strict=True)


@pytest.mark.parametrize("special", [np.nan, np.inf, -0.0, 1e-45])
def test_bits_are_copied(special):
    weight = np.full((2, 3), special, np.float32)
    assert se.gather(weight, [1, 0]).tobytes() == weight.tobytes()


def test_a_result_is_a_copy():
    weight = WEIGHT.copy()
    se.gather(weight, [0, 1])[:] = 99
    np.testing.assert_array_equal(weight, WEIGHT)


def test_jax():
    """Arrays of jax in, arrays of jax out, on a table in NumPy's memory.  Runs where jax is installed."""
    jax = pytest.importorskip("jax")
    table = se.EmbeddingTable.from_array(WEIGHT.copy(), se.SGD(lr=1.0))
    ids, grad_out = jax.numpy.array([[3, 1], [1, 0]]), jax.numpy.ones((2, 2, 2))
    table.update(ids, grad_out)
    expected = WEIGHT - np.array([[1], [2], [0], [1], [0], [0]], np.float32)
    bags, gradient = se.Bags(ids.reshape(-1), jax.numpy.array([0, 3, 4])), se.coalesce(ids, grad_out, 6)
    made = se.RowGradient(jax.numpy.array([0, 1, 3]), jax.numpy.array([[1.0, 1], [2, 2], [1, 1]]), 6)
    for result, value in (
        (table.lookup(ids), expected[np.asarray(ids)]),
        (table.pool(bags), [expected[[3, 1, 1]].sum(axis=0), expected[0]]),
        ((gradient + made).scale(0.5).rows, [0, 1, 3]),
        ((gradient + made).scale(0.5).values, [[1, 1], [2, 2], [1, 1]]),
        (se.per_sample_weights_gradient(WEIGHT, bags, grad_out[0]), WEIGHT[[3, 1, 1, 0]].sum(axis=1)),
        (made.values, [[1, 1], [2, 2], [1, 1]]),
    ):
        assert isinstance(result, jax.Array)
        np.testing.assert_array_equal(result, value)


def test_every_layout_is_tested_and_strided():
    """The layouts are what they claim to be, or the tests above test less than they seem to."""
    flags = {name: arrange(WEIGHT, name).flags for name in LAYOUTS}
    contiguous = {name for name, each in flags.items() if each.c_contiguous}
    assert contiguous == {"contiguous"}
    assert flags["fortran"].f_contiguous
    assert not arrange(WEIGHT, "unaligned").flags.aligned
    assert not arrange(WEIGHT, "read-only").flags.writeable
    assert isinstance(arrange(WEIGHT, "memory-mapped"), np.memmap)
    for name in INPUTS:
        np.testing.assert_array_equal(arrange(WEIGHT, name), WEIGHT)


def test_out_over_ids_is_refused():
    memory = np.zeros(64 * 16, np.float32)
    out, ids = memory.reshape(64, 16), memory[:128].view(np.int64)
    weight = np.ones((4, 16), np.float32)
    with pytest.raises(ValueError, match="out must not share memory with ids"):
        se.gather(weight, ids, out=out)
    with pytest.raises(ValueError, match="out must not share memory with ids"):
        se.pool(weight, se.Bags(ids, np.arange(65)), out=out)
    factors = np.ones(64 * 16, np.float32)
    bags = se.Bags(np.zeros(64, np.int64), np.arange(65), factors[:64])
    with pytest.raises(ValueError, match="out must not share memory with per_sample_weights"):
        se.pool(weight, bags, out=factors.reshape(64, 16))

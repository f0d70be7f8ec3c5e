"""Small batches, which one compiled call reads: the same bits and messages as all other batches."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from strategies import arrange, lookups, numbers, pooled

import sparsembed as se
from sparsembed import functional, pooling
from sparsembed._cpu import reading
from sparsembed._engine import CPU
from sparsembed.kernels.cpu.few import gather_few, pool_few

WEIGHT = np.arange(36, dtype=np.float32).reshape(9, 4)


@contextlib.contextmanager
def without_quick_way():
    """Let all batches take the way of large ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("gather_few", "pool_few"):
            patch.setattr(CPU, name, lambda *arguments: None)
        yield


@pytest.fixture
def only_quick_way(monkeypatch):
    """Refuse calls that one compiled call does not answer."""

    def refused(*arguments, **options):
        raise AssertionError("not the quick way")

    monkeypatch.setattr(functional, "_rows", refused)
    monkeypatch.setattr(pooling, "place_of", refused)


@given(lookups())
def test_lookups_have_the_bits_of_large_ones(batch):
    table = se.EmbeddingTable.from_array(batch.weight)
    found = [table.lookup(batch.ids), se.gather(batch.weight, batch.ids)]
    with without_quick_way():
        expected = table.lookup(batch.ids)
    for each in found:
        np.testing.assert_array_equal(each, expected, strict=True)
        assert each.flags.writeable
        assert each.flags.c_contiguous


@given(pooled())
def test_pools_have_the_bits_of_large_ones(case):
    table = se.EmbeddingTable.from_array(case.weight)
    options = {"padding_idx": case.padding_idx}
    padded = se.EmbeddingTable.from_array(case.weight, copy=True, **options)
    found = [se.pool(case.weight, case.bags, case.mode), table.pool(case.bags, case.mode)]
    found.append(padded.pool(case.bags, case.mode))
    with without_quick_way():
        plain = se.pool(case.weight, case.bags, case.mode)
        expected = [plain, plain, se.pool(case.weight, case.bags, case.mode, **options)]
    for each, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(each, wanted, strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("id_dtype", [np.int32, np.int64])
@pytest.mark.usefixtures("only_quick_way")
def test_plain_arrays_take_the_quick_way(dtype, id_dtype, rng):
    for dim in (1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 100, 129, 300):
        weight = numbers(rng, (50, dim), dtype)
        tables = [se.EmbeddingTable.from_array(weight), se.EmbeddingTable.from_array(weight, se.SparseAdam())]
        for shape in ((), (0,), (1,), (40,), (3, 5), (2, 0), (2, 3, 4)):
            ids = rng.integers(0, 50, shape).astype(id_dtype)
            for result in (se.gather(weight, ids), *(table.lookup(ids) for table in tables), tables[0][ids]):
                np.testing.assert_array_equal(result, weight[ids], strict=True)
        bags = se.Bags(rng.integers(0, 50, 40).astype(id_dtype), np.array([0, 3, 3, 40], id_dtype))
        for mode in ("sum", "mean", "sqrtn"):
            found = [se.pool(weight, bags, mode), *(table.pool(bags, mode) for table in tables)]
            for each in found:
                np.testing.assert_allclose(each, se.reference.pool(weight, bags, mode), rtol=1e-5, atol=1e-5)


def test_tables_larger_than_the_cache_are_prefetched_with_the_same_result(rng):
    """From 4 MiB on, in the quick way and in the other."""
    for dim in (16, 100):
        weight = np.zeros((1 + (5 << 20) // (4 * dim), dim), np.float32)
        weight[::7] = numbers(rng, weight[::7].shape, np.float32)
        for n in (3, 50, 70_000 // dim):
            ids = rng.integers(0, len(weight), n)
            bags = se.Bags(ids, np.array([0, n // 2, n]))
            found = se.gather(weight, ids), se.pool(weight, bags)
            with without_quick_way():
                expected = se.gather(weight, ids), se.pool(weight, bags)
            np.testing.assert_array_equal(found[0], weight[ids])
            for each, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(each, wanted, strict=True)


@pytest.mark.parametrize("bad", [-1, 9, 1 << 33, -(1 << 40)])
@pytest.mark.parametrize("id_dtype", [np.int32, np.int64])
def test_ids_out_of_range_are_named_as_in_large_batches(bad, id_dtype):
    ids = np.zeros((4, 5), np.int64)
    ids[2, 3] = ids[3, 1] = bad
    ids = ids.astype(id_dtype)
    if ids[2, 3] != bad:
        pytest.skip("no int32")
    bags, messages = se.Bags(ids.reshape(-1), np.array([0, 5, 20])), []
    table = se.EmbeddingTable.from_array(WEIGHT)
    for way in (contextlib.nullcontext, without_quick_way):
        for call in (
            lambda: se.gather(WEIGHT, ids),
            lambda: table.lookup(ids),
            lambda: se.gather(WEIGHT[:, :1].copy(), ids),
            lambda: se.pool(WEIGHT, bags),
            lambda: table.pool(bags, "mean"),
        ):
            with way(), pytest.raises(IndexError) as error:
                call()
            messages.append(str(error.value))
    assert messages[:5] == messages[5:]
    assert f"ids[2, 3] is {bad}, expected 0 <= id < 9" in messages[0]
    assert f"bags.ids[13] is {bad}" in messages[3]


@pytest.mark.parametrize("bad", [-1, 9, 1 << 40])
def test_kernels_read_no_row_that_the_table_does_not_have(bad):
    """Whatever the position: a test of each id stands before the read of its row."""
    offsets = np.array([0, 2, 7, 12])
    for dim in (1, 3, 16, 40, 64):
        weight = np.ones((9, dim), np.float32)
        for position in range(12):
            ids = np.arange(12) % 9
            assert gather_few(weight, ids, np.empty((12, dim), np.float32))
            assert pool_few(weight, ids, offsets, 0, -1, np.empty((3, dim), np.float32))
            ids[position] = bad
            assert not gather_few(weight, ids, np.empty((12, dim), np.float32))
            assert not pool_few(weight, ids, offsets, 0, -1, np.empty((3, dim), np.float32))
    nothing = np.ones((0, 1), np.float32)
    assert not gather_few(nothing, np.zeros(3, np.int64), np.empty((3, 1), np.float32))
    assert gather_few(nothing, np.zeros(0, np.int64), np.empty((0, 1), np.float32))


@pytest.mark.parametrize(
    "layout", ["fortran", "every other row", "some columns", "reversed", "read-only", "memory-mapped"]
)
def test_other_weights_take_the_way_of_large_batches(layout, rng):
    weight, ids = arrange(numbers(rng, (50, 6), np.float32), layout), rng.integers(0, 50, (3, 4))
    bags = se.Bags(ids.reshape(-1), np.array([0, 5, 12]))
    assert reading.gather_few(weight, ids) is None
    assert reading.pool_few(weight, bags._place, 0, -1) is None
    np.testing.assert_array_equal(se.gather(weight, ids), weight[ids])
    np.testing.assert_array_equal(se.pool(weight, bags), se.pool(weight.copy(), bags))


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2],
        (3,),
        4,
        np.int64(4),
        np.array([1, 2], np.int16),
        np.array([1, 2], ">i8"),
        np.arange(9)[::2],
        np.ma.array([1]),
    ],
)
def test_other_ids_take_the_way_of_large_batches(ids):
    assert reading.gather_few(WEIGHT, ids) is None


def test_rows_that_catch_up_take_the_way_of_large_batches():
    table = se.EmbeddingTable.from_array(WEIGHT.copy(), se.Adam(lr=0.1))
    for ids in ([1], [2]):
        table.update(ids, np.ones((1, 4)))
    ids, expected = np.array([1, 2, 3]), table.lookup([1, 2, 3])
    assert (expected[0] != np.asarray(table._contents.table.array)[1]).any()  # row 1 has missed a step
    np.testing.assert_array_equal(table.lookup(ids), expected)
    np.testing.assert_array_equal(table.pool(se.Bags(ids, np.arange(4))), expected)


@pytest.mark.usefixtures("only_quick_way")
def test_tensors_take_the_quick_way():
    torch = pytest.importorskip("torch")
    ids, weight = torch.tensor([[3, 1], [8, 3]]), torch.from_numpy(WEIGHT.copy())
    bags, table = se.Bags(ids.reshape(-1), torch.tensor([0, 1, 4])), se.EmbeddingTable.from_array(WEIGHT)
    trained = weight.clone().requires_grad_(True)
    for result in (table.lookup(ids), se.gather(weight, ids), se.gather(trained, ids), se.gather(WEIGHT, ids)):
        assert type(result) is torch.Tensor
        assert not result.requires_grad
        np.testing.assert_array_equal(result.numpy(), WEIGHT[ids.numpy()])
    assert type(se.gather(weight, ids.numpy())) is torch.Tensor
    for result in (table.pool(bags), se.pool(WEIGHT, bags), se.pool(weight, bags)):
        assert type(result) is torch.Tensor
        np.testing.assert_array_equal(result.numpy(), [WEIGHT[3], WEIGHT[[1, 8, 3]].sum(axis=0)])
    plain = se.Bags(ids.reshape(-1).numpy(), np.array([0, 1, 4]))
    assert type(se.pool(weight, plain)) is torch.Tensor
    assert type(se.pool(WEIGHT, plain)) is np.ndarray


def test_tensors_that_are_no_plain_memory_take_the_way_of_large_batches():
    torch = pytest.importorskip("torch")
    ids = torch.tensor([1, 2])
    assert reading.gather_few(torch.zeros(3, 4, device="meta"), ids) is None
    assert reading.gather_few(torch.eye(4).to_sparse(), ids) is None
    negated = torch._neg_view(torch.ones(3, 4))
    assert reading.gather_few(negated, ids) is None
    np.testing.assert_array_equal(se.gather(negated, ids), -np.ones((2, 4), np.float32))


def test_rows_are_written_to_the_callers_array(rng):
    """All ids are checked before: an array of the caller's changes completely or not at all."""
    weight, ids = numbers(rng, (50, 3), np.float32), rng.integers(0, 50, (4, 5))
    out = np.full((4, 5, 3), 7.0, np.float32)
    assert se.gather(weight, ids, out) is out
    np.testing.assert_array_equal(out, weight[ids])
    out[:] = 7
    for wrong, message in ((ids + 31, "out of range|expected 0"), (ids - 20, "expected 0")):
        with pytest.raises(IndexError, match=message):
            se.gather(weight, wrong, out)
        assert (out == 7).all()
    for bad in (weight[:20].reshape(4, 5, 3), out[:, :4], out.astype(np.float64), np.asfortranarray(out)):
        with pytest.raises((TypeError, ValueError), match="out must"):
            se.gather(weight, ids, bad)


@pytest.mark.usefixtures("only_quick_way")
def test_the_callers_array_takes_the_quick_way(rng):
    weight, ids, out = numbers(rng, (50, 3), np.float32), rng.integers(0, 50, 9), np.empty((9, 3), np.float32)
    np.testing.assert_array_equal(se.gather(weight, ids, out), weight[ids])

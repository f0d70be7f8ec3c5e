"""Every CUDA kernel, run as Python on greenlets, equals the CPU engine, whatever the order of its threads.

Runs under NUMBA_ENABLE_CUDASIM=1 (see .ci/run), where kernels are plain functions.
"""

import inspect

import numpy as np
import pytest
from simulator import Queue
from strategies import ALL_RULES, numbers, pick_ids

import sparsembed as se
from sparsembed import _check as check
from sparsembed._cpu import catch_up as host_catch_up
from sparsembed._cpu import norms as host_norms
from sparsembed._cpu import reading as host_reading
from sparsembed._cpu.inputs import table_of
from sparsembed._cuda import blocks, errors, gradients, launch, norms, reading, sorting
from sparsembed._cuda.catch_up import DeviceHistory
from sparsembed._options import limit
from sparsembed.kernels.cpu import pool as host_pool
from sparsembed.kernels.cuda import catch_up, gather, norm, pool, records, segment, sort, update
from sparsembed.kernels.cuda._sharing import NONE

SEEDS = [None, 1, 2, 3, 4, 5]  # None: threads in the order of their numbers
STARTED = set()


@pytest.fixture(params=SEEDS)
def queue(request, monkeypatch):
    monkeypatch.setattr(blocks, "THREADS", 64)  # two warps a block, where more would idle
    queue = Queue(request.param)
    yield queue
    STARTED.update(queue.started)


def same(actual, expected):
    """Bit for bit, but for the sign of NaN."""
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == expected.dtype
    number = expected == expected
    assert (np.signbit(actual) == np.signbit(expected))[number].all()


# ------------------------------------------------------------------------------------------ ids and plans


@pytest.mark.parametrize(
    ("n", "num_rows", "dtype"),
    [(0, 4, np.int32), (1, 1, np.int32), (700, 300, np.int64), (2500, 3, np.int32)],
)
def test_plans_equal_the_cpus(queue, n, num_rows, dtype):
    ids = np.random.default_rng(n).integers(0, num_rows, n).astype(dtype)
    batch, want = sorting.plan(queue, queue.upload(ids), num_rows), se.plan(ids, num_rows)
    k, hot, chunks = queue.download(batch.found)
    same(queue.download(batch.order), want.order)
    same(queue.download(batch.rows)[:k], want.rows)
    if n:
        same(queue.download(batch.offsets)[: k + 1], want.segment_offsets)
    lengths = np.diff(want.segment_offsets)
    assert hot == (lengths >= segment.SHORT).sum()
    cut = lengths[lengths > segment.CHUNK]
    assert chunks == (-(-cut // segment.CHUNK)).sum()
    listed = queue.download(batch.hot)[:hot]
    assert sorted(listed) == list(np.flatnonzero(lengths >= segment.SHORT))


def test_a_plan_of_one_gradient_each(queue):
    ids = np.array([7] * 40 + [3, 1, 3])
    batch = sorting.plan(queue, queue.upload(ids), 9)
    each = sorting.one_each(queue, batch)
    assert queue.download(each.found).tolist() == [3, 0, 0]
    same(queue.download(each.order), np.arange(44, dtype=np.int32))
    same(queue.download(each.offsets), np.arange(44, dtype=np.int32))
    assert each.rows is batch.rows


def test_a_table_of_more_rows_than_int32_counts(queue):
    ids = np.random.default_rng(0).integers(0, 2**33, 40)
    ids[20:] = ids[:20]
    batch, want = sorting.plan(queue, queue.upload(ids), 2**33), se.plan(ids, 2**33)
    same(queue.download(batch.order), want.order)
    same(queue.download(batch.rows)[:20], want.rows)


def test_bags_are_labels_of_the_order(queue):
    ids, offsets = np.array([3, 1, 3, 1, 2]), np.array([0, 0, 2, 3, 3, 5])
    batch = sorting.plan(queue, queue.upload(ids), 4, queue.upload(offsets))
    same(queue.download(batch.order), np.array([1, 4, 4, 1, 2], np.int32))


@pytest.mark.parametrize("threads", [32, 64])
def test_tiles_that_take_a_block_several_passes(queue, threads):
    """As those of more than 524,288 ids do: sums are carried from pass to pass."""
    tiles = 150
    counts = np.random.default_rng(threads).integers(0, 9, (3, tiles)).astype(np.int32)
    ends = np.cumsum(counts, axis=1, dtype=np.int32)
    there, totals = queue.upload(counts), queue.empty((3,), np.int32)
    queue.launch(sort.place_digits, 3, threads, there, tiles, totals)
    same(queue.download(there), ends - counts)
    same(queue.download(totals), ends[:, -1])
    heads, found = queue.upload(counts[0]), queue.empty((3,), np.int32)
    queue.launch(sort.place_heads, 1, threads, heads, tiles, found)
    same(queue.download(heads), ends[0] - counts[0])
    assert queue.download(found).tolist() == [ends[0, -1], 0, 0]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_first_id_out_of_range_is_found_and_stays_on_record(queue, dtype):
    ids = np.zeros(900, dtype)
    ids[[37, 411]] = -1, 10
    status = errors.new_status(queue)
    sorting.note_ids(queue, queue.upload(ids), 10, status, 7)
    sorting.note_ids(queue, queue.upload(ids[300:]), 10, errors.new_status(queue), 8)
    assert queue.download(status)[0] == 37
    assert queue.download(queue.record)[0] == 7 * 2**31 + 37
    good = errors.new_status(queue)
    sorting.note_ids(queue, queue.upload(ids[:37]), 10, good, 9)
    assert queue.download(good)[0] == 2**64 - 1


@pytest.mark.parametrize(
    ("offsets", "first"), [([0, 2, 5], None), ([1, 2, 5], 0), ([0, 3, 2, 5], 2), ([0, 2, 4], 2), ([0, 6], 1)]
)
def test_offsets_are_checked(queue, offsets, first):
    status = errors.new_status(queue)
    sorting.note_offsets(queue, queue.upload(np.array(offsets)), 5, status, 3)
    assert queue.download(status)[0] == (2**64 - 1 if first is None else sort.OF_OFFSETS + first)
    assert queue.download(queue.record)[1] == (2**64 - 1 if first is None else 3 * 2**31 + first)


@pytest.mark.parametrize("n", [2, 100])
def test_records_are_moved_and_cleared(queue, n):
    numbers = np.arange(n, dtype=np.uint64)
    there, moved = queue.upload(numbers), queue.empty((n,), np.uint64)
    queue.launch(records.move_records, 1, 32, there, n, moved)
    same(queue.download(moved), numbers)
    assert (queue.download(there) == NONE).all()


@pytest.mark.parametrize("noted", [(NONE, NONE), (5, NONE), (NONE, 5), (5, 5), (4, 5), (6, 4)])
def test_a_call_forgets_what_it_has_noted_alone(queue, noted):
    record = queue.upload(np.array([each if each == NONE else each << 31 | 9 for each in noted], np.uint64))
    before = queue.download(record)
    queue.launch(records.forget_call, 1, 2, record, 5)
    assert [int(each) for each in queue.download(record)] == [
        NONE if call == 5 else int(number) for call, number in zip(noted, before, strict=True)
    ]


# ------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("dim", "dtype"),
    [(1, np.float32), (3, np.float32), (8, np.float32), (140, np.float32), (6, np.float64), (3, np.float64),
     (16, np.float16), (5, np.float16)],
)  # fmt: skip
def test_gather(queue, dim, dtype):
    rng = np.random.default_rng(dim)
    weight, ids = numbers(rng, (9, dim), dtype), rng.integers(0, 9, 301).astype(np.int32)
    out = queue.empty((301, dim), np.result_type(dtype, np.float32))
    reading.gather_rows(queue, queue.upload(weight), queue.upload(ids), out, errors.new_status(queue))
    same(queue.download(out), se.gather(weight, ids))


def test_gather_rows_that_lie_apart(queue):
    weight = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    table = queue.upload(weight)
    table.shape, ids = (5, 8), np.array([4, 0, 3])  # its rows stay 12 numbers apart
    out = queue.empty((3, 8), np.float32)
    reading.gather_rows(queue, table, queue.upload(ids), out, errors.new_status(queue))
    same(queue.download(out), weight[ids, :8])


def bad(queue):
    """A status that says that an id was out of range."""
    return queue.filled((1,), np.uint64, 0)


def test_nothing_is_read_or_written_for_a_bad_batch(queue):
    ids = queue.upload(np.array([10**9]))
    out = queue.empty((1, 4), np.float32)
    reading.gather_rows(queue, queue.upload(np.ones((2, 4), np.float32)), ids, out, bad(queue))
    same(queue.download(out), queue.download(queue.empty((1, 4), np.float32)))


def drawn_bags(rng, weighted, dtype):
    lengths = [0, 1, 5, 0, 9, 3]
    ids = rng.integers(0, 7, sum(lengths))
    weights = numbers(rng, len(ids), dtype, grid=True) if weighted else None
    return se.Bags(ids, np.cumsum([0, *lengths]), weights)


def on_device(queue, bags, dtype):
    weights = None if bags.per_sample_weights is None else queue.upload(bags.per_sample_weights.astype(dtype))
    return reading.Place(queue.upload(bags.ids), queue.upload(bags.offsets), weights)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize(
    ("dim", "dtype", "weighted", "padding"),
    [(8, np.float32, False, -1), (3, np.float32, True, 2), (132, np.float32, False, 2), (4, np.float64, True, -1),
     (8, np.float16, True, 2), (8, np.float16, False, -1)],
)  # fmt: skip
def test_pool_equals_the_cpu_bit_for_bit(queue, mode, dim, dtype, weighted, padding):
    rng, kind = np.random.default_rng(dim), np.result_type(dtype, np.float32)
    weight, bags = numbers(rng, (7, dim), dtype), drawn_bags(rng, weighted, kind)
    out = queue.empty((6, dim), kind)
    table, number = queue.upload(weight), check.MODES[mode]
    reading.pool_rows(queue, table, on_device(queue, bags, kind), number, padding, out, errors.new_status(queue))
    same(queue.download(out), se.pool(weight, bags, mode, padding_idx=None if padding < 0 else padding))


@pytest.mark.parametrize(("dim", "dtype"), [(8, np.float32), (3, np.float64), (8, np.float16)])
def test_pool_max_equals_the_cpu_with_ties_and_nans(queue, dim, dtype):
    rng = np.random.default_rng(dim)
    weight = numbers(rng, (7, dim), dtype, grid=True)
    weight[3, ::2], weight[1, 1] = np.nan, np.inf
    bags, kind = drawn_bags(rng, False, dtype), np.result_type(dtype, np.float32)
    want = np.empty((6, dim), kind)
    winners = host_reading.pool(None, table_of(weight), bags._place, check.MODES["max"], 2, want)
    out, table = queue.empty((6, dim), kind), queue.upload(weight)
    found = reading.pool_max(queue, table, on_device(queue, bags, kind), 2, out, errors.new_status(queue))
    same(queue.download(out), want)
    same(queue.download(found), winners)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_offsets_are_shifted(queue, dtype):
    offsets, out = np.array([0, 2, 2, 7], dtype), queue.empty((4,), np.int64)
    reading.shift(queue, queue.upload(offsets), 2**33, out, errors.new_status(queue))
    same(queue.download(out), offsets.astype(np.int64) + 2**33)


def test_arrays_are_filled(queue):
    out = queue.empty((130,), np.float64)
    reading.fill(queue, out, 1)
    same(queue.download(out), np.ones(130))


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("weighted", [False, True])
def test_factors_of_occurrences_and_bags(queue, mode, weighted):
    rng, number = np.random.default_rng(3), check.MODES[mode]
    bags = drawn_bags(rng, weighted, np.float32)
    bag_of, coefs = np.empty(len(bags.ids), np.int32), np.empty(len(bags.ids), np.float32)
    host_pool.expand_bags(bags.ids, bags.offsets, bags.per_sample_weights, number, 2, bag_of, coefs)
    there, status = on_device(queue, bags, np.float32), errors.new_status(queue)
    found, factors = reading.expand(queue, there, number, 2, np.float32, False, status)
    same(queue.download(found), bag_of)
    np.testing.assert_allclose(queue.download(factors), coefs, rtol=2.0**-22)
    assert reading.expand(queue, there, number, 2, np.float32, True, status)[1] is None
    if not weighted:
        shares = np.empty(6, np.float32)
        host_pool.share_bags(bags.ids, bags.offsets, number, 2, shares)
        got = queue.download(reading.share(queue, there, number, 2, np.float32, status))
        np.testing.assert_allclose(got, shares, rtol=2.0**-22)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize(("dim", "dtype", "weighted"), [(8, np.float32, True), (3, np.float64, False)])
def test_gradient_of_weights(queue, mode, dim, dtype, weighted):
    rng = np.random.default_rng(dim)
    weight, bags, grad = numbers(rng, (7, dim), dtype), drawn_bags(rng, weighted, dtype), numbers(rng, (6, dim), dtype)
    out, there = queue.empty((len(bags.ids),), dtype), on_device(queue, bags, dtype)
    arguments = (queue.upload(weight), there, queue.upload(grad), check.MODES[mode], 2, out)
    reading.sample_gradient(queue, *arguments, errors.new_status(queue))
    want = se.per_sample_weights_gradient(weight, bags, grad, mode, padding_idx=2)
    exact = se.reference.per_sample_weights_gradient(weight, bags, grad, mode, padding_idx=2)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(queue.download(out), want, atol=64 * dim * eps * np.abs(exact).max())


# ------------------------------------------------------------------------------------------ sums and updates


def batch_of(pattern, n, num_rows, dtype=np.int32):
    """Ids; "tiers" has runs that a group, a block, and chunks sum."""
    rng = np.random.default_rng(n)
    if pattern == "tiers":
        ids = np.concatenate([np.full(1100, 2), np.full(40, 4), [1, 1, 1, 1, 1, 0]])
        return rng.permutation(ids).astype(dtype)
    return pick_ids(rng, n, num_rows, pattern).astype(dtype)


@pytest.mark.parametrize(
    ("dim", "dtype", "pattern"),
    [(8, np.float32, "random"), (3, np.float64, "unique"), (4, np.float32, "tiers"), (132, np.float32, "hot")],
)
def test_segment_sum(queue, dim, dtype, pattern):
    ids = batch_of(pattern, 70, 75)
    grad = numbers(np.random.default_rng(1), (len(ids), dim), dtype)
    grad[0] = -0.0
    batch, want = planned(queue, ids, 75), se.coalesce(ids, grad, 75)
    status = errors.new_status(queue)
    sums = queue.download(launch.sum_segments(queue, batch, gradients.Gradients(queue.upload(grad)), status))
    k = len(want.rows)
    short = np.diff(se.plan(ids, 75).segment_offsets) < segment.SHORT
    same(sums[:k][short], want.values[short])
    bound = np.finfo(dtype).eps * np.abs(se.coalesce(ids, np.abs(grad), 75).values) * 40
    assert (np.abs(sums[:k] - want.values) <= bound).all()


@pytest.mark.parametrize("n", [90])
def test_sums_do_not_depend_on_the_grid(n):
    """Nor on which block, group or thread comes first: only on the run."""
    ids = batch_of("tiers", n, 9)
    grad = numbers(np.random.default_rng(1), (len(ids), 4), np.float32)
    found = []
    for most in (1, 7):
        queue = Queue(most, most_blocks=most)
        batch = planned(queue, ids, 9)
        sums = launch.sum_segments(queue, batch, gradients.Gradients(queue.upload(grad)), errors.new_status(queue))
        found.append(queue.download(sums)[:4])
    same(*found)


def test_sums_of_pooled_gradients(queue):
    rng = np.random.default_rng(2)
    bags, grad = drawn_bags(rng, True, np.float32), numbers(rng, (6, 8), np.float32)
    there, status = on_device(queue, bags, np.float32), errors.new_status(queue)
    bag_of, coefs = reading.expand(queue, there, 1, -1, np.float32, False, status)
    batch = planned(queue, bags.ids, 7)
    grads = gradients.Gradients(queue.upload(grad), bag_of, coefs, None, True)
    sums = queue.download(launch.sum_segments(queue, batch, grads, status))
    want = se.pool_gradient(bags, grad, 7, "mean", scale_grad_by_freq=True)
    np.testing.assert_allclose(sums[: len(want.rows)], want.values, rtol=1e-5, atol=1e-6)


def test_sums_of_maxima(queue):
    rng = np.random.default_rng(2)
    bags, grad = drawn_bags(rng, False, np.float32), numbers(rng, (6, 8), np.float32)
    weight = numbers(rng, (7, 8), np.float32, grid=True)
    there, status = on_device(queue, bags, np.float32), errors.new_status(queue)
    winners = reading.pool_max(queue, queue.upload(weight), there, -1, queue.empty((6, 8), np.float32), status)
    bag_of, _ = reading.expand(queue, there, 3, -1, np.float32, True, status)
    grads = gradients.Gradients(queue.upload(grad), bag_of, None, winners)
    sums = queue.download(launch.sum_segments(queue, planned(queue, bags.ids, 7), grads, status))
    want = se.pool_gradient(bags, grad, 7, "max", weight=weight)
    same(sums[: len(want.rows)], want.values)


def planned(queue, ids, num_rows):
    """A plan of the CPU on the device: its kernels have tests of their own."""
    plan, n, index = se.plan(ids, num_rows), len(ids), np.int32
    found = queue.upload(np.array([len(plan.rows), 0, 0], index))
    hot = [queue.empty((n // segment.SHORT + 1,), index) for _ in range(2)]
    chunks = queue.empty((2 * n // segment.CHUNK + 2, 2), index)
    rows, order, offsets = map(queue.upload, (plan.rows, plan.order, plan.segment_offsets))
    queue.launch(sort.find_hot, 1, 32, offsets, found, *hot, chunks)
    return sorting.Batch(rows, order, offsets, found, *hot, chunks, n)


class Twin:
    """A table on the CPU, and its copy on the device."""

    def __init__(self, queue, rule, num_rows, dim, dtype):
        self.queue, self.rule = queue, rule
        self.cpu = se.EmbeddingTable(num_rows, dim, rule, dtype=dtype, rng=1)
        self.late = DeviceHistory()
        upload = queue.upload
        its = self.cpu._contents
        arrays = (its.table.array, its.state, its.row_state)
        self.table, self.last = launch.Trained(*map(upload, arrays)), upload(self.cpu._contents.last)

    def hyper(self, values):
        return self.queue.upload(np.array(values, self.cpu._contents.table.dtype)), values

    def update(self, ids, grad, skip=-1, status=None):
        """One step of both."""
        queue, rule, dtype = self.queue, self.rule, self.cpu._contents.table.dtype
        status = status or errors.new_status(queue)
        exact = rule.hyper(self.cpu.step + 1)
        hyper, like = self.hyper(rule.cast(exact, self.cpu.step + 1, dtype))
        batch, gaps = planned(queue, ids, self.cpu.num_rows), None
        if self.cpu._contents.history is not None:
            self.cpu._contents.record(self.cpu.step + 1, exact)
            self.late.sync(queue, self.cpu._contents.history)
            where = (rule, self.last, batch.n, hyper, like, status)
            gaps = self.late.find(queue, *where, rows=batch.rows, found=batch.found)
        grads = gradients.Gradients(queue.upload(grad))
        launch.update_rows(queue, self.table, batch, grads, skip, hyper, like, status, gaps)
        self.cpu.update(ids, grad)

    def arrays(self):
        return [self.queue.download(each) for each in self.table], [
            self.cpu._contents.table.array,
            self.cpu._contents.state,
            self.cpu._contents.row_state,
        ]


DENSE = [se.SGD(0.1, weight_decay=0.1), se.SGD(0.1, momentum=0.9), se.SGD(0.1, momentum=0.5, nesterov=True),
         se.RMSprop(0.1), se.Adam(0.1), se.Adam(0.1, eps=0.5), se.AdamW(0.1)]  # fmt: skip
EVERY = [*ALL_RULES, se.FTRL(0.1, l1=0.01), *DENSE]


def by_element(rule):
    return rule.reduce is None and rule.reduce_pair is None


@pytest.mark.parametrize("rule", EVERY, ids=repr)
@pytest.mark.parametrize(("dim", "dtype"), [(8, np.float32), (3, np.float64)])
def test_updates_equal_the_cpus(queue, rule, dim, dtype):
    """Bit for bit where the rule works on elements; else to the order in which a row is reduced."""
    twin, rng = Twin(queue, rule, 12, dim, dtype), np.random.default_rng(0)
    for turn in range(2):
        ids = rng.integers(0, 12, 11)[turn:]
        twin.update(ids, numbers(rng, (len(ids), dim), dtype))
    for mine, its in zip(*twin.arrays(), strict=True):
        if by_element(rule):
            same(mine, its)
        else:
            np.testing.assert_allclose(mine, its, rtol=64 * np.finfo(dtype).eps, atol=64 * np.finfo(dtype).eps)


@pytest.mark.parametrize("rule", [se.SGD(0.5), se.RowwiseAdagrad(0.1), se.LAMB(0.1), se.Adam(0.1)], ids=repr)
@pytest.mark.parametrize("dim", [4, 132])
def test_updates_of_every_tier(queue, rule, dim):
    """Runs that a group of lanes sums, a block, and chunks; rows of more numbers than a warp takes at once."""
    if dim == 132 and queue.seed not in (None, 1, 2, 3, 4, 5)[:2]:
        pytest.skip("rows of two tiles run in two orders: they take long")
    twin, rng = Twin(queue, rule, 6, dim, np.float32), np.random.default_rng(0)
    ids = batch_of("tiers", 0, 6) if dim == 4 else np.concatenate([np.full(40, 2), [1, 1, 0, 3]])
    for _ in range(2):
        twin.update(ids, numbers(rng, (len(ids), dim), np.float32))
    for mine, its in zip(*twin.arrays(), strict=True):
        np.testing.assert_allclose(mine, its, rtol=2e-4, atol=2e-5)


def test_the_padding_row_and_a_bad_batch_change_nothing(queue):
    twin = Twin(queue, se.Adagrad(0.1), 4, 8, np.float32)
    before = [queue.download(each) for each in twin.table]
    twin.update(np.array([2] * 40 + [1]), np.ones((41, 8), np.float32), status=bad(queue))
    for mine, its in zip(twin.table, before, strict=True):
        same(queue.download(mine), its)
    twin = Twin(queue, se.Adagrad(0.1), 4, 8, np.float32)
    twin.update(np.array([2] * 40 + [1, 0]), np.ones((42, 8), np.float32), skip=2)
    changed = (queue.download(twin.table.weight) != before[0]).any(axis=1)
    assert changed.tolist() == [True, True, False, False]


@pytest.mark.parametrize("rule", DENSE, ids=repr)
def test_rows_that_missed_steps_are_read_and_flushed(queue, rule):
    twin, rng = Twin(queue, rule, 12, 8, np.float32), np.random.default_rng(4)
    for turn in range(4):
        ids = rng.integers(0, 12, 4 + turn)
        twin.update(ids, numbers(rng, (len(ids), 8), np.float32))
    ids, status = np.arange(12), errors.new_status(queue)
    missed = host_catch_up.missed(twin.cpu._contents)
    twin.late.sync(queue, twin.cpu._contents.history)
    hyper, like = twin.hyper(missed.hyper)
    weight, state, _ = twin.table
    out = queue.empty((12, 8), np.float32)
    where = (rule, weight, state, twin.last)
    twin.late.gather(queue, *where, queue.upload(ids), out, hyper, like, status)
    same(queue.download(out), twin.cpu.lookup(ids))
    twin.late.flush(queue, *where, hyper, like, status)
    twin.cpu.flush()
    for mine, its in zip(*twin.arrays(), strict=True):
        same(mine, its)
    assert (queue.download(twin.last) == 4).all()


@pytest.mark.parametrize(("p", "dim"), [(2.0, 8), (1.0, 3), (3.0, 40), (np.inf, 8)])
def test_rows_are_clipped(queue, p, dim):
    rng = np.random.default_rng(dim)
    array = (numbers(rng, (9, dim), np.float32) * 3).astype(np.float32)
    array[4], array[5, 0], array[6] = 0, np.nan, 1e-30
    want, most = array.copy(), limit(1.0, p, 1e-7, array.dtype)
    host_norms.clip_rows(want, most)
    there, some = queue.upload(array), queue.upload(array)
    norms.clip_rows(queue, there, most, errors.new_status(queue))
    np.testing.assert_allclose(queue.download(there), want, rtol=2.0**-22)
    batch = planned(queue, np.array([1, 7, 1, 0]), 9)
    norms.clip_rows(queue, some, most, errors.new_status(queue), batch, skip=7)
    np.testing.assert_allclose(queue.download(some)[[0, 1]], want[[0, 1]], rtol=2.0**-22)
    same(queue.download(some)[2:], array[2:])


def kernels():
    """The functions that a launch can start: all public ones of the modules that are no helpers."""
    for module in (catch_up, gather, norm, pool, segment, sort, update):
        for name, each in inspect.getmembers(module, inspect.isfunction):
            if each.__module__ == module.__name__ and "status" in inspect.signature(each).parameters:
                yield name
    yield from (
        "count_digits",
        "place_digits",
        "move_keys",
        "count_heads",
        "place_heads",
        "write_segments",
        "move_records",
        "forget_call",
        "find_hot",
        "count_up",
        "fill",
    )


def test_every_kernel_has_been_run():
    assert set(kernels()) == STARTED

"""What device arrays and tables on a GPU refuse, and the order of streams; simulated as in test_cuda_dispatch."""

import pickle

import numpy as np
import pytest
from simulated_gpus import Held, host
from strategies import numbers

import sparsembed as se
import sparsembed.cuda

pytestmark = pytest.mark.usefixtures("gpus")
RNG = np.random.default_rng(0)
WEIGHT = numbers(RNG, (9, 4), np.float32)
IDS = RNG.integers(0, 9, (3, 5))
GRAD = numbers(RNG, (3, 5, 4), np.float32)
BAGS = np.array([0, 5, 5, 15])


def table(rule=None, **options):
    return se.EmbeddingTable(9, 4, rule or se.SGD(0.1), rng=0, device="cuda", **options)


def moded(mode="mean"):
    return se.Bags(Held(IDS.reshape(-1)), Held(BAGS), mode=mode)


def summed():
    return se.coalesce(Held(IDS), Held(GRAD), 9)


def test_bags_on_a_gpu_have_a_mode_and_other_weights():
    grad, factors = numbers(RNG, (3, 4), np.float32), RNG.uniform(0.5, 2, 15).astype(np.float32)
    own = se.Bags(IDS.reshape(-1), BAGS, mode="mean")
    for there, here in ((moded(), own), (moded().with_weights(Held(factors)), own.with_weights(factors))):
        np.testing.assert_allclose(host(se.pool(Held(WEIGHT), there)), se.pool(WEIGHT, here), rtol=1e-6)
        tables = table(), se.EmbeddingTable(9, 4, se.SGD(0.1), rng=0)
        tables[0].update_pooled(there, Held(grad))
        tables[1].update_pooled(here, grad, "mean")
        np.testing.assert_allclose(host(tables[0].weight), tables[1].weight, rtol=1e-6, atol=1e-7)
    assert (len(there), there.mode) == (3, "mean")


def test_parts_of_a_gradient_on_a_gpu():
    gradient, expected = summed(), se.coalesce(IDS, GRAD, 9)
    assert (gradient.shape, gradient.dtype, gradient.nbytes) == ((9, 4), np.float32, expected.nbytes)
    rows, values = gradient
    np.testing.assert_array_equal(host(rows), expected.rows)
    np.testing.assert_allclose(host(values), expected.values, rtol=1e-6)


def test_ids_out_of_range_write_nothing_and_raise_when_the_host_waits():
    held, ids = Held(WEIGHT), IDS.copy()
    ids[1, 2], ids[2, 4] = 9, -5
    out = Held(np.full((3, 5, 4), 7, np.float32))
    se.gather(held, Held(ids), out)
    se.scatter_add(held, Held(ids), Held(GRAD))
    assert (out.array == 7).all()
    np.testing.assert_array_equal(held.array, WEIGHT)
    with pytest.raises(IndexError, match=r"ids\[1, 2\] is out of range, expected 0 <= id < 9 .*call \d+ on the GPU"):
        sparsembed.cuda.synchronize()
    sparsembed.cuda.synchronize()
    se.gather(held, Held(IDS), out)
    np.testing.assert_array_equal(out.array, WEIGHT[IDS])


def test_checked_now_the_message_is_the_hosts():
    assert sparsembed.cuda.checks("now") == "late"
    ids = IDS.copy()
    ids[1, 2] = 9
    table = se.EmbeddingTable(9, 4, se.SGD(0.1), rng=0, device="cuda")
    with pytest.raises(IndexError) as there:
        table.update(Held(ids), Held(GRAD))
    with pytest.raises(IndexError) as here:
        se.EmbeddingTable(9, 4, se.SGD(0.1), rng=0).update(ids, GRAD)
    assert str(there.value) == str(here.value)
    assert table.step == 0
    sparsembed.cuda.synchronize()
    with pytest.raises(ValueError, match="when must be 'late' or 'now', got 'never'"):
        sparsembed.cuda.checks("never")


def test_offsets_that_do_not_fit_write_nothing_and_raise():
    bags = se.Bags(Held(IDS.reshape(-1)), Held(np.array([0, 7, 5, 15])))
    out = Held(np.full((3, 4), 7, np.float32))
    se.pool(Held(WEIGHT), bags, out=out)
    assert (out.array == 7).all()
    with pytest.raises(ValueError, match=r"offsets\[2\] does not fit"):
        sparsembed.cuda.synchronize()
    sparsembed.cuda.checks("now")
    with pytest.raises(ValueError, match=r"offsets\[2\] does not fit"):
        se.pool(Held(WEIGHT), bags)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: se.gather(Held(WEIGHT), IDS), TypeError, "ids is a ndarray in host memory"),
        (lambda: se.gather(WEIGHT, Held(IDS)), TypeError, "weight is a ndarray in host memory"),
        (lambda: se.scatter_add(Held(WEIGHT), Held(IDS), GRAD), TypeError, "values is a ndarray in host memory"),
        (lambda: se.gather(Held(WEIGHT), Held(IDS.astype(float))), TypeError, "ids must be int32 or int64"),
        (lambda: se.gather(Held(WEIGHT[0]), Held(IDS)), ValueError, "weight must have shape"),
        (lambda: se.gather(Held(IDS), Held(IDS)), TypeError, "weight.dtype must be float32"),
        (lambda: se.gather(Held(WEIGHT), Held(IDS), Held(GRAD[0])), ValueError, "out must have shape"),
        (lambda: se.scatter_add(Held(WEIGHT), Held(IDS), Held(GRAD[0])), ValueError, "values must have shape"),
        (lambda: se.scatter_add(Held(WEIGHT), Held(IDS), Held(GRAD.astype(float))), TypeError, "must be float32"),
        (lambda: se.coalesce(Held(IDS), Held(IDS), 9), TypeError, "must hold floats"),
        (lambda: se.Bags(Held(IDS[0]), Held(BAGS[:2]), Held(IDS[0])), TypeError,
         r"per_sample_weights must hold floats on a GPU, got int64; convert with \.astype"),
        (lambda: se.pool(Held(WEIGHT), se.Bags(IDS[0], [0, 5])), TypeError, "bags are in host memory"),
        (lambda: se.pool(WEIGHT, se.Bags(Held(IDS[0]), Held(BAGS))), TypeError, "weight is a ndarray in host"),
        (lambda: se.Bags(Held(IDS), Held(BAGS)), ValueError, "ids must have shape"),
        (lambda: se.gather(Held(WEIGHT), Held(IDS > 2)), TypeError, r"got bool; for a mask pass np\.flatnonzero"),
        (lambda: se.gather(Held(WEIGHT[:, 0]), Held(IDS)), ValueError, r"pass bias\[:, None\]"),
        (lambda: table().update(Held(IDS), None), TypeError, "grad_out is None.*was requires_grad_"),
        (lambda: moded()[0], TypeError, "bags on a GPU are not indexed"),
        (lambda: iter(moded()), TypeError, "bags on a GPU are not iterated"),
        (lambda: se.Bags.concatenate([moded()]), TypeError, "bags on a GPU are not concatenated"),
        (lambda: moded().with_weights(np.ones(15)), TypeError, "per_sample_weights is a ndarray in host memory"),
        (lambda: moded().with_weights(Held(np.ones(3))), ValueError, r"one weight per id, \(15,\), got \(3,\)"),
        (lambda: table().pool(moded(), "sum"), ValueError, "mode must be 'mean', as the bags were made with it"),
        (lambda: table().pool([moded()]), TypeError, "one sparsembed.Bags here, got a list of them"),
        (lambda: summed() * 2, TypeError, r"gradients on a GPU are not multiplied; use what to_host\(\) returns"),
        (lambda: summed().to_dense(), TypeError, "gradients on a GPU are not made dense"),
        (lambda: se.Bags(Held(IDS[0]), BAGS), TypeError, "offsets is a ndarray in host memory"),
        (lambda: se.EmbeddingTable(9, 4, device="tpu"), ValueError, "device must be"),
        (lambda: table().update(IDS, GRAD), TypeError, "in host memory"),
        (lambda: table().lookup([1, 2]), TypeError, "in host memory"),
        (lambda: table().update(Held(IDS), Held(GRAD), check_finite=True), ValueError, "would wait for the GPU"),
        (lambda: table().apply(se.coalesce(IDS, GRAD, 10)), ValueError, "of a table of shape"),
        (lambda: table().apply(GRAD), TypeError, "gradient must be a RowGradient, got ndarray"),
        (lambda: np.asarray(table().lookup(Held(IDS))), TypeError, r"call its to_host\(\)"),
        (lambda: se.EmbeddingTable(9, 4, device="cuda").update(Held(IDS), Held(GRAD)), ValueError, "no optimizer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_arrays_of_two_devices_are_refused(gpus):
    ids = Held(IDS)
    gpus.second.append(ids)
    with pytest.raises(TypeError, match="weight on cuda:0, ids on cuda:1"):
        se.gather(Held(WEIGHT), ids)


# ------------------------------------------------------------------------------------------ where arrays lie


def wide(columns=8):
    return RNG.standard_normal((9, columns)).astype(np.float32)


def test_rows_that_lie_apart_are_read_and_never_written():
    whole = wide()
    part = Held(whole[:, :4], copy=False)
    np.testing.assert_array_equal(host(se.gather(part, Held(IDS))), whole[:, :4][IDS])
    before = whole.copy()
    for call in (
        lambda: se.EmbeddingTable.from_array(part, max_norm=1.0),
        lambda: se.EmbeddingTable.from_array(part, copy=True),
        lambda: se.scatter_add(part, Held(IDS), Held(GRAD)),
        lambda: se.gather(Held(WEIGHT), Held(IDS[0, :2]), Held(whole[:2, :4], copy=False)),
        lambda: se.coalesce(Held(IDS[0]), Held(wide()[:5, :4], copy=False), 9),
        lambda: se.gather(Held(WEIGHT), Held(np.arange(8)[::2], copy=False)),
        lambda: se.gather(Held(np.asfortranarray(WEIGHT), copy=False), Held(IDS)),
    ):
        with pytest.raises(ValueError, match="must be C-contiguous on a GPU"):
            call()
    np.testing.assert_array_equal(whole, before)


def test_addresses_that_kernels_cannot_use_are_refused():
    records = np.zeros(9, dtype=[("row", "f4", (4,)), ("more", "u1", (3,))])
    with pytest.raises(ValueError, match="must be C-contiguous"):
        se.gather(Held(records["row"], copy=False), Held(IDS))
    odd = np.zeros(9 * 16 + 1, np.uint8)[1:].view(np.float32).reshape(9, 4)
    with pytest.raises(ValueError, match="weight must be aligned"):
        se.gather(Held(odd, copy=False), Held(IDS))


def test_read_only_arrays_are_read_and_never_written():
    fixed = Held(WEIGHT.copy(), readonly=True)
    np.testing.assert_array_equal(host(se.gather(fixed, Held(IDS, readonly=True))), WEIGHT[IDS])
    out = np.zeros((3, 5, 4), np.float32)
    for call in (
        lambda: se.scatter_add(fixed, Held(IDS), Held(GRAD)),
        lambda: se.gather(Held(WEIGHT), Held(IDS), Held(out, readonly=True, copy=False)),
        lambda: se.EmbeddingTable.from_array(fixed, se.SGD(0.1)),
        lambda: se.EmbeddingTable.from_array(fixed, padding_idx=0),
        lambda: se.EmbeddingTable.from_array(fixed, max_norm=1.0),
        lambda: se.EmbeddingTable.from_array(fixed).load_state_dict({"weight": WEIGHT + 1, "step": 0}),
    ):
        with pytest.raises(ValueError, match="read-only"):
            call()
    np.testing.assert_array_equal(fixed.array, WEIGHT)
    copied = se.EmbeddingTable.from_array(fixed, se.SGD(0.1), copy=True, padding_idx=0)
    copied.update(Held(IDS), Held(GRAD))
    np.testing.assert_array_equal(fixed.array, WEIGHT)
    assert not out.any()


def test_gradients_may_share_the_tables_memory():
    here, there, ids = WEIGHT.copy(), WEIGHT.copy(), np.array([3, 0, 1, 2, 4, 5, 6, 7, 8])
    se.scatter_add(here, ids, here)
    held = Held(there, copy=False)
    se.scatter_add(held, Held(ids), held)
    np.testing.assert_array_equal(there, here)
    mine, its = Held(WEIGHT.copy()), WEIGHT.copy()
    se.EmbeddingTable.from_array(mine, se.SGD(0.1)).update(Held(ids), mine)
    se.EmbeddingTable.from_array(its, se.SGD(0.1)).update(ids, its)
    np.testing.assert_array_equal(mine.array, its)


def test_pooled_gradients_may_share_the_tables_memory():
    mine, its, bags = Held(WEIGHT.copy()), WEIGHT.copy(), np.arange(10)
    ids = np.array([3, 0, 1, 2, 4, 5, 6, 7, 8])
    se.EmbeddingTable.from_array(mine, se.SGD(0.1)).update_pooled(se.Bags(Held(ids), Held(bags)), mine)
    se.EmbeddingTable.from_array(its, se.SGD(0.1)).update_pooled(se.Bags(ids, bags), its)
    np.testing.assert_array_equal(mine.array, its)


def test_out_must_not_lie_where_the_table_does():
    with pytest.raises(ValueError, match="out must not share memory with weight"):
        se.gather((held := Held(WEIGHT.copy())), Held(np.arange(9)), held)


# ------------------------------------------------------------------------------------------ ids out of range


def out_of_range(place=(1, 2), value=9):
    ids = IDS.copy()
    ids[place] = value
    return ids


@pytest.mark.parametrize(
    "call",
    [
        lambda ids: se.plan(ids, 9).rows,
        lambda ids: se.plan(ids, 9).order,
        lambda ids: se.plan(ids, 9).segment_offsets,
        lambda ids: se.coalesce(ids, Held(GRAD), 9).rows,
        lambda ids: se.coalesce(ids, Held(GRAD), 9).values,
        lambda ids: se.coalesce(ids, Held(GRAD), 9).to_host(),
        lambda ids: table().gradient(ids, Held(GRAD)).to_host(),
    ],
)
def test_what_waits_anyway_raises(call):
    with pytest.raises(IndexError, match=r"ids\[1, 2\] is 9, expected 0 <= id < 9"):
        call(Held(out_of_range()))
    sparsembed.cuda.synchronize()  # it has been raised


def test_pooled_gradients_that_are_wrong_raise_when_they_are_read():
    flat = out_of_range().reshape(-1)
    bad_ids = se.Bags(Held(flat), Held(BAGS))
    with pytest.raises(IndexError, match=r"bags.ids\[7\] is 9"):
        se.pool_gradient(bad_ids, Held(GRAD[:, 0]), 9).to_host()
    sparsembed.cuda.checks("now")
    good = se.Bags(Held(IDS[0]), Held(np.array([0, 5])))
    with pytest.raises(IndexError, match=r"bags\[1\].ids\[7\] is 9"):
        table().update_pooled([good, bad_ids], [Held(GRAD[0, :1]), Held(GRAD[:, 0])])
    sparsembed.cuda.checks("late")
    bad_offsets = se.Bags(Held(IDS.reshape(-1)), Held(np.array([0, 7, 5, 15])))
    with pytest.raises(ValueError, match=r"offsets\[2\] does not fit"):
        se.pool_gradient(bad_offsets, Held(GRAD[:, 0]), 9).to_host()
    sparsembed.cuda.synchronize()


def test_a_call_that_raises_leaves_the_errors_of_others_on_record():
    se.gather(Held(WEIGHT), Held(out_of_range((0, 1), -3)))
    with pytest.raises(IndexError, match=r"ids\[1, 2\] is 9"):
        se.plan(Held(out_of_range()), 9).rows  # noqa: B018
    with pytest.raises(IndexError, match=r"ids\[0, 1\] is out of range"):
        sparsembed.cuda.synchronize()
    sparsembed.cuda.synchronize()


def test_more_ids_than_kernels_count_are_refused(monkeypatch):
    from sparsembed._cuda import inputs

    monkeypatch.setattr(inputs, "MOST", 20)
    with pytest.raises(ValueError, match=r"ids\[0\] and ids\[1\] must be fewer than 20 on a GPU, got 30"):
        se.plan([Held(IDS), Held(IDS)], 9)
    se.plan(Held(IDS), 9)


# ------------------------------------------------------------------------------------------ host and device


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.update(Held(IDS), Held(GRAD)), "CUDA memory"),
        (lambda t: t.update(IDS, Held(GRAD)), "CUDA memory"),
        (lambda t: t.update([Held(IDS)], [Held(GRAD)]), "CUDA memory"),
        (lambda t: t.update(se.plan(Held(IDS), 9), GRAD), "plan on a GPU"),
        (lambda t: t.lookup(se.plan(Held(IDS), 9)), "CUDA memory"),
        (lambda t: t.pool(se.Bags(Held(IDS[0]), Held(np.array([0, 5])))), "bags are on a GPU"),
        (lambda t: t.update_pooled(se.Bags(Held(IDS[0]), Held(np.array([0, 5]))), GRAD[:1, 0]), "bags are on a GPU"),
        (lambda t: t.apply(table().gradient(Held(IDS), Held(GRAD))), "gradient is on a GPU.*to_host"),
        (lambda t: se.gather([1.0, 2.0], Held(IDS)), "in host memory"),
        (lambda t: se.clip_by_global_norm([table().gradient(Held(IDS), Held(GRAD))], 1.0), "to_host"),
        (lambda t: table().gradient(Held(IDS), Held(GRAD)) + se.coalesce(IDS, GRAD, 9), "to_host"),
    ],
)
def test_tables_of_the_host_name_what_lies_on_a_gpu(call, message):
    here = se.EmbeddingTable(9, 4, se.SGD(0.1), rng=0)
    before = here.state_dict()
    with pytest.raises(TypeError, match=message):
        call(here)
    np.testing.assert_array_equal(here.weight, before["weight"])
    assert here.step == 0


def test_what_a_gradient_on_a_gpu_has_not_names_to_host():
    with pytest.raises(AttributeError, match=r"to_host\(\)"):
        table().gradient(Held(IDS), Held(GRAD)).norm()


def test_a_subclass_has_tables_on_a_gpu():
    class Mine(se.EmbeddingTable):
        def first(self):
            return self[Held(np.array([0]))].to_host()

    for mine in (Mine(9, 4, device="cuda", rng=0), Mine.from_array(Held(WEIGHT))):
        assert type(mine) is Mine
        assert repr(mine).startswith("Mine(9 x 4 float32")
        np.testing.assert_array_equal(mine.first(), mine.state_dict()["weight"][:1])


# ------------------------------------------------------------------------------------------ streams


def test_calls_on_several_streams_follow_each_other(gpus):
    """The table's own stream waits for each call on another, and is waited for."""
    t = table(se.Adam(0.1))
    home = gpus.queues[0, 1]
    home.waited.clear()
    t.update(Held(IDS, stream=7), Held(GRAD, stream=7))
    seven = gpus.queues[0, 7]
    assert seven.waited == [home]
    assert home.waited == [seven]
    t.update(Held(IDS), Held(GRAD))
    assert home.waited == [seven]
    assert "update_rows" in home.started
    t.lookup(Held(IDS, stream=7))
    assert (seven.waited, home.waited) == ([home] * 2, [seven] * 2)


def test_a_plan_may_be_used_on_another_stream(gpus):
    plan, held = se.plan(Held(IDS, stream=7), 9), Held(WEIGHT.copy(), stream=8)
    se.scatter_add(held, plan, Held(GRAD, stream=8))
    seven, eight = gpus.queues[0, 7], gpus.queues[0, 8]
    assert seven in eight.waited
    assert eight in seven.waited


def test_arrays_of_several_streams_are_waited_for(gpus):
    se.gather(Held(WEIGHT, stream=7), Held(IDS, stream=9))
    assert gpus.queues[0, 7].waited == [gpus.queues[0, 9]]
    assert "gather_rows" in gpus.queues[0, 7].started


def test_errors_of_all_streams_are_found(gpus):
    se.gather(Held(WEIGHT, stream=7), Held(out_of_range(), stream=7))
    sparsembed.cuda.synchronize(stream=0)
    with pytest.raises(IndexError, match=r"ids\[1, 2\]"):
        table().synchronize()


def test_a_recorded_update_is_ordered_unless_it_is_captured(gpus):
    """A graph could not be captured if it waited for others; what runs at once follows `begin_step`."""
    t = table(se.SparseAdam())
    home = gpus.queues[0, 1]
    t.begin_step()
    for capturing in (False, True):
        seven = gpus.open_queue(0, 7)
        seven.capturing = capturing
        seven.waited.clear()
        home.waited.clear()
        with t.recording():
            t.update(Held(IDS, stream=7), Held(GRAD, stream=7))
        assert (seven.waited, home.waited) == (([], []) if capturing else ([home], [seven]))


def test_recording_is_for_a_step_that_has_begun():
    t = table(se.SparseAdam())

    def change():
        t.optimizer = se.SparseAdam(lr=0.5)

    for disturb in (lambda: None, lambda: t.update(Held(IDS), Held(GRAD)), change):
        disturb()
        with pytest.raises(ValueError, match=r"call begin_step\(\) first"), t.recording():
            pass
        t.begin_step()
        with t.recording(), t.recording():
            pass
        assert not t._contents.gate._is_owned()


def test_values_are_read_on_the_stream_that_is_current_then(gpus, monkeypatch):
    """As torch's and CuPy's change: made under 5, read under 6."""
    plan, gradient = se.plan(Held(IDS, stream=5), 9), se.coalesce(Held(IDS, stream=5), Held(GRAD, stream=5), 9)
    five, six = gpus.queues[0, 5], gpus.open_queue(0, 6)
    monkeypatch.setattr("sparsembed._frameworks.Framework.stream", lambda framework, device: 6)
    for read in (lambda: plan.rows, lambda: plan.order, lambda: gradient.values):
        five.waited.clear()
        six.waited.clear()
        assert read().stream == 6
        assert five in six.waited
        assert six in five.waited
    t = table()
    six.started.clear()
    t.apply(gradient)
    assert "update_rows" in six.started


@pytest.mark.parametrize("read", [lambda plan, gradient: plan.rows, lambda plan, gradient: gradient.to_host()])
def test_what_another_thread_reads_has_its_device_made_current_first(gpus, monkeypatch, read):
    from simulator import Queue

    from sparsembed._cuda import queues

    plan, gradient, done = se.plan(Held(IDS), 9), se.coalesce(Held(IDS), Held(GRAD), 9), []
    opened, download = queues.open_queue, Queue.download
    monkeypatch.setattr(queues, "open_queue", lambda *which: (done.append("open"), opened(*which))[1])
    monkeypatch.setattr(Queue, "download", lambda self, array: (done.append("download"), download(self, array))[1])
    read(plan, gradient)
    assert done[0] == "open"


def test_a_checkpoint_is_not_written_after_a_bad_id():
    t = table()
    t.update(Held(out_of_range()), Held(GRAD))
    with pytest.raises(IndexError, match=r"ids\[1, 2\] is out of range"):
        t.state_dict()
    assert t.state_dict()["step"] == 1


def test_a_gradient_on_a_gpu_is_not_pickled():
    gradient = table().gradient(Held(IDS), Held(GRAD))
    with pytest.raises(TypeError, match=r"a gradient on a GPU is not pickled; pickle what its to_host"):
        pickle.dumps(gradient)

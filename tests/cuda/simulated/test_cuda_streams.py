"""Calls with arrays of several streams: each stream waits for the other, before and after; simulated."""

import types

import numpy as np
import pytest
import simulator
from simulated_gpus import Held
from strategies import numbers

import sparsembed as se
from sparsembed import _frameworks
from sparsembed._cuda import views
from sparsembed._cuda.array import DeviceArray

RNG = np.random.default_rng(0)
WEIGHT = numbers(RNG, (9, 4), np.float32)
IDS = RNG.integers(0, 9, (2, 3))
GRAD = numbers(RNG, (2, 3, 4), np.float32)
ENDS = np.array([0, 2, 6])
POOLED = GRAD[:, 0]
WEIGHTS = np.ones(6, np.float32)


class Streams:
    """Arrays on several streams, and which of them wait for which."""

    def __init__(self, gpus):
        self.gpus, self.made = gpus, {}

    def on(self, stream, array):
        """Upload to a stream."""
        made = self.gpus.open_queue(0, stream).upload(array)
        self.made[stream] = self.gpus.queues[0, stream]
        return made


def table(rule=None):
    return se.EmbeddingTable(9, 4, rule or se.SparseAdam(0.1), rng=0, device="cuda")


def bags(s, weighted=False):
    return se.Bags(s.on(5, IDS.reshape(-1)), s.on(6, ENDS), s.on(7, WEIGHTS) if weighted else None)


CALLS = {
    "gather": lambda s: se.gather(s.on(8, WEIGHT), s.on(5, IDS)),
    "gather, out": lambda s: se.gather(s.on(8, WEIGHT), s.on(5, IDS), s.on(6, GRAD)),
    "a plan of several": lambda s: se.plan([s.on(8, IDS), s.on(5, IDS)], 9),
    "scatter_add": lambda s: se.scatter_add(s.on(8, WEIGHT), s.on(5, IDS), s.on(6, GRAD)),
    "coalesce": lambda s: se.coalesce(s.on(5, IDS), s.on(8, GRAD), 9),
    "coalesce of several": lambda s: se.coalesce([s.on(5, IDS), s.on(6, IDS)], [s.on(8, GRAD), s.on(9, GRAD)], 9),
    "pool": lambda s: se.pool(s.on(8, WEIGHT), bags(s, True), out=s.on(9, POOLED)),
    "pool, max": lambda s: se.pool(s.on(8, WEIGHT), bags(s), "max"),
    "pool_gradient": lambda s: se.pool_gradient(bags(s, True), s.on(8, POOLED), 9),
    "pool_gradient, max": lambda s: se.pool_gradient(bags(s), s.on(8, POOLED), 9, "max", weight=s.on(9, WEIGHT)),
    "weights": lambda s: se.per_sample_weights_gradient(s.on(8, WEIGHT), bags(s, True), s.on(9, POOLED)),
    "dot": lambda s: se.dot(s.on(8, WEIGHT), bags(s), s.on(9, POOLED), s.on(7, WEIGHTS)),
    "dot, rows of ids": lambda s: se.dot(s.on(8, WEIGHT), s.on(5, IDS), s.on(9, POOLED)),
    "table.dot": lambda s: table(se.Adam()).dot(s.on(5, IDS), s.on(9, POOLED)),
    "dot_loss": lambda s: table(se.Adam()).dot_loss(
        bags(s), s.on(8, POOLED), s.on(9, WEIGHTS), se.losses.Squared(), weights=s.on(7, POOLED[:, 0].copy())
    ),
    "update_dot": lambda s: table(se.Adam()).update_dot(bags(s), s.on(8, POOLED), s.on(9, WEIGHTS)),
    "update_dot, rows": lambda s: table().update_dot(s.on(5, IDS), s.on(8, POOLED), s.on(9, WEIGHTS.reshape(2, 3))),
    "lookup": lambda s: table().lookup(s.on(5, IDS)),
    "table.pool": lambda s: table(se.Adam()).pool(bags(s, True), "mean"),
    "update": lambda s: table().update(s.on(5, IDS), s.on(6, GRAD)),
    "update of several": lambda s: table().update([s.on(5, IDS), s.on(6, IDS)], [s.on(7, GRAD), s.on(8, GRAD)]),
    "update_pooled": lambda s: table().update_pooled(bags(s, True), s.on(8, POOLED)),
    "update_pooled, max": lambda s: table(se.Adam()).update_pooled(bags(s), s.on(8, POOLED), "max"),
    "gradient": lambda s: table().gradient(s.on(5, IDS), s.on(6, GRAD)),
    "an adopted table": lambda s: se.EmbeddingTable.from_array(s.on(8, WEIGHT), se.SGD(1.0)).update(
        s.on(5, IDS), s.on(6, GRAD)
    ),
    "lookup in an adopted table": lambda s: se.EmbeddingTable.from_array(s.on(8, WEIGHT)).lookup(s.on(5, IDS)),
}


@pytest.mark.parametrize("name", CALLS)
def test_whoever_lends_an_array_waits_for_the_call(gpus, name):
    """Until the last kernel has been started on it: memory is given back in the order of its own stream."""
    streams = Streams(gpus)
    CALLS[name](streams)
    worked = [queue for queue in gpus.queues.values() if queue.started]
    for stream, owner in streams.made.items():
        readers = [queue for queue in worked if queue is owner or owner in queue.waited]
        assert readers, f"nobody waits for stream {stream}"
        for queue in readers:
            whole = queue is owner or owner.seen.get(queue) == len(queue.started)
            assert whole, f"stream {stream} does not wait for stream {queue.stream}"


def test_a_call_that_fails_is_waited_for_too(gpus):
    """For it may have been started in part."""
    streams = Streams(gpus)
    weight, ids, out = streams.on(8, WEIGHT), streams.on(5, IDS), streams.on(6, GRAD)
    gpus.queues[0, 8].launch = lambda *_: (_ for _ in ()).throw(RuntimeError("in words"))
    with pytest.raises(RuntimeError, match="in words"):
        se.gather(weight, ids, out)
    for stream in (5, 6):
        assert gpus.queues[0, 8] in gpus.queues[0, stream].waited


def test_values_are_read_for_the_stream_that_is_current(gpus, monkeypatch):
    """Again for each: what was read on one has not been waited for on another."""
    gradient = se.coalesce(Held(IDS), Held(GRAD), 9)
    for stream in (5, 6):
        monkeypatch.setattr(_frameworks.Framework, "stream", lambda its, device, stream=stream: stream)
        assert gradient.values.stream == gradient.rows.stream == stream
        assert gradient.values is gradient.values


def test_nothing_waits_where_all_is_on_one_stream(gpus):
    streams = Streams(gpus)
    weight, ids, grad = (streams.on(8, each) for each in (WEIGHT, IDS, GRAD))
    se.gather(weight, ids)
    se.scatter_add(weight, ids, grad)
    assert gpus.queues[0, 8].waited == []


def test_arrays_of_which_only_dlpack_knows_are_read_on_the_default_stream_and_held(gpus, monkeypatch):
    """`view` has their values there, whatever the stream of the call is."""

    class Array:
        def __init__(self, array):
            self.array = np.array(array)

        def __dlpack_device__(self):
            return 2, 0

    class StridedMemoryView:
        @staticmethod
        def from_dlpack(value, stream_ptr):
            a = value.array
            steps = tuple(step // a.itemsize for step in a.strides)
            place = a.__array_interface__["data"][0]
            return types.SimpleNamespace(ptr=place, shape=a.shape, strides=steps, dtype=a.dtype, readonly=False)

    monkeypatch.setattr("cuda.core.utils.StridedMemoryView", StridedMemoryView)
    streams = Streams(gpus)
    ids = Array(IDS)
    assert [views.by_dlpack(each) for each in (ids, Held(IDS), DeviceArray(0, (1,), np.int32, None))] == [1, 0, 0]
    se.gather(streams.on(8, WEIGHT), ids)
    eight, default = gpus.queues[0, 8], gpus.queues[0, 1]
    assert default in eight.waited
    assert eight in default.waited
    assert eight.held == [ids]


def test_copies_that_bags_have_made_on_another_stream_are_held(gpus, monkeypatch):
    """Torch and CuPy make them, and give them back in the order of the stream that was current then."""
    streams, current = Streams(gpus), [5]
    monkeypatch.setitem(_frameworks._known, Held, _frameworks.NUMBA)
    monkeypatch.setattr(type(_frameworks.NUMBA), "stream", lambda its, device: current[0])
    made = se.Bags(Held(IDS.reshape(-1)), Held(ENDS))
    for stream in (5, 6):
        current[0] = stream
        se.pool(Held(WEIGHT), made, out=Held(POOLED))
    assert gpus.queues[0, 5].held == []
    assert gpus.queues[0, 6].held == [made._place]
    assert streams.made == {}


@pytest.mark.parametrize("read", ["lookup", "pool", "update_pooled, max"])
def test_a_history_is_written_at_home_before_another_stream_waits_for_home(gpus, monkeypatch, read):
    """Else kernels there could read it while it is being written."""
    streams, log = Streams(gpus), []
    t = table(se.Adam(0.1))
    t.update(Held(IDS), Held(GRAD))  # a step that other rows miss
    ids, ends, grad = streams.on(7, IDS), streams.on(7, ENDS), streams.on(7, POOLED)
    for name in ("write", "after"):
        real = getattr(simulator.Queue, name)

        def logged(self, what, *more, name=name, real=real):
            log.append((self.stream, what if name == "after" else name))
            return real(self, what, *more)

        monkeypatch.setattr(simulator.Queue, name, logged)
    made = lambda: se.Bags(streams.on(7, IDS.reshape(-1)), ends)  # noqa: E731
    calls = {
        "lookup": lambda: t.lookup(ids),
        "pool": lambda: t.pool(made()),
        "update_pooled, max": lambda: t.update_pooled(made(), grad, "max"),
    }
    calls[read]()
    written = [k for k, (stream, what) in enumerate(log) if (stream, what) == (1, "write")]
    first = log.index((7, gpus.queues[0, 1]))
    assert written
    assert written[0] < first
    assert written[1] < first


def test_a_weight_that_is_read_waits_for_the_updates_before(gpus):
    """Also where no row has missed a step: the caller reads it on a stream of its own."""
    streams = Streams(gpus)
    t = se.EmbeddingTable.from_array(streams.on(9, WEIGHT), se.SGD(0.1))
    t.update(streams.on(7, IDS), streams.on(7, GRAD))
    nine, home = gpus.queues[0, 9], gpus.queues[0, 1]
    for read in (lambda: t.weight, lambda: t.state, t.flush):
        nine.waited.clear()
        read()
        assert nine.waited == [home]


def test_a_plan_is_waited_for_and_held_where_its_ids_are_read(gpus, monkeypatch):
    """They may be a copy, made on the stream that was current when they were planned."""
    current = [7]
    monkeypatch.setitem(_frameworks._known, Held, _frameworks.NUMBA)
    monkeypatch.setattr(type(_frameworks.NUMBA), "stream", lambda its, device: current[0])
    plan = se.plan(Held(IDS), 9)
    current[0] = 5
    se.gather(Held(WEIGHT), plan, out=Held(np.empty_like(GRAD)))
    assert gpus.queues[0, 7] in gpus.queues[0, 5].waited
    assert plan._sorted in gpus.queues[0, 5].held

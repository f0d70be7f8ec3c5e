"""What an exception leaves behind: a table on a GPU that is as it was, or as the call makes it; simulated."""

import _thread
import contextlib
import copy
import pickle
import signal
import threading
import types

import numpy as np
import pytest
import simulator
from simulated_gpus import Held
from strategies import numbers

import sparsembed as se
from sparsembed._cuda import errors
from sparsembed._cuda.catch_up import DeviceHistory
from sparsembed._cuda.queue import unstarted

pytestmark = pytest.mark.usefixtures("gpus")
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 5, (3, 2))
GRAD = numbers(RNG, (3, 2, 2), np.float32)
BAGS = np.array([0, 2])
PLANS = []
SAVED = se.EmbeddingTable(5, 2, se.Adam(0.1), rng=7).state_dict() | {"step": 4}


def table(rule=None, device="cuda", **options):
    return se.EmbeddingTable(5, 2, rule or se.Adam(0.1), rng=3, device=device, **options)


def held(array, there):
    return Held(array) if there._on_device else array


def update(t, batch=2):
    """With a plan that has been sorted, which takes most of the time here."""
    t.update(PLANS[batch] if t._on_device else IDS[batch], held(GRAD[batch], t))


def change(t):
    """Bring all rows up to date, and begin a history of another kind."""
    t.optimizer = se.Adam(0.1, eps=0.5)
    update(t)


CALLS = {
    "update": update,
    "lookup": lambda t: t.lookup(held(IDS, t)),
    "pool": lambda t: t.pool(se.Bags(held(IDS[2], t), held(BAGS, t)), "max"),
    "flush": lambda t: t.flush(),
    "another optimizer": change,
    "load": lambda t: t.load_state_dict(SAVED),
}
ASKED = ("empty", "filled", "several", "upload", "write", "download", "copy", "ready")


class Failing:
    """Lets one of the things that a queue is asked for fail, the k-th."""

    def __init__(self, monkeypatch, k):
        self.left, self.failed = k, False
        for name in ASKED:
            monkeypatch.setattr(simulator.Queue, name, self._counted(getattr(simulator.Queue, name)))

    def _counted(self, function):
        def counted(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                self.failed = True
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return counted


@pytest.fixture(autouse=True)
def plans(gpus):
    PLANS.extend(se.plan(Held(ids), 5) for ids in IDS[len(PLANS) :])


def trained(device, calls):
    t = table(device=device)
    for call in (lambda t: update(t, 0), lambda t: update(t, 1), *calls):
        call(t)
    return t


def equal(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", CALLS)
def test_whatever_fails_leaves_a_table_that_trains_on(monkeypatch, name):
    """Rows that miss steps catch up afterwards, and the step counts if, and only if, its rows have been stepped."""
    call, k, failed = CALLS[name], 0, True
    twice = [trained("cpu", calls).state_dict() for calls in ([update], [call, update])]
    while failed:
        k += 1
        t = trained("cuda", [])
        with monkeypatch.context() as patch:
            failing = Failing(patch, k)
            with contextlib.suppress(KeyboardInterrupt):
                call(t)
            failed = failing.failed
        if name == "another optimizer" and t.optimizer.eps == 0.5 and t.step == 2:
            change(t)  # the step alone has failed
        update(t)
        saved = t.state_dict()
        assert any(equal(saved, each) for each in twice), f"{name}, request {k}"
        if not failed:
            assert equal(saved, twice[1])
    assert k > 3


def test_a_history_that_cannot_be_made_leaves_the_old_one(monkeypatch):
    t, here = trained("cuda", []), trained("cpu", [])

    def history(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(t._contents.history), "renewed", history)
        t.flush()
        with pytest.raises(MemoryError):  # the next one is made when a step needs it
            update(t)
    here.flush()
    for each in (t, here):
        update(each)
    assert equal(t.state_dict(), here.state_dict())


def test_what_was_not_copied_of_a_history_is_copied_later():
    """Also where the new history has the room of the old one."""

    def history(steps):
        entries = np.full((64, 1), float(steps))
        return types.SimpleNamespace(entries=entries, past=entries, ages=entries, newest=steps, reach=1)

    queue, late = simulator.Queue(), DeviceHistory()
    late.sync(queue, history(9))
    new = history(10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulator.Queue, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            late.sync(queue, new)
    late.sync(queue, new)
    for each in (late.entries, late.past):
        assert (queue.download(each)[:11] == 10).all()


@pytest.fixture
def interruptible():
    """A shell may have started the tests with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_among_the_launches_of_a_step_comes_after_them(monkeypatch):
    """Python looks for signals between its own instructions: among the launches there are none."""
    t, started = table(se.SGD(0.1), max_norm=1.0), []
    ready = simulator.Queue.ready

    def noted(self, kernel, *arguments):
        ready(self, kernel, *arguments)
        if kernel.__name__ == "update_rows":
            return (_thread.interrupt_main,)
        return started.append, kernel.__name__

    monkeypatch.setattr(simulator.Queue, "ready", noted)
    with pytest.raises(KeyboardInterrupt):
        update(t)
    assert (started, t.step) == (["clip_rows"], 1)


def test_a_launch_that_fails_among_others_is_named(monkeypatch):
    t = table(se.SGD(0.1), max_norm=1.0)

    def refuse(*_):
        raise Exception("CUDA_ERROR_INVALID_VALUE: in words")

    ready = simulator.Queue.ready
    monkeypatch.setattr(
        simulator.Queue,
        "ready",
        lambda self, kernel, *rest: (refuse,) if kernel.__name__ == "clip_rows" else ready(self, kernel, *rest),
    )
    monkeypatch.setattr("sparsembed._cuda.queue.failure", lambda text, what: RuntimeError(f"{what}: {text}"))
    with pytest.raises(RuntimeError, match=r"^clip_rows on \d+ blocks of \d+ threads: CUDA_ERROR_INVALID_VALUE"):
        update(t)
    assert str(unstarted(Exception("why"), print, 1, 2)) == "print on 1 blocks of 2 threads: why"


def is_free(lock):
    """Whether another thread could take it."""
    found = []
    thread = threading.Thread(target=lambda: found.append(lock.acquire(blocking=False) and lock.release() is None))
    thread.start()
    thread.join()
    return found[0]


def test_an_exception_that_is_kept_keeps_no_lock(monkeypatch):
    """Nor does one that ends a call while its streams part."""
    whole = contextlib._GeneratorContextManager.__exit__

    def ended(self, *error):
        if "_cuda" in self.gen.gi_code.co_filename:
            raise KeyboardInterrupt
        return whole(self, *error)

    bags = se.Bags(Held(IDS[2]), Held(BAGS))
    for call in (
        lambda t: t.lookup(Held(IDS)),
        lambda t: t.pool(bags),
        lambda t: t.flush(),
        lambda t: t.weight,
        lambda t: t.state_dict(),
        lambda t: t.load_state_dict(SAVED),
        update,
        lambda t: t.update_pooled(bags, Held(GRAD[2, :1]), "max"),
    ):
        t = table()
        update(t)
        with monkeypatch.context() as patch:
            patch.setattr(contextlib._GeneratorContextManager, "__exit__", ended)
            with pytest.raises(KeyboardInterrupt) as kept:
                call(t)
        assert is_free(t._contents.lock), call
        assert is_free(t._contents.gate), call
        assert kept.value is not None


def test_recording_belongs_to_its_thread():
    """What others step meanwhile is no part of it: they wait, and an exception that is kept keeps nothing."""
    t = table(se.SGD(0.1))
    t.begin_step()
    with t.recording():
        assert t._contents.gate._is_owned()
        assert not is_free(t._contents.gate)
        assert is_free(t._contents.lock)
        found = []
        thread = threading.Thread(target=lambda: found.append(t._contents.gate._is_owned()))
        thread.start()
        thread.join()
        assert found == [False]
    with pytest.raises(KeyError) as kept, t.recording():
        raise KeyError
    assert kept.value is not None
    assert not t._contents.gate._is_owned()
    assert is_free(t._contents.gate)
    with t.recording():
        t.load_state_dict(t.state_dict())  # the step that had begun is none any more
        with pytest.raises(ValueError, match=r"call begin_step\(\) first"):
            update(t)


@pytest.mark.parametrize("save", [lambda t: t.state_dict(), pickle.dumps, copy.deepcopy])
def test_what_is_saved_is_of_one_step(monkeypatch, save):
    """No other thread steps the table between the first array and the last."""
    t, seen = trained("cuda", []), []

    def noted(function):
        def call(*arguments):
            seen.append(t._contents.lock._is_owned())
            return function(*arguments)

        return call

    monkeypatch.setattr(simulator.Queue, "download", noted(simulator.Queue.download))
    monkeypatch.setattr(errors, "synchronize", noted(errors.synchronize))
    save(t)
    assert len(seen) > 3
    assert all(seen)

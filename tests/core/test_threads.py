"""Same bits at any number of threads; nothing aborts or deadlocks beside threads, forks and other kernels."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from patience import HANGS, WITHIN, until

import sparsembed as se
from sparsembed._cpu import blocks, reading, views
from sparsembed._cpu import threads as _threads

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
RULES = {
    "SGD": se.SGD(lr=0.1),
    "Adagrad": se.Adagrad(lr=0.1),
    "RowwiseAdagrad": se.RowwiseAdagrad(lr=0.1, weight_decay=0.1),
    "SparseAdam": se.SparseAdam(lr=0.1),
}

# Batches of several dozen blocks, with two rows that fill 30 and 20 chunks of 512 occurrences.
PRELUDE = (
    f"WITHIN = {WITHIN}"
    + """
import faulthandler, hashlib, multiprocessing, os, signal, sys, threading, time
import numba, numpy as np
import sparsembed as se
from sparsembed._cpu import threads as _threads
faulthandler.dump_traceback_later(WITHIN * 1.5, exit=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have ignored
ROWS, DIM, N = 4_000, 24, 50_000

def batch(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, ROWS, N)
    ids[::3], ids[1::5] = 7, ROWS - 5
    return ids, rng.standard_normal((N, DIM)).astype(dtype)

def table(rule=None, seed=0, dtype=np.float32):
    return se.EmbeddingTable(ROWS, DIM, rule or se.SparseAdam(lr=0.1), dtype=dtype, rng=seed, padding_idx=3)

def digest(*arrays):
    parts = (np.ascontiguousarray(array).tobytes() for array in arrays)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

def contents(t):
    return digest(t.weight, *t.state.values(), np.array(t.step))

def trained(seed=0):
    t = table(seed=seed)
    for step in range(3):
        t.update(*batch(seed + step))
    return contents(t)

def helpers():
    return sum(thread.name == "sparsembed" for thread in threading.enumerate())

def wait(pid):
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "deadlock"

def fork(work):
    # Fork; the child's exit status says whether `work()` was true.
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return wait(pid)
"""
)


def python(tmp_path, script, **env):
    """Run a script in a fresh interpreter and a process group of its own; return what it printed."""
    path = tmp_path / "script.py"
    path.write_text(PRELUDE + script)
    home = str(Path(se.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, str(path)],
        env=os.environ | {"PYTHONPATH": paths, "NUMBA_NUM_THREADS": "8"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=HANGS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"no end after {HANGS:.0f} s\n{out}\n{err}")
    assert process.returncode == 0, f"exit status {process.returncode}\n{out}\n{err}"
    return out.split()


EVERYTHING = """
def everything():
    found = []
    for dtype in (np.float32, np.float64):
        ids, grad = batch(1, dtype)
        bags = se.Bags(ids, np.append(np.arange(0, N, 9), N), np.abs(grad[:, 0]) + dtype(0.1))
        plain = se.Bags(ids, bags.offsets)
        for rule in (se.SGD(lr=0.1), se.Adagrad(), se.RowwiseAdagrad(weight_decay=0.1), se.SparseAdam()):
            t = table(rule, dtype=dtype)
            t.update(ids, grad)
            t.update([ids[: N // 3], ids[N // 3 :]], [grad[: N // 3], grad[N // 3 :]])
            for mode in ("sum", "mean", "sqrtn", "max"):
                t.update_pooled(plain if mode == "max" else bags, grad[: bags.num_bags], mode)
            found.append(contents(t))
        short = se.EmbeddingTable(ROWS, DIM, se.SGD(lr=0.1), dtype=dtype, rng=0, max_norm=0.14, scale_grad_by_freq=True)
        found.append(contents(short))
        short.update(ids, grad)
        short.update_pooled(bags, grad[: bags.num_bags], "mean")
        found.append(contents(short))
        found.append(digest(t.lookup(ids)))
        for mode in ("sum", "mean", "sqrtn", "max"):
            found.append(digest(t.pool(plain if mode == "max" else bags, mode)))
        for mode in ("sum", "mean", "sqrtn"):
            found.append(digest(se.per_sample_weights_gradient(t.weight, bags, grad[: bags.num_bags], mode)))
        total = t.gradient(ids, grad) + se.coalesce(ids[::-1], grad, ROWS)
        found.append(digest(total.rows, total.values, np.array(total.norm())))
    return digest(np.array(found))
"""


def test_the_bits_do_not_depend_on_threads_or_runs(tmp_path):
    script = """
digests = []
for threads in (8, 1, 2, 3, 8):
    numba.set_num_threads(threads)
    assert _threads.num_threads() == threads
    digests.append(everything())
print(*digests, helpers())
"""
    *digests, helpers = python(tmp_path, EVERYTHING + script)
    assert len(digests) == 5
    assert len(set(digests)) == 1
    assert int(helpers) >= 7, "work was not spread over 8 threads"
    script = "print(_threads.num_threads(), everything(), min(helpers(), 2))"
    for threads, expected in (("1", "0"), ("3", "2")):  # by the environment, with Numba's own threads never started
        assert python(tmp_path, EVERYTHING + script, NUMBA_NUM_THREADS=threads) == [threads, digests[0], expected]


def test_one_caller_needs_one_helper_less_than_threads(tmp_path):
    """Helpers are reused, so a long training run does not gather threads."""
    script = """
weight, ids = np.zeros((ROWS, 64), np.float32), np.arange(ROWS).repeat(6)
for _ in range(1_000):
    se.gather(weight, ids)
print(helpers())
"""
    assert 1 <= int(python(tmp_path, script)[0]) <= 7


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_does_not_depend_on_its_neighbours_or_its_block(rule, dtype):
    """Hot rows move to other blocks, or stay without the others: their bits do not change."""
    rows, dim, n = 3_000, 24, 40_000
    rng = np.random.default_rng(0)
    ids = rng.integers(0, rows, n)
    for hot, (start, stride) in {5: (0, 3), 6: (1, 7), 2_990: (2, 11)}.items():
        ids[start::stride] = hot
    grad = rng.standard_normal((n, dim)).astype(dtype)
    start = rng.standard_normal((rows, dim)).astype(dtype)

    def trained(number_of, keep):
        table = se.EmbeddingTable.from_array(np.empty_like(start), optimizer=rule)
        table.weight[number_of] = start
        for _ in range(2):
            table.update(number_of[ids[keep]], grad[keep])
        return [table.weight[number_of], *(slot[number_of] for slot in table.state.values())]

    same, everywhere = np.arange(rows), np.ones(n, bool)
    expected = trained(same, everywhere)
    for seed in (1, 2):
        shuffled = np.random.default_rng(seed).permutation(rows)
        for found, wanted in zip(trained(shuffled, everywhere), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    hot = [5, 6, 2_990]
    assert np.bincount(ids)[hot].min() > 2 * 512
    for found, wanted in zip(trained(same, np.isin(ids, hot)), expected, strict=True):
        np.testing.assert_array_equal(found[hot], wanted[hot])


def test_a_rule_that_does_not_compile_raises_once_in_the_caller(tmp_path):
    """The kernel is compiled for another rule already; helpers neither print tracebacks nor die."""
    script = """
from dataclasses import dataclass
from typing import NamedTuple

class BrokenHyper(NamedTuple):
    lr: float

@dataclass(frozen=True)
class Broken(se.rules.Rule):
    lr: float = 1.0
    Hyper = BrokenHyper
    def hyper(self, step):
        return (self.lr,)
    @staticmethod
    def step(w, g, s, a, hp):
        return w.nothing, s

raised = []
threading.excepthook = lambda args: raised.append("in_a_helper")
trained()
t = table(Broken())
before = contents(t)
try:
    t.update(*batch())
except numba.core.errors.TypingError:
    raised.append("in_the_caller")
time.sleep(0.2)
print(*raised, contents(t) == before, trained() == trained())
"""
    assert python(tmp_path, script) == ["in_the_caller", "True", "True"]


def test_python_threads_work_side_by_side(tmp_path):
    """8 threads update tables of their own, look up and pool a shared one, and update one together."""
    script = """
shared, ids = table(seed=9), batch(9)[0]
bags = se.Bags(ids, np.append(np.arange(0, N, 9), N))
together = se.EmbeddingTable(ROWS, DIM, se.SGD(lr=1.0), initializer=se.initializers.zeros)
ones = np.ones((N, DIM), np.float32)
expected = [trained(seed) for seed in range(8)], digest(shared.lookup(ids)), digest(shared.pool(bags, "mean"))
wrong, start = [], threading.Barrier(8)

def work(seed):
    start.wait()
    for _ in range(3):
        found = trained(seed), digest(shared.lookup(ids)), digest(shared.pool(bags, "mean"))
        if found != (expected[0][seed], *expected[1:]):
            wrong.append(seed)
        together.update(ids, ones)

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
counts = np.bincount(ids, minlength=ROWS)
print(wrong == [], together.step, bool((together.weight == -24 * counts[:, None]).all()))
"""
    assert python(tmp_path, script) == ["True", "24", "True"]


@POSIX
@pytest.mark.parametrize("how", ["os.fork", "fork", "spawn", "forkserver"])
def test_a_child_of_a_process_that_used_the_engine(tmp_path, how):
    script = f"""
def work(queue, expected, t):
    grandchild = fork(lambda: trained() == expected) if "fork" in {how!r} else 0
    t.update(*batch(1))  # a table that came along
    queue.put((trained() == expected, grandchild, contents(t), helpers() > 0))

if __name__ == "__main__":
    expected, t, twin = trained(), table(), table()
    twin.update(*batch(1))
    if {how!r} == "os.fork":
        print(fork(lambda: trained() == expected and not t.update(*batch(1)) and contents(t) == contents(twin)))
    else:
        context = multiprocessing.get_context({how!r})
        queue = context.Queue()
        children = [context.Process(target=work, args=(queue, expected, t)) for _ in range(2)]
        for child in children: child.start()
        found = [queue.get(timeout=WITHIN) for _ in children]
        for child in children: child.join(WITHIN)
        assert found == [(True, 0, contents(twin), True)] * 2, found
        assert t.step == 0
        print(max(child.exitcode for child in children))
    assert trained() == expected  # the parent works on
"""
    assert python(tmp_path, script) == ["0"]


@POSIX
@pytest.mark.parametrize("cached", [True, False], ids=["running", "compiling"])
def test_fork_while_another_thread_is_inside_update(tmp_path, cached):
    script = f"""
rule = None if {cached} else se.SGD(lr=1.0)  # a child compiles, too: one rule
t, stop, forks = table(rule), threading.Event(), 12 if {cached} else 3
if {cached}:
    t.update(*batch())

def work():
    while not stop.is_set():
        t.update(*batch())

def child():
    t.update(*batch(5))  # its lock may have been held
    t.lookup(batch(5)[0])
    other = table(se.SGD(lr=1.0))
    other.update(*batch(5))
    return other.step == 1

thread = threading.Thread(target=work)
thread.start()
found = []
for k in range(forks):
    time.sleep(0.003 * k if {cached} else 0.5)
    found.append(fork(child))
    if found[-1] != 0:
        break
stop.set()
thread.join()
print(*found)
"""
    env = {} if cached else {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert python(tmp_path, script, **env) == ["0"] * (12 if cached else 3)


@POSIX
@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_beside_another_librarys_parallel_kernels(tmp_path, layer):
    """Numba's own parallel loops run at the same time; workqueue allows one thread of them."""
    script = f"""
@numba.njit(parallel=True, nogil=True)
def other(x):
    total = 0.0
    for i in numba.prange(len(x)):
        total += x[i] * x[i]
    return total

x, stop, found = np.ones(1_000_000), threading.Event(), []
try:
    assert other(x) == 1e6
except ValueError as error:  # this build of Numba lacks the layer
    print("skip", str(error)[:60].replace(" ", "_"))
    raise SystemExit
assert numba.threading_layer() == {layer!r}
expected = trained()

def theirs():
    found.append(other(x) == 1e6)  # once at least, however late it starts
    while not stop.is_set():
        found.append(other(x) == 1e6)

def ours():
    for _ in range(4):
        found.append(trained() == expected)

their = [threading.Thread(target=theirs) for _ in range(1 if {layer!r} == "workqueue" else 4)]
our = [threading.Thread(target=ours) for _ in range(4)]
for thread in their + our: thread.start()
child = fork(lambda: trained() == expected)
for thread in our: thread.join()
stop.set()
for thread in their: thread.join()
print(all(found), len(found) > 16, child)
"""
    found = python(tmp_path, script, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="4")
    if found[0] == "skip":
        pytest.skip(found[1])
    assert found == ["True", "True", "0"]


@POSIX
def test_an_interrupted_update_happened_entirely_or_not_at_all(tmp_path):
    """Ctrl-C at many moments: table, state and step are those before the update or those after it."""
    script = """
ids, grad = batch(1)
t, twin = table(), table()
t.update(ids, grad)
twin.update(ids, grad)
rng, interrupted, wrong = np.random.default_rng(0), 0, []
started = time.perf_counter()
twin.update(ids, grad)
twin.load_state_dict(t.state_dict())
span = 1.5 * (time.perf_counter() - started)
for attempt in range(150):
    before = contents(t)
    twin.update(ids, grad)
    timer = threading.Timer(span * rng.random(), os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        t.update(ids, grad)
        at_once = None
        timer.join()
        time.sleep(0.01)
    except KeyboardInterrupt:
        at_once = contents(t)
        timer.join()
    if at_once is None:
        wrong += [] if contents(t) == contents(twin) else ["finished"]
    else:
        interrupted += 1
        time.sleep(0.002)
        settled = contents(t)
        if settled != at_once:
            wrong.append("changed_afterwards")
        elif settled not in (before, contents(twin)):
            wrong.append("rows_and_step_disagree")
    t.load_state_dict(twin.state_dict())
print(interrupted, *sorted(set(wrong)))
"""
    interrupted, *wrong = python(tmp_path, script)
    assert wrong == []
    assert int(interrupted) >= 10


def test_any_number_of_threads_sorts_alike(tmp_path):
    """More threads than cores take each other's place in the middle of a block; nobody may wait for ever."""
    script = """
numba.set_num_threads(7)
rng = np.random.default_rng(0)
for n in [65_535, 65_536, 70_011, 131_072] * 4:
    for num_rows in (3, 5_000, 2**40):
        ids = rng.integers(0, num_rows, n)
        ids[: n // 3] = num_rows - 1
        plan = se.plan(ids, num_rows)
        assert (plan.order == np.argsort(ids, kind="stable")).all()
        rows, counts = np.unique(ids, return_counts=True)
        assert (plan.rows == rows).all() and (np.diff(plan.segment_offsets) == counts).all()
        lengths = rng.integers(0, 5, n)
        offsets = np.append(0, np.cumsum(lengths)[np.cumsum(lengths) <= n])
        offsets = np.append(offsets, n)
        bags = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        gradient = se.pool_gradient(se.Bags(ids, offsets), np.arange(len(offsets) - 1.0)[:, None], num_rows)
        expected = np.zeros(len(rows))
        np.add.at(expected, np.searchsorted(rows, ids), bags.astype(float))
        assert (gradient.values[:, 0] == expected).all()
print("sorted", helpers())
"""
    assert python(tmp_path, script, NUMBA_NUM_THREADS="7") == ["sorted", "6"]


def interrupted(*_):
    raise KeyboardInterrupt


def test_workers_do_nothing_for_a_caller_who_is_interrupted_before_it_begins(monkeypatch):
    """All blocks are written, or none: the caller offers them in compiled code, and waits there for the last."""
    weight, ids, out = np.ones((50_000, 64)), np.arange(50_000), np.zeros((50_000, 64))
    monkeypatch.setattr(_threads, "num_threads", lambda: 3)
    se.gather(weight, ids, out=out)
    assert out.all()
    out[...] = 0
    monkeypatch.setattr(reading.gather_kernels, "gather_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        se.gather(weight, ids, out=out)
    time.sleep(0.2)
    assert not out.any()
    monkeypatch.undo()
    se.gather(weight, ids, out=out)
    assert out.all()


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_while_a_thread_is_started_loses_none(after, monkeypatch):
    """Whether the thread runs already or never will, the next call has workers."""
    weight, ids = np.ones((50_000, 64)), np.arange(50_000)
    monkeypatch.setattr(_threads, "_teams", [_threads._Team()])
    monkeypatch.setattr(_threads, "num_threads", lambda: 3)
    start = _threads._Worker.start

    def interrupted_start(self):
        if after:
            start(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(_threads._Worker, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        se.gather(weight, ids)
    monkeypatch.setattr(_threads._Worker, "start", start)
    assert se.gather(weight, ids).all()
    team = _threads._teams[-1]
    until(lambda: len(team.workers) == 2, "the second worker")
    assert all(worker.is_alive() for worker in team.workers)
    team.end()
    assert not any(worker.is_alive() for worker in team.workers)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_thread_that_cannot_start_means_fewer_helpers(error, monkeypatch):
    table, ids = se.EmbeddingTable(50_000, 64, se.SGD(lr=1.0), initializer=se.initializers.zeros), np.arange(50_000)
    table.update(ids[:9], np.zeros((9, 64), np.float32))

    def start(self):
        raise error

    team = _threads._teams[-1]
    monkeypatch.setattr(_threads, "num_threads", lambda: len(team.workers) + 3)
    monkeypatch.setattr(_threads._Worker, "start", start)
    workers = list(team.workers)
    table.update(ids, np.ones((50_000, 64), np.float32))
    assert table.step == 2
    assert (table.weight == -1).all()
    assert list(team.workers) == workers


@POSIX
@pytest.mark.parametrize("room", [0, 1])
def test_where_the_system_has_no_more_threads(tmp_path, room):
    """A limit on processes, as containers have, is met in the middle of a step: it is taken all the same."""
    script = f"""
import resource
n, d = 60_000, 256
x, g = np.arange(n), np.ones((n, d))
t = se.EmbeddingTable.from_array(np.ones((n, d)), se.SGD(0.5))
_threads.num_threads = lambda: 1
t.update(x, np.zeros((n, d)))  # compiled
_threads._turns(1e-6)  # and what workers run: another user may not be allowed to read the sources
_threads.num_threads = lambda: 4
if os.geteuid() == 0:
    os.setuid(12_345)  # root has no limit
used = len(os.listdir("/proc/self/task"))
resource.setrlimit(resource.RLIMIT_NPROC, (used + {room},) * 2)
for step in range(5):
    t.update(x, g)
print(t.step, (t.weight == 1 - 0.5 * 5).all(), helpers() <= {room})
"""
    assert python(tmp_path, script, NUMBA_NUM_THREADS="4") == ["6", "True", "True"]


def test_an_alarm_while_kernels_are_loaded_breaks_nothing(tmp_path):
    """Whatever a handler raises comes when Numba is done."""
    script = """
class Alarm(Exception):
    pass

def alarm(*_):
    if armed:
        raise Alarm

armed, seen = False, 0
signal.signal(signal.SIGALRM, alarm)
for rule in (se.RMSprop(0.1), se.SGD(0.1)):
    t = se.EmbeddingTable.from_array(np.zeros((4, 4)), rule)
    for attempt in range(50):
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, 0.001 * (attempt % 7 + 1), 0.0002)
            t.update([1], np.ones((1, 4)))
        except Alarm:
            seen += 1
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
    t.update([1], np.ones((1, 4)))
assert signal.getsignal(signal.SIGALRM) is alarm
print(seen > 0)
"""
    assert python(tmp_path, script) == ["True"]


def test_ctrl_c_while_a_kernel_is_compiled_comes_when_it_is(tmp_path):
    """Numba that is interrupted in the middle cannot compile any more in that process."""
    script = """
import builtins
made, seen = se.gather, []
threading.Timer(0.3, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(3)]).start()
try:
    while True:
        se.gather(np.ones((4, 2)), [1])
        time.sleep(0.001)
except KeyboardInterrupt:
    seen.append("interrupted")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(*seen, se.gather(np.ones((4, 2), np.float32), [1]).sum())
"""
    assert python(tmp_path, script, NUMBA_CACHE_DIR=str(tmp_path / "cache")) == ["interrupted", "2.0"]


def jobs_of(weight, parts):
    """Gather parts of a table, each a job; and the arrays that they write."""
    outs = [np.zeros((len(ids), weight.shape[1])) for ids in parts]
    jobs = []
    for ids, out in zip(parts, outs, strict=True):
        num_blocks, block_size = blocks.blocks_of(len(ids), 2 * weight.strides[0])
        where = (block_size, views.read_only(weight), ids, reading.gather_kernels.ROWS, 8, None, out)
        jobs.append((reading.gather_kernels.gather_rows, num_blocks, *where))
    return jobs, outs


PARTS = [np.arange(30_000)[::-1].copy(), np.arange(3), np.arange(0), np.arange(40_000) // 2]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_several_jobs(threads, monkeypatch):
    weight = np.random.default_rng(0).standard_normal((40_000, 64))
    monkeypatch.setattr(_threads, "num_threads", lambda: threads)
    for _ in range(20):
        jobs, outs = jobs_of(weight, PARTS)
        assert [_threads.run(*job) for job in jobs] == [False] * len(PARTS)
        for ids, out in zip(PARTS, outs, strict=True):
            np.testing.assert_array_equal(out, weight[ids])


def test_each_job_says_whether_it_met_ids_out_of_range():
    jobs, _ = jobs_of(np.zeros((10, 4)), [np.array([1, 9]), np.array([10]), np.arange(10)])
    assert [_threads.run(*job) for job in jobs] == [False, True, False]


@POSIX
def test_several_jobs_in_a_child(tmp_path):
    script = """
from sparsembed._cpu import reading, views
weight, ids = np.random.default_rng(0).standard_normal((ROWS, 64)), np.arange(ROWS).repeat(9)

def several():
    outs = [np.zeros((len(ids), 64)) for _ in range(3)]
    jobs = [
        (reading.gather_kernels.gather_rows, 40, 900, views.read_only(weight), ids, 1, 8, None, out)
        for out in outs
    ]
    return [_threads.run(*job) for job in jobs] == [False] * 3 and all((out == weight[ids]).all() for out in outs)

several()  # compiles, alone
print(several(), helpers() > 0, fork(lambda: several() and helpers() > 0), several())
"""
    assert python(tmp_path, script) == ["True", "True", "0", "True"]

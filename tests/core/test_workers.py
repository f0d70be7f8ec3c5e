"""Workers join what is offered, and only that; they sleep, wake and end; forks, exits and other callers."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from patience import HANGS, until

import sparsembed as se
from sparsembed._cpu import threads as _threads
from sparsembed._jit import kernel
from sparsembed.kernels.cpu import _sharing, _workers
from sparsembed.kernels.cpu._atomic import add, load, rest
from sparsembed.kernels.cpu._intrinsics import row_address
from sparsembed.kernels.cpu._sharing import claim, enter, join, leave

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@kernel
def meet(claims, num_blocks, wanted, gate, found):
    """Write the number of the thread, from 1, to each block; threads wait until `wanted` of them are here."""
    enter(claims)
    member = join(claims)
    add(row_address(gate, 0), 1)
    turns = 0
    while load(row_address(gate, 0)) < wanted and turns < 10**7:  # then some seconds have passed: they do not come
        turns += 1
        rest(turns)
    block = claim(claims)
    while block < num_blocks:
        found[block] = member + 1
        block = claim(claims)
    leave(claims)


@pytest.fixture
def team(monkeypatch):
    """Workers of their own, which end with the test; with the caller, three threads work."""
    own = _threads._Team()
    monkeypatch.setattr(_threads, "_teams", [own])
    monkeypatch.setattr(_threads, "num_threads", lambda: 3)
    monkeypatch.setattr(own, "learn", lambda waited: setattr(own, "last", time.perf_counter()))  # cores may be busy
    yield own
    own.end()


def call(wanted, blocks=24, wake=8):
    """Return the number of the thread that worked on each block, after `wanted` threads have met."""
    gate, found = np.zeros(8, np.int64), np.zeros(blocks, np.int64)
    _threads.run(meet, blocks, wanted, gate, found, wake=wake)
    assert found.all()
    assert gate[0] >= wanted
    return found


def number(team, offset):
    return ctypes.c_int64.from_address(team.box + offset).value


def asleep(team):
    return sum(number(team, _workers.EACH_THREAD + k * _workers.BYTES) for k in range(len(team.workers)))


def all_asleep(team):
    until(lambda: len(team.workers) == 2 == asleep(team), "the sleep of the workers")


def test_all_threads_work_at_once_each_with_a_number_of_its_own(team):
    for _ in range(20):
        assert set(call(3)) <= {1, 2, 3}
    assert len(team.workers) == 2


def test_a_closed_job_has_no_places(team):
    for _ in range(20):
        call(2)
        job = number(team, _workers.JOB)
        assert job & (1 << 32) - 1 == 0
        assert number(team, _workers.BUSY) == 0
        assert number(team, _workers.LEFT) in (1, 2)


def test_blocks_are_taken_once_whoever_comes():
    for threads in (1, 2, 3, 5, 8):
        for blocks in (1, 2, 3, 7, 24, 100):
            memory = np.zeros((_workers.EACH_THREAD + 8 * _workers.BYTES) // 8, np.int64)
            box = memory.ctypes.data
            for absent in range(threads):
                memory[:] = 0
                memory[_workers.THREADS // 8], memory[_workers.BLOCKS // 8] = threads, blocks
                taken, here = [], [k for k in range(threads) if k != absent or threads == 1]
                while here:
                    for thread in list(here):
                        if (block := take(box, thread)) < blocks:
                            taken.append(block)
                        else:
                            here.remove(thread)
                assert sorted(taken) == list(range(blocks))


@kernel
def take(box, thread):
    return _workers.take(box, thread)


def test_a_caller_works_alone_while_another_has_the_workers(team):
    call(3)
    gate, found = np.zeros(8, np.int64), np.zeros(8, np.int64)
    other = threading.Thread(target=_threads.run, args=(meet, 8, 100, gate, found), kwargs={"wake": 2})
    other.start()
    until(lambda: gate[0] > 0, "the other caller")
    for _ in range(20):
        assert set(call(1)) == {1}
    assert not found.any()
    gate[0] = 100
    other.join()
    assert found.all()
    assert set(call(3)) <= {1, 2, 3}


def test_sleeping_workers_are_woken_only_where_it_pays(team):
    call(3)
    all_asleep(team)
    team.streak, team.last = 0, 0.0
    assert set(call(1, wake=0)) == {1}
    assert asleep(team) == 2
    team.last = 0.0
    call(2, wake=1)
    all_asleep(team)
    team.last = 0.0
    call(3, wake=2)


def test_calls_that_follow_each_other_wake_workers_for_short_work(team, monkeypatch):
    call(3)
    all_asleep(team)
    monkeypatch.setattr(_threads, "_AWAKE", float("inf"))
    team.streak = 0
    for _ in range(_threads._STREAK - 1):
        assert set(call(1, wake=0)) == {1}
    assert asleep(team) == 2
    call(3, wake=0)


def test_calls_go_on_alone_for_a_while_if_workers_have_no_core(team):
    learn = type(team).learn
    for times, alone in enumerate((1, 3, 7, 15, 31, 31)):
        team.alone = 0
        learn(team, _threads._LATE + 1)
        assert team.alone == alone, times
    for left in range(30, -1, -1):
        assert set(call(1)) == {1}
        assert team.alone == left
    lonely = team.lonely
    learn(team, 0)
    assert (team.alone, team.lonely) == (0, lonely - 1)
    call(3)


def test_when_workers_have_ended_calls_work_alone(team):
    call(3)
    workers = list(team.workers)
    team.end()
    assert not any(worker.is_alive() for worker in workers)
    assert set(call(1)) == {1}
    assert list(team.workers) == workers


def test_fewer_threads_for_one_call(team, monkeypatch):
    call(3)
    monkeypatch.setattr(_threads, "num_threads", lambda: 2)
    for _ in range(20):
        assert set(call(2)) <= {1, 2}
        assert number(team, _workers.LEFT) <= 1


@POSIX
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")  # JAX, and Python 3.12
@pytest.mark.parametrize("taken", [False, True])
def test_the_box_of_a_parent_leads_to_nobody(team, taken):
    """A child may be forked between two steps of a call that has been given its parent's box."""
    call(3)
    gate, found = np.zeros(8, np.int64), np.zeros(8, np.int64)
    other = threading.Thread(target=_threads.run, args=(meet, 8, 100, gate, found), kwargs={"wake": 2})
    if taken:
        other.start()
        until(lambda: gate[0] > 0, "the other caller")
    claims = np.zeros(_sharing.SLOTS, np.int64)
    team.offer(claims, 8, 2, 2)
    pid = os.fork()
    if pid == 0:
        mine = np.zeros(8, np.int64)
        meet(claims, 8, 1, np.zeros(8, np.int64), mine)
        os._exit(0 if set(mine) == {1} and _threads._teams[-1].box != team.box and set(call(3)) <= {1, 2, 3} else 1)
    status = os.waitpid(pid, 0)[1]
    gate[0] = 100
    if taken:
        other.join()
        assert found.all()
    assert status == 0


PROGRAM = """
import atexit, sys, threading, time
import numpy as np
import sparsembed as se
from sparsembed._cpu import threads as _threads

def left():
    workers = list(_threads._teams[-1].workers)
    print(len(workers), sum(worker.is_alive() for worker in workers), se.gather(weight, ids).all())

_threads.num_threads = lambda: 3
weight, ids = np.ones((50_000, 64), np.float32), np.arange(50_000)
for _ in range(3):
    se.gather(weight, ids)
atexit._clear()
atexit.register(left)  # runs after what was registered later
atexit.register(_threads._ended)
if sys.argv[1] == "sleeping":
    time.sleep(0.05)
if sys.argv[1] == "working":
    def work():
        while True:
            se.gather(weight, ids)
    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.02)
"""


@pytest.mark.parametrize("state", ["spinning", "sleeping", "working"])
def test_workers_end_before_the_process_does(tmp_path, state):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    paths = os.pathsep.join(filter(None, [str(Path(se.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    command, environment = [sys.executable, str(path), state], os.environ | {"PYTHONPATH": paths}
    for _ in range(3):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)
        assert (done.returncode, done.stdout.split()) == (0, ["2", "0", "True"]), done.stderr

"""Ids that another thread changes during a call are never read, or written, outside of the table."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from general import take_the_general_way
from patience import HANGS

import sparsembed as se
from sparsembed._cpu import sorting, threads

PROGRAM = """
import sys, threading, time
import numpy as np, sparsembed as se

w, n = np.ones((1000, 16), np.float32), 60_000
ids, grad = np.zeros(n, np.{dtype}), np.ones((n, 16), np.float32)
stop, bad = threading.Event(), {bad}

def flip():
    while not stop.is_set():
        for _ in range(1000):
            ids[30_000] = bad
            ids[30_000] = 0

threading.Thread(target=flip, daemon=True).start()
bags = se.Bags(ids, np.arange(0, n + 1, 20))
table = se.EmbeddingTable(1000, 16, se.SGD(lr=0.1))
late = se.EmbeddingTable(1000, 16, se.Adam(lr=0.1))
calls = dict(
    gather=lambda: se.gather(w, ids),
    half=lambda: se.gather(w.astype(np.float16), ids),
    pool=lambda: se.pool(w, bags, "mean"),
    pool_max=lambda: se.pool(w, bags, "max"),
    weights=lambda: se.per_sample_weights_gradient(w, bags, grad[: bags.num_bags]),
    lookup=lambda: late.lookup(ids),
    coalesce=lambda: se.coalesce(ids, grad, 1000),
    update=lambda: table.update(ids, grad),
    update_pooled=lambda: table.update_pooled(bags, grad[: bags.num_bags], "mean"),
    update_max=lambda: late.update_pooled(bags, grad[: bags.num_bags], "max"),
    gradient=lambda: se.pool_gradient(bags, grad[: bags.num_bags], 1000, "max", weight=w),
)
call, right, refused, end = calls[sys.argv[1]], 0, 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    try:
        call()
        right += 1
    except IndexError:
        refused += 1
stop.set()
print(right, refused)
"""
CALLS = ["gather", "half", "pool", "pool_max", "weights", "lookup", "coalesce", "update", "update_pooled"]
CALLS += ["update_max", "gradient"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("dtype", "bad"), [("int64", 1 << 33), ("int32", -(1 << 31))])
def test_a_process_whose_ids_change_all_the_time_lives(call, dtype, bad):
    home = str(Path(se.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", PROGRAM.format(dtype=dtype, bad=bad), call, "0.5"]
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    right, refused = map(int, done.stdout.split())
    assert right + refused > 0


@pytest.fixture
def behind_the_check(monkeypatch):
    """Change an id while its row is read, as another thread may; it is right again when it is named."""

    def install(ids, position, value):
        real = threads.run

        def run(kernel, num_blocks, *arguments):
            right, ids[position] = ids[position], value
            try:
                return real(kernel, num_blocks, *arguments)
            finally:
                ids[position] = right

        monkeypatch.setattr(threads, "run", run)
        take_the_general_way(monkeypatch)  # the one call of a small batch has nothing behind its check

    return install


@pytest.mark.parametrize("bad", [1 << 33, -2, 9])
@pytest.mark.parametrize("how", ["gather", "lookup", "half", "columns", "sum", "mean", "max", "weights"])
def test_an_id_that_is_changed_behind_its_check_is_refused(how, bad, behind_the_check):
    weight, ids = np.ones((9, 4)), np.zeros(30, np.int64)
    bags = se.Bags(ids, np.arange(0, 31, 10))
    table = se.EmbeddingTable.from_array(np.ones((9, 4)), se.Adam(lr=0.1))
    table.update([1], np.ones((1, 4)))
    calls = {
        "gather": lambda: se.gather(weight, ids),
        "lookup": lambda: table.lookup(ids),
        "half": lambda: se.gather(weight.astype(np.float16), ids),
        "columns": lambda: se.gather(np.asfortranarray(weight), ids),
        "weights": lambda: se.per_sample_weights_gradient(weight, bags, np.ones((3, 4))),
    }
    call = calls.get(how, lambda: se.pool(weight, bags, how))
    call()
    behind_the_check(ids, 17, bad)
    with pytest.raises(IndexError, match="changed by another thread"):
        call()


def test_ids_that_are_right_again_when_they_are_named_are_refused_all_the_same(monkeypatch):
    """The sort met an id out of range that nobody finds any more."""
    take_the_general_way(monkeypatch)
    monkeypatch.setattr(sorting, "_sort", lambda *_: None)
    with pytest.raises(IndexError, match="changed by another thread while they were sorted"):
        se.coalesce([0, 1], np.ones((2, 3)), 5)


def test_wide_sorts_look_at_a_copy(monkeypatch):
    """Ids that do not fit 64 bits together with their position are sorted another way, of which this holds, too."""
    ids, check = np.zeros(5, np.int64), sorting.first_outside

    def first_outside(given, num_rows):
        found = check(given, num_rows)
        ids[2] = 2**62
        return found

    monkeypatch.setattr(sorting, "first_outside", first_outside)
    rows = sorting._sort_wide(ids, 3, None, None, [5]).rows
    np.testing.assert_array_equal(rows, [0])

"""A path holds the old file or the new one: after kills, full disks, interrupts; nothing else is left.

``SPARSEMBED_KILLS=1000`` kills that many processes at any moment, rather than 50.
"""

import contextlib
import errno
import io
import os
import random
import signal
import stat
import threading
import time
import warnings

import numpy as np
import pytest
from injected import Injected, OutOfMemoryError, Tracer, free_for_others, held, raised
from patience import WITHIN

import sparsembed as se
from sparsembed.storage import atomic, saving

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
KILLS = int(os.environ.get("SPARSEMBED_KILLS", "50"))
ROWS, DIM = 40, 5


def made(seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    table = se.EmbeddingTable(rows, DIM, se.SparseAdam(lr=0.1), rng=seed)
    for _ in range(seed + 1):
        table.update(rng.integers(0, rows, 30), rng.standard_normal((30, DIM)).astype("f4"))
    return table


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.safetensors"


@pytest.fixture
def small_blocks(monkeypatch):
    """A table of 40 rows is saved in six blocks."""
    monkeypatch.setattr(saving, "BLOCK", 7 * DIM * 4)


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def forked(work):
    """Run `work` in a child, which ends without any cleaning up; return its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for threads, which do not matter here
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def ended(pid):
    """Wait for a child; return its exit status, which is negative for a signal."""
    end = time.monotonic() + WITHIN
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "deadlock"


# ---------------------------------------------------------------------- kills


class KilledTracer(Tracer):
    """End the process at its k-th line, as SIGKILL does at any moment."""

    def line(self, frame, event, _):
        if event == "line":
            if self.seen == self.k:
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen += 1
        return self.line


@POSIX
def test_a_process_killed_at_every_line_leaves_the_old_file_or_the_new_one(path, monkeypatch):
    import sys

    monkeypatch.setattr(saving, "BLOCK", 20 * DIM * 4)  # two blocks: 336 lines, each of which is a process
    old, new = made(0), made(1)
    found, k, status = [], 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        for each in path.parent.iterdir():
            each.unlink()
        old.save(path)

        def work(k=k):
            sys.settrace(KilledTracer(k, None))
            new.save(path)

        status = ended(forked(work))
        now = held(se.load(path))
        assert now in (held(old), held(new)), f"half saved at line {k}"
        found.append(now == held(new))
        assert all(name == path.name or (name.startswith(".") and name.endswith(".tmp")) for name in names(path.parent))
        k += 1
    assert status == 0
    assert k > 50
    assert found == sorted(found)  # once it is the new file, it is the new file
    assert not found[0]
    assert found[-1]


@POSIX
def test_processes_killed_at_any_moment_leave_a_whole_file(path, small_blocks):
    """Each child saves two tables in turns until it is killed; the moments are spread over some saves."""
    first, second = made(0, rows=400), made(1, rows=400)
    whole = {held(first), held(second)}
    begun = time.perf_counter()
    first.save(path)
    span = time.perf_counter() - begun

    def work():
        while True:
            first.save(path)
            second.save(path)

    moments, seen = random.Random(0), []
    for _ in range(KILLS):
        pid = forked(work)
        time.sleep(moments.uniform(0, 4 * span))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        now = held(se.load(path))
        assert now in whole
        seen.append(now)
        if moments.random() < 0.2:  # what killed processes leave is not in the way, nor is it needed
            for each in path.parent.glob(".*.tmp"):
                each.unlink()
    assert len(seen) == KILLS


# ---------------------------------------------------------------------- full disks, and other errors


def full_at(monkeypatch, k, code=errno.ENOSPC, only=None):
    """Let the k-th call that writes, syncs or renames raise; returns how many such calls there were."""
    seen = []

    def wrap(function, name):
        def wrapped(*arguments):
            seen.append(name)
            if len(seen) == k + 1:
                raise OSError(code, os.strerror(code))
            return function(*arguments)

        return wrapped

    class File:
        def __init__(self, file):
            self.file = file
            self.write = wrap(lambda view: file.write(view[: max(1, len(view) // 2)]), "write")  # parts, as a pipe does

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(atomic, "open", lambda name, mode, buffering: File(io.FileIO(name, mode)), raising=False)
    for name in ("fsync", "replace", "fchmod"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name), name))
    return seen


@pytest.mark.parametrize("before", [True, False])
def test_an_error_at_every_call_of_the_system(path, before, small_blocks):
    old, new = made(0), made(1)
    k, calls = 0, [None]
    while True:
        for each in path.parent.iterdir():
            each.unlink()
        if before:
            old.save(path)
        with pytest.MonkeyPatch.context() as patch:
            calls = full_at(patch, k)
            came = None
            try:
                new.save(path)
            except OSError as error:
                came = error
        if k >= len(calls):
            break
        assert came is not None, calls[k]
        assert (came.errno, came.filename) == (errno.ENOSPC, str(path))
        folder_synced = calls[: k + 1].count("fsync") == 2
        assert names(path.parent) == ([path.name] if before or folder_synced else [])
        if before or folder_synced:  # the second one is of the folder: the file stands there by then
            assert held(se.load(path)) == held(new if folder_synced else old)
        k += 1
    assert came is None
    assert {*calls} == ({"write", "fsync", "replace", "fchmod"} if before else {"write", "fsync", "replace"})
    assert k > 100
    assert held(se.load(path)) == held(new)


@POSIX
def test_a_file_size_limit(path):
    """The system's own error in the middle of a write: a quota, or a full disk."""
    resource = pytest.importorskip("resource")
    small, large = made(0), made(1, rows=5000)
    small.save(path)

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (1, 100, 1000, 4096, 70_000, 200_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            with pytest.raises(OSError, match="too large") as caught:
                large.save(path)
            assert (caught.value.filename, caught.value.errno) == (str(path), errno.EFBIG)
            assert names(path.parent) == [path.name]
            assert held(se.load(path)) == held(small)

    assert ended(forked(work)) == 0


def test_a_file_system_that_cannot_sync_folders(path, monkeypatch):
    fsync = os.fsync

    def refusing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    made(0).save(path)
    assert held(se.load(path)) == held(made(0))


# ---------------------------------------------------------------------- exceptions at every line


@pytest.mark.parametrize("before", [True, False])
def test_an_exception_at_every_line_of_a_save(path, before, small_blocks):
    old, new = made(0), made(1)
    k, done = 0, False
    while not done:
        for each in path.parent.iterdir():
            each.unlink()
        if before:
            old.save(path)
        tracer, came = raised(lambda: new.save(path), k, Injected() if k % 2 else OutOfMemoryError())
        done = tracer.where is None
        found = held(se.load(path)) if path.exists() else None
        assert found in (held(new), held(old) if before else None), tracer.where
        assert came or found == held(new), tracer.where
        assert names(path.parent) == ([] if found is None else [path.name]), tracer.where
        assert free_for_others(new), tracer.where
        k += 1
    assert k > 50


def test_an_exception_at_every_line_of_a_load(path, small_blocks):
    """Nothing stays open: warnings about that are errors here."""
    made(0).save(path)
    k, done = 0, False
    while not done:
        tracer, came = raised(lambda: se.load(path), k, Injected())
        done = tracer.where is None
        assert came or done, tracer.where
        k += 1
    assert k > 50


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, BrokenPipeError])
def test_an_exception_of_progress(path, error, small_blocks):
    made(0).save(path)
    calls = []

    def progress(rows):
        calls.append(rows)
        if len(calls) == 3:
            raise error

    with pytest.raises(error) as caught:
        made(1).save(path, progress=progress)
    assert getattr(caught.value, "filename", None) is None  # no error of this file
    assert names(path.parent) == [path.name]
    assert held(se.load(path)) == held(made(0))


# ---------------------------------------------------------------------- permissions, links, names


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_permissions_of_an_existing_file_are_kept(path, mode):
    made(0).save(path)
    path.chmod(mode)
    made(1).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_a_new_file_has_the_permissions_of_any_new_file(path, mask):
    before = os.umask(mask)
    try:
        made(0).save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_that_must_not_be_written_to_is_not_replaced(path, monkeypatch):
    made(0).save(path)
    path.chmod(0o444)
    if not hasattr(os, "geteuid") or os.geteuid() == 0:  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(PermissionError) as caught:
        made(1).save(path)
    assert caught.value.filename == str(path)
    assert held(se.load(path)) == held(made(0))


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(tmp_path, exists):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "table", tmp_path / "link"
    if exists:
        made(0).save(target)
    link.symlink_to("there/table")
    made(1).save(link)
    assert link.is_symlink()
    assert held(se.load(target)) == held(se.load(link)) == held(made(1))
    assert (names(tmp_path), names(target.parent)) == (["link", "there"], ["table"])


def test_a_relative_path_is_that_of_the_beginning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    made(0).save("table", progress=lambda rows: os.chdir("elsewhere"))
    assert names(tmp_path) == ["elsewhere", "table"]
    assert names(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("name", ["a", "ä" * 120, "x" * 255, "two words\n", "-"])
def test_any_name_of_a_file(tmp_path, name):
    made(0).save(tmp_path / name)
    assert names(tmp_path) == [name]
    assert held(se.load(tmp_path / name)) == held(made(0))


def test_two_threads_may_save_to_one_path(path):
    tables = [made(0), made(1)]
    errors = []

    def work(table):
        with contextlib.suppress(BaseException):
            for _ in range(10):
                table.save(path)
            return
        errors.append(table)

    threads = [threading.Thread(target=work, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert held(se.load(path)) in {held(table) for table in tables}
    assert names(path.parent) == [path.name]

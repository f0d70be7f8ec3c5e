"""Numbers of threads, kernels compiled ahead, and what is said while they compile."""

import io
import logging
import sys
import threading

import numba
import numpy as np
import pytest
from patience import HANGS
from programs import python

import sparsembed as se
from sparsembed import _compiling


def test_threads_are_numbas_own():
    most = numba.config.NUMBA_NUM_THREADS
    before = se.get_num_threads()
    try:
        assert se.set_num_threads(1) == before
        assert se.get_num_threads() == numba.get_num_threads() == 1
        assert se.set_num_threads(most) == 1
        numba.set_num_threads(1)
        assert se.get_num_threads() == 1
    finally:
        se.set_num_threads(before)
    with pytest.raises(ValueError, match=f"n must be at most {most}, got {most + 1}; for more set the environment"):
        se.set_num_threads(most + 1)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="n must be at least 1"):
            se.set_num_threads(wrong)
    for wrong in (1.0, None, True, "1"):
        with pytest.raises(TypeError, match="n must be an integer"):
            se.set_num_threads(wrong)
    assert se.get_num_threads() == before


AFTER_WARM_UP = """
import importlib, pkgutil
import numpy as np
import sparsembed as se
from sparsembed.kernels import cpu

def compiled():
    found = {{}}
    for each in pkgutil.iter_modules(cpu.__path__, cpu.__name__ + "."):
        for name, value in vars(importlib.import_module(each.name)).items():
            if hasattr(value, "overloads") and value.py_func.__module__ == each.name:
                found[each.name, name] = len(value.overloads)
    return found

table = {table}
seconds = se.warm_up(table, ids_dtype=np.{ids}, bags={bags})
assert seconds > 0 and table.step == 0
before = compiled()
assert sum(before.values()) > 3, before
rng = np.random.default_rng(0)
for n in (1, 32, 2_000, 40_000):
    for _ in range(2):
        ids, grad = rng.integers(0, 5_000, n).astype(np.{ids}), rng.standard_normal((n, table.dim)).astype(np.float32)
        table.lookup(ids)
        if table.optimizer is not None:
            table.update(ids, grad)
            table.apply(table.gradient(ids, grad))
        if {bags}:
            bags = se.Bags(ids, np.array([0, n // 2, n]))
            for mode in ("sum", "mean", "max"):
                table.pool(bags, mode)
                if table.optimizer is not None:
                    table.update_pooled(bags, grad[:2] if n > 1 else np.ones((2, table.dim), np.float32), mode)
table.weight
assert compiled() == before, {{k: (v, before.get(k)) for k, v in compiled().items() if v != before.get(k)}}
"""
TABLES = {
    "sparse": ("se.EmbeddingTable(5_000, 48, se.SparseAdam(0.1), padding_idx=7, rng=0)", "int64", True),
    "exact": ("se.EmbeddingTable(5_000, 33, se.Adam(0.1), rng=0)", "int64", False),
    "some columns": (
        "se.EmbeddingTable.from_array(np.ones((5_000, 64), np.float32)[:, 8:40], se.SGD(0.1), max_norm=1.0)",
        "int32",
        False,
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_calls_after_warm_up_compile_nothing(case):
    table, ids, bags = TABLES[case]
    python(AFTER_WARM_UP.format(table=table, ids=ids, bags=bags), NUMBA_NUM_THREADS="2")


def test_warm_up_refuses_what_it_cannot_do():
    table = se.EmbeddingTable(5, 3)
    for wrong in (None, table.weight, se.EmbeddingTable):
        with pytest.raises(TypeError, match="table must be an EmbeddingTable"):
            se.warm_up(wrong)
    for wrong in (np.float32, "int16", "ids", None):
        with pytest.raises(TypeError, match="ids_dtype must be int32 or int64"):
            se.warm_up(table, ids_dtype=wrong)
    with pytest.raises(TypeError, match="bags must be True or False"):
        se.warm_up(table, bags=1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def state(monkeypatch):
    fresh = _compiling._Compiling()
    monkeypatch.setattr(_compiling, "_COMPILING", fresh)
    return fresh


def patient(state):
    """A compilation that ends once something has been said."""
    said, say = threading.Event(), state.say

    def noted(folder):
        say(folder)
        said.set()

    state.say = noted
    return lambda: said.wait(HANGS)


def test_long_compilations_are_announced_once(state, monkeypatch, caplog):
    monkeypatch.setattr(_compiling, "LONG", 0.01)
    monkeypatch.setattr("sys.stderr", Terminal())
    compile_it = _compiling.announced(patient(state), lambda: "a folder")
    with caplog.at_level(logging.INFO, "sparsembed"):
        assert compile_it()
        assert compile_it()
    (record,) = caplog.records
    assert record.name == "sparsembed"
    assert "loaded from a folder" in record.message
    (line,) = sys.stderr.getvalue().splitlines()
    assert line.startswith("sparsembed compiles its kernels")


def test_several_short_ones_count_together(state, monkeypatch, capsys, caplog):
    monkeypatch.setattr(_compiling, "LONG", HANGS)
    short = _compiling.announced(lambda: 3, lambda: None)
    with caplog.at_level(logging.INFO, "sparsembed"):
        assert short() == 3
        assert not state.said
        assert 0 < state.seconds < HANGS
        state.seconds = HANGS
        _compiling.announced(patient(state), lambda: None)()
    assert state.said
    assert "no folder" in caplog.text
    assert capsys.readouterr().err == ""  # not a terminal


def test_an_error_passes_and_no_thread_is_needed(state, monkeypatch):
    def fails():
        raise ValueError("of the compiler")

    def no_more(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", no_more)
    with pytest.raises(ValueError, match="of the compiler"):
        _compiling.announced(fails, lambda: None)()
    assert not state.busy
    assert _compiling.announced(lambda each: each, lambda: None)(5) == 5

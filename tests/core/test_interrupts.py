"""A call is whole, or was not: an exception at every line of the host's code, and signals by the thousand."""

import copy
import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from injected import PACKAGE, Injected, OutOfMemoryError, free_for_others, held, raised
from patience import HANGS

import sparsembed as se
from sparsembed._cpu import blocks
from sparsembed._cpu import threads as _threads

ROWS, DIM = 40, 5
RULES = {
    "SGD": se.SGD(lr=0.1),
    "SGD, decay": se.SGD(lr=0.1, weight_decay=0.1),
    "SGD, momentum": se.SGD(lr=0.1, momentum=0.5),
    "Adagrad": se.Adagrad(lr=0.1),
    "RowwiseAdagrad": se.RowwiseAdagrad(lr=0.1),
    "SparseAdam": se.SparseAdam(lr=0.1),
    "Adam": se.Adam(lr=0.1, eps=1e-3),
    "AdamW": se.AdamW(lr=0.1, weight_decay=0.1),
    "RMSprop": se.RMSprop(lr=0.1),
    "FTRL": se.FTRL(lr=0.1),
    "LAMB": se.LAMB(lr=0.1),
    "PartialRowwiseAdam": se.PartialRowwiseAdam(lr=0.1),
}
CATCHING_UP = [name for name, rule in RULES.items() if rule.catch_up is not None]


def batch(seed, n=60):
    rng = np.random.default_rng(seed)
    return rng.integers(0, ROWS, n), rng.standard_normal((n, DIM)).astype(np.float32)


def bags_of(ids):
    return se.Bags(ids, np.append(np.arange(0, len(ids), 7), len(ids)), np.linspace(0.1, 1, len(ids)).astype("f4"))


def made(rule, **options):
    """A table some of whose rows have missed steps."""
    table = se.EmbeddingTable(ROWS, DIM, rule, rng=0, padding_idx=3, **options)
    for seed in range(3):
        ids, grad = batch(seed, 8)
        table.update(ids, grad)
    return table


def onward(table):
    """What comes of a table: rows as they are read now, and all that it holds after more steps."""
    found = [table.lookup(np.arange(ROWS)).tobytes()]
    for seed in (50, 51):
        table.update(*batch(seed, 9))
        found += [held(table), table.lookup(np.arange(ROWS)).tobytes()]
    return [*found, table.weight.tobytes(), held(table)]


@functools.cache
def other_state(rule):
    """The state of another table of the same kind, at another step."""
    table = se.EmbeddingTable(ROWS, DIM, rule, rng=1, padding_idx=3)
    table.update(*batch(20))
    return table.state_dict()


def changed(rule):
    """A rule in which more than the learning rate is another, so that every row catches up first."""
    name, value = ("betas", (0.5, 0.6)) if hasattr(rule, "betas") else ("momentum", 0.8)
    return dataclasses.replace(rule, **{name: value})


CALLS = {
    "update": lambda t: t.update(*batch(9)),
    "update, several": lambda t: t.update([batch(9)[0], batch(8)[0]], [batch(9)[1], batch(8)[1]]),
    "update_pooled": lambda t: t.update_pooled(bags_of(batch(9)[0]), batch(9)[1][:9], "mean"),
    "update_pooled, max": lambda t: t.update_pooled(se.Bags.from_lists([[1, 2, 3], [2]]), batch(9)[1][:2], "max"),
    "apply": lambda t: t.apply(t.gradient(*batch(9))),
    "lookup": lambda t: t.lookup(batch(9)[0]),
    "pool": lambda t: t.pool(bags_of(batch(9)[0]), "mean"),
    "weight": lambda t: t.weight,
    "state": lambda t: t.state,
    "state_dict": lambda t: t.state_dict(),
    "deepcopy": copy.deepcopy,
    "load_state_dict": lambda t: t.load_state_dict(other_state(t.optimizer)),
    "optimizer": lambda t: setattr(t, "optimizer", changed(t.optimizer)),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Several threads work on each call, however small."""
    monkeypatch.setattr(blocks, "_SERIAL_BYTES", 0)
    monkeypatch.setattr(blocks, "_SMALLEST_BLOCK", 64)
    monkeypatch.setattr(_threads, "num_threads", lambda: 3)


def check_every_line(make, call, between=None):
    """Raise at every line of a call on a fresh table: it is then what it was, or what the call makes of it.

    `between` is a call of its own that it begins with, such as to bring all rows up to date.
    """
    ends, middle = make(), make()
    call(ends)
    call(make())  # the second one meets nothing that is new
    if between is not None:
        between(middle)
    possible = [held(make()), held(middle), held(ends)]
    futures = [onward(make()), onward(middle), onward(ends)]
    assert futures[0] != futures[-1] or possible[0] == possible[-1]
    k = 0
    while True:
        table = make()
        error = Injected() if k % 2 else OutOfMemoryError()
        tracer, came = raised(lambda table=table: call(table), k, error)
        if tracer.where is None:
            break
        now = held(table)
        assert now in possible, f"half done by an exception at {tracer.where}"
        if not came:
            assert now == possible[-1], f"lost by an exception at {tracer.where}"
        assert free_for_others(table), f"locked by an exception at {tracer.where}"
        assert onward(table) in futures, f"wrong later on by an exception at {tracer.where}"
        k += 1
    assert k > 2
    return k


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("rule", ["SparseAdam", "Adam", "SGD, momentum"])
def test_an_exception_at_every_line_of_a_call(rule, name, small_blocks):
    check_every_line(lambda: made(RULES[rule]), CALLS[name], se.EmbeddingTable.flush if name == "optimizer" else None)


@pytest.mark.parametrize("rule", [name for name in RULES if name not in ("SparseAdam", "Adam")])
def test_an_exception_at_every_line_of_an_update(rule):
    check_every_line(lambda: made(RULES[rule]), CALLS["update"])


def test_an_exception_at_every_line_of_clipping_by_a_global_norm():
    """Gradients and dense arrays are scaled in one moment, or none is."""

    def make():
        values = [batch(seed)[1][:2].copy() for seed in range(3)]
        return [se.RowGradient([1, 2], each, 4) for each in values[:2]], [values[2], np.ones((2, 3))]

    def stand(gradients, dense):
        return [each.tobytes() for each in (*(each.values for each in gradients), *dense)]

    before, ends = stand(*make()), make()
    se.clip_by_global_norm(ends[0], 0.5, dense=ends[1])
    k = 0
    while True:
        gradients, dense = make()
        work = functools.partial(se.clip_by_global_norm, gradients, 0.5, dense=dense)
        tracer, came = raised(work, k, Injected())
        if tracer.where is None:
            break
        assert stand(gradients, dense) in ([before, stand(*ends)] if came else [stand(*ends)]), tracer.where
        k += 1
    assert k > 10


def test_an_exception_at_every_line_of_scatter_add(small_blocks):
    ids, grad = batch(9)
    before = np.ones((ROWS, DIM), np.float32)
    after = before.copy()
    se.scatter_add(after, ids, grad)
    k = 0
    while True:
        weight = before.copy()
        tracer, came = raised(functools.partial(se.scatter_add, weight, ids, grad), k, OutOfMemoryError())
        if tracer.where is None:
            break
        assert weight.tobytes() in ([before.tobytes(), after.tobytes()] if came else [after.tobytes()]), tracer.where
        k += 1
    assert k > 10


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("rule", ["SparseAdam", "Adam", "SGD, momentum"])
def test_calls_that_real_signals_interrupt(rule, threads):
    """`python -m benchmarks.interrupts --seconds 60` does so for all rules, and for longer."""
    script = f"""
from benchmarks import interrupts
if {threads}:
    interrupts.several_threads()
found = interrupts.run(interrupts.RULES[{rule!r}], seconds=2)
print(found["interrupted"], *found["wrong"])
"""
    home = str(Path(PACKAGE).parent)
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", script]
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=HANGS, cwd=home)
    assert done.returncode == 0, done.stderr
    interrupted, *wrong = done.stdout.split(maxsplit=1)
    assert not wrong
    assert int(interrupted) > 20

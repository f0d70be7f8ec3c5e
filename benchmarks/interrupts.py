"""Interrupt calls by real signals, many times a second, and compare with tables that are not interrupted.

``python -m benchmarks.interrupts --seconds 60`` gives every rule a minute of updates, lookups, pools, reads of
`weight`, saves and loads.  A timer sends a thousand signals a second; the first signal in a call raises.  After a call
that was interrupted, the table must have the bits of before the call or of after it, and so must all later results.
"""

import argparse
import json
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import sparsembed as se
from sparsembed._cpu import blocks
from sparsembed._cpu import threads as _threads

from .rules import every

ROWS, DIM = 600, 12
NESTEROV = se.SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01)
RULES: dict[str, se.rules.Rule] = every(0.01) | {"SGD, nesterov, decay": NESTEROV}


class Interrupted(KeyboardInterrupt):
    """What the timer raises."""


_armed: list[bool] = []  # filled while a call may be interrupted: a signal may arrive when its timer has been stopped


def interrupt(*_: Any) -> None:
    if _armed:
        _armed.clear()
        raise Interrupted


def disarm() -> None:
    _armed.clear()
    signal.setitimer(signal.ITIMER_REAL, 0)


def held(table: se.EmbeddingTable) -> bytes:
    """Return the bytes of a table's arrays."""
    parts = (
        table._contents.table.array,
        table._contents.state,
        table._contents.row_state,
        table._contents.last,
        table._contents.steps[:1],
    )
    return b"".join(part.tobytes() for part in parts)


def calls(rng: np.random.Generator, table: se.EmbeddingTable, saved: dict[str, Any]) -> dict[str, Any]:
    """What may come next, each as a function of a table: the same for the table and for its twin."""
    ids, grad = rng.integers(0, ROWS, 60), rng.standard_normal((60, DIM)).astype(np.float32)
    bags = se.Bags(ids, np.arange(0, 61, 5), np.abs(grad[:, 0]))
    return {
        "update": lambda t: t.update(ids, grad),
        "update_pooled": lambda t: t.update_pooled(bags, grad[:12], "mean"),
        "lookup": lambda t: t.lookup(ids),
        "pool": lambda t: t.pool(bags, "mean"),
        "weight": lambda t: t.weight,
        "state_dict": lambda t: t.state_dict(),
        "load_state_dict": lambda t: t.load_state_dict(saved),
    }


SHARES = {"update": 6, "update_pooled": 2, "lookup": 4, "pool": 2, "weight": 1, "state_dict": 1, "load_state_dict": 1}


def free(table: se.EmbeddingTable) -> bool:
    """Return whether another thread can take the table's lock."""
    found: list[bool] = []

    def take() -> None:
        if table._contents.lock.acquire(timeout=600):
            table._contents.lock.release()
            found.append(True)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return bool(found)


def attempt(call: Any, table: se.EmbeddingTable, hertz: float) -> bool:
    """Run a call under the timer; returns whether an interrupt ended it.

    The first signal comes at a random moment within the time of a few calls, so that it hits every part of a call.
    """
    try:
        try:
            _armed.append(True)
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 5e-4), 1 / hertz)
            call(table)
        finally:
            disarm()
    except Interrupted:
        return True
    return False


def run(rule: se.rules.Rule, seconds: float, hertz: float = 1000.0, seed: int = 0) -> dict[str, Any]:
    """Interrupt calls on a table of a rule for some time; returns how often, and what was wrong."""
    rng, chosen = np.random.default_rng(seed), random.Random(seed)
    table, twin = (se.EmbeddingTable(ROWS, DIM, rule, rng=seed, padding_idx=3) for _ in range(2))
    for each in (table, twin):  # compile everything first
        for call in calls(np.random.default_rng(seed), each, each.state_dict()).values():
            call(each)
    saved = table.state_dict()
    twin.state_dict()
    made: dict[str, list[int]] = {name: [0, 0, 0] for name in SHARES}  # calls, interrupted, of which happened
    wrong: list[str] = []
    before = signal.signal(signal.SIGALRM, interrupt)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and not wrong:
            work = calls(rng, table, saved)
            (name,) = chosen.choices(list(SHARES), list(SHARES.values()))
            old = held(table)
            ended = False
            try:
                ended = attempt(work[name], table, hertz)
            except Interrupted:  # in `attempt` itself, behind the call
                ended = True
            disarm()
            now = held(table)
            work[name](twin)
            new = held(twin)
            made[name][0] += 1
            made[name][1] += ended
            if now not in ((old, new) if ended else (new,)):
                wrong.append(f"{name}: half done")
            elif ended and not free(table):
                wrong.append(f"{name}: its lock is held")
            elif now == new:
                made[name][2] += ended
                if name in ("weight", "state_dict") and ended:
                    work[name](table)
            else:  # it was not: now it is
                work[name](table)
            if not wrong and held(table) != new:
                wrong.append(f"{name}: another result when it was called again")
            if not wrong and not (table.lookup(np.arange(ROWS)) == twin.lookup(np.arange(ROWS))).all():
                wrong.append(f"{name}: rows are read otherwise")
    finally:
        disarm()
        signal.signal(signal.SIGALRM, before)
    return {
        "calls": {k: dict(zip(("made", "interrupted", "happened"), v, strict=True)) for k, v in made.items()},
        "interrupted": sum(v[1] for v in made.values()),
        "wrong": wrong,
    }


def several_threads() -> None:
    """Let three threads work on each call, however small."""
    blocks._SERIAL_BYTES, blocks._SMALLEST_BLOCK = 0, 1 << 11
    _threads.num_threads = lambda: 3  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for each rule")
    parser.add_argument("--hertz", type=float, default=1000)
    parser.add_argument("--rules", nargs="*", choices=list(RULES), default=list(RULES), metavar="RULE")
    parser.add_argument("--threads", action="store_true", help="three threads work on each call")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        several_threads()
    found = {}
    for name in arguments.rules:
        found[name] = run(RULES[name], arguments.seconds, arguments.hertz)
        print(
            f"{name:22} {found[name]['interrupted']:7} interrupts, wrong: {found[name]['wrong'] or 'none'}", flush=True
        )
    if arguments.json:
        versions = {"sparsembed": se.__version__, "python": sys.version.split()[0], "numpy": np.__version__}
        result = {"seconds": arguments.seconds, "hertz": arguments.hertz, "threads": 3 if arguments.threads else None}
        arguments.json.write_text(json.dumps(result | {"versions": versions, "rules": found}, indent=1) + "\n")
    sys.exit(any(each["wrong"] for each in found.values()))


if __name__ == "__main__":
    main()

"""What calls of 32 ids take, each in turn with ``numpy.take`` of the same ids."""

from typing import Any

import numpy as np

import sparsembed as se

from .. import timing
from .cells import SMALL
from .data import Batch, Data
from .steps import RULES, step
from .turns import take_turns
from .way import Way

IDS, DIM, ROWS, TABLES = 32, 64, 100_000, 10
TAKE = "numpy.take"


def ways(data: Data) -> dict[str, list[Way]]:
    """Return what is timed, in groups that take turns; "sparsembed" is what the ratios of a group are to."""
    weight, offsets = data.weight, np.array([0, 20, IDS])
    tables = {name: se.EmbeddingTable(ROWS, DIM, optimizer=rule, rng=0) for name, rule in RULES.items()}
    many = [se.EmbeddingTable(ROWS, DIM, optimizer=RULES["sparse_adam"], rng=0) for _ in range(TABLES)]
    bags = {}

    def ready(b: Batch) -> se.Bags:
        if id(b) not in bags:
            bags[id(b)] = se.Bags(b.ids, offsets)
        return bags[id(b)]

    def each(b: Batch) -> None:
        for table in many:
            table.update(b.ids, b.grads)

    calls: dict[str, Any] = {
        "lookup": lambda b: tables["sgd"].lookup(b.ids),
        "gather": lambda b: se.gather(weight, b.ids),
        "pool of ready bags": lambda b: se.pool(weight, ready(b)),
        "Bags(ids, offsets)": lambda b: se.Bags(b.ids, offsets),
        "plan": lambda b: se.plan(b.ids, ROWS),
        "update, SGD": lambda b: tables["sgd"].update(b.ids, b.grads),
        "update, SparseAdam": lambda b: tables["sparse_adam"].update(b.ids, b.grads),
        "update, Adam": lambda b: tables["adam"].update(b.ids, b.grads),
        "scatter_add": lambda b: se.scatter_add(weight, b.ids, b.grads),
        "coalesce": lambda b: se.coalesce(b.ids, b.grads, ROWS),
    }
    take = Way(TAKE, lambda b: weight.take(b.ids, axis=0))
    groups = {name: [Way(name, call), take] for name, call in calls.items()}
    groups["step, SparseAdam"] = [way for way in step(data, "sparse_adam").ways if way.family != "numpy"]
    groups["ten updates, SparseAdam"] = [Way("sparsembed", each), Way("one", lambda b: many[0].update(b.ids, b.grads))]
    return groups


def measure(seconds: float) -> dict[str, Any]:
    """Return microseconds of each call, and of what it is compared with."""
    data = Data(ROWS, DIM, SMALL)
    batches = data.batches(IDS, "uniform")
    found = {}
    for name, group in ways(data).items():
        for way in group:  # compiles
            for batch in batches[:3]:
                way.step(batch)
        with timing.no_garbage_collection():
            turns = take_turns(group, batches, seconds)
        first = group[0].name
        found[name] = {"us": turns.median(first)} | {
            other: {"us": turns.median(other), "ratio": timing.quartiles(turns.ratios(other, first))[1]}
            for other in turns.times
            if other != first
        }
    return found


def table(seconds: float) -> str:
    """Return the times as text."""
    watch = timing.Watch()
    found = measure(seconds)
    taken = float(np.median([each[TAKE]["us"] for each in found.values() if TAKE in each]))
    lines = [f"{IDS} ids, dim {DIM}, {ROWS:,} rows, {timing.machine()['threads']} threads", ""]
    lines += [f"{'':<26}{'us':>8}{'x take':>9}{'- take, us':>12}", f"{TAKE:<26}{taken:>8.2f}{1:>9.1f}{0:>12.2f}"]
    for name, each in found.items():
        if TAKE in each:
            us, beside = each["us"], each[TAKE]
            lines.append(f"{name:<26}{us:>8.2f}{1 / beside['ratio']:>9.1f}{us - beside['us']:>12.2f}")
    lines.append("")
    for name, each in found.items():
        for other, times in each.items():
            if isinstance(times, dict) and other == "one":
                share = f"{1 / (TABLES * times['ratio']):.2f} of {TABLES} times one"
                lines.append(f"{name}: {each['us']:.1f} us, one of them {times['us']:.1f} us: {share}")
            elif isinstance(times, dict) and other != TAKE:
                lines.append(f"{name}: {each['us']:.1f} us, {other} {times['us']:.1f} us: ratio {times['ratio']:.1f}")
    if not watch.undisturbed():
        lines.append("other programs had the cores for some of the time: OpenMP's threads, torch's, then wait long")
    return "\n".join(lines)

"""What a job is, and how its tools train in turn."""

import gc
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from .. import timing


class Training(Protocol):
    """A model in training: pieces 0, 1, 2, ... of the run, in order, and how good the model is."""

    def piece(self, i: int) -> None: ...
    def quality(self) -> float: ...


class Tool(NamedTuple):
    """One way to do a job; `start(rate, threads)` makes a new training."""

    name: str
    engine: str  # one of `report.COLOURS`
    start: Callable[[float, int], Training]
    rates: tuple[float, ...]  # learning rates of which the best is taken
    needs: tuple[str, ...] = ()  # modules


class Line(NamedTuple):
    """A line of the table: our tool, its rival, and how many times faster it is to be."""

    ours: str
    rival: str
    target: float


class Job(NamedTuple):
    """Data, tools, and what is compared."""

    name: str
    data: str
    measure: str  # of quality, with its unit
    higher: bool  # is better
    slack: float  # share of the rival's quality by which ours may be worse: what another seed changes
    tools: list[Tool]
    lines: list[Line]
    pieces: int
    look: int = 1  # pieces from one measurement of quality to the next
    threads: tuple[int, ...] = (2,)


class Run(NamedTuple):
    """What one tool did."""

    rate: float
    rates: dict[str, float]  # quality by learning rate
    seconds: list[float]  # of each piece
    curve: list[tuple[float, float]]  # seconds of training so far, quality


def run(job: Job, threads: int, log: Callable[[str], None]) -> dict[str, Run]:
    """Choose the best learning rate of each tool, then train all tools in turn, piece by piece."""
    timing.set_threads(threads)
    tools = [tool for tool in job.tools if not absent(tool)]
    chosen = {tool.name: _choose(job, tool, threads) for tool in tools}
    trainings = {tool.name: tool.start(chosen[tool.name][0], threads) for tool in tools}
    seconds: dict[str, list[float]] = {tool.name: [] for tool in tools}
    curves = {name: [(0.0, each.quality())] for name, each in trainings.items()}
    with timing.no_garbage_collection():
        for i in range(job.pieces):
            order = list(trainings.items())
            for name, each in order if i % 2 == 0 else order[::-1]:
                start = time.perf_counter()
                each.piece(i)
                seconds[name].append(time.perf_counter() - start)
            if (i + 1) % job.look == 0 or i + 1 == job.pieces:
                for name, each in trainings.items():
                    curves[name].append((sum(seconds[name]), each.quality()))
            gc.collect()  # between pieces: what a training drops must not pile up
    for name, (_, quality) in ((name, curve[-1]) for name, curve in curves.items()):
        log(f"{job.name}, {threads} threads, {name}: {sum(seconds[name]):.2f} s, quality {quality:.4f}")
    return {name: Run(*chosen[name], seconds[name], curves[name]) for name in trainings}


def absent(tool: Tool) -> list[str]:
    """Return the modules that a tool needs and that are not installed."""
    return [module for module in tool.needs if not timing.installed(module)]


def _choose(job: Job, tool: Tool, threads: int) -> tuple[float, dict[str, float]]:
    """Return the best learning rate and the quality of each; a run also compiles, and touches memory."""
    found = {}
    for rate in tool.rates:
        training = tool.start(rate, threads)
        for i in range(job.pieces if len(tool.rates) > 1 else 1):
            training.piece(i)
        if len(tool.rates) > 1:
            found[rate] = training.quality()
    best = (max if job.higher else min)(found, key=found.__getitem__, default=tool.rates[0])
    return best, {str(rate): quality for rate, quality in found.items()}


def described(job: Job, threads: int, runs: dict[str, Run], undisturbed: bool) -> list[dict[str, Any]]:
    """Return what the file says of each line."""
    rows = []
    for line in job.lines:
        if line.ours not in runs or line.rival not in runs:
            continue
        ours, rival = runs[line.ours], runs[line.rival]
        ratio = timing.quartiles([b / a for a, b in zip(ours.seconds, rival.seconds, strict=True)])
        a, b = ours.curve[-1][1], rival.curve[-1][1]
        good = a >= b * (1 - job.slack) if job.higher else a <= b * (1 + job.slack)
        rows.append(
            {
                "job": job.name,
                "data": job.data,
                "threads": threads,
                "ours": line.ours,
                "rival": line.rival,
                "seconds": [sum(ours.seconds), sum(rival.seconds)],
                "ratio": list(ratio),
                "target": line.target,
                "measure": job.measure,
                "quality": [a, b],
                "as_good": good,
                "met": good and ratio[1] >= line.target,
                "undisturbed": undisturbed,
            }
        )
    return rows


def measure(job: Job, log: Callable[[str], None]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lines of the table, and the runs behind them."""
    rows, runs = [], []
    for threads in job.threads:
        watch = timing.Watch()
        found = run(job, threads, log)
        rows += described(job, threads, found, watch.undisturbed())
        engines = {tool.name: tool.engine for tool in job.tools}
        for name, each in found.items():
            head = {"job": job.name, "threads": threads, "tool": name, "engine": engines[name]}
            runs.append(head | {"measure": job.measure} | each._asdict())
    return rows, runs


def parts(count: int, pieces: int) -> list[slice]:
    """Return `pieces` slices of as good as equal length."""
    ends = [round(count * i / pieces) for i in range(pieces + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]

"""Measures cells and writes each as it comes."""

import gc
import itertools
import json
import operator
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .. import timing
from . import cells as grid
from . import plain
from .cells import SMALL, Cell
from .data import Data, Sample
from .steps import step
from .turns import Turns, take_turns
from .way import Way, Work, check

_SPARE = 1 << 30  # bytes that are left to the machine
_PLAIN = {"gather": plain.gather, "pool": plain.pool, "scatter_add": plain.scatter_add, "coalesce": plain.coalesce}


class NotMeasuredError(Exception):
    """Why a cell is left out."""


def calm(result: dict[str, Any], threads: int) -> dict[Cell, dict[str, Any]]:
    """Return the cells of a result on as many threads during which other programs left the cores alone."""
    if result["machine"]["threads"] != threads:
        return {}
    cells = {Cell(*(each[axis] for axis in Cell._fields)): each for each in result["cells"]}
    return {cell: each for cell, each in cells.items() if each["undisturbed"]}


class Record(NamedTuple):
    """What was measured so far, in a file that is whole at any time."""

    result: dict[str, Any]
    file: Path | None

    def save(self) -> None:
        if self.file:
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps(self.result) + "\n")
            part.replace(self.file)


def measure(
    cells: Iterable[Cell], threads: int, seconds: float, record: Record, kept: Iterable[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Measure cells in their order, a table once for all of its cells; returns the result, after what is kept."""
    timing.set_threads(threads)
    found: list[dict[str, Any]] = list(kept)
    skipped: list[dict[str, Any]] = []
    record.result.update(machine=timing.machine(), seconds_per_cell=seconds, cells=found, skipped=skipped)
    with timing.no_garbage_collection():  # a collection takes 0.1 s once torch is there: not one for each cell
        _measure_tables(cells, seconds, record, found, skipped)
    record.save()
    return record.result


def _measure_tables(
    cells: Iterable[Cell], seconds: float, record: Record, found: list[dict[str, Any]], skipped: list[dict[str, Any]]
) -> None:
    start = time.perf_counter()
    for (rows, dim), on_table in itertools.groupby(sorted(cells, key=_order), key=operator.attrgetter("rows", "dim")):
        wanted = list(on_table)
        for cell, outcome in _measure_table(rows, dim, wanted, seconds):
            if isinstance(outcome, NotMeasuredError):
                skipped.append(cell._asdict() | {"reason": str(outcome)})
            else:
                found.append(outcome)
            record.result["minutes"] = round((time.perf_counter() - start) / 60, 2)
            record.save()
        print(f"{rows:,} x {dim}: {len(wanted)} cells, {time.perf_counter() - start:.0f} s so far", flush=True)


def _order(cell: Cell) -> tuple[Any, ...]:
    ops = (*grid.OPS, "adam")
    return cell.rows, cell.dim, ops.index(cell.op), cell.ids, grid.KINDS.index(cell.kind)


Outcome = tuple[Cell, dict[str, Any] | NotMeasuredError]


def _measure_table(rows: int, dim: int, cells: list[Cell], seconds: float) -> Iterator[Outcome]:
    most = max(cell.ids for cell in cells)
    try:
        _need(grid.table_bytes(rows, dim, most), "the table and its gradients")
    except NotMeasuredError as reason:
        yield from ((cell, reason) for cell in cells)
        return
    data = Data(rows, dim, most)
    for op, of_op in itertools.groupby(cells, key=operator.attrgetter("op")):
        work = None
        gc.collect()
        for cell in of_op:
            try:
                if work is None or work.fresh:
                    work = None  # frees what the last one held
                    work = build(data, op)
                yield cell, measure_cell(data, work, cell, seconds)
            except NotMeasuredError as reason:
                yield cell, reason


def build(data: Data, op: str) -> Work:
    """Return all ways of an operation."""
    _need(grid.work_bytes(op, data.rows, data.dim), "the state of ours and of the peers")
    work = _PLAIN[op](data) if op in _PLAIN else step(data, op)
    if len(work.ways) == 1:
        raise NotMeasuredError("no peer that is installed does it")
    return work


def measure_cell(data: Data, work: Work, cell: Cell, seconds: float) -> dict[str, Any]:
    """Compare the results of a cell, then time it."""
    start = time.perf_counter()
    _need(grid.call_bytes(cell.op, cell.ids, cell.dim), "a call")
    try:
        batches = data.batches(cell.ids, cell.kind)
    except ValueError as error:  # ids that repeat as in production need more rows
        raise NotMeasuredError(str(error)) from None
    sample = Sample(batches[0], data.rows)
    ways = [way for way in work.ways if cell.ids * cell.dim <= way.most]
    seen = {way.name: check(work, way, batches[0], sample, str(cell)) for way in ways}
    del seen["sparsembed"]  # it may have compiled
    watch = timing.Watch()
    turns = take_turns(ways, batches, seconds, lambda way: counts(cell, way), seen)
    took = {"undisturbed": watch.undisturbed(), "seconds": round(time.perf_counter() - start, 2)}
    return cell._asdict() | described(cell, ways, turns) | took


def one(cell: Cell, seconds: float) -> dict[str, Any]:
    """Measure one cell on a table of its own."""
    data = Data(cell.rows, cell.dim, cell.ids)
    with timing.no_garbage_collection():
        return measure_cell(data, build(data, cell.op), cell, seconds)


def counts(cell: Cell, way: Way) -> bool:
    """Whether a peer is compared by ratio: NumPy is not for few ids, where only what a call costs shows."""
    return cell.ids >= SMALL or way.family != "numpy"


def described(cell: Cell, ways: list[Way], turns: Turns) -> dict[str, Any]:
    """Return what the file says of a cell."""
    peers = {}
    for way in ways[1:]:
        if way.name in turns.times:
            ratio = [round(each, 4) for each in timing.quartiles(turns.ratios(way.name))]
            peers[way.name] = {"us": round(turns.median(way.name), 3), "ratio": ratio, "counts": counts(cell, way)}
    counted = [name for name, peer in peers.items() if peer["counts"]]
    fastest = min(counted, key=lambda name: peers[name]["ratio"][1], default=None)
    return {
        "ours_us": round(turns.median("sparsembed"), 3),
        "peer": fastest,
        "ratio": peers[fastest]["ratio"][1] if fastest else None,
        "peers": peers,
        "slow_us": {name: round(us, 1) for name, us in turns.slow.items()},
        "calls": turns.calls["sparsembed"],
        "blocks": len(turns.times["sparsembed"]),
    }


def _need(size: int, what: str) -> None:
    free = max(0, available_memory() - _SPARE)
    if size > free:
        raise NotMeasuredError(f"memory for {what}: {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are there")


def available_memory() -> float:
    """Bytes that can be had without swapping (Linux; elsewhere without limit)."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return float("inf")

"""Counts the cells in which a peer is faster."""

import statistics
from collections.abc import Iterator
from typing import Any

from .cells import SMALL

LEAST = 0.95  # of the peer's time over ours: what is below counts as slower
MOST_US = 3.0  # what a call for few ids may take longer than NumPy's

Line = dict[str, Any]


def lost(cells: list[Line]) -> list[Line]:
    """Return the cells in which a peer that counts is faster, the worst first."""
    return sorted((each for each in cells if each["ratio"] is not None and each["ratio"] < LEAST), key=_ratio)


def _ratio(cell: Line) -> float:
    return float(cell["ratio"])


def beside_numpy(cell: Line) -> float | None:
    """Microseconds that a call for few ids takes longer than NumPy's fastest way; None where the ratio counts."""
    times = [peer["us"] for name, peer in cell["peers"].items() if name.startswith("numpy")]
    return cell["ours_us"] - min(times) if cell["ids"] < SMALL and times else None


def verdict(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return for each operation: cells, those that are lost, and the differences to NumPy for few ids."""
    found: dict[str, dict[str, Any]] = {}
    for op in dict.fromkeys(cell["op"] for cell in result["cells"]):
        cells = [cell for cell in result["cells"] if cell["op"] == op and cell["ratio"] is not None]
        every = [cell for cell in result["cells"] if cell["op"] == op]
        more = [difference for cell in every if (difference := beside_numpy(cell)) is not None]
        found[op] = {
            "cells": len(cells),
            "lost": lost(cells),
            "small": len(more),
            "small_over": sum(each > MOST_US for each in more),
            "small_us": [statistics.median(more), max(more)] if more else None,
            "skipped": sum(each["op"] == op for each in result["skipped"]),
        }
    return found


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield the verdict as text."""
    found = verdict(result)
    for op, of_op in found.items():
        yield f"{op}: {of_op['cells']} cells, a peer is faster (ratio under {LEAST}) in {len(of_op['lost'])}"
        if of_op["small"]:
            middle, most = of_op["small_us"]
            yield (
                f"  under {SMALL} ids ours takes {middle:+.1f} us (median; at most {most:+.1f}) beside NumPy;"
                f" over {MOST_US:g} us in {of_op['small_over']} of {of_op['small']} cells"
            )
        for cell in of_op["lost"]:
            yield "  " + line(cell)
    for (op, reason), number in _reasons(result["skipped"]).items():
        yield f"left out: {op}, {number} cells: {reason}"
    disturbed = sum(not cell["undisturbed"] for cell in result["cells"])
    number = sum(len(each["lost"]) for each in found.values())
    yield f"{len(result['cells'])} cells, {number} lost, {disturbed} disturbed"


def line(cell: Line) -> str:
    """Return one cell as text."""
    low, middle, high = cell["peers"][cell["peer"]]["ratio"]
    where = f"{cell['ids']:>9,} {cell['kind']:<10} {cell['rows']:>9,} x {cell['dim']:<3}"
    peer_us = cell["peers"][cell["peer"]]["us"]
    times = f"ours {cell['ours_us']:,.1f} us, {cell['peer']} {peer_us:,.1f} us"
    return f"{middle:.2f} ({low:.2f} to {high:.2f})  {where}  {times}"


def _reasons(skipped: list[Line]) -> dict[tuple[str, str], int]:
    """Return the number of cells by operation and by reason without its numbers."""
    found: dict[tuple[str, str], int] = {}
    for each in skipped:
        reason = "these ids need more rows" if "lookups of this stream" in each["reason"] else each["reason"]
        key = each["op"], reason.split(":")[0]
        found[key] = found.get(key, 0) + 1
    return found

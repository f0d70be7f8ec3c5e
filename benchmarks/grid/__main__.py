"""One grid for all operations, ours beside the fastest peer.

``python -m benchmarks.grid [--quick] [--json FILE]`` measures and prints in which cells a peer is faster;
``--draw FILE FOLDER`` draws what was measured before; ``--calls`` prints what calls of 32 ids take; ``--limit``
adds the share of the fastest possible update.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import timing
from . import calls, cells, limit, verdict
from .draw import draw
from .run import Record, calm, measure


def _values(parse: Callable[[str], Any], known: tuple[Any, ...]) -> Callable[[str], tuple[Any, ...]]:
    """Return what parses a list such as "32,2048"; each must be one of `known`."""

    def values(text: str) -> tuple[Any, ...]:
        try:
            found = tuple(parse(each.strip()) for each in text.split(","))
        except ValueError:
            found = (text,)
        if unknown := [each for each in found if each not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(map(str, known))}")
        return found

    return values


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__.split("\n\n")[0])
    ops = (*cells.OPS, "adam")
    parser.add_argument("--quick", action="store_true", help="some cells: each value of every axis; a few minutes")
    parser.add_argument("--only", type=_values(str, ops), default=(), metavar="OP,OP", help=f"of {', '.join(ops)}")
    for axis, known in (("ids", cells.IDS), ("dim", cells.DIMS), ("rows", cells.ROWS)):
        parser.add_argument(f"--{axis}", type=_values(int, known), default=(), metavar="N,N", help=f"of {known}")
    parser.add_argument("--kind", type=_values(str, cells.KINDS), default=(), help=f"of {', '.join(cells.KINDS)}")
    parser.add_argument("--dense", action="store_true", help="also exact Adam against torch's dense one")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each cell, about (0.3)")
    parser.add_argument("--threads", type=int, default=timing.THREADS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each cell as it comes")
    parser.add_argument("--resume", action="store_true", help="keep what FILE has, but what was disturbed")
    parser.add_argument("--limit", action="store_true", help="the share of the fastest possible update, at the end")
    parser.add_argument("--draw", type=Path, nargs=2, metavar=("FILE", "FOLDER"), help="measure nothing, draw this")
    parser.add_argument("--verdict", type=Path, metavar="FILE", help="measure nothing, judge this")
    parser.add_argument("--calls", action="store_true", help="only what calls of 32 ids take")
    options = parser.parse_args(arguments)
    if options.resume and not options.json:
        parser.error("--resume: pass --json FILE, too")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist")
    if options.draw:
        if not options.draw[1].is_dir():
            parser.error(f"--draw: {options.draw[1]} is not a folder")
        for path in draw(json.loads(options.draw[0].read_text()), options.draw[1]):
            print(path)
        return
    if options.calls:
        timing.set_threads(options.threads)
        print(calls.table(options.seconds))
        return
    if options.verdict:
        result = json.loads(options.verdict.read_text())
    else:
        axes = {"op": options.only, "ids": options.ids, "dim": options.dim, "rows": options.rows, "kind": options.kind}
        every = (cells.quick if options.quick else cells.full)(options.dense or "adam" in options.only)
        wanted = cells.chosen(every, **axes)
        if not (wanted or options.limit):
            parser.error("no cell has all of these values")
        before = json.loads(options.json.read_text()) if options.resume and options.json.exists() else None
        kept = calm(before, options.threads) if before else {}
        record = Record({}, options.json)
        missing = [cell for cell in wanted if cell not in kept]
        result = measure(missing, options.threads, options.seconds, record, kept.values())
        if options.limit:
            result["limit"] = limit.shares(options.threads)
            record.save()
    for text in (*verdict.lines(result), *limit.lines(result.get("limit", {}))):
        print(text)


if __name__ == "__main__":
    main()

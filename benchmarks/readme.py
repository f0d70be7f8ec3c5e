"""The tables of benchmarks in a file: ``python -m benchmarks.readme RESULT.json README.md``.

Rewrites what stands between ``<!-- benchmarks -->`` and ``<!-- /benchmarks -->`` with a result of `benchmarks.peers`,
or between ``<!-- jobs -->`` and ``<!-- /jobs -->`` with one of `benchmarks.jobs`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from .timing import Paired, quartiles

TIMES = "\N{MULTIPLICATION SIGN}"
MARK = "benchmarks"
START, END = f"<!-- {MARK} -->", f"<!-- /{MARK} -->"
HEADER = ("work", "ids", "ours (ms)", "peer", "peer (ms)", "ratio", "target met?", "share of limit")


def row(work: Any, size: Any, ids: str, peer: str, pairs: Paired, limit: float) -> dict[str, Any]:
    """Quartiles of one line; `limit` is the time of a copy of the bytes that must move."""
    times = list(zip(pairs.ours, pairs.peer, strict=True))
    ratio = quartiles([a / b if work.kind == "slower" else b / a for a, b in times])
    ours = quartiles(pairs.ours)

    def reaches(bound: float | None) -> bool:
        return bound is not None and (ratio[1] <= bound if work.kind == "slower" else ratio[1] >= bound)

    return {
        "work": work.name.format(**size._asdict()),
        "ids": ids,
        "peer": peer,
        "kind": work.kind,
        "pairs": len(times),
        "undisturbed": pairs.undisturbed,
        "ours_ms": [1e3 * each for each in ours],
        "peer_ms": [1e3 * each for each in quartiles(pairs.peer)],
        "ratio": list(ratio),
        "least": work.least,
        "aim": work.aim,
        "met": "" if work.least is None else "aim" if reaches(work.aim) else "least" if reaches(work.least) else "no",
        "share_of_limit": limit / ours[1],
    }


def markdown(result: dict[str, Any]) -> str:
    """The table and what it was measured on."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|--:|---|--:|--:|---|--:|"]
    lines += ["| " + " | ".join(_cells(each)) + " |" for each in result["rows"]]
    return "\n".join([*lines, "", *_notes(result)])


def _cells(line: dict[str, Any]) -> list[str]:
    kind, ratio = line["kind"], line["ratio"][1]

    def amount(value: float) -> str:
        return f"{100 * value:.0f} %" if kind == "limit" else f"{value:.3g}{TIMES}"

    bound = "at most" if kind == "slower" else "at least"
    met = {
        "": lambda: "",
        "aim": lambda: f"yes: {bound} {amount(line['aim'])}",
        "least": lambda: f"yes: {bound} {amount(line['least'])} (aim {amount(line['aim'])})",
        "no": lambda: f"**no**: {bound} {amount(line['least'])}",
    }[line["met"]]()
    return [
        line["work"],
        line["ids"],
        _milliseconds(line["ours_ms"][1]),
        line["peer"],
        _milliseconds(line["peer_ms"][1]),
        amount(ratio) if kind != "faster" or ratio < 10 else f"{ratio:.1f}{TIMES}",
        met,
        f"{100 * line['share_of_limit']:.0f} %",
    ]


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _notes(result: dict[str, Any]) -> list[str]:
    machine, size = result["machine"], result["size"]
    copies = result["copy_bytes_per_second"]
    best = max(copies, key=copies.get)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    notes = [
        f"Measured {machine['date']} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['system']}, Python {machine['python']}, {versions}. "
        f"{size['num_rows']:,} rows {TIMES} {size['dim']} float32, {size['lookups']:,} lookups; "
        f"medians of pairs A B A B over {size['batches']} different batches"
        + (", in CPU time." if size["effort"]["cpu_time"] else "."),
        "",
        "`production` ids repeat as in a public trace of Meta's (facebookresearch/dlrm_datasets, 2021). "
        "Share of limit: the bytes that must move, each row counted once, in the time of a copy of as many bytes "
        f"({copies[best] / 1e9:.1f} GB/s read + written, {best}); above 100 % where rows are found in cache.",
    ]
    disturbed = [
        f"{line['work']} ({line['ids']}, {line['peer']})" for line in result["rows"] if not line["undisturbed"]
    ]
    if disturbed:
        notes += [
            "",
            f"Something else had the cores for a while during {len(disturbed)} lines: {'; '.join(disturbed)}.",
        ]
    if result["left_out"]:
        notes += ["", f"Left out, not installed: {', '.join(result['left_out'])}."]
    return notes


def rewrite(text: str, table: str, mark: str = MARK) -> str:
    """Put the table between the marks."""
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, start, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not start or not end:
        raise ValueError(f"the file must contain {first} and, after it, {last}")
    return f"{before}{first}\n{table}\n{last}{after}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__.split("\n\n")[0])
    parser.add_argument("result", type=Path, metavar="RESULT.json")
    parser.add_argument("readme", type=Path, metavar="README.md")
    options = parser.parse_args(arguments)
    result = json.loads(options.result.read_text())
    mark, table = MARK, markdown
    if "runs" in result:  # of `benchmarks.jobs`, which needs this module
        from .jobs import report

        mark, table = "jobs", report.markdown
    options.readme.write_text(rewrite(options.readme.read_text(), table(result), mark))


if __name__ == "__main__":
    main()

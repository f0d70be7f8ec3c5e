"""The table of jobs as Markdown, and quality over wall time as a plot."""

from pathlib import Path
from typing import Any

import numpy as np

from ..readme import TIMES

HEADER = (
    "job",
    "ours",
    "rival",
    "threads",
    "ours (s)",
    "rival (s)",
    "times faster",
    "quality, ours and rival",
    "target",
)
COLOURS = {  # one for each engine
    "NumPy + sparsembed": "#0072b2",
    "NumPy + sparsembed, dense Adam": "#56b4e9",
    "Numba + sparsembed.jit": "#009e73",
    "torch + sparsembed": "#cc79a7",
    "torch + sparsembed, one table": "#7b3294",
    "gensim": "#d55e00",
    "implicit": "#e69f00",
    "torch": "#000000",
    "torch, dense Adam": "#8c8c8c",
}
_STYLES = ("-", "--")


def markdown(result: dict[str, Any]) -> str:
    """Return the table: whole jobs, then the worst and the median of the dense steps."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---|--:|--:|--:|--:|---|---|"]
    lines += ["| " + " | ".join(_cells(each)) + " |" for each in result["rows"]]
    if result["dense"]:
        lines.append("| " + " | ".join(_dense(result["dense"])) + " |")
    return "\n".join([*lines, "", *_notes(result)])


def _cells(row: dict[str, Any]) -> list[str]:
    low, ratio, high = row["ratio"]
    ours, rival = row["seconds"]
    a, b = row["quality"]
    form = ".3f" if max(a, b) >= 1 else ".4f" if max(a, b) >= 0.01 else ".2g"
    target = f"at least {row['target']:g}{TIMES}"
    also = "" if row["as_good"] else " and as good"
    met = f"yes: {target}" if row["met"] else f"**no**: {target}{also}"
    measure = row["measure"].partition(" (")[0]
    return [
        row["job"],
        row["ours"],
        row["rival"],
        str(row["threads"]),
        f"{ours:.2f}",
        f"{rival:.2f}",
        f"{ratio:.2f} ({low:.2f} to {high:.2f})",
        f"{measure} {a:{form}}, {b:{form}}",
        met,
    ]


def _dense(cells: list[dict[str, Any]]) -> list[str]:
    worst = min(cells, key=lambda each: each["ratio"][1])
    target = worst["target"]
    reached = sum(each["met"] for each in cells)
    what = f"{worst['rows']:,} {TIMES} {worst['dim']}, {worst['ids']:,} ids"
    met = "yes" if reached == len(cells) else "**no**"
    return [
        f"step of `se.Adam`, the worst of {len(cells)} sizes: {what}",
        "lookup and update",
        "torch's dense step, Adam(fused=True)",
        str(worst["threads"]),
        f"{worst['ours_ms'] / 1e3:.5f}",
        f"{worst['torch_ms'] / 1e3:.5f}",
        f"{worst['ratio'][1]:.2f} (median of the sizes {np.median([each['ratio'][1] for each in cells]):.2f})",
        "the same optimizer",
        f"{met}: at least {target:g}{TIMES}, in {reached} of {len(cells)} sizes",
    ]


def _notes(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    data = dict.fromkeys(f"{row['job']}: {row['data']}" for row in result["rows"])
    won = sum(row["ratio"][1] > 1 for row in result["rows"])
    met = sum(row["met"] for row in result["rows"])
    notes = [
        f"{won} of {len(result['rows'])} lines are faster than the rival, {met} meet their target. "
        f"Measured {machine['date']} on {machine['processor']}, {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}, {versions}{'' if result['size'] == 'full' else '; sizes of --' + result['size']}. All "
        "tools of a job have the same data and threads, each the best of its learning rates, and train in turn, piece "
        "by piece; times are of the whole training, ratios medians over the pieces, with quartiles.",
        "",
        f"Data: {'; '.join(data)}.",
    ]
    disturbed = dict.fromkeys(row["job"] for row in result["rows"] if not row["undisturbed"])
    if disturbed:
        notes += ["", f"Something else had the cores for a while during: {', '.join(disturbed)}."]
    if result["left_out"]:
        notes += ["", f"Left out, not installed: {', '.join(result['left_out'])}."]
    return notes


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot quality over seconds of training, a panel for each job, on as many threads as it was measured with."""
    from matplotlib.figure import Figure

    most: dict[str, int] = {}
    for each in result["runs"]:
        most[each["job"]] = max(most.get(each["job"], 0), each["threads"])
    rows = -(-len(most) // 2)
    figure = Figure(figsize=(13, 4.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in panels[len(most) :]:
        axes.axis("off")
    for axes, (job, threads) in zip(panels, most.items(), strict=False):
        seen: dict[str, int] = {}
        for each in result["runs"]:
            if (each["job"], each["threads"]) == (job, threads):
                seconds, quality = np.array(each["curve"]).T
                style = _STYLES[seen.get(each["engine"], 0) % len(_STYLES)]
                seen[each["engine"]] = seen.get(each["engine"], 0) + 1
                colour = COLOURS[each["engine"]]
                name = each["tool"].partition(" (docs")[0]
                axes.plot(seconds, quality, style, color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
                axes.set_ylabel(each["measure"])
        axes.set(title=f"{job}, {threads} threads", xlabel="training (s)")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    figure.savefig(path, dpi=100)

"""Time against table rows, batch size, dim, duplicates and threads, ours beside the peers, as plots.

``python -m benchmarks.scaling [--quick] [--json FILE] [--plots FOLDER]`` measures and draws;
``--draw FILE`` draws what was measured before.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from numba.core import config

from . import contests, timing
from .contests import Contest
from .peers import check
from .workload import FULL, Size


class Axis(NamedTuple):
    """A quantity that varies, and the size and stream of ids for each value."""

    label: str
    values: tuple[int, ...]
    case: Callable[[Size, int], tuple[Size, str]]


class Panel(NamedTuple):
    """A kind of work, and its peers."""

    title: str
    peers: tuple[tuple[Callable[..., Contest], tuple[str, ...]], ...]  # and the modules that each needs


AXES: dict[str, Axis] = {
    "rows": Axis(
        "rows of the table",
        (10_000, 100_000, 1_000_000, 4_000_000),
        lambda size, value: (size._replace(num_rows=value), "uniform"),
    ),
    "batch": Axis(
        "ids in a batch",
        (100, 1_000, 10_000, 100_000, 400_000),
        lambda size, value: (size._replace(lookups=value), "uniform"),
    ),
    "dim": Axis(
        "dim (numbers in a row)",
        (4, 16, 33, 64, 128, 256),
        lambda size, value: (size._replace(dim=value), "uniform"),
    ),
    "duplicates": Axis(
        "lookups of each row of a batch",
        (1, 4, 16, 64, 256, 1_024, 4_096),
        lambda size, value: (size, f"each {value}"),
    ),
    "threads": Axis(
        "threads",
        tuple(threads for threads in (1, 2, 4, 8, 16) if threads <= config.NUMBA_NUM_THREADS),
        lambda size, value: (size, "uniform"),
    ),
}
PANELS = (
    Panel("gather", ((contests.numpy_gather, ()), (contests.torch_gather, ("torch",)))),
    Panel("pool, sum of 20", ((contests.torch_pool, ("torch",)), (contests.fbgemm_pool, ("torch", "fbgemm_gpu")))),
    Panel(
        "lookup + update",
        ((contests.torch_training, ("torch",)), (contests.fbgemm_lookup, ("torch", "fbgemm_gpu"))),
    ),
)
OURS = {contests.fbgemm_lookup: "sparsembed, rowwise Adagrad", contests.torch_training: "sparsembed, SparseAdam"}
NAMES = {"FBGEMM, bags of one": "FBGEMM, rowwise Adagrad"}  # in a panel where its rule matters
SLOW = {"FBGEMM, PoolingMode.NONE", "numpy.take"}  # FBGEMM and NumPy have a faster way for the same work
SERIAL = {"numpy.take, clip"}  # has no threads to vary


def measure(size: Size, axes: dict[str, Axis], threads: int) -> dict[str, Any]:
    """Median milliseconds by axis, panel and contestant: a list of (value, time)."""
    timing.set_threads(threads)
    found: dict[str, Any] = {}
    disturbed: list[str] = []
    for name, axis in axes.items():
        panels: dict[str, dict[str, list[tuple[int, float]]]] = {panel.title: {} for panel in PANELS}
        for value in axis.values:
            for panel in PANELS:
                timing.set_threads(value if name == "threads" else threads)
                for contestant, (milliseconds, calm) in _times(panel, *axis.case(size, value)).items():
                    panels[panel.title].setdefault(contestant, []).append((value, milliseconds))
                    if not calm:
                        disturbed.append(f"{name} {value}, {panel.title}, {contestant}")
            print(name, value, flush=True)
        found[name] = panels
    described = size._asdict() | {"effort": size.effort._asdict()}
    timing.set_threads(threads)
    return {"machine": timing.machine(), "size": described, "axes": found, "disturbed": disturbed}


def _times(panel: Panel, size: Size, stream: str) -> dict[str, tuple[float, bool]]:
    """Median milliseconds of each contestant, and whether other programs left the cores alone."""
    times: dict[str, tuple[float, bool]] = {}
    for build, needs in panel.peers:
        if not all(map(timing.installed, needs)):
            continue
        try:
            contest = build(size, stream)
        except NotImplementedError:  # a dim that the peer does not take
            continue
        check(contest)
        for peer, entry in contest.peers.items():
            if peer not in SLOW:
                pairs = timing.paired(contest.ours.step, entry.step, contest.batches, size.effort)
                sides = {OURS.get(build, "sparsembed"): pairs.ours, NAMES.get(peer, peer): pairs.peer}
                for contestant, seconds in sides.items():
                    times[contestant] = 1e3 * timing.quartiles(seconds)[1], pairs.undisturbed
    return times


def draw(result: dict[str, Any], folder: Path) -> None:
    """One figure for each axis: a panel for each kind of work."""
    import matplotlib.pyplot as plt

    for name, panels in result["axes"].items():
        figure, plots = plt.subplots(1, len(panels), figsize=(13, 5), layout="constrained")
        for plot, (title, lines) in zip(plots, panels.items(), strict=True):
            _draw_panel(plot, name, lines)
            plot.set(title=title, xlabel=AXES[name].label, ylabel="milliseconds, median (log)")
            plot.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
        figure.suptitle(_caption(result, name), fontsize=9)
        figure.savefig(folder / f"scaling_{name}.png", dpi=110)
        plt.close(figure)


def _draw_panel(plot: Any, name: str, lines: dict[str, list[tuple[int, float]]]) -> None:
    """Draw ours thick and peers dashed; both axes are logarithmic, the vertical one over at least a factor of ten."""
    import matplotlib.pyplot as plt

    peers = 0
    for contestant in sorted(lines, key=lambda each: not each.startswith("sparsembed")):
        ours = contestant.startswith("sparsembed")
        peers += not ours
        color = ("navy" if "Adagrad" in contestant else "C0") if ours else f"C{peers}"
        values, times = zip(*lines[contestant], strict=True)
        label = contestant
        if name == "threads" and contestant in SERIAL:
            values, times, label = values[:1], times[:1], f"{contestant} (one thread)"
        style = {"linewidth": 2.5, "marker": "o"} if ours else {"linewidth": 1.2, "marker": ".", "linestyle": "--"}
        plot.plot(values, times, label=label, color=color, **style)
        if name == "threads" and ours:
            ideal = [times[0] * values[0] / value for value in values]
            plot.plot(values, ideal, color=color, linewidth=0.8, linestyle=":", label=f"{contestant}, ideal")
    plot.set(xscale="log", yscale="log")
    low, high = plot.get_ylim()
    if high < 10 * low:  # a narrow logarithmic axis makes small differences look large
        middle = (low * high) ** 0.5
        plot.set_ylim(middle / 10**0.5, middle * 10**0.5)
    values = sorted({value for line in lines.values() for value, _ in line})
    plot.set_xticks(values, [_short(value) for value in values])
    plot.minorticks_off()
    plot.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    plot.yaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
    plot.grid(alpha=0.3)


def _caption(result: dict[str, Any], name: str) -> str:
    size, machine = result["size"], result["machine"]
    fixed = {
        "rows": f"{size['num_rows']:,} rows",
        "dim": f"dim {size['dim']}",
        "batch": f"{size['lookups']:,} ids",
        "threads": f"{machine['threads']} threads",
        "duplicates": "uniform ids",
    }
    rest = ", ".join(text for key, text in fixed.items() if key != name)
    disturbed = sum(each.startswith(f"{name} ") for each in result["disturbed"])
    note = f"; {disturbed} of the times were disturbed" if disturbed else ""
    return f"{rest}, float32; {machine['processor']}, {machine['date']}{note}"


def _short(value: int) -> str:
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if value >= unit and value % unit == 0:
            return f"{value // unit}{letter}"
    return str(value)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--axis", choices=AXES, action="append", help="only these")
    parser.add_argument("--threads", type=int, default=timing.THREADS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw it")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="measure nothing, draw this")
    options = parser.parse_args(arguments)
    if not (options.plots or (options.json and not options.draw)):
        parser.error("nothing would come of it: pass --plots FOLDER, or --json FILE when measuring")
    for folder in (options.plots, options.json and options.json.absolute().parent):
        if folder and not folder.is_dir():
            parser.error(f"{folder} is not a folder")
    if options.draw:
        result = json.loads(options.draw.read_text())
    else:
        effort = timing.Effort(3, 0.1, 0.1) if options.quick else timing.Effort(7, 0.3, 3.0)
        axes = {name: AXES[name] for name in options.axis or AXES}
        result = measure(FULL._replace(batches=4, effort=effort), axes, options.threads)
    if options.json:
        options.json.write_text(json.dumps(result) + "\n")
    if options.plots:
        draw(result, options.plots)


if __name__ == "__main__":
    main()

"""Pictures of the concepts and performance pages, drawn from real plans, bags and tables.

They are as wide as a phone, so that their letters can be read on one.
"""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import sparsembed as se
from sparsembed.kernels.cpu.segment import CHUNK

from . import tables

IDS = np.array([7, 2, 7, 5, 2, 7])
COLORS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442")
GREY = "#dddddd"
WIDTH = 4.3  # inches
STYLE = {"font.size": 8.5, "svg.hashsalt": "sparsembed", "axes.spines.top": False, "axes.spines.right": False}


def canvas(height, columns=None, lines=None):
    """A figure, and axes for cells of one unit if their numbers are given."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    if columns:
        axes.set(xlim=(-2.3, columns + 0.1), ylim=(lines, -0.2), aspect="equal")
        axes.axis("off")
    return figure, axes


def cell(axes, x, y, text, color="white", width=1.0):
    axes.add_patch(Rectangle((x, y), width, 0.8, facecolor=color, edgecolor="#444444", linewidth=0.8))
    axes.text(x + width / 2, y + 0.41, text, ha="center", va="center")


def label(axes, y, text):
    axes.text(-0.15, y + 0.4, text, ha="right", va="center", family="monospace", fontsize=7)


def plan():
    """Ids as they come, sorted, and as segments."""
    made = se.plan(IDS, num_rows=9)
    color = dict(zip(made.rows.tolist(), COLORS, strict=False))
    figure, axes = canvas(3.3, len(IDS), 6.4)
    for y, name, cells in ((0, "ids", IDS), (2.2, "order", made.order)):
        label(axes, y, name)
        for x, value in enumerate(cells.tolist()):
            cell(axes, x, y, value, color[value if name == "ids" else int(IDS[value])])
    for x, position in enumerate(made.order.tolist()):
        axes.plot([position + 0.5, x + 0.5], [0.8, 2.2], color=color[int(IDS[position])], linewidth=1.5, zorder=0)
    label(axes, 3.6, "segments")
    label(axes, 4.9, "rows")
    for j, row in enumerate(made.rows.tolist()):
        start, end = made.segment_offsets[j : j + 2].tolist()
        axes.plot([start + 0.08, end - 0.08], [3.45, 3.45], color="#444444", linewidth=1)
        axes.text((start + end) / 2, 3.95, f"{start}:{end}", ha="center", va="center")
        cell(axes, (start + end) / 2 - 0.5, 4.9, row, color[row])
        axes.annotate("", ((start + end) / 2, 4.85), ((start + end) / 2, 4.25), arrowprops={"arrowstyle": "->"})
    axes.text(len(IDS) / 2, 6.1, "one sum of gradients, one step of the rule", ha="center", va="center")
    return figure


def chunks():
    """How the gradients of hot rows are summed."""
    lengths = {"hot": 1300, "warm": 400, "cold": 3}
    made = se.plan(np.repeat(np.arange(3), list(lengths.values())), num_rows=3)
    figure, axes = canvas(1.9)
    for j, count in enumerate(np.diff(made.segment_offsets).tolist()):
        starts = range(0, count, CHUNK)
        for start in starts:
            size = min(CHUNK, count - start)
            axes.add_patch(
                Rectangle((start, j - 0.3), size, 0.6, facecolor=COLORS[j], edgecolor="#444444", linewidth=0.8)
            )
            if size > 100:
                axes.text(start + size / 2, j, size, ha="center", va="center")
        said = f"{len(starts)} sums, then their sum" if len(starts) > 1 else "one sum"
        axes.text(count + 30, j, said if count < 1000 else "", va="center")
        if count >= 1000:
            axes.text(count, j - 0.42, said, ha="right", va="bottom")
    axes.set(xlim=(0, 1320), ylim=(2.5, -0.9), xlabel="occurrences of the row, in the order of the batch")
    axes.set_yticks(range(3), [f"{name} row" for name in lengths])
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)
    return figure


def lazy():
    """One weight of a row that the batch touches now and then, under two Adams and the dense one."""
    touched, steps = {1: 1.0, 2: 0.8, 3: 1.0, 20: -0.5}, 30
    series = {}
    for name, rule in (("Adam", se.Adam(lr=0.1)), ("SparseAdam", se.SparseAdam(lr=0.1))):
        table = se.EmbeddingTable.from_array(np.zeros((2, 1)), optimizer=rule)
        values = [0.0]
        for step in range(1, steps + 1):
            ids = [0] if step in touched else [1]
            table.update(ids, np.array([[touched.get(step, 1.0)]]))
            values.append(float(table.lookup([0])[0, 0]))
        series[name] = values
    weight, state = np.zeros((1, 1)), {name: np.zeros((1, 1)) for name in se.Adam.slots}
    dense = [0.0]
    for step in range(1, steps + 1):  # the formula, on every row at every step
        gradient = np.array([[touched.get(step, 0.0)]])
        weight, state = se.reference.update(se.Adam(lr=0.1), weight, state, [0], gradient, step)
        dense.append(float(weight[0, 0]))
    figure, axes = canvas(2.7)
    axes.plot(dense, color=GREY, linewidth=6, solid_capstyle="round", label="dense Adam, every row stepped")
    axes.plot(series["Adam"], color="#0072b2", label="Adam: read as the dense one")
    axes.plot(series["SparseAdam"], color="#d55e00", label="SparseAdam: frozen in between")
    for step in touched:
        axes.axvline(step, color="#444444", linewidth=0.6, linestyle=":", zorder=0)
    axes.set(xlabel="step (dotted: the row is in the batch)", ylabel="a weight of the row")
    axes.legend(facecolor="white", edgecolor="none", framealpha=1, fontsize=7.5)
    return figure


def bags():
    """Padded ids, the bags made of them, and the divisors of their means."""
    padded = np.array([[3, 5, 0], [0, 0, 0], [2, 5, 4]])
    made = se.Bags.from_padded(padded, padding_idx=0)
    figure, axes = canvas(3.4, len(made.ids) + 1, 7.1)
    label(axes, 1, "padded")
    for b, line in enumerate(padded.tolist()):
        for x, value in enumerate(line):
            cell(axes, x, b * 0.8, value, GREY if value == 0 else COLORS[b])
    label(axes, 3.2, "ids")
    label(axes, 4.4, "offsets")
    label(axes, 5.8, "pooled")
    for b in range(len(made)):
        start, end = made.offsets[b : b + 2].tolist()
        for x in range(start, end):
            cell(axes, x, 3.2, made.ids[x], COLORS[b])
        cell(axes, 1.8 * b, 5.8, f"{end - start} rows" if end > start else "zeros", COLORS[b], 1.6)
    for x, offset in enumerate(made.offsets.tolist()):
        empty = offset in made.offsets[:x]
        axes.text(offset, 4.8 + (0.45 if empty else 0), offset, ha="center", va="center")
        axes.plot([offset, offset], [3.1, 4.4], color="#444444", linewidth=1)
    return figure


def ratios():
    """How many times faster than each peer, from the README's table."""
    lines = [line for line in tables.measured()[0] if tables.ratio(line) and not line["peer"].startswith("itself")]
    names = list(dict.fromkeys(f"{line['work']}\nagainst {line['peer']}" for line in lines))
    figure = Figure(figsize=(WIDTH, 0.36 * len(names) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    for ids, marker, color in (("uniform", "o", "#0072b2"), ("production", "D", "#d55e00")):
        chosen = [line for line in lines if line["ids"] == ids]
        places = [names.index(f"{line['work']}\nagainst {line['peer']}") for line in chosen]
        axes.plot([tables.ratio(line) for line in chosen], places, marker, color=color, markersize=4, label=ids)
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=7.2)
    axes.set(xscale="log", ylim=(len(names) - 0.4, -0.6), xlabel="times faster (left of 1: slower)")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["½", "1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.grid(axis="both", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def batches():
    """Ratio to torch against the ids in a batch, from docs/results/scaling.json."""
    series = tables.result("scaling")["axes"]["batch"]
    figure, axes = canvas(2.7)
    for work, ours, peer, marker, color in (
        ("lookup + update", "sparsembed, SparseAdam", "torch SparseAdam", "o", "#0072b2"),
        ("gather", "sparsembed", "torch index_select", "s", "#009e73"),
        ("pool, sum of 20", "sparsembed", "torch embedding_bag", "D", "#d55e00"),
    ):
        mine, its = series[work][ours], series[work][peer]
        points = [(ids, theirs / time) for (ids, time), (_, theirs) in zip(mine, its, strict=True)]
        axes.plot(*zip(*points, strict=True), f"{marker}-", color=color, markersize=4, label=f"{work}, against {peer}")
    axes.axhline(1, color="#444444", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="ids in a batch", ylabel="times faster (below 1: slower)")
    axes.set_xticks([10**power for power in range(2, 6)], ["100", "1,000", "10,000", "100,000"])
    axes.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20, 50], ["1/5", "½", "1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.grid(color="#eeeeee")
    axes.legend(frameon=False, fontsize=7)
    return figure


def draw_all(folder):
    """Write every picture as SVG."""
    with mpl.rc_context(STYLE):
        for function in (plan, chunks, lazy, bags, ratios, batches):
            figure = function()
            figure.savefig(folder / f"{function.__name__}.svg", metadata={"Date": None})

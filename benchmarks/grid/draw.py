"""Heat maps of a result: one figure for each operation, a panel for each table height and kind of ids."""

from pathlib import Path
from typing import Any

import numpy as np

from .verdict import LEAST

_MOST = 8  # times: the ends of the colours


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write grid_<operation>.png for each operation, and return their paths."""
    return [_figure(result, op, folder) for op in dict.fromkeys(cell["op"] for cell in result["cells"])]


def _figure(result: dict[str, Any], op: str, folder: Path) -> Path:
    import matplotlib.pyplot as plt

    cells = [cell for cell in result["cells"] if cell["op"] == op and cell["ratio"] is not None]
    axes = {name: list(dict.fromkeys(cell[name] for cell in cells)) for name in ("kind", "rows", "ids", "dim")}
    for name in ("rows", "ids", "dim"):
        axes[name].sort()
    shape = len(axes["rows"]), len(axes["kind"])
    size = 3 + shape[1] * (0.62 * len(axes["ids"]) + 0.8), 1.3 + shape[0] * (0.42 * len(axes["dim"]) + 0.9)
    figure, panels = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True)
    for i, rows in enumerate(axes["rows"]):
        for j, kind in enumerate(axes["kind"]):
            panel = panels[i, j]
            image = _panel(panel, [cell for cell in cells if (cell["rows"], cell["kind"]) == (rows, kind)], axes)
            panel.set_title(f"{rows:,} rows, {kind} ids", fontsize=10)
            if i == shape[0] - 1:
                panel.set_xlabel("ids in a batch")
            if j == 0:
                panel.set_ylabel("dim")
    bar = figure.colorbar(image, ax=panels, shrink=0.8, aspect=30, extend="both")
    ticks = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    bar.set_ticks(list(np.log2(ticks)), labels=["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    bar.set_label("time of the fastest peer over ours (blue: ours is faster)")
    machine = result["machine"]
    figure.suptitle(
        f"{op}: time of the fastest peer over ours; bold: under {LEAST}; grey: not measured\n"
        f"{machine['processor']}, {machine['threads']} threads, {machine['date']}",
        fontsize=9,
    )
    path = folder / f"grid_{op}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _panel(panel: Any, cells: list[dict[str, Any]], axes: dict[str, list[Any]]) -> Any:
    import matplotlib.pyplot as plt

    values = np.full((len(axes["dim"]), len(axes["ids"])), np.nan)
    for cell in cells:
        values[axes["dim"].index(cell["dim"]), axes["ids"].index(cell["ids"])] = cell["ratio"]
    colours = plt.get_cmap("RdBu").with_extremes(bad="0.88")
    most = np.log2(_MOST)
    image = panel.imshow(np.log2(values), cmap=colours, vmin=-most, vmax=most, aspect="auto", origin="lower")
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = abs(np.log2(value)) > 0.7 * most
            weight = "bold" if value < LEAST else "normal"
            panel.text(j, i, _short(value), ha="center", va="center", fontsize=8, weight=weight,
                       color="white" if dark else "black")  # fmt: skip
    panel.set_xticks(range(len(axes["ids"])), [_count(n) for n in axes["ids"]], fontsize=8)
    panel.set_yticks(range(len(axes["dim"])), axes["dim"], fontsize=8)
    panel.set_xticks(np.arange(len(axes["ids"]) - 1) + 0.5, minor=True)
    panel.set_yticks(np.arange(len(axes["dim"]) - 1) + 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=1)
    panel.tick_params(which="both", length=0)
    return image


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _count(number: int) -> str:
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{letter}"
    return f"{number:,}"

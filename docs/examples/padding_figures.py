"""
Tables and figures of padded posts
==================================

What :doc:`plot_padding` and ``newsgroups.py`` show of a result.
"""

import math

ASKED = {  # validation accuracy after an epoch, as the question gives it
    "trained": {1: 0.0534, 2: 0.0527, 3: 0.0579, 4: 0.0874, 5: 0.2796, 13: 0.8736},
    "zero": {1: 0.7754, 2: 0.8797, 10: 0.8944},
}
MEAN_SIZE = 0.025  # of numbers drawn uniformly from -0.05 to 0.05, as all rows of the table are
LABELS = {"trained": "row trained", "zero": "padding_idx=0", "fixed": "row random, not trained"}
COLOURS = {"trained": "tab:orange", "zero": "tab:blue", "fixed": "tab:green"}
MEASURED = {  # measurement -> what it is, how it is written
    "padding_share": ("share of the positions that are padding", ".3f"),
    "gradient_share": ("padding row: share of the squared norm of the gradient", ".3f"),
    "gradient_ratio": ("padding row: norm of its gradient / median word's", ",.0f"),
    "moved_padding": ("padding row: how far the step moves it", ".4f"),
    "moved_word": ("median word of the batch: how far", ".4f"),
    "alike": ("mean cosine of the inputs of two posts", ".3f"),
    "shift_padding": ("hidden unit: shift of all posts by padding", ".3f"),
    "shift_padding_row": ("hidden unit: of that, what moving the row does", ".3f"),
    "shift_words": ("hidden unit: shift of all posts by words", ".3f"),
    "spread_words": ("hidden unit: what words tell posts apart by", ".3f"),
    "spread_padding": ("hidden unit: what padding tells posts apart by", ".3f"),
    "dead": ("hidden units that are off for the whole batch", ".2f"),
}


def first_runs(result):
    """Return the runs of the first seed, by way."""
    seed = result["runs"][0]["seed"]
    return {run["way"]: run for run in result["runs"] if run["seed"] == seed}


def lay_out(rows):
    """Return rows of cells as text in columns, a line below the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def accuracies(result):
    """Return a table, as text, of validation accuracies beside those of the question."""
    runs = first_runs(result)
    columns = [(way, asked) for way in runs for asked in ([ASKED[way], None] if way in ASKED else [None])]
    here = {way: {i: each["held_accuracy"] for i, each in enumerate(run["epochs"], 1)} for way, run in runs.items()}
    found = [(f"{way}, {'asker' if asked else 'here'}", asked or here[way]) for way, asked in columns]
    rows = [["after epoch", *(name for name, _ in found)]]
    for epoch in range(1, 6):
        rows.append([str(epoch), *(f"{curve[epoch]:.4f}" if epoch in curve else "" for _, curve in found)])
    rows.append(["the last", *(f"{curve[max(curve)]:.4f}" for _, curve in found)])
    rows.append(["  which is", *(str(max(curve)) for _, curve in found)])
    return lay_out(rows)


def seeds(result):
    """Return a table, as text, of validation accuracies after the first two epochs for each seed."""
    found = {(run["way"], run["seed"]): run["epochs"] for run in result["runs"]}
    rows = [["", *(f"{way}, epoch {epoch}" for way in ASKED for epoch in (1, 2))]]
    for seed in sorted({seed for _, seed in found}):
        epochs = [found[way, seed][i : i + 1] for way in ASKED for i in (0, 1)]
        rows.append([f"seed {seed}", *(f"{each[0]['held_accuracy']:.4f}" if each else "" for each in epochs)])
    return lay_out(rows)


def first_steps(result, steps=(1, 5, 31)):
    """Return a table, as text, of what was measured at some of the first steps."""
    runs = {way: run for way, run in first_runs(result).items() if way in ASKED}
    found = {(way, each["step"]): each for way, run in runs.items() for each in run["measured"]}
    columns = [(way, step) for way in runs for step in steps if (way, step) in found]
    rows = [["step", *(f"{way}, {step}" for way, step in columns)]]
    for name, (label, how) in MEASURED.items():
        cells = [found[column][name] for column in columns]
        rows.append([label, *("none" if cell is None else f"{cell:{how}}" for cell in cells)])
    return lay_out(rows)


def in_words(result):
    """Return the first step of the run with a trained padding row, told in its numbers."""
    size, runs = result["settings"], first_runs(result)
    first = runs["trained"]["measured"][0]
    positions = first["padding_share"] * size["length"]
    shift, by_row = first["shift_padding"], first["shift_padding_row"]
    in_step = positions * size["dim"] * size["lr"] * MEAN_SIZE
    off = next((each["step"] for each in runs["trained"]["measured"] if each["dead"] > 0.9), None)
    text = f"""\
The first step, {result["data"]}, {size["length"]:,} positions, {size["dim"]} numbers a word:
- Padding stands in {first["padding_share"]:.1%} of the positions, {positions:,.0f} of a post's on average.
- Its row gets {first["gradient_share"]:.1%} of the squared norm of the table's gradient, and a summed
  gradient {first["gradient_ratio"]:,.0f} times as long as the median word's.
- But Adam moves the row by {first["moved_padding"]:.4f}, and the median word of the batch by {first["moved_word"]:.4f}.
- A hidden unit moves by {shift:.3f} in all posts alike.  The row's movement alone would shift it by {by_row:.3f}.
  If each weight below the padding moved by the learning rate, all in step, it would be
  {positions:,.0f} positions x {size["dim"]} numbers x {size["lr"]} x {MEAN_SIZE} (mean size) = {in_step:.3f}.
- What words tell posts apart by is {first["spread_words"]:.3f}."""
    return f"{text}\nAt step {off} more than nine of ten hidden units are off for a whole batch." if off else text


def turning_point(result, way="trained"):
    """Return the step from which on words tell posts apart by more than padding does, and what was measured then."""
    measured = first_runs(result)[way]["measured"]
    behind = [i for i, each in enumerate(measured) if each["spread_words"] <= each["spread_padding"]]
    later = measured[behind[-1] + 1 :] if behind else measured
    return (later[0]["step"], later[0]) if later else (None, None)


def recovery(result):
    """Return how the run with a trained padding row comes to learn, told in its numbers."""
    run, settings = first_runs(result)["trained"], result["settings"]
    steps, (turn, then) = -(-result["posts"] // settings["batch"]), turning_point(result)
    if turn is None:
        return "Padding tells posts apart by more than words do to the end."
    epochs = [each["held_accuracy"] for each in run["epochs"]]
    at, last = (turn - 1) // steps, run["measured"][-1]
    odds = ", ".join(f"{each:.3f}" for each in epochs[at : at + 3])
    return f"""\
The norm of the padding's row: {run["measured"][0]["size_padding"]:.3f} after the first step, \
{then["size_padding"]:.3f} at step {turn}, {last["size_padding"]:.3f} at the end.
From step {turn} on words tell posts apart by more than padding does: {then["spread_words"]:.2f} against \
{then["spread_padding"]:.2f}.
That is in epoch {at + 1}.  Validation accuracy from its end on: {odds}."""


def draw_curves(result, left, right, asked):
    """Plot validation accuracy, with the asker's if `asked`, and validation loss against epochs."""
    for way, run in first_runs(result).items():
        epochs = range(1, len(run["epochs"]) + 1)
        look = {"color": COLOURS[way], "label": LABELS[way], "marker": "."}
        left.plot(epochs, [each["held_accuracy"] for each in run["epochs"]], **look)
        right.plot(epochs, [each["held_loss"] for each in run["epochs"]], **look)
    for way, points in ASKED.items() if asked else ():
        left.plot(
            *zip(*points.items(), strict=True), "x", color=COLOURS[way], ms=8, label=f"{LABELS[way]}, the asker's"
        )
    left.set(title=f"Validation accuracy ({result['data']})", xlabel="epoch", ylim=(0, 1))
    right.set(title=f"Validation loss ({result['data']})", xlabel="epoch", ylim=(0, None))


def series(run, name):
    """Return steps and values of one measurement, with gaps where it is not defined."""
    values = [each[name] for each in run["measured"]]
    return [each["step"] for each in run["measured"]], [math.nan if value is None else value for value in values]


def draw_causes(result, gradient, movement, hidden, dead):
    """Plot the gradient and the movement of the padding row, and what they do to the hidden layer."""
    runs = first_runs(result)
    last = max(each["step"] for run in runs.values() for each in run["measured"])
    for way in ("trained", "zero"):
        look, label = {"color": COLOURS[way], "lw": 1.2}, LABELS[way]
        gradient.plot(*series(runs[way], "gradient_share"), **look, label=f"of the gradient, {label}")
        dead.plot(*series(runs[way], "dead"), **look, label=label)
    gradient.plot(*series(runs["trained"], "padding_share"), color="grey", lw=1.2, ls=":", label="of the positions")
    trained = runs["trained"]
    movement.plot(*series(trained, "moved_padding"), color=COLOURS["trained"], label="padding row")
    movement.plot(*series(trained, "moved_word"), color="black", ls="--", label="median word of the batch")
    movement.plot(*series(trained, "size_padding"), color=COLOURS["trained"], ls=":", label="padding row: its length")
    hidden.plot(
        *series(trained, "shift_padding"), color=COLOURS["trained"], label="shift of all posts by padding, a step"
    )
    hidden.plot(*series(trained, "spread_padding"), color=COLOURS["trained"], ls=":", label="spread by padding")
    hidden.plot(*series(trained, "spread_words"), color="black", ls="--", label="spread of posts by words")
    hidden.plot(*series(runs["zero"], "spread_words"), color=COLOURS["zero"], label="the same, padding_idx=0")
    gradient.set(title="Share that is padding's", ylim=(0, 1.05))
    movement.set(title="How far a step moves a row (row trained)", yscale="log")
    hidden.set(title="Inside a hidden unit (row trained)", yscale="log", ylim=(1e-3, None))
    dead.set(title="Hidden units off for the whole batch", ylim=(-0.05, 1.05))
    for axes in (gradient, movement, hidden, dead):
        axes.set(xlabel="step", xscale="log", xlim=(1, last))


def finish(figure):
    """Add legends and grids."""
    for axes in figure.axes:
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    return figure


def curves(result, asked=True):
    """Return a figure of the learning curves."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    draw_curves(result, *axes, asked)
    return finish(figure)


def causes(result):
    """Return a figure of what was measured."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    draw_causes(result, *axes.flat)
    return finish(figure)


def everything(result, asked=True):
    """Return both in one figure."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(16, 8), layout="constrained")
    draw_curves(result, *axes[:, 0], asked)
    draw_causes(result, *axes[:, 1:].flat)
    return finish(figure)

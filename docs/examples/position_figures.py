"""
Tables and figures of memory networks
=====================================

What :doc:`plot_positions` and its programs show of a result.
"""

import math

COLOURS = {"the paper's": "black", "the paper's, by Adam": "tab:cyan", "the question's": "deeppink"}
PAPER = {2: 121, 3: 122}  # hops -> test perplexity in the paper's table 2, 150 numbers a word, 100 words of memory


def number(value):
    """Return a number, not a number for None: what a network gives whose rectified scores are all zero."""
    return math.nan if value is None else value


def line(run):
    """Return the end of a run in a line."""
    where = "with positions" if run["positions"] else "without"
    return (
        f"{run['kind'] + ', ' + run['error']:55} {where:14} learnt from {number(run['train'][-1]):7.1f}  "
        f"held out {number(run['held'][-1]):7.1f}  likeliest {run['accuracy']:.1%}"
    )


def find(result, kind, error, positions):
    """Return one run."""
    return next(r for r in result["runs"] if (r["kind"], r["error"], r["positions"]) == (kind, error, positions))


def table(result):
    """Return the perplexities after the last epoch as text: learnt from and held out, with positions and without."""
    lines = [f"{'':58} learnt from         held out", f"{'perplexity':58} {'with  without':>13}  {'with  without':>15}"]
    for kind in dict.fromkeys(run["kind"] for run in result["runs"]):
        lines.append(f"{kind}:")
        for name in dict.fromkeys(run["error"] for run in result["runs"] if run["kind"] == kind):
            runs = [find(result, kind, name, positions) for positions in (True, False)]
            learnt, held = ([f"{number(run[what][-1]):.0f}" for run in runs] for what in ("train", "held"))
            lines.append(f"  {name:54} {learnt[0]:>6}  {learnt[1]:>7} {held[0]:>8}  {held[1]:>7}")
    return "\n".join(lines)


def curves(result, what="train"):
    """Return a figure of learning curves: errors put in on the left, errors mended on the right."""
    import matplotlib.pyplot as plt

    kinds = {run["kind"] for run in result["runs"]}
    sides = [kind for kind in ("one error", "one mended") if kind in kinds]
    size = {"figsize": (6.2 * len(sides) + 0.4, 5.4), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(sides), sharey=True, squeeze=False, **size)
    names = list(dict.fromkeys(run["error"] for run in result["runs"] if run["kind"] not in COLOURS))
    for axis, side in zip(axes[0], sides, strict=True):
        for run in result["runs"]:
            if run["kind"] in (side, *COLOURS):
                colour = COLOURS.get(run["kind"]) or f"C{names.index(run['error'])}"
                label = run["error"] if run["kind"] == side else run["kind"]
                style = {"color": colour, "ls": "-" if run["positions"] else ":", "lw": 1.4}
                axis.plot(
                    range(1, len(run[what]) + 1),
                    [*map(number, run[what])],
                    label=label if run["positions"] else None,
                    **style,
                )
        axis.set(title={"one error": "The paper's, with one error", "one mended": "The question's, one mended"}[side])
        axis.set(xlabel="epoch", yscale="log")
        axis.axhline(result["by_frequency"], color="0.6", ls="--", lw=1, label="by frequency alone", zorder=0)
        axis.grid(alpha=0.3, which="both")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    axes[0, 0].set(ylabel="perplexity " + {"train": "of the words learnt from", "held": "of words held out"}[what])
    figure.suptitle(f"{result['data']}, {result['tokens']:,} words: with positions (solid), without (dotted)")
    return figure


def progress(result, most=12):
    """Return the perplexities after some epochs of a long training as text, and the test perplexity that counts."""
    epochs = result["epochs"]
    shown = sorted({round(i) for i in [*range(len(epochs))][:: -(-len(epochs) // most)]} | {len(epochs) - 1})
    lines = ["epoch      rate  learnt from  validation     test"]
    for i in shown:
        each = epochs[i]
        test = f"{each['test']:9.1f}" if "test" in each else ""
        lines.append(f"{each['epoch']:5}  {each['lr']:8.2g}  {each['train']:11.1f}  {each['valid']:10.1f}{test}")
    best, minutes = min(epochs, key=lambda each: each["valid"]), sum(each["cpu_seconds"] for each in epochs) / 60
    lines.append(
        f"Lowest on the validation text after epoch {best['epoch']}: {best['valid']:.1f}, "
        f"and {best['test']:.1f} on the test text.  {minutes:.0f} minutes of processor time."
    )
    return "\n".join(lines)


def progress_curve(result):
    """Return a figure of a long training, beside what the paper reports."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    epochs = result["epochs"]
    for name, colour, label in (
        ("train", "0.6", "words learnt from, with dropout"),
        ("valid", "tab:blue", "validation text"),
        ("test", "tab:orange", "test text, where validation is lowest so far"),
    ):
        points = [(each["epoch"], each[name]) for each in epochs if name in each]
        axis.plot(*zip(*points, strict=True), ".-", color=colour, label=label)
    paper = PAPER.get(result["settings"]["hops"])
    if paper:
        axis.axhline(paper, color="black", ls=":", label=f"the paper, test text: {paper}")
    axis.set(xlabel="epoch", ylabel="perplexity", yscale="log", title=f"{result['data']}, all of it")
    ticks = [100, 120, 150, 200, 300, 500, 1000]
    axis.set_yticks(ticks, ticks)
    axis.minorticks_off()
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    axis.grid(alpha=0.3)
    return figure

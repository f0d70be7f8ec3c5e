"""Tables of pages: of performance, from the README's measured block and docs/results, and of the optimizers.

No number and no name is typed.
"""

import json
from pathlib import Path

import sparsembed as se

ROOT = Path(__file__).parent.parent.parent
START, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
PEERS = {  # title -> how the names of its lines begin
    "torch": "torch",
    "FBGEMM": "FBGEMM",
    "NumPy and SciPy": ("numpy", "scipy"),
    "JAX and Optax": ("jax", "optax"),
}
COLUMNS = ("work", "ids", "ratio", "ours (ms)", "peer (ms)", "peer")  # what counts first: phones scroll
TIMES, NBSP = "\N{MULTIPLICATION SIGN}", "\N{NO-BREAK SPACE}"


def measured():
    """Return the lines of the README's block as dicts, and the notes below the table."""
    text = (ROOT / "README.md").read_text().partition(START)[2].partition(END)[0]
    lines = text.strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header, _, *rows = cells
    return [dict(zip(header, row, strict=True)) for row in rows], [line for line in lines if line and line[0] != "|"]


def ratio(line):
    """The ratio of a line as a number, or None where it is a share."""
    return float(line["ratio"].rstrip(TIMES)) if line["ratio"].endswith(TIMES) else None


def markdown(header, rows):
    """A Markdown table, with columns of numbers set right."""
    numbers = ("(ms)", "ratio", "share of limit", "steps/s")
    right = ["--:" if any(each in name for each in numbers) else "---" for name in header]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, right, *rows))


def result(name):
    """What a program left in docs/results."""
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())


def measured_on(result):
    """Where and when something was measured, in a few words."""
    machine = result["machine"]
    where = f"{machine['processor']}, {machine['threads']} threads, {machine['date']}"
    rows = result.get("rows", [])
    disturbed = len(result.get("disturbed", [])) + sum(not row.get("undisturbed", True) for row in rows)
    return where + (f"; something else had the cores during {disturbed} of the times" if disturbed else "")


def chosen(columns, lines):
    """A table of some columns of the README's lines."""
    return markdown(columns, [[line[name] for name in columns] for line in lines])


def _against(title, lines):
    faster = sum(ratio(line) > 1 for line in lines)
    count = "All" if faster == len(lines) else f"{faster} of"
    said = f"{count} {len(lines)} lines are faster here."
    return f"### Against {title}\n\n{said}\n\n" + chosen(COLUMNS, lines)


def against_peers():
    """One table for each peer, and one against ourselves and the memory."""
    lines, notes = measured()
    parts, left = [], list(lines)
    for title, beginning in PEERS.items():
        if mine := [line for line in lines if line["peer"].startswith(beginning)]:
            parts.append(_against(title, mine))
            left = [line for line in left if line not in mine]
    if left:
        said = "Here a small ratio is good, and a large share."
        parts.append(f"### Against itself, and the speed of memory\n\n{said}\n\n{chosen(COLUMNS, left)}")
    return "\n\n".join([*parts, *notes]) + "\n"


def targets():
    """What was set as a target, and whether it is met."""
    lines = [line for line in measured()[0] if line["target met?"]]
    met = sum(line["target met?"].startswith("yes") for line in lines)
    kept = ("work", "ids", "ratio", "target met?", "peer", "share of limit")
    for line in lines:  # a bound stays on one line: "no: at least 8x" breaks after the colon
        first, _, bound = line["target met?"].partition(" ")
        line["target met?"] = f"{first} {bound.replace(' ', NBSP).replace(f'{NBSP}(', ' (')}"
    return f"{met} of {len(lines)} targets are met.\n\n{chosen(kept, lines)}\n"


def by_rows():
    """How the time of a step depends on the rows of the table."""
    scaling = result("scaling")
    series = scaling["axes"]["rows"]["lookup + update"]
    rows = [number for number, _ in series["sparsembed, SparseAdam"]]
    body = [[name, *(f"{time:.1f}" for _, time in points)] for name, points in series.items()]
    note = f"Milliseconds; {scaling['size']['lookups']:,} uniform ids, {measured_on(scaling)}."
    return markdown(["rows of the table", *(f"{number:,} (ms)" for number in rows)], body) + f"\n\n{note}\n"


def whole_model():
    """A recommender with torch's tables and with ours."""
    dlrm = result("dlrm")
    body = []
    for line in dlrm["rows"]:
        low, ratio, high = line["ratio"]
        steps = [f"{1e3 / line[name][1]:.0f}" for name in ("ours_ms", "peer_ms")]
        spread = f"{low:.2f} to {high:.2f}".replace(" ", NBSP)
        body.append([f"`EmbeddingBag`, {line['kind']}", line["ids"], f"{ratio:.2f}{TIMES} ({spread})", *steps])
    note = f"Medians and quartiles; {measured_on(dlrm)}."
    return markdown(["ours", "ids", "ratio", "steps/s", "torch's steps/s"], body) + f"\n\n{note}\n"


def _without_a_gradient(rule):
    """What a row does in a step whose batch does not have it."""
    if rule.catch_up is not None:
        return "moves on, as in the dense optimizer"
    forms = [form for form in rule.__subclasses__() if form.__name__ not in se.rules.__all__]
    others = any(form.catch_up is not None for form in forms)
    return "stays; in its other forms moves on, as in the dense optimizer" if others else "stays"


def optimizers():
    """A line of a table for each optimizer, and its documentation: nobody lists them by hand."""
    names = [name for name in se.rules.__all__ if name != "Rule"]
    body = []
    for rule in (getattr(se, name) for name in names):
        says = " ".join(rule.__doc__.partition("\n\n")[0].split()).replace("``", "`")
        slots = [f"`{name}`" for name in rule.slots] + [f"`{name}`, one number a row" for name in rule.row_slots]
        body.append([f"{{py:class}}`~sparsembed.{rule.__name__}`", says, _without_a_gradient(rule), "; ".join(slots)])
    table = markdown(["optimizer", "is", "a row without a gradient", "state"], body)
    classes = "\n".join(f".. autoclass:: {name}" for name in names)
    return f"{table}\n\n```{{eval-rst}}\n.. currentmodule:: sparsembed\n\n{classes}\n```\n"


def write_all(folder):
    """Write what the pages on performance and optimizers include."""
    for function in (against_peers, targets, by_rows, whole_model, optimizers):
        (folder / f"{function.__name__}.md").write_text(function())

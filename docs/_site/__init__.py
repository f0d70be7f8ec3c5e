"""A Sphinx extension: makes the pictures and tables of the pages in docs/_generated before they are read."""

from pathlib import Path

from . import pictures, tables

WAITING = """<!doctype html>
<title>sparsembed: benchmarks</title>
<meta name="viewport" content="width=device-width">
<p>The dashboard has not been made yet: <code>python -m benchmarks.dashboard</code> makes it, in this place.
<p><a href="../performance.html">Performance</a>
"""


def make(app):
    """Write what pages include."""
    folder = Path(app.srcdir, "_generated")
    folder.mkdir(exist_ok=True)
    pictures.draw_all(folder)
    tables.write_all(folder)


def keep_a_place(app, error):
    """Let links to the dashboard, which another command makes, lead somewhere; never replace it."""
    page = Path(app.outdir, "benchmarks", "index.html")
    if error is None and app.builder.format == "html" and not page.exists():
        page.parent.mkdir(exist_ok=True)
        page.write_text(WAITING)


def setup(app):
    app.connect("builder-inited", make)
    app.connect("build-finished", keep_a_place)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""A Sphinx extension: makes the pictures and tables of the pages in docs/_generated before they are read."""

import struct
from pathlib import Path

from docutils import nodes
from sphinx_gallery.directives import imgsgnode

from . import pictures, tables

WIDE = 800  # pixels of a PNG that would have letters of less than half their size on a phone
WAITING = """<!doctype html>
<title>sparsembed: benchmarks</title>
<meta name="viewport" content="width=device-width">
<p>The dashboard has not been made yet: <code>python -m benchmarks.dashboard --commits 0</code> makes it, in this place,
of the history that the repository holds; without <code>--commits 0</code> it measures the last commits first.
<p><a href="../performance.html">Performance</a>
"""


def make(app):
    """Write what pages include."""
    folder = Path(app.srcdir, "_generated")
    folder.mkdir(exist_ok=True)
    pictures.draw_all(folder)
    tables.write_all(folder)


def mark_wide_figures(app, doctree):
    """Put figures of several panels into what can scroll by itself."""
    for node in [*doctree.findall(nodes.image), *doctree.findall(imgsgnode)]:
        file = Path(app.srcdir, node["uri"].lstrip("/"))
        if file.suffix != ".png" or struct.unpack(">I", file.read_bytes()[16:20])[0] < WIDE:
            continue
        if isinstance(node.parent, nodes.paragraph):
            node.parent["classes"].append("wide-figure")
        else:
            node.replace_self(nodes.container("", node.deepcopy(), classes=["wide-figure"]))


def keep_a_place(app, error):
    """Let links to the dashboard, which another command makes, lead somewhere; never replace it."""
    page = Path(app.outdir, "benchmarks", "index.html")
    if error is None and app.builder.format == "html" and not page.exists():
        page.parent.mkdir(exist_ok=True)
        page.write_text(WAITING)


def setup(app):
    app.connect("builder-inited", make)
    app.connect("doctree-read", mark_wide_figures)
    app.connect("build-finished", keep_a_place)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

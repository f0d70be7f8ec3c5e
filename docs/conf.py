"""Settings of the site: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``.

Nothing is fetched while it is built, and its pages load nothing from elsewhere.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import sparsembed

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "sparsembed"
author = "The sparsembed developers"
copyright = "the sparsembed developers"  # noqa: A001 (Sphinx reads this name)
version = release = sparsembed.__version__

extensions = [
    "sphinx.ext.autodoc",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "_site",  # pictures and tables that are computed
]
exclude_patterns = ["_build", "_generated", "_site", "examples", "results"]
WITH_TORCH = find_spec("torch") is not None
if not WITH_TORCH:
    exclude_patterns.append("api/torch.md")  # api/index.md lists it by a pattern
PROGRAMS = {  # whose pages questions.md links
    page.stem: page for page in HERE.glob("examples/plot_*.py") if WITH_TORCH or "import torch" not in page.read_text()
}

myst_heading_anchors = 3
myst_enable_extensions = ["substitution"]
myst_substitutions = {  # links to the answers of questions.md, for those that are there
    name: f"{{doc}}`Run and plotted <gallery/plot_{name}>`."
    if f"plot_{name}" in PROGRAMS
    else "(Its program needs torch, without which this site was built.)"
    for name in ("batch_gradients", "padding", "positions", "inside_embedding")
}
default_role = "py:obj"
autodoc_typehints = "none"  # the docstrings say what is accepted, annotations often only Any
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"

numpydoc_show_class_members = False  # autodoc writes them out
# All checks of numpydoc hold for every public name, but these:
numpydoc_validation_checks = {
    "all",
    "ES01",  # a summary that says it all needs no further sentence
    "EX01",  # tests/core/test_structure.py demands examples, and knows who shares one with its class
    "PR07",  # parameters and results whose type says it all
    "RT03",
    "PR06",  # ids are integers of several dtypes, not Python's int
    "PR08",  # descriptions begin with names of dtypes and arguments, which have no capitals
    "SA03",  # what stands beside a name goes on from it
    "SA04",  # a name that says it all
    "SA01",  # a page holds what belongs together, so there is little to see elsewhere
}
numpydoc_validation_exclude = {
    r"\.reference\.",  # parameters are those of the functions of the same names
    r"\.blocks$",  # it yields
    r"\.Plan$",  # made by `plan`
    r"\.torch\.",  # parameters are torch's, and keep its names and order
    r"\.RowGradient\.(norm|is_finite)$",  # the summary says what is returned
}

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "ignore_pattern": rf"^(?!(?:.*/)?(?:{'|'.join(PROGRAMS)})\.py$)",  # programs for the command line
    "only_warn_on_example_error": False,
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
}

toc_object_entries_show_parents = "hide"
add_module_names = False  # long on a phone; each page says where its names are
html_theme = "pydata_sphinx_theme"
html_title = "sparsembed"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"comparison": [], "changes": []}  # have no pages below them
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_nav_level": 2,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}

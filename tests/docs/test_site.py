"""The site's sources: settings load, every page is reached, every public name is in the API reference."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import sparsembed as se

pytest.importorskip("sphinx")
DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path.relative_to(DOCS).with_suffix("").as_posix() for path in [*DOCS.glob("*.md"), *DOCS.glob("api/*.md")]}
MODULES = {"initializers", "reference", "rules", "testing"}


@pytest.fixture
def conf(monkeypatch):
    """The settings, as Sphinx loads them."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(conf):
    """The extension that computes pictures and tables."""
    pytest.importorskip("matplotlib")
    return importlib.import_module("_site")


def listed(page):
    """The pages that a page's toctrees list, patterns resolved as Sphinx does."""
    text = (DOCS / f"{page}.md").read_text()
    folder = Path(page).parent
    for block in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
        for entry in (line.strip() for line in block.splitlines()):
            if entry and not entry.startswith(":"):
                yield from sorted(
                    path.relative_to(DOCS).with_suffix("").as_posix() for path in (DOCS / folder).glob(f"{entry}.md")
                ) or [(folder / entry).as_posix()]


def test_every_page_is_in_a_toctree():
    reached = ["index"]
    for page in reached:
        if page in PAGES:
            reached += [each for each in listed(page) if each not in reached]
    assert set(reached) >= PAGES
    assert {each for each in reached if each not in PAGES} == {"gallery/index"}  # made from docs/examples


def test_settings_are_those_of_a_site_without_a_network(conf):
    assert "sphinx.ext.intersphinx" not in conf.extensions
    assert conf.release == se.__version__
    assert set(conf.exclude_patterns) >= {"_build", "_generated", "examples"}
    assert ("api/torch.md" in conf.exclude_patterns) == (importlib.util.find_spec("torch") is None)


def test_the_gallery_takes_plots_and_leaves_programs(conf):
    taken = {
        path.name
        for path in (DOCS / "examples").glob("*.py")
        if not re.search(conf.sphinx_gallery_conf["ignore_pattern"], path.name)
    }
    plots = {path.name: path.read_text() for path in (DOCS / "examples").glob("plot_*.py")}
    without_torch = importlib.util.find_spec("torch") is None
    assert taken == {name for name, text in plots.items() if not (without_torch and "import torch" in text)}
    assert "plot_backend.py" in taken


def documented():
    """Names that the reference renders, with their modules."""
    names = {f"sparsembed.{name}" for name in se.rules.__all__ if name != "Rule"}  # `tables.optimizers` lists them
    for path in DOCS.glob("api/*.md"):
        module = "sparsembed"
        for kind, argument in re.findall(r"^\.\. (\w+):: ([\w.]+)", path.read_text(), re.MULTILINE):
            if kind in ("currentmodule", "module", "automodule"):
                module = argument
                names.add(argument)
            else:
                names.add(f"{module}.{argument}")
        for members in re.findall(r"automodule:: ([\w.]+)\n   :members: (.+)", path.read_text()):
            names |= {f"{members[0]}.{name}" for name in members[1].split(", ")}
    return names


def test_every_public_name_is_in_the_reference():
    names = documented()
    assert {f"sparsembed.{name}" for name in se.__all__} <= names
    assert set(se.rules.__all__) <= {name.split(".")[-1] for name in names}
    for module in ("initializers", "testing"):
        public = {
            name
            for name, value in vars(getattr(se, module)).items()
            if getattr(value, "__module__", "") == f"sparsembed.{module}" and name[0] != "_"
        }
        assert {f"sparsembed.{module}.{name}" for name in public} <= names


def test_every_name_of_the_torch_modules_is_in_the_reference():
    pytest.importorskip("torch")
    import sparsembed.torch

    assert {f"sparsembed.torch.{name}" for name in sparsembed.torch.__all__} <= documented()


def test_every_name_for_gpus_is_in_the_reference():
    import sparsembed.cuda

    assert {f"sparsembed.cuda.{name}" for name in sparsembed.cuda.__all__} <= documented()


def test_the_table_of_the_readme_is_on_the_performance_page(site):
    lines, notes = site.tables.measured()
    page = site.tables.against_peers()
    assert len(lines) > 20
    assert page.count("\n| ") == len(lines) + 2 * page.count("### ")
    assert notes[0] in page
    whole = site.tables.whole_model()
    assert whole.count("\n| ") == 1 + len(site.tables.result("dlrm")["rows"])
    faster = [line for line in lines if line["peer"].startswith("torch") and float(line["ratio"][:-1]) > 1]
    assert f"{len(faster)} of" in page
    for said in re.findall(
        r"`_generated/(\w+)\.md`|include\} _generated/(\w+)\.md", (DOCS / "performance.md").read_text()
    ):
        assert callable(getattr(site.tables, said[0] or said[1]))


def test_every_optimizer_is_on_the_page_of_optimizers(site):
    text = site.tables.optimizers()
    for name in se.rules.__all__:
        for line in (f"| {{py:class}}`~sparsembed.{name}` |", f".. autoclass:: {name}\n"):
            assert (line in text) == (name != "Rule"), line
    assert "{include} ../_generated/optimizers.md" in (DOCS / "api" / "optimizers.md").read_text()


def test_pictures_of_pages_are_drawn(site, tmp_path):
    site.pictures.draw_all(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    used = {name for page in PAGES for name in re.findall(r"_generated/(\w+\.svg)", (DOCS / f"{page}.md").read_text())}
    assert drawn == used
    assert "1" in (tmp_path / "plan.svg").read_text()


def test_figures_of_several_panels_scroll_by_themselves(site, tmp_path):
    from docutils import nodes

    for name, width in (("wide", 1250), ("narrow", 700)):
        header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + (400).to_bytes(4, "big")
        (tmp_path / f"{name}.png").write_bytes(header)

    class App:
        srcdir = tmp_path

    of_markdown = {name: nodes.paragraph("", "", nodes.image(uri=f"{name}.png")) for name in ("wide", "narrow")}
    of_gallery = {name: nodes.section("", site.imgsgnode(uri=f"/{name}.png")) for name in ("wide", "narrow")}
    site.mark_wide_figures(App, nodes.section("", *of_markdown.values(), *of_gallery.values()))
    assert of_markdown["wide"]["classes"] == of_gallery["wide"][0]["classes"] == ["wide-figure"]
    assert of_gallery["wide"][0][0]["uri"] == "/wide.png"
    assert of_markdown["narrow"]["classes"] == []
    assert isinstance(of_gallery["narrow"][0], site.imgsgnode)


def test_links_to_the_dashboard_lead_somewhere_and_never_replace_it(site, tmp_path):
    class App:
        outdir = tmp_path

        class builder:  # noqa: N801
            format = "html"

    site.keep_a_place(App, None)
    page = tmp_path / "benchmarks" / "index.html"
    assert "benchmarks.dashboard" in page.read_text()
    page.write_text("the dashboard")
    site.keep_a_place(App, None)
    assert page.read_text() == "the dashboard"

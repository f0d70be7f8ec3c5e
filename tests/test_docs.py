"""The code blocks of README and docs run as they stand."""

import re
from pathlib import Path

import numba
import pytest

ROOT = Path(__file__).parent.parent


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_readme_example_runs_and_does_what_its_comments_say():
    (code,) = blocks("README.md")
    scope = {}
    exec(code, scope)
    table = scope["table"]
    assert scope["vectors"].shape == (2, 3, 64)
    assert scope["pooled"].shape == (2, 64)
    assert table.step == 2
    assert (table.weight[0] == 0).all()


def test_rule_page_runs():
    (code,) = blocks("docs/write-a-rule.md")
    # The rule needs a module of its own for the disk cache to find its source.
    exec(compile(code, "write_a_rule.py", "exec"), {"__name__": "write_a_rule"})


def test_torch_page_runs():
    pytest.importorskip("torch")
    scope = {}
    for code in blocks("docs/torch.md"):
        exec(code, scope)
    assert scope["bag"].table.step == 1
    assert scope["model"][0].table.step == 3


@pytest.mark.parametrize("page", ["docs/index.md", "docs/concepts.md", "docs/backend.md"])
def test_pages_run_and_print_what_they_say(page, capsys):
    threads, code = numba.get_num_threads(), "\n".join(blocks(page))
    try:
        exec(code, {})
    finally:
        numba.set_num_threads(threads)
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")))
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    for name in re.findall(r"`((?:sparsembed|docs|tests|benchmarks)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        if not target.startswith(("https://", "_build/", "_generated/")):  # what is built is not there yet
            assert ((ROOT / page).parent / target).exists(), target


def test_readme_has_the_commands_that_ci_runs():
    text = (ROOT / "README.md").read_text()
    for marker in ("example command", "test command"):
        (command,) = re.findall(rf"<!-- {marker} -->\n```sh\n(.*?)\n```\n<!-- /{marker} -->", text, re.DOTALL)
        assert command.count("\n") == 0
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")

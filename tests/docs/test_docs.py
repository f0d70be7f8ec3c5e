"""The code blocks of README and docs run as they stand; docstrings are complete, and numbers those of results."""

import inspect
import json
import re
from pathlib import Path

import numba
import pytest

import sparsembed as se

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("page", ["write-a-rule", "write-a-loss"])
def test_pages_of_what_users_write_run(page, capsys):
    (code,) = blocks(f"docs/{page}.md")
    # The class needs a module of its own for the disk cache to find its source.
    name = page.replace("-", "_")
    exec(compile(code, f"{name}.py", "exec"), {"__name__": name})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)


def test_torch_page_runs():
    pytest.importorskip("torch")
    scope = {}
    for code in blocks("docs/torch.md"):
        exec(code, scope)
    assert scope["bag"].table.step == scope["again"].table.step == scope["table"].step == 1
    assert scope["model"][0].table.step == 3


@pytest.mark.parametrize(
    "page",
    [
        "docs/index.md",
        "docs/concepts.md",
        "docs/backend.md",
        "docs/how-do-i.md",
        "docs/saving.md",
        *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/jobs-*.md")),
    ],
)
def test_pages_run_and_print_what_they_say(page, capsys):
    if "import torch" in "\n".join(blocks(page)):
        pytest.importorskip("torch")
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


def public():
    """Every public name, with its owner (a class or a module) and what it is."""
    for name in se.__all__:
        value = getattr(se, name)
        yield name, None, value
        if inspect.isclass(value) and not issubclass(value, se.rules.Rule):
            yield from ((member, value, getattr(value, member)) for member in dir(value) if member[0] != "_")
        elif inspect.ismodule(value):
            own = {k: v for k, v in vars(value).items() if getattr(v, "__module__", "").startswith(value.__name__)}
            yield from ((k, value, v) for k, v in own.items() if k[0] != "_" and callable(v))


def of_torch():
    """The same of `sparsembed.torch`."""
    pytest.importorskip("torch")
    import sparsembed.torch as st

    for name in st.__all__:
        value = getattr(st, name)
        yield name, None, value
        if inspect.isclass(value):
            own = {k: getattr(value, k) for k, v in vars(value).items() if k[0] != "_" and k != "extra_repr"}
            yield from ((k, value, v) for k, v in own.items() if callable(v))


# Names that an example need not spell: what makes such a value, what a module is called for.
CALLED = {"Plan": "plan", "RowGradient": "coalesce", "Embedding.forward": "embedding", "EmbeddingBag.forward": "bag"}


def missing(names):
    """What the docstrings of names, or of the class or module that they belong to, do not say."""
    for name, owner, value in names:
        if inspect.ismodule(value) or inspect.ismemberdescriptor(value):
            continue  # members of a module are names of their own; attributes stand in the list of a class
        path = f"{owner.__name__.rpartition('.')[2]}.{name}" if owner else name
        own = inspect.getdoc(value) or ""
        text = own + "\n" + (inspect.getdoc(owner) or "" if owner else "")
        ran = "\n".join(re.findall(r"(?:>>>|\.\.\.) .*", text))
        if not re.search(rf"\b{CALLED.get(path, name)}\b", ran):
            yield f"{path}: no example"
        if "Parameters\n---" in own and "Raises\n---" not in text and owner is not se.reference:
            yield f"{path}: no errors"
        is_rule = inspect.isclass(value) and issubclass(value, se.rules.Rule) and name != "Rule"
        if is_rule and "References\n---" not in own:
            yield f"{path}: no source of its formula"


def gaps(names):
    """Sections of numpydoc that docstrings lack, arguments that are not listed, and errors without a cause."""
    for name, owner, value in names:
        if inspect.ismodule(value) or inspect.ismemberdescriptor(value):
            continue
        path = f"{owner.__name__.rpartition('.')[2]}.{name}" if owner else name
        text = inspect.getdoc(value) or ""
        parts = re.split(r"^(\w[\w ]+)\n-{3,}$", text, flags=re.MULTILINE)
        sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        if re.search(r"arguments that do not fit|For anything else", text):
            yield f"{path}: an error without its cause"
        is_error = inspect.isclass(value) and issubclass(value, Exception)
        if isinstance(value, property) or is_error or name == "Plan":  # which `plan` makes
            continue
        signature = inspect.signature(value)
        arguments = [each for each in signature.parameters if each != "self"]
        listed = re.findall(r"^([\w*, ]+?)(?: :|$)", sections.get("Parameters", ""), re.MULTILINE)
        known = {each.strip("* ") for line in listed for each in line.split(",")}
        yield from (f"{path}: {each} is not listed" for each in arguments if each not in known)
        if arguments and "Raises" not in sections and owner is not se.reference:  # which checks nothing, and says so
            yield f"{path}: no errors"
        gives = signature.return_annotation not in (None, "None", inspect.Signature.empty)
        if gives and not inspect.isclass(value) and not {"Returns", "Yields"} & set(sections):
            yield f"{path}: no result"
        if arguments and "Examples" not in sections:
            yield f"{path}: no example"


def test_docstrings_have_all_sections():
    assert list(gaps(public())) == []


def test_docstrings_of_the_torch_modules_have_all_sections():
    assert list(gaps(of_torch())) == []


def test_a_gap_in_a_docstring_is_found():
    def bad(first: int, second: int) -> int:
        """Add numbers.

        Parameters
        ----------
        first : int

        Raises
        ------
        TypeError
            For arguments that do not fit.
        """

    found = {each.partition(": ")[2] for each in gaps([("bad", None, bad)])}
    assert found == {"an error without its cause", "second is not listed", "no result", "no example"}


def test_every_public_name_has_an_example_and_its_errors_and_each_rule_its_source():
    assert list(missing(public())) == []


def test_every_name_of_the_torch_modules_has_an_example_and_its_errors():
    assert list(missing(of_torch())) == []


def test_every_name_for_gpus_has_an_example_and_its_errors():
    import sparsembed.cuda

    names = [(name, None, getattr(sparsembed.cuda, name)) for name in sparsembed.cuda.__all__]
    assert list(missing(names)) == []


@pytest.mark.parametrize(
    "name", ["gather", "scatter_add", "coalesce", "pool", "pool_gradient", "per_sample_weights_gradient"]
)
def test_every_operation_names_its_formula(name):
    text = inspect.getdoc(getattr(se, name))
    assert f"sparsembed.reference.{name}" in text
    assert hasattr(se.reference, name)


def test_the_numbers_on_which_adam_are_those_of_its_results():
    page, result = (ROOT / "docs/which-adam.md").read_text(), ROOT / "docs/results/which_adam.json"
    result = json.loads(result.read_text())
    rmse, deviation = result["rmse"], result["deviation"]
    lines = [f"| dense, float64 | | {min(rmse['dense']):.4f} | {rmse['dense'][-1]:.4f} |"]
    lines += [
        f"| `{name}` | {deviation[name][-1]:.1e} | {min(rmse[name]):.4f} | {rmse[name][-1]:.4f} |" for name in deviation
    ]
    assert "\n".join(lines) in page
    assert f"({result['rows']:,} rows, {result['batches']:,} steps of 256 ratings, float32)" in page.replace("\n", " ")

"""The example of word2vec's compiled loop."""

import importlib.util
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "skip_gram.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the examples are not part of an installation")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("skip_gram", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runs(output):
    """Words a second and the loss, by the number of threads."""
    found = re.findall(r"^(\d) threads: +([\d,]+) words/s, loss ([\d.]+)$", output, re.MULTILINE)
    return {int(threads): (int(speed.replace(",", "")), float(loss)) for threads, speed, loss in found}


def shown_neighbours(output):
    rows = [line.split() for line in output.splitlines() if line.startswith("  ")]
    return {row[0]: row[1:] for row in rows}


def test_quick_run_prints_speed_loss_and_neighbours(example, capsys):
    example.main(["--quick", "--epochs", "1"])
    output = capsys.readouterr().out
    assert re.match(r"[\d,]+ words, [\d,]+ of them distinct; [\d,]+ more are held out\n", output)
    found = runs(output)
    assert found.keys() == {1, 2}
    for speed, loss in found.values():
        assert speed > 0
        assert loss < 6 * np.log(2)  # of vectors of zeros: a pair and five negatives
    shown = shown_neighbours(output)
    assert {"open", "list", "error"} <= shown.keys()
    assert all(len(set(others) - {word}) == 6 for word, others in shown.items())


def test_words_that_never_meet_are_no_neighbours(example, tmp_path, capsys):
    draw, groups = random.Random(0), [[f"{name}_{letter}" for letter in "abcdefghijkl"] for name in ("fruit", "metal")]
    lines = [" ".join(draw.choices(groups[i % 2], k=12)) for i in range(4000)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    example.main(["--corpus", str(tmp_path / "corpus.txt"), "--epochs", "8"])
    shown = shown_neighbours(capsys.readouterr().out)
    assert len(shown) == 5
    assert all(other[:5] == word[:5] for word, others in shown.items() for other in others)


def test_a_step_is_one_of_gradient_descent(example, rng):
    source, target = (rng.normal(0, 0.2, (9, example.DIM)).astype(np.float32) for _ in range(2))
    rows = np.array([4, 1, 2, 1, 8, 3, 5])  # a negative that is the right word counts for nothing
    right = np.array([1, 0, 0, 0, 0])
    x, y = source[4].astype(float), target[[1, 2, 8, 3, 5]].astype(float)
    slope = 0.1 * (right - 1 / (1 + np.exp(-y @ x)))
    sigmoid = example.Model(["a"], np.array([5])).sigmoid
    scratch = np.empty(example.DIM, np.float32), np.empty(example.DIM, np.float32)
    example.learn(rows, 0.1, sigmoid, source, target, *scratch)
    np.testing.assert_allclose(source[4], x + slope @ y, atol=1e-3)
    np.testing.assert_allclose(target[[1, 2, 8, 3, 5]], y + slope[:, None] * x, atol=1e-3)


def test_the_loss_is_of_pairs_in_the_same_sentence(example):
    model = example.Model(["a", "b", "c"], np.array([7, 6, 5]))
    source, target = np.zeros((3, 2)), np.zeros((3, 2))
    source[0], target[1], target[2] = 10, 10, -10
    inside, across = np.array([0, 1, -1]), np.array([0, -1, 1, 0, -1])
    model.lots[:] = 2
    assert model.loss(inside, source, target) < 1e-6
    assert model.loss(across, source, target) == pytest.approx(6 * np.log(2))  # only the pair of 1 and 0, which is zero


@pytest.mark.parametrize("args", [["--epochs", "0", "--quick"], ["--corpus", "empty.txt"]])
def test_bad_input_is_answered_in_a_line(example, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(SystemExit, match="at least 1"):
        example.main(args)


def test_without_gensim_it_says_how_to_get_it(example, monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(SystemExit, match="pip install gensim"):
        example.main(["--quick", "--epochs", "1", "--compare"])

"""The word vectors example, run as its users run it."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import HANGS

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "word_vectors.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the examples are not part of an installation")

# A shell may have started the tests with SIGINT ignored, which a child inherits.
RUN = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); {}"
RUN += "runpy.run_path({!r}, run_name='__main__')"


def command(*args, before=""):
    code = RUN.format(before, str(SCRIPT))
    return [sys.executable, "-W", "error", "-c", code, *map(str, args)]


def run(*args, before="", env=None):
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": HANGS}
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8"} | (env or {})
    return subprocess.run(command(*args, before=before), env=environment, check=False, **options)


def read_vectors(path):
    """Return words and vectors of a file in word2vec's text format."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    count, dim = map(int, header.split())
    rows = [line.split(" ") for line in lines]
    vectors = np.array([row[1:] for row in rows], dtype=float)
    assert vectors.shape == (count, dim)
    return [row[0] for row in rows], vectors


def shown_neighbours(output):
    """Return what was printed as word -> neighbours."""
    rows = [line.split() for line in output.splitlines() if line.startswith("  ")]
    return {row[0]: row[1:] for row in rows}


def write_two_groups(path, paragraphs=3000):
    """Write paragraphs whose words are all of one group or all of the other."""
    draw = random.Random(0)
    groups = [[f"{name}_{letter}" for letter in "abcdefghijkl"] for name in ("fruit", "metal")]
    texts = (" ".join(draw.choices(groups[i % 2], k=12)) for i in range(paragraphs))
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return [word for group in groups for word in group]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What a quick run prints and writes."""
    out = tmp_path_factory.mktemp("quick")
    return run("--quick", "--seed", 3, "--dim", 32, "--out", out / "new" / "folder"), out / "new" / "folder"


def test_quick_run_writes_vectors_and_prints_neighbours(quick):
    result, out = quick
    assert result.returncode == 0, result.stderr
    words, vectors = read_vectors(out / "vectors.txt")
    assert len(words) > 500
    assert vectors.shape[1] == 32
    assert np.isfinite(vectors).all()
    assert (vectors.std(axis=1) > 0.01).all()
    shown = shown_neighbours(result.stdout)
    assert {"open", "list", "error"} <= shown.keys()
    for word, others in shown.items():
        assert len(set(others)) == 7
        assert set(others) <= set(words) - {word}
    assert "loss" in result.stderr
    assert "words/s" in result.stderr
    assert "100%" in result.stderr.splitlines()[-1]
    assert "\r" not in result.stderr


def test_quick_run_draws_the_picture(quick):
    image = pytest.importorskip("matplotlib.image")
    pixels = image.imread(quick[1] / "word_vectors.png")
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    assert pixels.std() > 0.05


def test_same_seed_same_vectors_at_any_number_of_threads(quick, tmp_path):
    # Also: without matplotlib, all but the picture is there.
    before = "import sys; sys.modules['matplotlib'] = None; "
    args = ("--quick", "--seed", 3, "--dim", 32, "--out", tmp_path)
    result = run(*args, before=before, env={"NUMBA_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert "pip install sparsembed[examples]" in result.stdout
    assert shown_neighbours(result.stdout) == shown_neighbours(quick[0].stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.txt"]
    assert (tmp_path / "vectors.txt").read_bytes() == (quick[1] / "vectors.txt").read_bytes()


def test_words_that_never_meet_are_no_neighbours(tmp_path):
    words = write_two_groups(tmp_path / "corpus.txt")
    args = ("--corpus", tmp_path / "corpus.txt", "--dim", 16, "--epochs", 3, "--out", tmp_path, "--words")
    result = run(*args, *words, "Unheard_of")
    assert result.returncode == 0, result.stderr
    shown = shown_neighbours(result.stdout)
    assert "not in the corpus" in " ".join(shown.pop("unheard_of"))
    assert sorted(shown) == sorted(words)
    assert all(other[:5] == word[:5] for word, others in shown.items() for other in others)
    assert sorted(read_vectors(tmp_path / "vectors.txt")[0]) == sorted(words)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to a process")
def test_interrupted_training_keeps_what_was_learnt(tmp_path):
    words = write_two_groups(tmp_path / "corpus.txt", paragraphs=500)
    args = ("--corpus", tmp_path / "corpus.txt", "--dim", 16, "--epochs", 10_000, "--out", tmp_path / "out")
    with subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            first = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=HANGS)
        finally:
            process.kill()
    assert "words/s" in first
    assert process.returncode == 0, errors
    assert "Stopped" in errors
    assert sorted(read_vectors(tmp_path / "out" / "vectors.txt")[0]) == sorted(words)
    assert len(shown_neighbours(output)) == 10
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "out" / "word_vectors.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--corpus", "missing.txt"), "missing.txt"),
        (("--corpus", "empty.txt"), "too small"),
        (("--corpus", "."), "irectory"),  # Windows: "Permission denied: '.'"
        (("--dim", 0), "--dim"),
        (("--epochs", "many"), "--epochs"),
        (("--out", "empty.txt"), "empty.txt"),
    ],
)
def test_bad_input_is_answered_in_a_line(tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    result = run(*args)
    assert result.returncode != 0
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def load():
    """Import the example, which runs nothing."""
    spec = importlib.util.spec_from_file_location("word_vectors", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rare_identifiers_are_read_as_their_parts():
    module = load()
    assert module.tokenise(["HTTPServer_class and file"], 99) == [["http", "server", "class", "and", "file"]]
    assert module.tokenise(["read_file " * 5 + "\n \nx __init__"], 6) == [["read_file"] * 5, ["init"]]


def test_the_slope_is_that_of_the_loss(rng):
    module = load()
    score = rng.normal(size=(3, 2 * module.WINDOW + module.FAR))
    weight = rng.random(score.shape).astype(np.float32)
    loss, slope = module.loss_and_slope(score, weight)
    near = np.arange(score.shape[1]) < 2 * module.WINDOW
    signed = np.where(near, -score, score)
    assert loss == pytest.approx((weight * np.logaddexp(0, signed)).sum(), rel=1e-6)
    for at in [(0, 0), (1, 2 * module.WINDOW - 1), (2, 2 * module.WINDOW), (0, -1)]:
        losses = []
        for step in (1e-4, -2e-4):
            score[at] += step
            losses.append(module.loss_and_slope(score, weight)[0])
        score[at] += 1e-4
        np.testing.assert_allclose(slope[at], (losses[0] - losses[1]) / 2e-4, rtol=1e-5)
    big = np.full_like(score, 500)
    assert np.isfinite(module.loss_and_slope(big, weight)[1]).all()

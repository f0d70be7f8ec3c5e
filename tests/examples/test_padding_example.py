"""The example about padding: its data, its gradients, what it holds at zero, and what its page shows."""

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import types
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from patience import HANGS

import sparsembed as se

FOLDER = Path(__file__).parents[2] / "docs" / "examples"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the examples are not part of an installation")
NAMES = ("padding_model", "padding_figures", "newsgroups")


@pytest.fixture(scope="module")
def example():
    """Import the example's modules, as its scripts do, and forget them afterwards."""
    path = [*sys.path]
    sys.path.insert(0, str(FOLDER))
    yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path[:] = path
    for name in NAMES:
        del sys.modules[name]


@pytest.fixture
def tiny(example):
    return example.padding_model.Settings(length=6, words=12, dim=3, hidden=4, batch=8, epochs=2, look=2)


@pytest.fixture
def data(example, tiny, rng):
    """24 and 6 posts of two topics; the first three positions of each are padding."""
    ids = rng.integers(1, tiny.words + 1, (30, tiny.length)).astype(np.int32)
    ids[:, :3] = 0
    labels = rng.integers(0, 2, 30)
    return example.newsgroups.Split("tiny", ids[:24], labels[:24], ids[24:], labels[24:], ["a", "b"])


@pytest.fixture
def problem(tiny, rng):
    """Ragged posts, a full one and an empty one among them, dropout, and weights in float64."""
    length = 20  # enough for five groups of posts of like length
    ids = rng.integers(1, tiny.words + 1, (9, length))
    for row, words in zip(ids, (20, 0, 1, 2, 4, 7, 10, 11, 3), strict=True):
        row[: length - words] = 0
    ids[0, 3] = 0  # padding between words
    keep = np.array([0.0, 1.5, 1.5])[rng.integers(0, 3, (9, tiny.hidden))]
    sizes = (tiny.words + 1, tiny.dim), (length * tiny.dim, tiny.hidden), tiny.hidden, (tiny.hidden, 3), 3
    return ids, rng.integers(0, 3, 9), keep, [rng.standard_normal(size) for size in sizes]


def test_the_layer_that_is_short_for_short_posts_is_the_layer(example, problem):
    ids, _, keep, (words, w1, b1, w2, b2) = problem
    assert len(list(example.padding_model.by_length(ids))) == 5
    hidden, active, odds, _ = example.padding_model.forward(words.__getitem__, ids, keep, w1, b1, w2, b2)
    expected = words[ids].reshape(len(ids), -1) @ w1 + b1
    np.testing.assert_allclose(hidden, expected, atol=1e-12)
    np.testing.assert_allclose(active, np.maximum(expected, 0) * keep, atol=1e-12)
    scores = np.exp(active @ w2 + b2)
    np.testing.assert_allclose(np.exp(odds), scores / scores.sum(axis=1, keepdims=True), atol=1e-12)


def test_the_gradients_by_hand_are_the_slopes(example, problem, rng):
    ids, labels, keep, weights = problem

    def run(words, *dense):
        return example.padding_model.loss_and_gradients(words.__getitem__, ids, labels, keep, *dense)

    _, _, looked_up, grads, dense = run(*weights)
    words = np.zeros_like(weights[0])
    for some, grad in zip(looked_up, grads, strict=True):
        np.add.at(words, some, grad)
    for i, grad in enumerate([words, *dense]):
        direction = rng.standard_normal(weights[i].shape)
        ahead, behind = (
            [value + sign * 1e-6 * direction if j == i else value for j, value in enumerate(weights)]
            for sign in (1, -1)
        )
        slope = (run(*ahead)[0] - run(*behind)[0]) / 2e-6
        np.testing.assert_allclose((grad * direction).sum(), slope, rtol=1e-6)
        assert abs(slope) > 1e-3
    padding = rng.standard_normal(weights[0].shape) * (np.arange(len(words)) == 0)[:, None]
    losses = [run(weights[0] + sign * 1e-6 * padding, *weights[1:])[0] for sign in (1, -1)]
    np.testing.assert_allclose((words * padding).sum(), (losses[0] - losses[1]) / 2e-6, rtol=1e-6)


def steps(example, settings, data, way, count=3):
    """Return a model after some steps, and the model that it was."""
    make = example.padding_model.Classifier
    model, before = make(settings, 2, way, 5), make(settings, 2, way, 5)
    for _ in range(count):
        model.step(data.ids[:8], data.labels[:8], np.full((8, settings.hidden), 1.5, np.float32))
    return model, before


def test_the_row_of_the_padding_is_held_or_not(example, tiny, data):
    row = {}
    for way in example.padding_model.WAYS:
        model, before = steps(example, tiny, data, way)
        row[way] = before.words.weight[0].copy(), model.words.weight[0].copy()
        assert (model.words.weight[1:] != before.words.weight[1:]).any()
    assert not row["zero"][0].any()
    assert not row["zero"][1].any()
    assert (row["trained"][0] == row["fixed"][0]).all()
    assert row["trained"][0].all()
    assert (row["fixed"][1] == row["fixed"][0]).all()
    assert (np.abs(row["trained"][1] - row["trained"][0]) > 1e-4).all()
    with pytest.raises(ValueError, match="way must be one of"):
        example.padding_model.Classifier(tiny, 2, "none", 0)


def test_tables_of_which_all_rows_are_updated_are_a_dense_optimizer(example, tiny, data):
    model, before = steps(example, tiny, data, "trained", count=1)
    words, keep = before.words.weight.astype(np.float64), np.full((8, tiny.hidden), 1.5)
    weights = [weight.astype(np.float64) for weight in before.weights()]
    given = words.__getitem__, data.ids[:8], data.labels[:8], keep
    *_, grads = example.padding_model.loss_and_gradients(*given, *weights)
    rule = se.Adam(lr=tiny.lr, eps=1e-7)
    for got, weight, grad in zip(model.weights(), weights, grads, strict=True):
        m, v = 0.1 * grad, 0.001 * grad**2
        expected = weight - rule.lr * (m / 0.1) / (np.sqrt(v / 0.001) + rule.eps)
        np.testing.assert_allclose(got, expected, atol=2e-6)
        assert np.abs(expected - weight).max() > 9e-4


def test_without_padding_the_three_ways_are_one(example, tiny, data):
    """So they have the same initial values, batches and dropout."""
    data = data._replace(ids=np.maximum(data.ids, 1), held_ids=np.maximum(data.held_ids, 1))
    first, *others = (
        example.padding_model.train(data, tiny, way, seed=3, log=str)["epochs"] for way in example.padding_model.WAYS
    )
    assert len(first) == 2
    assert all(other == first for other in others)
    assert first != example.padding_model.train(data, tiny, "zero", seed=4, log=str)["epochs"]


def test_training_stops_when_the_loss_no_longer_falls(example, tiny, data, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 1.5, 1.2, 0.1])
    monkeypatch.setattr(example.padding_model.Classifier, "score", lambda *_: (next(losses), 0.5))
    run = example.padding_model.train(data, replace(tiny, epochs=6, patience=3), "zero", log=str)
    assert [each["held_loss"] for each in run["epochs"]] == [3.0, 1.0, 2.0, 1.5, 1.2]


def flat(model, ids):
    return model.words.lookup(ids).reshape(len(ids), -1)


def test_what_is_measured(example, tiny, data):
    model, before = steps(example, tiny, data, "trained", count=0)
    ids, labels, keep = data.ids[:8], data.labels[:8], np.ones((8, tiny.hidden), np.float32)
    probe = example.padding_model.Probe(model, ids)
    np.testing.assert_allclose(sum(probe.parts), flat(before, ids) @ before.weights()[0], atol=1e-6)
    _, _, looked_up, grads = model.step(ids, labels, keep)
    found = probe.finish(looked_up, grads)
    gradient = np.zeros((tiny.words + 1, tiny.dim))
    for some, grad in zip(looked_up, grads, strict=True):
        np.add.at(gradient, some, grad)
    square = (gradient**2).sum(axis=1)
    moved = np.linalg.norm(model.words.weight - before.words.weight, axis=1)
    assert found["padding_share"] == 0.5
    assert found["gradient_share"] == pytest.approx(square[0] / square.sum(), rel=1e-5)
    others = np.sqrt(square[np.unique(ids[ids > 0])])
    assert found["gradient_ratio"] == pytest.approx(np.sqrt(square[0]) / np.median(others), rel=1e-5)
    assert found["gradient_to_largest"] == pytest.approx(np.sqrt(square[0]) / others.max(), rel=1e-5)
    assert found["moved_padding"] == pytest.approx(moved[0], rel=1e-5)
    assert found["moved_word"] == pytest.approx(np.median(moved[np.unique(ids[ids > 0])]), rel=1e-5)
    # All posts have padding in the same places: what it puts into the hidden layer is the same for all.
    assert found["spread_padding"] < 1e-6
    old, new = (each.words.weight[0] @ each.weights()[0][:9].reshape(3, 3, -1).sum(axis=0) for each in (before, model))
    row = model.words.weight[0] @ before.weights()[0][:9].reshape(3, 3, -1).sum(axis=0)
    assert found["shift_padding"] == pytest.approx(np.sqrt(np.mean((new - old) ** 2)), rel=1e-3)
    assert found["shift_padding_row"] == pytest.approx(np.sqrt(np.mean((row - old) ** 2)), rel=1e-3)
    x = flat(model, ids)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert found["alike"] == pytest.approx((x @ x.T)[~np.eye(8, dtype=bool)].mean(), rel=1e-4)
    hidden = flat(model, ids) @ model.weights()[0] + model.weights()[1]
    assert found["dead"] == (hidden <= 0).all(axis=0).mean()
    assert example.padding_model.ratio(1.0, 0.0) is None


def test_made_up_posts_are_the_same_each_time(example):
    first, second = example.newsgroups.make_up(60), example.newsgroups.make_up(60)
    assert first.name == "made-up posts"
    assert first.words == second.words
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.words != example.newsgroups.make_up(60, seed=1).words
    lengths = [len(words) for words in first.words]
    assert min(lengths) >= 8
    assert max(lengths) > 3 * min(lengths)
    assert len(first.topics) == 20
    for label, words in zip(first.labels, first.words, strict=True):
        assert all(word.startswith((f"topic{label}word", "word")) for word in words)


def archive(folder, posts):
    """Write an archive in the layout of 20news-bydate."""
    with tarfile.open(folder / "20news-bydate.tar.xz", "w:xz") as file:
        for name, text in posts.items():
            member = tarfile.TarInfo(name.rpartition("/")[0])
            member.type = tarfile.DIRTYPE
            file.addfile(member)
            member = tarfile.TarInfo(name)
            member.size = len(text)
            file.addfile(member, io.BytesIO(text))


def test_posts_of_an_archive(example, tmp_path, capsys):
    read = example.newsgroups.read_posts
    assert read(tmp_path).name == "made-up posts"
    assert "is not there" in capsys.readouterr().err
    archive(
        tmp_path,
        {
            "20news-bydate-train/sci.med/100": b"Subject: The 2 Pills\n\nof caf\xe9, x I'm PILLS",
            "20news-bydate-train/alt.atheism/9": b"one faith",
            "20news-bydate-test/alt.atheism/20": b"doubt 1993",
        },
    )
    posts = read(tmp_path)
    assert posts.name == "20 Newsgroups"
    assert posts.topics == ["alt.atheism", "sci.med"]
    assert posts.words == [["faith"], ["doubt"], ["subject", "pills", "caf", "pills"]]
    np.testing.assert_array_equal(posts.labels, [0, 0, 1])


def test_posts_of_scikit_learn(example, monkeypatch):
    """A stand-in for the fetcher, of which only the call and the answer's fields are fixed."""

    def fetch(*, subset, shuffle):
        assert (subset, shuffle) == ("all", False)
        return types.SimpleNamespace(data=["Faith", "pills pills"], target=[0, 1], target_names=["a", "b"])

    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", types.SimpleNamespace(fetch_20newsgroups=fetch))
    posts = example.newsgroups.read_sklearn()
    assert posts.words == [["faith"], ["pills", "pills"]]
    assert posts.topics == ["a", "b"]


def test_posts_are_split_numbered_and_padded(example, tiny):
    words = [["common"] * (i % 3 + 1) + [f"own{i}", "last"] for i in range(10)] + [["x"] * 4 + list("abcdef")] * 10
    posts = example.newsgroups.Posts("few", words, np.arange(20), [str(i) for i in range(20)])
    data = example.newsgroups.split_and_pad(posts, tiny)
    assert data.ids.shape == (16, 6)
    assert data.held_ids.shape == (4, 6)
    assert sorted([*data.labels, *data.held_labels]) == list(range(20))
    kept = [words[i] for i in data.labels]
    counts = {word: sum(post.count(word) for post in kept) for post in kept for word in post}
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: tiny.words]
    assert len(counts) > tiny.words
    for row, i in zip([*data.ids, *data.held_ids], [*data.labels, *data.held_labels], strict=True):
        known = [word for word in words[i] if word in ranked][-tiny.length :]
        assert [ranked[number - 1] for number in row[row > 0]] == known
        assert not row[: tiny.length - len(known)].any()
    fewer = example.newsgroups.split_and_pad(posts, tiny, most=10)
    assert (len(fewer.ids), len(fewer.held_ids)) == (8, 2)


def test_the_program_saves_and_shows(example, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("Agg")
    module = example.newsgroups
    monkeypatch.delenv("SPARSEMBED_DATA", raising=False)
    monkeypatch.setattr(module, "QUICK", replace(module.QUICK, length=20, words=50, dim=4, batch=16))
    monkeypatch.setattr(module, "SOME", 60)
    module.main(["--quick", "--epochs", "3", "--seeds", "2", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "padding.json").read_text())
    assert result["command"].startswith("python docs/examples/newsgroups.py --quick --epochs 3 --seeds 2 --out ")
    assert (result["data"], result["posts"], result["posts_held_out"]) == ("made-up posts", 48, 12)
    runs = [(run["way"], run["seed"], len(run["epochs"])) for run in result["runs"]]
    assert runs == [("trained", 0, 3), ("zero", 0, 3), ("fixed", 0, 3), ("trained", 1, 2), ("zero", 1, 2)]
    assert (tmp_path / "padding.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    for text in (example.padding_figures.accuracies, example.padding_figures.seeds, example.padding_figures.in_words):
        assert text(result) in printed


@pytest.fixture(scope="module")
def committed(example):
    return json.loads(example.newsgroups.COMMITTED.read_text())


PAGE = """
import runpy, sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
import newsgroups
newsgroups.QUICK = replace(newsgroups.QUICK, length=20, words=50, dim=4, batch=16, epochs=1)
newsgroups.SOME = 60
runpy.run_path(sys.argv[1] + "/plot_padding.py")
"""


def test_the_page_runs_and_shows_what_is_committed(committed):
    pytest.importorskip("matplotlib")
    environment = {name: value for name, value in os.environ.items() if name != "SPARSEMBED_DATA"} | {
        "MPLBACKEND": "Agg"
    }
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore:FigureCanvasAgg is non-interactive",
        "-c",
        PAGE,
        str(FOLDER),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    assert committed["command"] in done.stdout
    runs = {(run["way"], run["seed"]): run["epochs"] for run in committed["runs"]}
    shown = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    first = [f"{runs[way, 0][0]['held_accuracy']:.4f}" for way in ("trained", "zero", "fixed")]
    assert shown["1"] == ["0.0534", first[0], "0.7754", first[1], first[2]]
    last = [f"{runs[way, 0][-1]['held_accuracy']:.4f}" for way in ("trained", "zero", "fixed")]
    assert "  ".join(shown["the"]).replace("last", "").split() == ["0.8736", last[0], "0.8944", last[1], last[2]]
    assert done.stdout.rstrip().splitlines()[-4] == "[[ 0.    0.    0.  ]", done.stdout[-300:]


def test_what_the_page_says_is_what_was_measured(example, committed):
    settings = example.padding_model.Settings()
    assert committed["settings"] == asdict(settings)
    assert committed["data"] == "20 Newsgroups"
    assert (committed["posts"], committed["posts_held_out"]) == (15_077, 3_769)
    assert committed["command"].startswith(
        "SPARSEMBED_DATA=folder python docs/examples/newsgroups.py --out docs/results"
    )
    runs = {(run["way"], run["seed"]): run for run in committed["runs"]}
    seeds = {seed for _, seed in runs}
    assert seeds == {0, 1}
    for seed in seeds:
        assert all(epoch["held_accuracy"] < 0.1 for epoch in runs["trained", seed]["epochs"][:2])
        assert runs["zero", seed]["epochs"][0]["held_accuracy"] > 0.6
    # The padding's row gets the gradient, but moves like others; the dense layer's weights below it do the damage.
    step = runs["trained", 0]["measured"][0]
    assert step["gradient_share"] > 0.8
    assert step["gradient_ratio"] > 100
    assert step["moved_padding"] == pytest.approx(step["moved_word"], rel=0.1)
    assert step["shift_padding"] > 10 * step["spread_words"]
    assert step["shift_padding_row"] < 0.01 * step["shift_padding"]
    for way in ("trained", "fixed"):
        assert max(each["dead"] for each in runs[way, 0]["measured"][:10]) > 0.9
        assert all(epoch["held_accuracy"] < 0.1 for epoch in runs[way, 0]["epochs"][:3])
    assert max(each["dead"] for each in runs["zero", 0]["measured"][:10]) == 0
    # How it learns after all: the row shrinks until words tell posts apart by more than padding does.
    turn, then = example.padding_figures.turning_point(committed)
    epoch = (turn - 1) // -(-committed["posts"] // settings.batch)
    held = [each["held_accuracy"] for each in runs["trained", 0]["epochs"]]
    assert held[epoch - 1] < 0.15
    assert held[epoch + 2] > 0.5
    assert then["size_padding"] < 0.5 * step["size_padding"]
    assert runs["trained", 0]["measured"][-1]["size_padding"] < 0.1 * step["size_padding"]
    assert all(each["spread_padding"] > 2 * each["spread_words"] for each in runs["trained", 0]["measured"][:10])


def test_what_torch_does_with_padding():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Embedding(3, 2, padding_idx=0)
    assert not layer.weight[0].any()
    layer = torch.nn.Embedding.from_pretrained(torch.ones(3, 2), freeze=False, padding_idx=0)
    assert layer.weight[0].all()  # as it came
    layer(torch.tensor([0, 0, 1])).sum().backward()
    assert layer.weight.grad.tolist() == [[0, 0], [1, 1], [0, 0]]
    torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5).step()
    np.testing.assert_allclose(layer.weight[0].detach(), 0.95)  # decayed, without a gradient


KERAS = """
import warnings
import numpy as np, keras
ids = np.array([[0, 0, 2, 3]])
layer = keras.layers.Embedding(5, 3, mask_zero=True)
inputs = keras.Input((4,), dtype="int32")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(layer(inputs))))
    assert any("does not support masking" in str(each.message) for each in caught)
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
    before = layer.get_weights()[0]
    assert before[0].all()
    model.fit(ids, np.ones((1, 1)), verbose=0)
assert (layer.get_weights()[0][0] != before[0]).all()
assert (layer.get_weights()[0][1] == before[1]).all()
"""


def test_what_keras_does_with_mask_zero():
    for name in ("keras", "torch"):
        if not importlib.util.find_spec(name):
            pytest.skip(f"needs {name}")
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    command = [sys.executable, "-c", KERAS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr

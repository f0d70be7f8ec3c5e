"""The example about positions: its model against one written word by word, its text, its program, and its page."""

import importlib
import json
import os
import subprocess
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from patience import HANGS

FOLDER = Path(__file__).parents[2] / "docs" / "examples"
RESULTS = FOLDER.parent / "results"
NAMES = ("memory_network", "penn_treebank", "position_causes", "position_figures", "word_vectors")
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the examples are not part of an installation")
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def example():
    """Import the example's modules, as its scripts do, and forget them afterwards."""
    path, threads = [*sys.path], torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path[:] = path
    torch.set_num_threads(threads)
    for name in NAMES:
        del sys.modules[name]


@pytest.fixture
def tiny(example):
    return example.memory_network.Settings(words=11, dim=6, memory=4, hops=3, lr=0.1, blocks=3, block=5)


@pytest.fixture
def tokens(rng):
    return rng.integers(0, 11, 38)


def one_by_one(model, history, target):
    """Return the loss of one word, by the formulas of the paper, or by the question's program."""
    settings = model.settings
    A, C, T_A, T_C = (model.leaves[name] for name in ("A", "C", "T_A", "T_C"))  # noqa: N806
    u = torch.full((settings.dim,), 0.1, dtype=torch.float64)
    for _ in range(settings.hops):
        scores = torch.stack([u @ (A[word] + T_A[i]) for i, word in enumerate(history)])
        weights = torch.exp(scores) / torch.exp(scores).sum()
        said = sum(p * (C[word] + T_C[i]) for i, (p, word) in enumerate(zip(weights, history, strict=True)))
        u = said + model.leaves["H"] @ (u if settings.mapped == "state" else scores)
        if settings.rectified:
            half = settings.dim // 2
            u = torch.cat([u[:half], torch.relu(u[half:])])
    scores = model.leaves["W"] @ u
    odds = torch.exp(scores) if settings.output == "softmax" else torch.relu(scores)
    odds = odds / odds.sum()
    return -torch.log(odds[target] if settings.output == "softmax" else odds[target].clamp(1e-7, 1 - 1e-7))


def by_hand(model, tokens):
    """Return the mean loss of a text, word after word, and the gradients of all weights, in float64."""
    weights = {name: torch.from_numpy(table.weight) for name, table in model.tables.items()}
    weights |= {"H": model.H.detach(), "W": model.W.detach()}
    model.leaves = {name: weight.double().requires_grad_() for name, weight in weights.items()}
    text = [0] * model.settings.memory + [int(token) for token in tokens]
    losses = [one_by_one(model, text[i - model.settings.memory : i], text[i]) for i in range(4, len(text))]
    return torch.stack(losses)


WAYS = [{}, {"mapped": "scores"}, {"rectified": False}, {"output": "relu"}, {"hops": 1}, {"positions": False}]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_blocks_of_words_are_the_model_word_by_word(example, tiny, tokens, way):
    model = example.memory_network.MemoryNetwork(replace(tiny, **way))
    if not model.settings.positions:
        assert not model.tables["T_A"].weight.any()
    perplexity, accuracy = model.score(tokens)
    losses = by_hand(model, tokens)
    assert perplexity == pytest.approx(losses.mean().exp().item(), rel=1e-5)
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_step_is_gradient_descent_on_all_weights(example, tiny, tokens, way, averaged):
    settings = replace(tiny, blocks=8, averaged=averaged, max_norm=1e9, **way)
    model = example.memory_network.MemoryNetwork(settings)
    losses = by_hand(model, tokens)
    (losses.mean() if averaged else losses.sum()).backward()
    (batch,) = example.memory_network.batches(tokens, settings)
    loss, norm = model.step(*batch)
    assert loss == pytest.approx(losses.sum().item(), rel=1e-5)
    square = 0
    for name, leaf in model.leaves.items():
        got = model.tables[name].weight if name in model.tables else getattr(model, name).detach().numpy()
        trained = settings.positions or not name.startswith("T_")
        grad = leaf.grad.numpy() if trained else 0
        np.testing.assert_allclose(got, leaf.detach().numpy() - 0.1 * grad, atol=3e-6)
        square += np.square(grad).sum()
    if settings.output == "softmax":  # else there is the bias, too
        assert norm == pytest.approx(np.sqrt(square), rel=1e-5)


def test_all_gradients_are_clipped_by_their_common_norm(example, tiny, tokens):
    before = example.memory_network.MemoryNetwork(tiny)
    model = example.memory_network.MemoryNetwork(replace(tiny, max_norm=0.1))
    batch = next(example.memory_network.batches(tokens, tiny))
    _, norm = model.step(*batch)
    moved = [model.tables[name].weight - table.weight for name, table in before.tables.items()]
    moved += [(a - b).detach().numpy() for a, b in zip(model.dense, before.dense, strict=True)]
    assert norm > 0.2
    assert np.sqrt(sum(np.square(each).sum() for each in moved)) == pytest.approx(0.1 * 0.1, rel=1e-4)


def test_a_band_and_back(example, rng):
    product = torch.from_numpy(rng.standard_normal((2, 5, 8)))
    found = example.memory_network.band(product, 4)
    for t in range(5):
        assert (found[:, t] == product[:, t, t : t + 4]).all()
    back = example.memory_network.spread(found)
    assert back.shape == product.shape
    assert (example.memory_network.band(back, 4) == found).all()
    assert (back != 0).sum() == 2 * 5 * 4


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_loss_in_slices_is_cross_entropy(example, rng, bfloat16):
    state, weight = (torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in ((300, 6), (50, 6)))
    targets = torch.from_numpy(rng.integers(0, 50, 300))
    expected, got = ([each.clone().requires_grad_() for each in (state, weight)] for _ in range(2))
    loss = torch.nn.functional.cross_entropy(expected[0] @ expected[1].T, targets, reduction="sum")
    (3 * loss).backward()
    found = example.memory_network.SoftmaxLoss.apply(*got, targets, bfloat16)
    (3 * found).backward()
    # bfloat16 has 8 bits; its errors are of either sign and average out.
    assert found.item() == pytest.approx(loss.item(), rel=1e-3 if bfloat16 else 1e-6)
    for a, b in zip(got, expected, strict=True):
        error = (a.grad - b.grad).norm() / b.grad.norm()
        assert error < (0.01 if bfloat16 else 1e-5)


def test_each_word_is_predicted_once_from_the_words_before(example, tiny, tokens):
    for rng in (None, np.random.default_rng(2)):
        found = []
        for ids, targets in example.memory_network.batches(tokens, tiny, rng):
            assert ids.shape == (len(targets), 4 + 5 - 1)
            found += [
                (*row[t : t + 4], target[t])
                for row, target in zip(ids, targets, strict=True)
                for t in range(5)
                if target[t] >= 0
            ]
        assert len(found) == len(tokens)
        shifts = range(5) if rng else [0]
        expected = []
        for shift in shifts:
            text = [0] * 4 + [*np.roll(tokens, shift)]
            expected.append(sorted(tuple(text[i : i + 5]) for i in range(len(tokens))))
        assert sorted(found) in expected
        assert rng is None or found[:5] != expected[0][:5]


def test_dropout_is_for_training_only(example, tiny, tokens):
    model = example.memory_network.MemoryNetwork(replace(tiny, drop=0.5))
    plain = example.memory_network.MemoryNetwork(tiny)
    assert model.score(tokens) == plain.score(tokens) == model.score(tokens)
    ids, targets = next(example.memory_network.batches(tokens, tiny))
    _, rows = plain.lookup(ids)
    assert (plain.state(rows, 5) == plain.state(rows, 5)).all()
    assert (plain.state(rows, 5, 0.5) != plain.state(rows, 5, 0.5)).any()
    assert model.step(ids, targets)[0] != plain.step(ids, targets)[0]


def test_adam_is_adam(example, tiny, tokens):
    """The first step of Adam moves each weight by the rate, if its row was looked up."""
    settings = replace(tiny, optimizer="adam", lr=0.01)
    before, model = (example.memory_network.MemoryNetwork(settings) for _ in range(2))
    ids, targets = next(example.memory_network.batches(tokens, settings))
    model.step(ids, targets)
    for name in ("A", "C", "T_A", "T_C"):
        moved = np.abs(model.tables[name].weight - before.tables[name].weight)
        used = np.unique(ids) if name in "AC" else range(4)
        assert np.median(moved[used]) == pytest.approx(0.01, rel=0.05)
        assert moved.max() < 0.01001  # eps takes a little of the smallest gradients
        assert not np.delete(moved, used, axis=0).any()
    model.set_lr(0.5)
    assert {table.optimizer.lr for table in model.tables.values()} == {0.5}
    assert model.optimizer.param_groups[0]["lr"] == 0.5


def test_the_text_of_an_archive(example, tmp_path, capsys):
    read = example.penn_treebank.read
    with zipfile.ZipFile(tmp_path / "ptb.zip", "w") as archive:
        archive.writestr("__MACOSX/._ptb.train.txt", "junk")
        archive.writestr("ptb.train.txt", " a b a \n <unk> c a \n")
        archive.writestr("ptb.valid.txt", " b \n")
        archive.writestr("ptb.test.txt", " c zebra \n")
    text = read(tmp_path)
    assert text.name == "Penn Treebank"
    assert text.words == ["<eos>", "<unk>", "a", "b", "c"]
    np.testing.assert_array_equal(text.train, [2, 3, 2, 0, 1, 4, 2, 0])
    np.testing.assert_array_equal(text.valid, [3, 0])
    np.testing.assert_array_equal(text.test, [4, 1, 0])
    fewer = example.penn_treebank.read_treebank(tmp_path / "ptb.zip", most=3)
    assert fewer.words == ["<eos>", "<unk>", "a"]
    np.testing.assert_array_equal(fewer.train, [2, 1, 2, 0, 1, 1, 2, 0])
    assert read(tmp_path / "nothing").name == "Python's sources"
    assert "is not there" in capsys.readouterr().err


def test_training_that_was_interrupted_goes_on_as_if_it_had_not_been(example, tmp_path, monkeypatch):
    words = np.random.default_rng(5).integers(0, 30, 700)
    text = example.penn_treebank.Text("few", words[:500], words[500:600], words[600:], [str(i) for i in range(30)])
    monkeypatch.setattr(example.penn_treebank, "read", lambda folder: text)
    monkeypatch.delenv("SPARSEMBED_DATA", raising=False)
    sizes = ["--dim", "8", "--memory", "6", "--drop", "0.3", "--lr", "0.02"]
    results = []
    for name, calls in (("whole", [["--epochs", "4"]]), ("cut", [["--epochs", "2"], ["--epochs", "4", "--resume"]])):
        out = tmp_path / name
        for call in calls:
            example.penn_treebank.main([*sizes, *call, "--checkpoint", str(out / "at.pt"), "--out", str(out)])
        results.append(json.loads((out / "position_full.json").read_text()))
    whole, cut = ([{k: v for k, v in each.items() if k != "cpu_seconds"} for each in r["epochs"]] for r in results)
    assert len(whole) == 4
    assert whole == cut
    assert results[0]["command"].startswith("python docs/examples/penn_treebank.py --dim 8 --memory 6 --drop 0.3")
    assert results[0]["tokens"] == {"train": 500, "valid": 100, "test": 100}
    rates = [each["lr"] for each in whole]
    for before, after, rate in zip(whole, whole[1:], rates[1:], strict=False):
        assert rate == before["next_lr"]
        assert ("test" in after) == (after["valid"] < min(each["valid"] for each in whole[: after["epoch"] - 1]))
    with pytest.raises(SystemExit):
        example.penn_treebank.main(["--resume"])


def test_the_errors_are_those_of_the_question(example):
    causes = example.position_causes
    assert causes.POSTED == {"output": "relu", "mapped": "scores", "hops": 1, "averaged": True, "rectified": False}
    assert all(len(error) == 1 for error in causes.ERRORS.values())
    for name, rest in causes.KINDS["one mended"].items():
        assert rest | causes.ERRORS[name] == causes.POSTED
        assert len(rest) == 4


def test_the_program_of_the_errors_saves_and_shows(example, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("Agg")
    causes = example.position_causes
    monkeypatch.delenv("SPARSEMBED_DATA", raising=False)
    monkeypatch.setattr(example.penn_treebank, "STAND_IN", 3000)
    monkeypatch.setattr(causes, "QUICK", replace(causes.QUICK, dim=6, memory=5))
    monkeypatch.setattr(causes, "SOME", 400)
    monkeypatch.setattr(causes, "HELD", 200)
    causes.main(["--quick", "--epochs", "2", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "position_causes.json").read_text())
    assert result["command"].startswith("python docs/examples/position_causes.py --quick --epochs 2 --out ")
    assert (result["data"], result["tokens"], result["tokens_held_out"]) == ("Python's sources", 400, 200)
    assert [(run["kind"], run["positions"]) for run in result["runs"]] == [
        (kind, positions)
        for kind, many in (("the paper's", 1), ("the question's", 1), ("the paper's, by Adam", 1), ("one error", 5))
        for _ in range(many)
        for positions in (True, False)
    ]
    assert all(len(run["train"]) == len(run["held"]) == 2 for run in result["runs"])
    assert (tmp_path / "position_causes.png").stat().st_size > 10_000
    assert example.position_figures.table(result) in capsys.readouterr().out


@pytest.fixture(scope="module")
def committed():
    return [json.loads((RESULTS / f"position_{name}.json").read_text()) for name in ("full", "causes")]


PAGE = """
import runpy, sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
import penn_treebank, position_causes
penn_treebank.STAND_IN = 6000
position_causes.QUICK = replace(position_causes.QUICK, dim=8, memory=6)
position_causes.SOME, position_causes.HELD = 1000, 300
runpy.run_path(sys.argv[1] + "/plot_positions.py")
"""


def test_the_page_runs_and_shows_what_is_committed(example, committed):
    pytest.importorskip("matplotlib")
    environment = {name: value for name, value in os.environ.items() if name != "SPARSEMBED_DATA"}
    flags = ("-W", "error", "-W", "ignore:FigureCanvasAgg is non-interactive")
    done = subprocess.run(
        [sys.executable, *flags, "-c", PAGE, str(FOLDER)],
        env=environment | {"MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    full, causes = committed
    for text in (full["command"], causes["command"], example.position_figures.table(causes)):
        assert text in done.stdout
    assert example.position_figures.progress(full) in done.stdout


def test_what_the_page_says_is_what_was_measured(example, committed):
    full, causes = committed
    assert full["data"] == causes["data"] == "Penn Treebank"
    assert full["tokens"] == {"train": 929_589, "valid": 73_760, "test": 82_430}
    assert (full["settings"]["hops"], full["settings"]["dim"], full["settings"]["memory"]) == (2, 150, 100)
    assert (causes["tokens"], causes["settings"]["lr"]) == (35_000, 0.01)
    assert causes["settings"]["blocks"] * causes["settings"]["block"] == 128

    def end(kind, error, positions, what="train"):
        return example.position_figures.find(causes, kind, error, positions)[what][-1]

    errors = [*example.position_causes.ERRORS]
    for positions in (True, False):
        paper = end("the paper's", "none", positions)
        rectified, mapped, hop, averaged, linear = (end("one error", error, positions) for error in errors)
        assert rectified > 10 * averaged > 10 * 1.5 * causes["by_frequency"]
        assert max(mapped, hop, linear) < 1.1 * paper < 1.3 * causes["by_frequency"]
        asked = example.position_figures.find(causes, "the question's", "all", positions)
        assert asked["train"][-1] > 2 * causes["by_frequency"]
        assert asked["accuracy"] == pytest.approx(causes["commonest"], abs=1e-3)
        mended = [end("one mended", error, positions) for error in errors]
        assert all(each is None or each > 1.5 * causes["by_frequency"] for each in mended)
        assert (None in mended) == (not positions)
    for what in ("train", "held"):
        with_them, without = (end("the paper's, by Adam", "none", positions, what) for positions in (True, False))
        assert with_them < 0.7 * without
        assert with_them < 0.7 * causes["by_frequency"]

"""The examples on batch gradients and on what is inside an embedding layer: what they run, and what they claim."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import HANGS

import sparsembed as se

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="the examples are not part of an installation")


def definitions(name):
    """Return the imports, functions and constants of an example, without running the rest of it."""
    pytest.importorskip("matplotlib").use("Agg")
    tree = ast.parse((EXAMPLES / name).read_text(encoding="utf-8"))

    def constant(node):
        if not isinstance(node, ast.Assign):
            return False
        return all(each.id.isupper() for each in ast.walk(node.targets[0]) if isinstance(each, ast.Name))

    tree.body = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom | ast.FunctionDef) or constant(n)]
    scope = {}
    sys.path.insert(0, str(EXAMPLES))  # as it is for a script
    try:
        exec(compile(tree, name, "exec"), scope)
    finally:
        sys.path.remove(str(EXAMPLES))
    return SimpleNamespace(**scope)


@pytest.fixture(scope="module")
def batches():
    return definitions("plot_batch_gradients.py")


@pytest.fixture(scope="module")
def inside():
    return definitions("plot_inside_embedding.py")


def run(name):
    pytest.importorskip("matplotlib")
    # With a display around, Agg warns that it shows nothing.
    flags = ("-W", "error", "-W", "ignore:FigureCanvasAgg is non-interactive")
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": HANGS}
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(
        [sys.executable, *flags, str(EXAMPLES / name)], env=environment, check=False, cwd=EXAMPLES.parent, **options
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows(output, title, count):
    """Return the numbers of the lines below a title."""
    lines = output[output.index(title) :].splitlines()[1 : count + 1]
    return np.array([[float(number) for number in line.replace(" and ", " ").split()] for line in lines])


def test_batch_gradients_runs_as_it_is():
    output = run("plot_batch_gradients.py")
    right = rows(output, "batch  row 0  row 1  dense", 2)
    np.testing.assert_array_equal(right[:, 0], [1, 128])
    np.testing.assert_allclose(right[:, 1:3], [[0, 2]] * 2, atol=0.05)
    trap = rows(output, "batch  row 0  row 1  expected", 6)
    np.testing.assert_array_equal(trap[:, 0], [1, 2, 4, 8, 32, 128])
    np.testing.assert_allclose(trap[:, 1:3], trap[:, 3:5], atol=0.05)
    # What Keras gives, in the prose.
    asked = [float(number) for number in re.findall(r"row \d at +(\S+\d)", output)]
    np.testing.assert_allclose(asked, [0, 1.75, 0.87, 0.88], atol=0.015)
    assert "ValueError: grad_out must have shape (128, 1, 12)" in output
    assert output.splitlines()[-1].split() == ["128", "0"]


def test_inside_embedding_runs_as_it_is():
    output = run("plot_inside_embedding.py")
    assert re.search(r"scipy +0 +0\n", output)
    assert len(re.findall(r"over the limit", output)) == 2
    for model in ("skip-gram", "CBOW"):
        lines = output[output.index(f"{model}: loss") :].splitlines()
        assert float(lines[0].split()[2]) < 3.1  # zero scores have 4.16
        words = [line.split() for line in lines[1:] if line.startswith("  ")]
        assert len(words) >= 5
        assert all(word not in others and len(set(others)) == 6 for word, *others in words)


def by_hand(some_batches, lr, every_target):
    """Return what gradient descent on the mean squared error gives, pair by pair of a prediction and a target."""
    weight = np.zeros((10, 12))
    for ids, targets in some_batches:
        pairs = [(i, j) for i in range(len(ids)) for j in range(len(ids)) if every_target or i == j]
        step = np.zeros_like(weight)
        for i, j in pairs:
            step[ids[i]] += 2 * (weight[ids[i]] - targets[j]) / (12 * len(pairs))
        weight -= lr * step
    return weight


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_a_second_axis_pulls_every_prediction_to_every_target(batches, batch):
    ids, targets = batches.make_data(60, np.random.default_rng(3))
    for given_ids, every_target in ((ids, False), (ids[:, None], True)):
        weight, path = batches.train(given_ids, targets, batch, lr=0.3)
        expected = by_hand(batches.batches(ids, targets, batch), 0.3, every_target)
        np.testing.assert_allclose(weight, expected, atol=1e-12)
        np.testing.assert_array_equal(path[-1], weight[:2].mean(axis=1))
    dense, _ = batches.train_dense(ids, targets, batch, lr=0.3)
    right, _ = batches.train(ids, targets, batch, lr=0.3)
    np.testing.assert_allclose(dense, right, atol=1e-12)
    assert (np.abs(right - weight).max() > 0.1) == (batch > 1)


@pytest.mark.parametrize("batch", [1, 2, 16, 128])
def test_rows_rest_at_their_means_or_near_each_other(batches, batch):
    ids, targets = batches.make_data(2000, np.random.default_rng(4))
    for given_ids, away in ((ids, 1), (ids[:, None], 1 / batch)):
        _, path = batches.train(given_ids, targets, batch, 0.01 * batch, epochs=3)
        np.testing.assert_allclose(path[-len(path) // 3 :].mean(axis=0), [1 - away, 1 + away], atol=0.05)


def test_the_broadcast_gradient_is_refused(batches):
    ids, targets = batches.make_data(4, np.random.default_rng(5))
    table = se.EmbeddingTable.from_array(np.zeros((10, 12)), se.SGD(lr=1.0))
    difference = table.lookup(ids[:, None]) - targets
    assert difference.shape == (8, 8, 12)
    with pytest.raises(ValueError, match=r"Use ids of shape \(B,\)"):
        table.update(ids[:, None], difference)
    assert not table.weight.any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.integers(1, 10))
@settings(deadline=None, max_examples=40)
def test_sums_are_one_hot_products_bit_by_bit(seed, num_ids, used):
    batches = definitions("plot_batch_gradients.py")
    rng = np.random.default_rng(seed)
    ids, gradient = rng.integers(used, size=num_ids), rng.normal(size=(num_ids, 12))
    added = se.coalesce(ids, gradient, batches.ROWS).to_scipy().toarray()
    np.testing.assert_array_equal(added, batches.in_pieces(ids, gradient))
    if np.bincount(ids).max() <= 512:
        np.testing.assert_array_equal(added, batches.onehot(ids).T @ gradient)


@pytest.mark.parametrize("batch", [1, 3, 8, 25, 128])
def test_summed_and_averaged_losses_differ_by_the_step_size(batches, batch):
    ids, targets = batches.make_data(1600, np.random.default_rng(6))
    summed = batches.train_summed(ids[: 25 * batch], targets[: 25 * batch], batch, lr=0.01)
    averaged, _ = batches.train(ids[: 25 * batch], targets[: 25 * batch], batch, lr=0.01 * batch)
    assert summed[:2].any()
    if batch in {1, 8, 128}:
        np.testing.assert_array_equal(summed, averaged)
    np.testing.assert_allclose(summed, averaged, atol=1e-13)


@pytest.mark.parametrize(("num_rows", "dim", "num_ids"), [(1, 1, 1), (3, 5, 511), (100, 17, 1000), (1000, 64, 4096)])
def test_lookup_and_backward_are_products_bit_by_bit(inside, num_rows, dim, num_ids):
    result = inside.largest_differences(num_rows, dim, num_ids)
    assert result["scipy"] == result["reference"] == (0, 0)
    assert result["NumPy"][0] == 0
    assert result["NumPy"][1] < 1e-12


def test_the_three_steps_are_the_same_step(inside):
    rng = np.random.default_rng(7)
    weight = rng.normal(size=(50, 4)).astype(np.float32)
    ids, gradient = rng.integers(50, size=200), rng.normal(size=(200, 4)).astype(np.float32)
    expected = se.reference.scatter_add(weight, ids, gradient, alpha=-0.01)
    tables = [weight.copy() for _ in range(3)]
    inside.dense_step(tables[0], ids, gradient)
    inside.sparse_step(tables[1], ids, gradient)
    inside.engine_step(se.EmbeddingTable.from_array(tables[2], se.SGD(lr=0.01)), ids, gradient)
    for table in tables:
        np.testing.assert_allclose(table, expected, atol=1e-6)


def test_memory_grows_with_the_vocabulary_except_for_the_engine(inside):
    memory = {}
    for size in (256, 16384):
        table = se.EmbeddingTable(size, inside.DIM, se.SGD(lr=0.01), rng=0)
        memory[size] = {
            "dense": inside.measure(inside.dense_step, table.weight.copy(), size, repeats=1)[1],
            "sparse": inside.measure(inside.sparse_step, table.weight.copy(), size, repeats=1)[1],
            "engine": inside.measure(inside.engine_step, table, size, repeats=1)[1],
        }
    assert memory[16384]["dense"] > 30 * memory[256]["dense"]
    assert memory[16384]["sparse"] > 10 * memory[256]["sparse"]
    # The peak differs from call to call whatever the number of rows: once, 57 bytes less were seen for more rows.
    vectors = inside.BATCH * inside.DIM * 4
    assert all(vectors <= memory[size]["engine"] < 1.1 * vectors for size in memory)


@pytest.mark.parametrize("model", ["skip-gram", "CBOW"])
def test_words_that_never_meet_are_no_neighbours(inside, model):
    rng = np.random.default_rng(8)
    words = [f"{group}_{letter}" for letter in "abcdefgh" for group in ("fruit", "metal")]
    # Ids from 1: those of fruits are odd.  Three zeros stand between paragraphs, and at both ends.
    chosen = 1 + rng.integers(2, size=(800, 1)) + 2 * rng.integers(8, size=(800, 12))
    corpus = np.pad(chosen, ((1, 0), (0, 3)))
    corpus[0] = 0
    vectors, losses = inside.train(model, corpus.reshape(-1).astype(np.int32), len(words), dim=16, passes=6)
    assert vectors.shape == (16, 16)
    assert losses[-5:].mean() < losses[0]
    np.testing.assert_allclose(losses[0], (1 + inside.WEIGHT_DRAWN) * np.log(2), rtol=1e-5)
    for word in words:
        assert all(other[:5] == word[:5] for other in inside.neighbours(vectors, word, words))


@pytest.mark.parametrize("model", ["skip-gram", "CBOW"])
def test_each_model_is_given_what_it_should_be(inside, model, monkeypatch):
    calls = []

    def spy(owner, name):
        function = getattr(owner, name)

        def recording(*args, **options):
            result = function(*args, **options)
            calls.append((name, args, result))
            return result

        monkeypatch.setattr(owner, name, recording)

    for name in ("lookup", "pool", "update", "update_pooled"):
        spy(se.EmbeddingTable, name)
    spied = SimpleNamespace(loss_and_gradients=inside.loss_and_gradients)
    spy(spied, "loss_and_gradients")
    monkeypatch.setitem(inside.train.__globals__, "loss_and_gradients", spied.loss_and_gradients)
    # Every word stands once, in the order of the ids.
    inside.train(model, np.pad(np.arange(1, 201, dtype=np.int32), 3), 200, dim=4, passes=2)

    assert len(calls) == 10
    for read, asking, loss, learning, telling in (calls[:5], calls[5:]):
        (source, given_ids), (target, (asked, drawn)) = read[1], asking[1]
        _, *gradients = loss[2]
        assert [each[0] for each in (asking, telling)] == ["lookup", "update"]
        words, around = (given_ids, asked) if model == "skip-gram" else (asked[:, 0], given_ids)
        lists = [set(row) - {0} for row in around] if model == "skip-gram" else bags_of(around)
        assert 20 < len(words) == len(lists) < 200
        for word, near in zip(words, lists, strict=True):
            assert near == {word + side for side in (-3, -2, -1, 1, 2, 3)} & set(range(1, 201))
        assert (read[0], learning[0]) == (("lookup", "update") if model == "skip-gram" else ("pool", "update_pooled"))
        np.testing.assert_array_equal(loss[1][3], asked > 0)
        assert loss[1][0] is read[2]
        assert learning[1] == (source, given_ids, gradients[0])
        assert telling[1] == (target, [asked, drawn], gradients[1:])


def bags_of(bags):
    return [set(ids) for ids in np.split(bags.ids, bags.offsets[1:-1])]


def test_gradients_are_those_of_the_loss(inside):
    rng = np.random.default_rng(9)
    arrays = [rng.normal(size=shape) for shape in ((3, 4), (3, 2, 4), (5, 4))]
    weight = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    _, *gradients = inside.loss_and_gradients(*arrays, weight)
    for array, gradient in zip(arrays, gradients, strict=True):
        assert gradient.shape == array.shape
        for at in np.ndindex(array.shape):
            losses = []
            for step in (1e-5, -2e-5):
                array[at] += step
                losses.append(inside.loss_and_gradients(*arrays, weight)[0] * weight.sum())
            array[at] += 1e-5
            np.testing.assert_allclose(gradient[at], (losses[0] - losses[1]) / 2e-5, atol=1e-6)

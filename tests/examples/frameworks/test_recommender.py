"""docs/examples/recommender: every framework's loop gives the loss curve of the NumPy loop."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import HANGS

FOLDER = Path(__file__).parents[3] / "docs" / "examples" / "recommender"
PAGE = FOLDER.parents[1] / "training-loops.md"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the examples are not part of an installation")
STEPS = 40
NAMES = ("common", "numpy_loop", "compare", "which_adam")


@pytest.fixture(scope="module")
def example():
    """Import the example's modules, as its scripts do, and forget them afterwards."""
    path = [*sys.path]
    sys.path.insert(0, str(FOLDER))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SPARSEMBED_DATA", raising=False)
        yield {name: importlib.import_module(name) for name in NAMES}
    sys.path[:] = path
    for name in NAMES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def by_hand(example):
    return example["compare"].run("NumPy", STEPS)


FRAMEWORKS = ["PyTorch", "JAX", "Keras on PyTorch", "Keras on JAX"]


@pytest.mark.parametrize("label", ["NumPy in float64", *FRAMEWORKS])
def test_the_loss_curve_is_that_of_the_loop_by_hand(label, example, by_hand):
    compare = example["compare"]
    if not compare.installed(label):
        pytest.skip(f"needs {' and '.join(compare.LOOPS[label][1])}")
    result = compare.run(label, STEPS)
    assert len(result["losses"]) == STEPS
    assert compare.deviation(result["losses"], by_hand["losses"]) < example["common"].tolerance(STEPS)
    assert result["held_out"] == pytest.approx(by_hand["held_out"], rel=example["common"].tolerance(STEPS))
    assert np.mean(by_hand["losses"][-5:]) < 0.8 * np.mean(by_hand["losses"][:5])


def test_the_gradients_by_hand_are_the_slopes(example, rng):
    common, gradients = example["common"], example["numpy_loop"].gradients
    ratings = rng.uniform(1, 5, 6)
    dense = [weight.astype(np.float64) for weight in common.new_dense(3.5)]
    inputs = [rng.standard_normal((6, common.DIM)), rng.standard_normal((6, common.DIM)), *dense]
    _, grad_x, grad_y, grads = gradients(*inputs[:2], inputs[2:], ratings)
    for i, grad in enumerate([grad_x, grad_y, *grads]):
        direction = rng.standard_normal(inputs[i].shape)
        ahead, behind = (
            [value + sign * 1e-5 * direction if j == i else value for j, value in enumerate(inputs)] for sign in (1, -1)
        )
        slope = (gradients(*ahead[:2], ahead[2:], ratings)[0] - gradients(*behind[:2], behind[2:], ratings)[0]) / 2e-5
        np.testing.assert_allclose((grad * direction).sum(), slope, rtol=1e-7)


KERAS = """
import sys
sys.path.insert(0, sys.argv[1])
import common, keras, keras_loop, numpy as np
_, sizes, batches, held = common.batches(3)
tables, dense = common.new_tables(sizes), common.new_dense(3.5)
model = keras_loop.build(tables, dense)
users, items, ratings = batches[0]
before = model.predict([users, items], batch_size=64, verbose=0)
history = model.fit([users, items], ratings, batch_size=128, epochs=2, shuffle=True, verbose=0)
assert [table.step for table in tables] == [8, 8], tables
assert len(history.history["loss"]) == 2
after = model.predict([users, items], verbose=0)
assert after.shape == ratings.shape and np.square(after - ratings).mean() < np.square(before - ratings).mean()
error = common.held_out_error(tables, model.get_weights(), (users, items, ratings))
np.testing.assert_allclose(np.sqrt(np.square(after - ratings).mean()), error, rtol=1e-5)
for wrong in ({"run_eagerly": False}, {"loss": "mse"}):
    try:
        model.compile(optimizer="sgd", **wrong)
    except ValueError as error:
        assert "run_eagerly=True, and its loss as loss_of" in str(error)
    else:
        raise AssertionError(wrong)

# Layers with state of their own, and ids of two dimensions.
body = keras.Sequential([keras.Input((4, common.DIM)), keras.layers.BatchNormalization(), keras.layers.Flatten()])
body.add(keras.layers.Dense(1))
model = keras_loop.TableModel(tables[:1], body, keras.losses.MeanSquaredError())
model.compile(optimizer="adam")
moving = [np.array(weight) for weight in body.non_trainable_weights]
model.fit([users.reshape(-1, 4)], ratings.reshape(-1, 4).mean(axis=1, keepdims=True), batch_size=32, verbose=0)
assert tables[0].step == 12
assert any((now != then).any() for now, then in zip(map(np.array, body.non_trainable_weights), moving))
"""


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_model_of_keras_fits_predicts_and_refuses(backend):
    for name in ("keras", backend):
        if not importlib.util.find_spec(name):
            pytest.skip(f"needs {name}")
    environment = {name: value for name, value in os.environ.items() if name != "SPARSEMBED_DATA"}
    environment["KERAS_BACKEND"] = backend
    command = [sys.executable, "-c", KERAS, str(FOLDER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr


def test_compare_reports_and_draws(example, by_hand, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("Agg")
    compare = example["compare"]
    kept = {label: compare.LOOPS[label] for label in ("NumPy in float64", "NumPy")}
    monkeypatch.setattr(compare, "LOOPS", kept | {"None": (["none_loop.py"], ("no_such_framework",), "")})
    assert compare.main(["--steps", str(STEPS), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "None: left out, needs no_such_framework" in printed
    summary = json.loads((tmp_path / "recommender.json").read_text())
    assert printed.endswith("\n".join(compare.table(summary)) + "\n")
    assert 0 < summary["loops"]["NumPy"]["deviation"] < summary["tolerance"]
    assert (tmp_path / "recommender.png").stat().st_size > 10_000
    # A loop that drops one gradient of 40 is found out.
    wrong = {**by_hand, "losses": [*by_hand["losses"][:-1], by_hand["losses"][-1] * (1 + 1e-5)]}
    _, ok = compare.compare({"NumPy in float64": by_hand, "NumPy": wrong}, STEPS)
    assert not ok


def test_the_page_shows_what_is_committed(example):
    text = PAGE.read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- recommender -->\n(.*?)\n<!-- /recommender -->", text, re.DOTALL)
    summary = json.loads((FOLDER.parents[1] / "results" / "recommender.json").read_text())
    assert shown.splitlines() == example["compare"].table(summary)
    assert set(summary["loops"]) == set(example["compare"].LOOPS)
    assert summary["largest_between_frameworks"] < summary["tolerance"]


def test_ratings_of_a_file(example, tmp_path, monkeypatch):
    lines = "".join(f"{user},{user % 7 * 10},{1 + user % 5},0\n" for user in range(600))
    (tmp_path / "ml-latest-small-ratings.csv").write_text("userId,movieId,rating,timestamp\n" + lines)
    monkeypatch.setenv("SPARSEMBED_DATA", str(tmp_path))
    name, sizes, batches, held = example["common"].batches(3)
    assert (name, sizes, len(batches), len(held[0])) == ("MovieLens", (600, 7), 3, 60)
    assert not set(held[0]) & {user for users, _, _ in batches for user in users}
    assert all((items == users % 7).all() and (ratings == 1 + users % 5).all() for users, items, ratings in batches)

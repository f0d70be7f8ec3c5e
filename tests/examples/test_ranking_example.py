"""The example that ranks items."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "recommender" / "ranking.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the examples are not part of an installation")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("ranking", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    path = [*sys.path]
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    sys.modules.pop("which_adam", None)


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.delenv("SPARSEMBED_DATA", raising=False)


def steps_by_hand(who, taken, other, users, items, rate, decay):
    """The loop in NumPy and float64."""
    users, items = users.astype(np.float64), items.astype(np.float64)
    for u, p, n in zip(who, taken, other, strict=True):
        x, y, z = users[u].copy(), items[p].copy(), items[n].copy()
        slope = rate / (1 + np.exp((y - z) @ x))
        users[u] += slope * (y - z) - rate * decay * x
        items[p] += slope * x - rate * decay * y
        items[n] += -slope * x - rate * decay * z
        users[u, -1] = 1
    return users, items


def test_the_compiled_loop_takes_the_steps_in_turn(example, rng):
    users, items = (rng.normal(size=(n, 8)).astype(np.float32) for n in (5, 6))
    users[:, -1] = 1
    who, taken = rng.integers(0, 5, 40), rng.integers(0, 3, 40)
    other = rng.integers(3, 6, 40)
    expected = steps_by_hand(who, taken, other, users, items, 0.1, 0.01)
    example.learn(who, taken, other, users, items, 0.1, 0.01)
    np.testing.assert_allclose(users, expected[0], atol=1e-4)
    np.testing.assert_allclose(items, expected[1], atol=1e-4)
    assert (users[:, -1] == 1).all()


def test_a_pass_of_batches_is_a_step_of_adagrad(example, rng):
    pairs = np.unique(np.stack([rng.integers(0, 9, 30), rng.integers(0, 12, 30)], axis=1), axis=0)
    model = example.Ranking(pairs, 9, 12, rate=0.1, seed=3)
    again = example.Ranking(pairs, 9, 12, rate=0.1, seed=3)
    users, items = model.users.weight.astype(np.float64), model.items.weight.astype(np.float64)
    who, taken, other = again.draw()
    slope = 1 / (1 + np.exp(((items[taken] - items[other]) * users[who]).sum(axis=1)))[:, None]
    grad_users, grad_items = np.zeros(users.shape), np.zeros(items.shape)
    np.add.at(grad_users, who, -slope * (items[taken] - items[other]))
    np.add.at(grad_items, taken, -slope * users[who])
    np.add.at(grad_items, other, slope * users[who])
    grad_users[:, -1] = 0
    model.pass_of_batches(len(pairs))
    for table, start, grad in ((model.users, users, grad_users), (model.items, items, grad_items)):
        step = 0.1 * grad / (np.sqrt(grad**2) + 1e-10)
        big = np.abs(grad) > 1e-6  # else rounding decides the sign, which is all of the first step of Adagrad
        np.testing.assert_allclose(np.where(big, table.weight, 0), np.where(big, start - step, 0), atol=1e-5)


def test_nobody_is_offered_what_he_took(example, rng):
    pairs = np.unique(np.stack([rng.integers(0, 9, 60), rng.integers(0, 12, 60)], axis=1), axis=0)
    model = example.Ranking(pairs, 9, 12)
    known = set(map(tuple, pairs.tolist()))
    for _ in range(5):
        who, taken, other = model.draw()
        assert set(zip(who.tolist(), taken.tolist(), strict=True)) <= known
        assert not set(zip(who.tolist(), other.tolist(), strict=True)) & known


def test_recall_counts_items_held_out_among_those_not_known(example, monkeypatch):
    monkeypatch.setattr(example, "SHOWN", 2)
    users, items = np.eye(2), np.array([[4.0, 1], [3, 2], [2, 3], [1, 4]])
    trained, held = np.array([[0, 0], [1, 3]]), np.array([[0, 1], [0, 3], [1, 2]])
    assert example.recall(users, items, trained, held) == pytest.approx((1 / 2 + 1) / 2)


@pytest.mark.parametrize("arguments", [[], ["--batches"]])
def test_it_learns_and_prints(example, arguments, capsys):
    example.main(["--epochs", "10", *arguments])
    output = capsys.readouterr().out
    assert re.match(r"made-up ratings: \d+ users, [\d,]+ items, [\d,]+ pairs; [\d,]+ are held out\n", output)
    found = [float(each) for each in re.findall(r"^pass +\d+: recall of the first 20 ([\d.]+), ", output, re.MULTILINE)]
    assert len(found) == 2
    assert found[-1] > 0.1  # 20 items at random: below 0.01


def test_bad_input_is_refused(example):
    with pytest.raises(SystemExit):
        example.main(["--epochs", "0"])

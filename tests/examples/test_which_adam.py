"""The example that compares Adam, SparseAdam and dense Adam."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "which_adam.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the examples are not part of an installation")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("which_adam", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_adam_is_dense_adam_and_sparse_adam_is_not(example, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SPARSEMBED_DATA", raising=False)
    _, users, items, ratings = example.read_ratings(None)
    monkeypatch.setattr(example, "read_ratings", lambda _: ("few", users[:6000], items[:6000] % 400, ratings[:6000]))
    pytest.importorskip("matplotlib").use("Agg")
    example.main(["--epochs", "2", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "which_adam.json").read_text())
    assert max(result["deviation"]["Adam"]) < 1e-3
    assert result["deviation"]["SparseAdam"][-1] > 0.05
    np.testing.assert_allclose(result["rmse"]["Adam"], result["rmse"]["dense"], rtol=1e-4)
    assert (tmp_path / "which_adam.png").stat().st_size > 10_000
    assert "| SparseAdam |" in capsys.readouterr().out


def test_ratings_of_a_file(example, tmp_path):
    (tmp_path / example.FILE).write_text("userId,movieId,rating,timestamp\n7,30,4.5,1\n9,20,3.0,2\n7,20,1.0,3\n")
    name, users, items, ratings = example.read_ratings(tmp_path)
    assert name == "MovieLens"
    np.testing.assert_array_equal(users, [0, 1, 0])
    np.testing.assert_array_equal(items, [1, 0, 0])
    np.testing.assert_array_equal(ratings, [4.5, 3.0, 1.0])

"""Without torch, JAX, Keras or TensorFlow everything works; with them, each loads only by the caller's doing."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANGS

import sparsembed as se

ROOT = str(Path(se.__file__).parents[1])
FRAMEWORKS = ("torch", "jax", "keras", "tensorflow", "cupy")
BLOCK = f"""
import sys

class Blocked:
    asked = []

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in {FRAMEWORKS}:
            cls.asked.append(name)
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked)
"""


def python(code):
    paths = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "error", "-c", code]
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_training_step_of_every_kind_without_any_framework():
    """No import is even tried."""
    step = """
import numpy as np
import sparsembed as se
import sparsembed.reference, sparsembed.testing, sparsembed.initializers, sparsembed.rules

rng = np.random.default_rng(0)
ids, target = rng.integers(1, 50, 32), rng.standard_normal((32, 4)).astype(np.float32)
for rule in (se.SGD(0.5), se.Adagrad(0.1), se.SparseAdam(0.05), se.Adam(0.05)):
    table, losses = se.EmbeddingTable(50, 4, rule, padding_idx=0, rng=0), []
    bags = se.Bags.from_lists([[1, 2, 0], [], [3]])
    for _ in range(20):
        error = table.lookup(ids) - target
        losses.append((error**2).mean())
        gradient = table.gradient(ids, 2 / 32 * error)
        se.clip_by_global_norm([gradient + gradient.scale(0.5)], 1.0, dense=[np.ones(3)])
        table.apply(gradient)
        table.update_pooled(bags, 0.01 * table.pool(bags, "mean"), "mean")
    assert losses[-1] < losses[0], rule
    again = se.EmbeddingTable(50, 4, rule)
    again.load_state_dict(table.state_dict())
    assert (again.weight == table.weight).all()
se.testing.check_optimizer(se.SGD(0.1))
assert Blocked.asked == [], Blocked.asked
for name in FRAMEWORKS:
    try:
        __import__(name)
    except ImportError:
        pass
print(*Blocked.asked)
"""
    assert python(BLOCK + f"FRAMEWORKS = {FRAMEWORKS}" + step) == [*FRAMEWORKS]


ARRAYS = {  # framework -> an expression for ids
    "torch": "torch.tensor([1, 2, 1])",
    "jax": "jax.numpy.array([1, 2, 1])",
    "tensorflow": "tensorflow.constant([1, 2, 1])",
}


@pytest.mark.parametrize("name", ARRAYS)
def test_the_arrays_of_one_framework_load_no_other(name):
    if not importlib.util.find_spec(name):
        pytest.skip(f"needs {name}")
    code = f"""
import sys
import sparsembed as se
print({name!r} in sys.modules)
import {name}
before = set(sys.modules)
table = se.EmbeddingTable(5, 3, se.SGD(0.1), rng=0)
rows = table.lookup({ARRAYS[name]})
table.update({ARRAYS[name]}, rows)
print(type(rows).__module__.split(".")[0], table.step)
print(*{{each.split(".")[0] for each in set(sys.modules) - before}} & {{*{FRAMEWORKS}}} - {{{name!r}}})
"""
    kinds = {"torch": "torch", "jax": "jaxlib", "tensorflow": "numpy"}
    assert python(code) == ["False", kinds[name], "1"]

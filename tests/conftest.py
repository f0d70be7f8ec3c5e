"""Settings shared by all tests."""

import os
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import settings

# The first example of a kernel compiles it, so no example has a deadline.
settings.register_profile("local", deadline=None, max_examples=40)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items):
    """Examples of docstrings that import torch run where it is installed."""
    if find_spec("torch") is None:
        for item in items:
            if isinstance(item, pytest.DoctestItem) and "torch" in {
                name for e in item.dtest.examples for name in e.source.replace(",", " ").split()
            }:
                item.add_marker(pytest.mark.skip(reason="torch is not installed"))


@pytest.fixture
def strict_torch():
    """Torch says everything every time, and checks its sparse tensors (it warns until told either way)."""
    torch = pytest.importorskip("torch")
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    with torch.sparse.check_sparse_tensor_invariants():
        yield
    torch.set_warn_always(always)


@pytest.fixture
def rng():
    return np.random.default_rng(0)

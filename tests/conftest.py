"""Settings shared by all tests."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The first example of a kernel compiles it, so no example has a deadline; and beside other programs drawing takes
# any time, too, which says nothing about what is drawn.
settings.register_profile("local", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


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

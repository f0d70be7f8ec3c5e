"""What pytest collects, and runs, where torch is not installed."""

import importlib.util

import pytest

WITHOUT_TORCH = importlib.util.find_spec("torch") is None
collect_ignore = ["tests/helpers", *(["sparsembed/torch"] if WITHOUT_TORCH else [])]
if not (importlib.util.find_spec("numba_cuda") and importlib.util.find_spec("cuda")):
    collect_ignore += ["sparsembed/kernels/cuda", "sparsembed/_cuda"]


def pytest_collection_modifyitems(items):
    """Skip the examples of docstrings that import torch."""
    for item in items:
        if WITHOUT_TORCH and isinstance(item, pytest.DoctestItem):
            sources = " ".join(example.source for example in item.dtest.examples)
            if "torch," in sources or "import torch" in sources:
                item.add_marker(pytest.mark.skip(reason="torch is not installed"))

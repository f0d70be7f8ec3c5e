"""What pytest collects where torch is not installed."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("torch") else ["sparsembed/torch", "tests/torch_cases.py"]

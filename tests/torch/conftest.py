"""Tests of sparsembed.torch."""

from importlib.util import find_spec

from needs import needs

pytest_collect_file = needs(find_spec("torch"), "torch is not installed")

"""Tests of the benchmarks."""

from importlib.util import find_spec

from needs import needs

pytest_collect_file = needs(find_spec("benchmarks"), "benchmarks are not part of an installed package")

"""Tests of the GPU's benchmark, in the simulator."""

from importlib.util import find_spec

from needs import needs
from numba.core import config

pytest_collect_file = needs(
    config.ENABLE_CUDASIM and find_spec("benchmarks"),
    "the simulator needs NUMBA_ENABLE_CUDASIM=1, and benchmarks are not part of an installed package",
)

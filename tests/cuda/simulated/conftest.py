"""Tests of the GPU's side, whose kernels run as Python."""

from needs import needs
from numba.core import config

if config.ENABLE_CUDASIM:
    from simulated_gpus import gpus  # noqa: F401  (a fixture)

pytest_collect_file = needs(config.ENABLE_CUDASIM, "the simulator needs NUMBA_ENABLE_CUDASIM=1")

"""Tests of what the GPU's kernels become, which is compiled without a GPU."""

from importlib.util import find_spec

from needs import needs
from numba.core import config

pytest_collect_file = needs(
    not config.ENABLE_CUDASIM and find_spec("numba_cuda") and find_spec("nvidia"),
    "needs the extra cuda-ci, and no simulator",
)

"""Every public operation on the CPU equals the reference; `tests/cuda/simulated` runs the same bodies."""

import numpy as np
import pytest
from operations import CASES, Place, check

HERE = Place(lambda array: array, np.asarray)


@pytest.mark.parametrize("case", CASES)
def test_an_operation_equals_the_reference(case):
    check(case, HERE)

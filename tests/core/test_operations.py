"""Every public operation on the CPU equals the reference; `tests/cuda/simulated` runs the same bodies."""

import numpy as np
import pytest
from general import take_the_general_way
from operations import CASES, Place, check

HERE = Place(lambda array: array, np.asarray)


@pytest.mark.parametrize("case", CASES)
def test_an_operation_equals_the_reference(case):
    check(case, HERE)


@pytest.mark.parametrize("case", CASES)
def test_an_operation_by_the_general_way_equals_the_reference(case, monkeypatch):
    """The steps that calls with many ids take, here with few."""
    take_the_general_way(monkeypatch)
    check(case, HERE)

"""Every public operation on device arrays equals the reference: the bodies of `tests/core/test_operations.py`."""

import pytest
from operations import CASES, Place, check
from simulated_gpus import Held, host

pytestmark = pytest.mark.usefixtures("gpus")


def read(array):
    return array.array if isinstance(array, Held) else host(array)


THERE = Place(Held, read)


@pytest.mark.parametrize("case", CASES)
def test_an_operation_on_a_gpu_equals_the_reference(case):
    check(case, THERE)

"""The functions by which kernels reach a rule, registered for CUDA with the same specialisations as on the CPU."""

from numba.cuda.extending import overload, register_jitable

from ...rules._dispatch import SPECIALISATIONS
from ...rules._rule import HELPERS

__all__: list[str] = []

for _function, _specialise in SPECIALISATIONS:
    overload(_function)(_specialise)
for _function in HELPERS:
    register_jitable(_function)

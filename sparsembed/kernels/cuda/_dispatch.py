"""The functions by which kernels reach a rule or a loss, registered for CUDA with the CPU's specialisations."""

from numba.cuda.extending import overload, register_jitable

from ...losses._dispatch import SPECIALISATIONS as OF_LOSSES
from ...rules._dispatch import SPECIALISATIONS
from ...rules._rule import HELPERS

__all__: list[str] = []

for _function, _specialise in (*SPECIALISATIONS, *OF_LOSSES):
    overload(_function)(_specialise)
for _function in HELPERS:
    register_jitable(_function)

"""The functions that reach a rule, for CUDA: the same ones, turned into the same functions of the rule."""

from numba.cuda.extending import overload

from ...rules._dispatch import SPECIALISATIONS

__all__: list[str] = []

for _function, _specialise in SPECIALISATIONS:
    overload(_function)(_specialise)

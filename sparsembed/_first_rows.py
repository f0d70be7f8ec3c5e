"""The first rows of a table, and its seed: 64 bits for everything that it draws later."""

import operator
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _check as check
from . import initializers
from ._cpu.inputs import matrix
from ._typing import Array

SEEDS = 1 << 64  # seeds are below this


def first_rows(
    initializer: Callable[..., Any], shape: tuple[int, int], dtype: np.dtype[Any], rng: Any
) -> tuple[tuple[Array, bool], int]:
    """Return (first rows of a table, whether no other object uses that array), and the table's seed."""
    if not callable(initializer):
        raise TypeError(
            f"initializer must be a function such as se.initializers.normal, got {check.shown(initializer)}"
        )
    generator = generator_of(rng)
    weight = matrix(initializer(shape, dtype=dtype, rng=generator), "initializer(...)")
    if weight.shape != shape or weight.dtype != dtype:
        got = f"{weight.dtype} {weight.shape}"
        raise ValueError(f"initializer must return a {dtype} array of shape {shape}, got {got}")
    owned = getattr(initializer, "func", initializer) in initializers.FRESH  # `func` of a functools.partial
    return (weight, owned), seed_of(rng, generator)


def generator_of(rng: Any) -> np.random.Generator:
    """Return a generator of what was given as `rng`."""
    try:
        if isinstance(rng, bool | np.bool_):
            raise TypeError("a bool is no seed")
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        wanted = "None, an integer that is not negative, a SeedSequence or a numpy.random.Generator"
        raise type(error)(f"rng must be {wanted}, got {check.shown(rng)}") from error


def seed_of(rng: Any, generator: np.random.Generator | None = None) -> int:
    """Return the seed of a table: `rng` itself if it is one, else 64 bits drawn from it, after the first rows."""
    if rng is None:
        return secrets.randbits(64)
    try:
        number = -1 if isinstance(rng, bool | np.bool_) else operator.index(rng)
    except TypeError:
        number = -1
    if 0 <= number < SEEDS:
        return number
    generator = generator_of(rng) if generator is None else generator
    return int(generator.integers(SEEDS - 1, dtype=np.uint64, endpoint=True))

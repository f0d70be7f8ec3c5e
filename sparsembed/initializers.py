"""Initial weights: functions of a shape, with the random generator as keyword `rng`.

Every function returns a fresh C-ordered array that starts on a cache line.  Numbers are drawn
in one stream, so they do not depend on the number of threads.  `rng` is what
``numpy.random.default_rng`` takes: None, an int, a SeedSequence or a Generator.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _check as check
from ._cpu import memory
from ._typing import Array

_BLOCK = 1 << 16  # numbers drawn at a time: keeps temporaries in cache and memory bounded


def zeros(shape: tuple[int, ...], *, dtype: npt.DTypeLike = np.float32, rng: Any = None) -> Array:
    """Return zeros, which take no memory until a row is touched.

    Parameters
    ----------
    shape : tuple of int, such as (num_rows, dim)
    dtype : {float32, float64, float16}, default float32
    rng : None, int, SeedSequence or Generator, default None
        Not used.

    Returns
    -------
    array of `shape` and `dtype`
        Fresh, C-ordered, on a cache line.

    Raises
    ------
    TypeError
        If `shape` is no tuple of integers, or `dtype` none of the three.
    ValueError
        If an extent is negative.

    Examples
    --------
    >>> import sparsembed as se
    >>> se.initializers.zeros((1, 2))
    array([[0., 0.]], dtype=float32)
    """
    return memory.zeros(check.shape(shape), check.table_dtype(dtype))


def uniform(
    shape: tuple[int, ...],
    low: float = -0.05,
    high: float = 0.05,
    *,
    dtype: npt.DTypeLike = np.float32,
    rng: Any = None,
) -> Array:
    """Draw from the uniform distribution on [low, high).

    Parameters
    ----------
    shape : tuple of int, such as (num_rows, dim)
    low, high : float, default -0.05 and 0.05
        Finite, ``low <= high``.
    dtype : {float32, float64, float16}, default float32
    rng : None, int, SeedSequence or Generator, default None

    Returns
    -------
    array of `shape` and `dtype`
        Fresh, C-ordered, on a cache line.

    Raises
    ------
    TypeError
        If `shape` is no tuple of integers, a bound no number, or `dtype` none of the three.
    ValueError
        If an extent is negative, a bound not finite, or `high` below `low`.

    Notes
    -----
    The default of `EmbeddingTable`, with the bounds of Keras's ``Embedding``.  Draws one float64 for each number.

    Examples
    --------
    >>> import sparsembed as se
    >>> bool((abs(se.initializers.uniform((9, 4), rng=0)) <= 0.05).all())
    True
    """
    low = check.real(low, "low")
    high = check.real(high, "high", least=low)
    return _fill(shape, dtype, rng, lambda generator, n: low + (high - low) * generator.random(n))


def normal(
    shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0, *, dtype: npt.DTypeLike = np.float32, rng: Any = None
) -> Array:
    """Draw from the normal distribution.

    Parameters
    ----------
    shape : tuple of int, such as (num_rows, dim)
    mean, std : float, default 0 and 1
        Finite; `std` not negative.
    dtype : {float32, float64, float16}, default float32
    rng : None, int, SeedSequence or Generator, default None

    Returns
    -------
    array of `shape` and `dtype`
        Fresh, C-ordered, on a cache line.

    Raises
    ------
    TypeError
        If `shape` is no tuple of integers, `mean` or `std` no number, or `dtype` none of the three.
    ValueError
        If an extent is negative, `mean` or `std` not finite, or `std` negative.

    Notes
    -----
    With its defaults the distribution of ``torch.nn.Embedding``.  Draws one float64 for each number.

    Examples
    --------
    >>> import sparsembed as se
    >>> se.initializers.normal((1000, 10), std=0.1, rng=0).std().round(2)
    np.float32(0.1)
    """
    mean, std = check.real(mean, "mean"), check.real(std, "std", least=0.0)
    return _fill(shape, dtype, rng, lambda generator, n: mean + std * generator.standard_normal(n))


def truncated_normal(
    shape: tuple[int, ...],
    mean: float = 0.0,
    std: float = 1.0,
    bound: float = 2.0,
    *,
    dtype: npt.DTypeLike = np.float32,
    rng: Any = None,
) -> Array:
    """Draw from the normal distribution cut off at `bound` standard deviations from the mean.

    Parameters
    ----------
    shape : tuple of int, such as (num_rows, dim)
    mean, std : float, default 0 and 1
        Of the distribution before it is cut off.
    bound : float, default 2
        At least 1e-6.
    dtype : {float32, float64, float16}, default float32
    rng : None, int, SeedSequence or Generator, default None

    Returns
    -------
    array of `shape` and `dtype`
        Fresh, C-ordered, on a cache line.

    Raises
    ------
    TypeError
        If `shape` is no tuple of integers, a parameter no number, or `dtype` none of the three.
    ValueError
        If an extent is negative, a parameter not finite, `std` negative, or `bound` below 1e-6.

    Notes
    -----
    By the quantile function of one uniform float64 for each number, without rejection.

    Examples
    --------
    >>> import sparsembed as se
    >>> bool(abs(se.initializers.truncated_normal((100, 10), std=0.5, rng=0)).max() <= 1.0)
    True
    """
    mean, std = check.real(mean, "mean"), check.real(std, "std", least=0.0)
    bound = check.real(bound, "bound", least=1e-6)
    from scipy.special import ndtr, ndtri  # here: it is a third of the time to import this package

    low = float(ndtr(-bound))

    def draw(generator: np.random.Generator, n: int) -> Array:
        quantile: Array = ndtri(low + (1 - 2 * low) * generator.random(n))
        return mean + std * np.clip(quantile, -bound, bound)

    return _fill(shape, dtype, rng, draw)


def glorot_uniform(shape: tuple[int, ...], *, dtype: npt.DTypeLike = np.float32, rng: Any = None) -> Array:
    """Draw uniformly from +-sqrt(6 / (num_rows + dim)).

    Parameters
    ----------
    shape : tuple of int, such as (num_rows, dim)
    dtype : {float32, float64, float16}, default float32
    rng : None, int, SeedSequence or Generator, default None

    Returns
    -------
    array of `shape` and `dtype`
        Fresh, C-ordered, on a cache line.

    Raises
    ------
    TypeError
        If `shape` is no tuple of integers, or `dtype` none of the three.
    ValueError
        If an extent is negative.

    References
    ----------
    Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010, https://proceedings.mlr.press/v9/glorot10a.html

    Examples
    --------
    >>> import sparsembed as se
    >>> bool(abs(se.initializers.glorot_uniform((20, 4), rng=0)).max() <= 0.5)
    True
    """
    shape = check.shape(shape)
    limit = math.sqrt(6 / max(shape[0] + shape[-1], 1))
    return uniform(shape, -limit, limit, dtype=dtype, rng=rng)


FRESH = frozenset({zeros, uniform, normal, truncated_normal, glorot_uniform})  # results can be adopted without a copy


def _fill(
    shape: tuple[int, ...], dtype: npt.DTypeLike, rng: Any, draw: Callable[[np.random.Generator, int], Array]
) -> Array:
    """Fill an array block by block, drawing in float64 and rounding once."""
    generator = np.random.default_rng(rng)
    array = memory.empty(check.shape(shape), check.table_dtype(dtype))
    flat = array.reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        block[:] = draw(generator, len(block))
    return array

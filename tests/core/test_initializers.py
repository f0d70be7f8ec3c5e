"""Initial weights: repeatable, in range, of the right distribution."""

import math

import numpy as np
import pytest
from scipy import stats

import sparsembed as se
from sparsembed import initializers

ALL = [
    initializers.zeros,
    initializers.uniform,
    initializers.normal,
    initializers.truncated_normal,
    initializers.glorot_uniform,
]
each_one = pytest.mark.parametrize("initializer", ALL, ids=lambda each: each.__name__)
SHAPE = (3000, 33)  # more numbers than one block of 65,536


@each_one
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_array(initializer, dtype):
    array = initializer(SHAPE, dtype=dtype, rng=0)
    assert array.shape == SHAPE
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.ctypes.data % 64 == 0
    assert np.isfinite(array).all()


@each_one
def test_float32_by_default(initializer):
    assert initializer((2, 3)).dtype == np.float32


@each_one
def test_repeatable(initializer):
    one = initializer(SHAPE, rng=5)
    for rng in (5, np.random.default_rng(5), np.random.SeedSequence(5)):
        np.testing.assert_array_equal(initializer(SHAPE, rng=rng), one)
    if initializer is not initializers.zeros:
        assert (initializer(SHAPE, rng=6) != one).mean() > 0.9
        generator = np.random.default_rng(5)
        assert (initializer(SHAPE, rng=generator) != initializer(SHAPE, rng=generator)).mean() > 0.9
        assert (initializer(SHAPE) != initializer(SHAPE)).mean() > 0.9


@each_one
def test_rounded_once(initializer):
    """Every dtype gets the same numbers, rounded."""
    exact = initializer((9, 9), dtype=np.float64, rng=1)
    for dtype in (np.float16, np.float32):
        np.testing.assert_array_equal(initializer((9, 9), dtype=dtype, rng=1), exact.astype(dtype))


def test_one_stream_over_blocks():
    """The first rows of a large table are those of a small one."""
    for initializer in ALL[1:4]:
        np.testing.assert_array_equal(initializer(SHAPE, rng=2)[:2], initializer((2, 33), rng=2))


LIMIT = math.sqrt(6 / 3033)
DISTRIBUTIONS = [
    (initializers.uniform, {}, stats.uniform(-0.05, 0.1)),
    (initializers.uniform, {"low": 2.0, "high": 5.0}, stats.uniform(2, 3)),
    (initializers.normal, {}, stats.norm()),
    (initializers.normal, {"mean": 1.0, "std": 0.1}, stats.norm(1, 0.1)),
    (initializers.truncated_normal, {}, stats.truncnorm(-2, 2)),
    (initializers.truncated_normal, {"mean": 3.0, "std": 0.5, "bound": 0.7}, stats.truncnorm(-0.7, 0.7, 3, 0.5)),
    (initializers.truncated_normal, {"bound": 9.0}, stats.norm()),
    (initializers.glorot_uniform, {}, stats.uniform(-LIMIT, 2 * LIMIT)),
]


@pytest.mark.parametrize(("initializer", "options", "distribution"), DISTRIBUTIONS)
def test_distribution(initializer, options, distribution):
    """The seed is fixed, so this passes or fails for good; a right sample fails once in 10,000."""
    sample = initializer(SHAPE, dtype=np.float64, rng=0, **options).ravel()
    assert stats.kstest(sample, distribution.cdf).pvalue > 1e-4
    low, high = distribution.support()
    assert sample.min() >= low
    assert sample.max() <= high


def test_degenerate():
    assert (initializers.uniform((3, 2), 0.5, 0.5) == 0.5).all()
    assert (initializers.normal((3, 2), mean=2.0, std=0.0) == 2).all()
    assert not initializers.zeros((3, 2)).any()


@each_one
def test_table(initializer):
    table = se.EmbeddingTable(40, 3, initializer=initializer, rng=4, padding_idx=1, dtype=np.float64)
    expected = initializer((40, 3), dtype=np.float64, rng=4)
    expected[1] = 0
    np.testing.assert_array_equal(table.weight, expected)


def test_a_table_does_not_adopt_what_a_function_returns():
    """Whoever wrote the function may hold the array; `from_array` is for adopting."""
    weight = initializers.uniform((5, 16), rng=0)
    table = se.EmbeddingTable(5, 16, initializer=lambda shape, *, dtype, rng: weight)
    np.testing.assert_array_equal(table.weight, weight)
    assert not np.shares_memory(table.weight, weight)


def test_a_table_takes_any_function():
    calls = []

    def ramp(shape, *, dtype, rng):
        calls.append((shape, dtype, rng))
        return np.arange(math.prod(shape), dtype=dtype).reshape(shape[::-1]).T

    table = se.EmbeddingTable(5, 3, initializer=ramp, rng=7)
    ((shape, dtype, rng),) = calls
    assert (shape, dtype) == ((5, 3), np.float32)
    assert rng.bit_generator.state == np.random.default_rng(7).bit_generator.state
    np.testing.assert_array_equal(table.weight, np.arange(15).reshape(3, 5).T)
    assert table.weight.flags.c_contiguous
    assert table.weight.ctypes.data % 64 == 0

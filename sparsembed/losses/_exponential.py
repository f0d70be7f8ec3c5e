"""Exponential and logarithm for losses, of arguments that cannot overflow.

In float32 they are polynomials, which the compiler can compute for several scores at once: 5 to 11 ns for the whole
logistic loss of a score, where ``math.exp`` and ``math.log1p`` take 20 to 45.  Both devices give the same bits.  In
float64 they are those of ``math``.
"""

import math

import numpy as np

# exp: Cephes, expf.c, https://www.netlib.org/cephes; 1.3 units of rounding at most.
_LEAST = np.float32(-87)  # exp of less is 0 here: 1.6e-38, near the smallest normal number
_LOG2E, _LN2, _LN2_REST = np.float32(1.44269504088896341), np.float32(0.693359375), np.float32(-2.12194440e-4)
_SHIFT = np.float32(3 << 22)  # added to a number below 2**22, it leaves the nearest whole number in the low bits
_E2, _E3, _E4 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_E5, _E6, _E7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
# log1p(e) = 2 atanh(u), u = e / (2 + e) <= 1/3: the coefficients 2 / (2 k + 1) of u**(2 k + 1); 3.5 units at most.
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = (np.float32(2 / (2 * k + 1)) for k in range(8))


def single_exp(x):
    """``exp(x)`` of a float32 that is not above 0."""
    c = _LEAST if x < _LEAST else x
    shifted = c * _LOG2E + _SHIFT
    n = shifted - _SHIFT
    r = c - n * _LN2 - n * _LN2_REST
    y = ((((_E7 * r + _E6) * r + _E5) * r + _E4) * r + _E3) * r + _E2
    bits = np.float32(shifted).view(np.int32)
    power = np.int32((bits + 127) << 23).view(np.float32)  # 2**n: 127 is the exponent of 1, in the bits from 23 on
    return _ZERO if x < _LEAST else (y * (r * r) + r + _ONE) * power


def double_exp(x):
    """``exp(x)`` of a float64."""
    return math.exp(x)


def single_log1p(e):
    """``log(1 + e)`` of a float32 from 0 to 1."""
    u = e / (_TWO + e)
    v = u * u
    return u * (_L0 + v * (_L1 + v * (_L2 + v * (_L3 + v * (_L4 + v * (_L5 + v * (_L6 + v * _L7)))))))


def double_log1p(e):
    """``log(1 + e)`` of a float64."""
    return math.log1p(e)

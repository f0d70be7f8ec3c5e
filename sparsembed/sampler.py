"""Negative samples: ids drawn as often as a power of their counts says, but for those that a row must not get."""

import math
import threading
from typing import Any, NamedTuple

import numpy as np

from . import _check as check
from ._cpu import inputs, memory, threads
from ._cpu.blocks import blocks_of
from ._first_rows import seed_of
from ._frameworks import as_array
from ._typing import Array
from .bags import Bags
from .kernels.cpu import sample as kernels
from .kernels.cpu.sort import first_outside

_BLOCK = 1 << 16  # weights computed at a time: keeps temporaries in cache and memory bounded
_LARGEST = 1 << 30  # ids are less than this: ids of sets have 32 bits, and sums of quanta are below 2**63
_PAIR_BYTES = 64  # two ids of 8 bytes, and 10 ns
_WORDS = (1 << 64) - 1


class _Excluded(NamedTuple):
    """The sets of excluded ids, in the form of `kernels.exclude`."""

    offsets: Array  # (num_keys + 1,)
    places: Array  # (2 * number of pairs,), int32
    marks: Array  # the same, uint8
    full: Array  # (num_keys,), bool: no id is left
    below: Array  # (num_ids + 1,), quanta below each id


class NegativeSampler:
    """Draws ids, each with a probability proportional to a power of its count.

    Parameters
    ----------
    counts : array of shape (num_ids,)
        How often each id occurs: integers or floats, finite, not negative, at least one above zero.  Taken as float64.
    power : float, default 0.75
        At least 0; 0 is uniform over the ids that occur, 1 draws them as often as they occur.
    seed : int, SeedSequence, Generator or None, default 0
        An int from 0 to 2**64 - 1 is the seed itself; of others 64 bits are drawn.
    exclude : scipy CSR array or matrix of shape (num_keys, num_ids), or Bags, optional
        Row or bag ``keys[i]`` holds the ids that row i of a draw must not get, such as the history of a user.  Stored
        zeros of a matrix count; ids may repeat.  Copied.

    Attributes
    ----------
    seed : int
    draws : int
        The number of draws made so far.  It may be set, to go on where another sampler of this seed was.

    Raises
    ------
    TypeError
        If `counts` are no integers or floats, `power` is no number, `seed` gives no generator, or `exclude` is neither
        a CSR matrix nor Bags in host memory.
    ValueError
        If `counts` are not of shape (num_ids,), one is negative or not finite, or all are zero; if `power` is negative
        or not finite, or `seed` negative.
    IndexError
        If an id of `exclude` is out of range.

    See Also
    --------
    Bags.from_lists : makes histories of lists.

    Notes
    -----
    A draw of one id takes 4 to 5 ns on one thread, of up to 100,000 ids, and 8 to 11 of a million; with `exclude` 20 ns
    if the sets of excluded ids are in the cache, and 55 if they are not, for long histories as for short ones.  The
    sampler holds 8.1 bytes for each id; with `exclude` 16.3, and 10 for each excluded pair.

    Probabilities are within ``2**-32`` of the exact ones (of more than 2**26 ids, within 2**-31).  An id whose count is
    zero is never drawn; one whose count is above zero is, with at least ``2**-33 / num_ids``.  Given `exclude`,
    probabilities are the conditional ones: an excluded id is drawn again, 127 times at most, and then of the ids that
    are left, which takes 0.2 ms for a key.

    What is drawn is a function of the seed, the number of the draw, the place in the result and the excluded ids: the
    same for any number of threads and on all machines.  The first rows of a larger draw are those of a smaller one.
    Two threads may draw at once, and each draw has a number of its own.  A draw that raises for its arguments has no
    number.  Pickles and deep copies go on after the same draw.

    The distribution is an alias table: Walker, "New fast method for generating discrete random numbers with arbitrary
    frequency distributions", Electronics Letters 10 (1974), made in linear time as Vose, "A linear algorithm for
    generating random numbers with a given distribution", IEEE TSE 17 (1991), in one sweep (Hübschle-Schneider, Sanders,
    "Parallel weighted random sampling", https://arxiv.org/abs/1903.00227).  Random numbers are Philox4x32-10: Salmon et
    al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the seed is its key.  The power 0.75 is that of
    Mikolov et al., "Distributed representations of words and phrases and their compositionality", NeurIPS 2013.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> sampler = se.NegativeSampler(np.array([8, 0, 1, 1]), seed=7)
    >>> ids = sampler.draw(1000, 2)
    >>> ids.shape, np.bincount(ids.ravel()).tolist()
    ((1000, 2), [1438, 0, 282, 280])
    >>> sampler, sampler.seed, sampler.draws
    (NegativeSampler(4 ids, power=0.75, seed=7, draws=1), 7, 1)
    >>> seen = se.Bags.from_lists([[0], [0, 3]])
    >>> sampler = se.NegativeSampler(np.array([8, 0, 1, 1]), exclude=seen)
    >>> sampler.draw(2, 4, keys=np.array([0, 1]))
    array([[3, 2, 2, 2],
           [2, 2, 2, 2]])
    """

    def __init__(self, counts: Any, power: float = 0.75, *, seed: Any = 0, exclude: Any = None) -> None:
        given, self._power = _counts(counts), check.real(power, "power", least=0.0)
        self._seed, self._draws, self._lock = _seed(seed), 0, threading.Lock()
        self._num_ids = len(given)
        quanta = _quanta(given, self._power)
        self._table = memory.empty(quanta.shape, np.uint64)
        self._excluded = None if exclude is None else _excluded(exclude, len(given), quanta)
        kernels.alias_table(quanta, self._table)

    def draw(self, n: int, k: int, *, keys: Any = None) -> Array:
        """Draw k ids for each of n rows.

        Parameters
        ----------
        n, k : int
            At least 0.
        keys : integer array of shape (n,), optional
            The row of `exclude` whose ids row i does not get; to be given if the sampler was made with `exclude`.

        Returns
        -------
        int64 array of shape (n, k)

        Raises
        ------
        TypeError
            If `n` or `k` is no integer, `keys` are no integers, or are missing beside `exclude`.
        ValueError
            If `n` or `k` is negative, `keys` are not of shape (n,) or are given without `exclude`, or a key excludes
            every id that could be drawn.
        IndexError
            If a key is out of range.
            After each of these `draws` is what it was.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> sampler = se.NegativeSampler(np.ones(1000), power=0)
        >>> sampler.draw(2, 3)
        array([[894, 615, 368],
               [ 38, 324, 276]])
        """
        n, k = check.count(n, "n", least=0), check.count(k, "k", least=0)
        rows = self._keys(keys, n)
        size = n * k
        flat = memory.empty((size + size % 2,), np.int64)  # numbers are made in pairs
        with self._lock:
            draw = self._draws
            self._draws = (draw + 1) & _WORDS
        result = flat[:size].reshape(n, k)
        if size == 0:
            return result
        table, numbers, excluded = self._table, (np.uint64(self._seed), np.uint64(draw)), self._excluded
        sets = None if excluded is None else (rows, k, *excluded[:3])
        num_blocks, block_size = blocks_of(len(flat) // 2, _PAIR_BYTES)
        ids = flat.view(np.uint64)
        if threads.run(kernels.sample, num_blocks, block_size, table, *numbers, sets, ids) and excluded is not None:
            left = np.flatnonzero(flat[:size] < 0)
            left = left[np.argsort(rows[left // k], kind="stable")]
            for positions in np.split(left, np.flatnonzero(np.diff(rows[left // k])) + 1):
                _draw_left(flat, positions, excluded, int(rows[positions[0] // k]), *numbers)
        return result

    def _keys(self, keys: Any, n: int) -> Array:
        """Check the keys of a draw; return an int64 copy, which no other thread can change."""
        if self._excluded is None:
            if keys is not None:
                raise ValueError(
                    f"keys must be left out, as the sampler excludes nothing, got {check.kind_of(keys)}; make it with "
                    "exclude=..."
                )
            return np.zeros(0, np.int64)
        if keys is None:
            raise TypeError("keys must be given: say which row of exclude each row of the draw is for, got None")
        flat, shape = inputs.ids(keys, "keys")
        if shape != (n,):
            raise ValueError(f"keys must have shape (n,) = ({n},), one key for each row, got {shape}")
        rows, num_keys = flat.astype(np.int64), len(self._excluded.full)
        if (at := int(first_outside(rows, num_keys))) >= 0:
            raise IndexError(
                f"keys[{at}] is {rows[at]}, expected 0 <= key < {num_keys} (rows of exclude); correct the key"
            )
        if self._excluded.full[rows].any():
            at = int(np.argmax(self._excluded.full[rows]))
            raise ValueError(
                f"keys[{at}] is {rows[at]}, whose row of exclude holds every id that occurs, so none is left for "
                f"row {at}; leave out such rows, or exclude less"
            )
        return rows

    @property
    def seed(self) -> int:
        """The 64 bits that all draws are a function of."""
        return self._seed

    @property
    def draws(self) -> int:
        """Number of draws made so far, which is the number of the next draw."""
        return self._draws

    @draws.setter
    def draws(self, value: int) -> None:
        number = check.count(value, "draws", least=0)
        with self._lock:
            self._draws = number

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        excluded = "" if self._excluded is None else f", excluding for {len(self._excluded.full)} keys"
        own = f"power={self._power:g}, seed={self._seed}, draws={self._draws}"
        return f"NegativeSampler({self._num_ids} ids, {own}{excluded})"


def _seed(value: Any) -> int:
    """Check `seed`, and return 64 bits."""
    try:
        return seed_of(value)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("rng must", "seed must", 1)) from error


def _counts(value: Any) -> Array:
    """Check `counts`; return float64."""
    array = as_array(value, "counts")
    if array.ndim != 1 and array.dtype.kind in "iuf":
        raise ValueError(f"counts must have shape (num_ids,), got {array.shape}; pass counts.ravel()")
    if array.dtype.kind not in "iuf":
        got = check.kind_of(value) if array.ndim == 0 else str(array.dtype)
        raise TypeError(f"counts must be integers or floats, got {got}; pass an array of how often each id occurs")
    if not 0 < len(array) < _LARGEST:
        raise ValueError(f"counts must be of at least one id and of less than 2**30, got {len(array)}")
    counts = array.astype(np.float64)
    wrong = ~((counts >= 0) & (counts < math.inf))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"counts[{at}] is {array[at]}, expected a finite number of at least 0; correct it")
    if not counts.any():
        raise ValueError(f"counts must have a number above zero, got {len(counts)} zeros; no id could be drawn")
    return counts


def _quanta(counts: Array, power: float) -> Array:
    """Return the probabilities of ids as whole numbers, whose sum is FULL times their number.

    Each is rounded, and 1 at least where the count is above zero; the id of the largest count has the rest.  Of n ids
    it is off by less than n - 1.  So there is a slot more for 64 ids, which no id has of its own: n - 1 is then less
    than 2**-32 of the sum by what numbers of 64 bits, scaled to a number of slots, are off: 2**-64 for a slot.
    """
    slots = len(counts) + (len(counts) >> 6)
    top, total = int(np.argmax(counts)), slots * kernels.FULL
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(counts), _BLOCK)]
    weights = np.empty(len(counts))
    for block in blocks:
        weights[block] = _powers(counts[block], counts[top], power)
    # Exact sums: they depend on no order, and so on no machine.
    scale = total / math.fsum(math.fsum(weights[block].tolist()) for block in blocks)
    quanta = np.zeros(slots, np.int64)
    for block in blocks:
        quanta[: len(counts)][block] = np.maximum(np.rint(weights[block] * scale), counts[block] > 0)
    quanta[top] = 0
    quanta[top] = total - int(quanta.sum())
    return quanta


def _powers(counts: Array, largest: float, power: float) -> Array:
    """Return ``(counts / largest) ** power`` to 2**-40, by operations that every machine rounds alike.

    ``np.power`` differs between machines in the last bit.  With m * 2**e for a count and t * 2**f for the largest,
    log(count / largest) is (e - f) * log(2) + 2 * artanh((m - t) / (m + t)); m is within sqrt(2) of t.
    """
    (m, e), (t, f) = np.frexp(counts), math.frexp(largest)
    shift = (m > t * math.sqrt(2)).astype(np.int64) - (m * math.sqrt(2) < t)
    m = np.ldexp(m, -shift)
    s = (m - t) / (m + t)
    series = np.zeros(len(s))
    for odd in range(21, 0, -2):
        series = series * (s * s) + 1 / odd
    with np.errstate(over="ignore"):  # -inf is as good as -1100, both give zero; above 0 there is only a count of zero
        logarithm = np.clip(power * ((e + shift - f) + (2 / math.log(2)) * (s * series)), -1100.0, 0.0)
    whole = np.rint(logarithm)
    rest = (logarithm - whole) * math.log(2)
    series = np.ones(len(s))
    for n in range(14, 0, -1):
        series = 1 + rest / n * series
    return np.where(counts > 0, np.ldexp(series, whole.astype(np.int64)), 0.0)


def _excluded(given: Any, num_ids: int, quanta: Array) -> _Excluded:
    """Return the sets of excluded ids."""
    if not isinstance(given, Bags) and getattr(given, "format", None) != "csr":
        how = "convert with .tocsr()" if check.is_sparse(given) else "make one with se.Bags.from_lists(lists)"
        raise TypeError(f"exclude must be a scipy CSR array or sparsembed.Bags, got {check.kind_of(given)}; {how}")
    bags = given if isinstance(given, Bags) else Bags.from_csr(given)
    if bags._on_device:
        raise TypeError("exclude must be Bags in host memory, got Bags on a GPU; make them of arrays on the host")
    ids, offsets = bags.ids, bags.offsets.copy()  # not read-only, which kernels would be compiled for, too
    if (at := int(first_outside(ids, num_ids))) >= 0:
        raise IndexError(
            f"exclude has id {ids[at]} at position {at}, expected 0 <= id < {num_ids} (len(counts)); correct it, or "
            "pass counts of all ids"
        )
    below = np.zeros(len(quanta) + 1, np.int64)
    np.cumsum(quanta, out=below[1:])
    places = np.full(2 * len(ids), -1, np.int32)
    marks, full = np.zeros(len(places), np.uint8), np.zeros(len(bags), np.bool_)
    num_blocks, block_size = blocks_of(len(bags), 64 * (1 + len(ids) / max(len(bags), 1)))
    if threads.run(kernels.exclude, num_blocks, block_size, ids, offsets, below, places, marks, full):
        raise check.changed()
    return _Excluded(offsets, places, marks, full, below)


def _draw_left(flat: Array, positions: Array, excluded: _Excluded, key: int, seed: Any, draw: Any) -> None:
    """Write the draws of a key at some positions: by the inverse of the sums of quanta of the ids that are left."""
    offsets, places, _, _, below = excluded
    mine = places[2 * offsets[key] : 2 * offsets[key + 1]]
    out = np.sort(mine[mine >= 0])
    gone = np.concatenate([[0], np.cumsum(below[out + 1] - below[out])])  # quanta of the excluded ids below each
    cut = below[out] - gone[:-1]  # where an excluded id would be among the quanta that are left
    position = positions.astype(np.uint64)
    random_pair = getattr(kernels.random_pair, "py_func", kernels.random_pair)
    one, two = random_pair(position >> np.uint64(1), np.uint64(kernels.ATTEMPTS), draw, seed)
    left = int(below[-1] - gone[-1])
    number = np.where(position & np.uint64(1), two, one).tolist()
    quantum = np.array([each * left >> 64 for each in number], np.int64)
    quantum += gone[np.searchsorted(cut, quantum, side="right")]
    flat[positions] = np.searchsorted(below, quantum, side="right") - 1

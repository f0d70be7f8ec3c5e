"""Rows of tables in loops that you compile: functions to call inside a function with ``@numba.njit``.

A loop whose next step depends on this one (word vectors as word2vec trains them, matrix factorisation one rating at a
time) cannot hand batches to a table.  Compile it with Numba, and call these functions in it: they are built of the
parts of this package's kernels, become part of your loop, and allocate nothing.

They check types while Numba compiles, and nothing while the loop runs: a row out of range, or a vector of another
length, reads and writes memory that belongs to something else.  Check ids before the loop.  In every function:

`weight` (num_rows, dim)
    float32 or float64, with any strides; fastest where each row is contiguous.  ``table.weight`` of a table whose rows
    do not catch up with missed steps is such an array, and what a loop writes to it is in the table.  The bits of
    float16 numbers, ``half.view(np.uint16)``, may be read; the arithmetic is float32 then.
`row`
    An integer, at least 0 and below num_rows.
`x`, `out`, `grad` (dim,)
    Contiguous, in the dtype of the arithmetic.

The same numbers give the same bits, whatever options your function is compiled with (`fastmath`, too).  Outside of
compiled functions they work as well, at the cost of a call.  With ``NUMBA_DISABLE_JIT=1`` they are plain Python.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import config, errors
from numba.core.registry import cpu_target
from numba.extending import overload

from . import _check as check
from ._jit import kernel
from ._typing import Array
from .kernels.cpu import rows as _rows
from .rules import Rule
from .rules._rule import RULES

# All that a function would otherwise inherit of the loop that is compiled first is said: the helpers that kernels
# share with these functions are compiled once, and a loop's `fastmath` must not change the bits of a kernel.
_APART = {"forceinline": True, "fastmath": False, "error_model": "numpy", "boundscheck": False, "_nrt": False}
_APART |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def prefetch_row(weight: Array, row: int) -> None:
    """Prefetch the cache lines of a row, for a later read or write.

    Parameters
    ----------
    weight : array (num_rows, dim)
        float32, float64, or the bits of float16 as uint16.
    row : int
        The row; out of range it does nothing bad, but nothing useful.

    Raises
    ------
    numba.TypingError
        For a weight of another dtype or number of dimensions, and a row that is no integer, while Numba compiles.

    Notes
    -----
    One instruction for each 64 bytes.  A row that is not in the cache takes 0.1 us to come: ask for it so long before
    it is read, and for a few dozen cache lines at most at a time.

    Examples
    --------
    >>> import numba, numpy as np, sparsembed as se
    >>> prefetch_row, dot_row = se.jit.prefetch_row, se.jit.dot_row
    >>> @numba.njit(nogil=True)
    ... def scores(weight, ids, x, out):
    ...     for i in range(len(ids)):
    ...         prefetch_row(weight, ids[min(i + 8, len(ids) - 1)])
    ...         out[i] = dot_row(weight, ids[i], x)
    >>> weight, out = np.arange(6, dtype=np.float32).reshape(3, 2), np.empty(3, np.float32)
    >>> scores(weight, np.array([2, 0, 2]), np.ones(2, np.float32), out)
    >>> out
    array([9., 1., 9.], dtype=float32)
    """
    _call(prefetch_row, _rows.prefetch_row, weight, row)


def dot_row(weight: Array, row: int, x: Array) -> Any:
    """Return the dot product of a row and a vector.

    Parameters
    ----------
    weight : array (num_rows, dim)
        float32, float64, or the bits of float16 as uint16.
    row : int
        The row, in range: this is not checked.
    x : array (dim,)
        Contiguous, in the dtype of the arithmetic.

    Returns
    -------
    float32 or float64
        In the dtype of `x`.

    Raises
    ------
    numba.TypingError
        For arrays of another dtype, number of dimensions or layout, while Numba compiles.

    Notes
    -----
    Reads the row and `x` once.  Up to 64 partial sums, added in a fixed order: the same bits wherever the row lies.
    Columns that are not contiguous are added one by one, which is slower, and rounds in another order.

    Examples
    --------
    >>> import numba, numpy as np, sparsembed as se
    >>> dot_row = se.jit.dot_row
    >>> @numba.njit
    ... def score(weight, row, x):
    ...     return dot_row(weight, row, x)
    >>> score(np.arange(6.0).reshape(3, 2), 2, np.ones(2))
    9.0
    """
    return _call(dot_row, _rows.dot_row, weight, row, x)


def add_row(weight: Array, row: int, a: float, x: Array) -> None:
    """Add a multiple of a vector to a row in place: ``weight[row] += a * x``.

    Parameters
    ----------
    weight : array (num_rows, dim)
        float32 or float64, writeable; changed in place.
    row : int
        The row, in range: this is not checked.
    a : float
        Any number; rounded to the dtype of `x`.
    x : array (dim,)
        Contiguous, in the dtype of `weight`.

    Raises
    ------
    numba.TypingError
        For arrays of another dtype, number of dimensions or layout, and for a read-only weight, while Numba compiles.

    Notes
    -----
    Reads `x` and reads and writes the row once.  Each product and each sum is rounded, as in NumPy.  A step of plain
    SGD is ``add_row(weight, row, -lr, grad)``.

    Examples
    --------
    >>> import numba, numpy as np, sparsembed as se
    >>> add_row = se.jit.add_row
    >>> @numba.njit
    ... def descend(weight, row, grad):
    ...     add_row(weight, row, -0.5, grad)
    >>> weight = np.zeros((3, 2))
    >>> descend(weight, 1, np.ones(2))
    >>> weight[1]
    array([-0.5, -0.5])
    """
    _call(add_row, _rows.add_row, weight, row, a, x)


def read_row(weight: Array, row: int, out: Array) -> None:
    """Copy a row: ``out[:] = weight[row]``.

    Parameters
    ----------
    weight : array (num_rows, dim)
        float32, float64, or the bits of float16 as uint16.
    row : int
        The row, in range: this is not checked.
    out : array (dim,)
        Contiguous and writeable, in the dtype of the arithmetic.

    Raises
    ------
    numba.TypingError
        For arrays of another dtype, number of dimensions or layout, and a read-only `out`, while Numba compiles.

    Notes
    -----
    Reads the row and writes `out` once.

    Examples
    --------
    >>> import numba, numpy as np, sparsembed as se
    >>> read_row = se.jit.read_row
    >>> @numba.njit
    ... def read(weight, row, out):
    ...     read_row(weight, row, out)
    >>> out = np.empty(2, np.float32)
    >>> read(np.ones((3, 2), np.float16).view(np.uint16), 1, out)
    >>> out
    array([1., 1.], dtype=float32)
    """
    _call(read_row, _rows.read_row, weight, row, out)


def row_step(rule: Rule) -> Callable[..., None]:
    """Return the function that takes one step of a rule on one row, for a loop that is compiled.

    It is called as ``step(weight, state, row, grad, hyper)``, and gives the bits of ``table.update`` for one row with
    one gradient.

    Parameters
    ----------
    rule : Rule
        An optimizer whose rows miss no steps: `SGD` without momentum and decay of all rows, `Adagrad`,
        `RowwiseAdagrad`, `SparseAdam`, `PartialRowwiseAdam`, `LAMB`, `FTRL`, or a rule of your own.

    Returns
    -------
    function
        One for all rules of a class, so that a loop is compiled once for it.  Its arguments are

        ``weight`` (num_rows, dim)
            float32 or float64, writeable; changed in place.
        ``state`` (num_rows, slots, dim)
            In the dtype of `weight`; changed in place.  For a rule with row slots the pair of this array and one of
            shape (num_rows, row_slots).
        ``row``
            The row, in range: this is not checked.
        ``grad`` (dim,)
            Contiguous, in the dtype of `weight`.
        ``hyper``
            What `sparsembed.jit.hyper` returns for the rule, a step and this dtype.

    Raises
    ------
    TypeError
        If `rule` is no rule.
    ValueError
        For a rule whose rows catch up with missed steps (`Adam`, `AdamW`, `RMSprop`, `SGD` with momentum or weight
        decay): that takes the history that a table keeps of all steps, which a loop of single rows does not have.

    Notes
    -----
    Reads and writes the row and its state once.  Rules with a mean over the row (`RowwiseAdagrad`,
    `PartialRowwiseAdam`, `LAMB`) read them twice, and add 16 partial sums without vector instructions.

    Fresh state is ``np.zeros((num_rows, len(rule.slots), dim), dtype)``, and for row slots
    ``np.zeros((num_rows, len(rule.row_slots)), dtype)``.  Without slots an extent is 0.  That of a table is
    ``np.stack([table.state[name] for name in rule.slots], axis=1)``, a copy; put it back with
    ``table.state[name][:] = state[:, k]`` for the k-th name.  The state of a rule with one slot is
    ``table.state[name][:, None]``, without a copy, and so it is for one row slot.  A loop does not count steps of the
    table.

    Examples
    --------
    >>> import numba, numpy as np, sparsembed as se
    >>> rule = se.Adagrad(lr=0.1, eps=0.0)
    >>> step = se.jit.row_step(rule)
    >>> @numba.njit
    ... def train(weight, state, ids, grads, hyper):
    ...     for i in range(len(ids)):
    ...         step(weight, state, ids[i], grads[i], hyper)
    >>> table = se.EmbeddingTable.from_array(np.zeros((4, 1)), rule)
    >>> state = table.state["sum"][:, None]  # one slot: a view
    >>> train(table.weight, state, np.array([2, 2]), np.array([[3.0], [4.0]]), se.jit.hyper(rule, 1, np.float64))
    >>> table.weight[2].round(3), table.state["sum"][2]
    (array([-0.18]), array([25.]))
    """
    _refuse_no_rule(rule)
    if rule.catch_up is not None:
        raise ValueError(
            f"{rule} lets rows catch up with the steps that they missed, which takes the history that a table keeps; "
            "a loop of single rows has none: use table.update, or a rule whose rows miss no steps, such as SparseAdam, "
            "Adagrad, RowwiseAdagrad, or SGD without momentum and with touched_weight_decay"
        )
    return _step_of(rule.Hyper)


def hyper(rule: Rule, step: int, dtype: Any = np.float32) -> Any:
    """Return the hyperparameters of a rule at a step, as scalars for `row_step`.

    Parameters
    ----------
    rule : Rule
    step : int
        The number of the step, from 1: rules that correct for the first steps, and learning rates that are functions
        of the step, depend on it.
    dtype : float32 or float64
        That of the weights.

    Returns
    -------
    NamedTuple
        The fields of ``rule.Hyper`` in this dtype.

    Raises
    ------
    TypeError
        If `rule` is no rule, or a step is no integer.
    ValueError
        For a step below 1, or a number that the dtype cannot hold.

    Notes
    -----
    A few microseconds, in Python: outside of the loop, or once for a part of it.

    Examples
    --------
    >>> import sparsembed as se
    >>> float(se.jit.hyper(se.SGD(lr=lambda step: 1 / step), step=4).lr)
    0.25
    """
    _refuse_no_rule(rule)
    kind = check.table_dtype(dtype)
    if kind not in check.FLOATS:
        raise TypeError(f"dtype must be float32 or float64, that of the weights, got {kind}")
    return rule.scalars(check.count(step, "step"), kind)


def _refuse_no_rule(rule: Any) -> None:
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a sparsembed optimizer such as se.SparseAdam(lr=1e-3), got {check.shown(rule)}")


@functools.cache
def _step_of(kind: type) -> Callable[..., None]:
    """Return the function for a class of hyperparameters, which tells Numba the functions of the rule."""
    rule = RULES[kind]
    body = _rows.step_row_and_slots if rule.row_slots else _rows.step_row

    def step(weight: Array, state: Any, row: int, grad: Array, hyper: Any) -> None:
        _call(step, body, weight, state, row, grad, hyper)

    def choose(weight, state, row, grad, hyper):  # type: ignore[no-untyped-def]
        dtype = _dtype_of(weight, row, writes=True)
        _require_vector("grad", grad, dtype)
        if getattr(hyper, "instance_class", None) is not kind or set(hyper.types) != {dtype}:
            raise errors.TypingError(f"hyper must be sparsembed.jit.hyper(rule, step, {dtype}), got {hyper}")
        given = tuple(state) if rule.row_slots and isinstance(state, types.BaseTuple) else (state,)
        wanted = f"an array (num_rows, {len(rule.slots)}, dim)"
        if rule.row_slots:
            wanted = f"the pair of {wanted} and one of shape (num_rows, {len(rule.row_slots)})"
        ndims = (3, 2) if rule.row_slots else (3,)
        if [_kind(each) for each in given] != [(ndim, dtype, True) for ndim in ndims]:
            raise errors.TypingError(f"state must be {wanted}, of {dtype} and writeable, got {state}")
        return body

    overload(step, jit_options=_APART)(choose)
    return step


def _call(function: Callable[..., Any], twin: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of this module from Python."""
    return (twin if config.DISABLE_JIT else _entry(function))(*arguments)


@functools.cache
def _entry(function: Callable[..., Any]) -> Any:
    """Return a compiled function that calls one of this module, with its checks of types."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return kernel(call)


def _kind(array: Any) -> Any:
    """Return number of dimensions, dtype and whether it can be written to, of Numba's type of an array."""
    return (array.ndim, array.dtype, array.mutable) if isinstance(array, types.Array) else None


def _dtype_of(weight: Any, row: Any, writes: bool = False) -> Any:
    """Return the dtype of the arithmetic; refuse other types of weight and row."""
    ndim, dtype, mutable = _kind(weight) or (0, None, False)
    read = () if writes else (types.uint16,)
    if ndim != 2 or dtype not in (types.float32, types.float64, *read) or (writes and not mutable):
        which = "writeable" if writes else "or the bits of float16, array.view(np.uint16)"
        raise errors.TypingError(f"weight must be (num_rows, dim) of float32 or float64, {which}, got {weight}")
    if not isinstance(row, types.Integer):
        raise errors.TypingError(f"row must be an integer, got {row}")
    return types.float32 if dtype == types.uint16 else dtype


def _require_vector(name: str, vector: Any, dtype: Any, writes: bool = False) -> None:
    """Refuse what is no contiguous vector of a dtype."""
    ndim, own, mutable = _kind(vector) or (0, None, False)
    if ndim != 1 or own != dtype or vector.layout != "C" or (writes and not mutable):
        which = "writeable" if writes else "np.ascontiguousarray makes one"
        raise errors.TypingError(f"{name} must be a contiguous vector (dim,) of {dtype}, {which}, got {vector}")


def _prefetch_row(weight, row):  # type: ignore[no-untyped-def]
    _dtype_of(weight, row)
    return _rows.prefetch_row


def _dot_row(weight, row, x):  # type: ignore[no-untyped-def]
    _require_vector("x", x, _dtype_of(weight, row))
    return _rows.dot_row


def _add_row(weight, row, a, x):  # type: ignore[no-untyped-def]
    _require_vector("x", x, _dtype_of(weight, row, writes=True))
    if not isinstance(a, types.Integer | types.Float):
        raise errors.TypingError(f"a must be a number, got {a}")
    return _rows.add_row


def _read_row(weight, row, out):  # type: ignore[no-untyped-def]
    _require_vector("out", out, _dtype_of(weight, row), writes=True)
    return _rows.read_row


_CHOICES = {prefetch_row: _prefetch_row, dot_row: _dot_row, add_row: _add_row, read_row: _read_row}
for _function, _choose in _CHOICES.items():
    overload(_function, jit_options=_APART)(_choose)
cpu_target.typing_context.refresh()  # a loop that names `sparsembed.jit` may be what imports it, while Numba compiles

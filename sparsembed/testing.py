"""Verify any optimizer rule against the one-hot reference."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from . import _check as check
from . import _jit, reference
from ._cpu import inputs
from .losses import Loss
from .rules import Rule
from .table import EmbeddingTable

_STEP = 1e-5  # of finite differences, in float64
# Tolerance relative to the largest movement: a hundred times the rounding error of one operation.
_TOLERANCES: dict[np.dtype[Any], float] = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-12}


def default_trace(num_rows: int = 50, dim: int = 7, steps: int = 12, rng: Any = 0) -> list[tuple[Any, Any]]:
    """Make a trace of the cases that often fail: repeats, a hot row, an empty step, one id, all rows.

    Parameters
    ----------
    num_rows, dim : int
        Shape of the table that the trace is for.
    steps : int
        Number of updates.
    rng : None, int, SeedSequence or Generator
        For ids and gradients.

    Returns
    -------
    list of (ids, grad_out)
        One pair per step.

    Raises
    ------
    TypeError, ValueError
        For numbers below one, and what is no number.

    Examples
    --------
    >>> import sparsembed as se
    >>> [len(ids) for ids, _ in se.testing.default_trace(num_rows=5, steps=4)]
    [0, 1, 5, 1536]
    """
    num_rows, dim = check.count(num_rows, "num_rows"), check.count(dim, "dim")
    steps = check.count(steps, "steps")
    generator = np.random.default_rng(rng)
    lengths = [0, 1, num_rows, 1536]
    trace = []
    for step in range(steps):
        ids = generator.integers(0, num_rows, lengths[step % len(lengths)])
        if step % 4 == 2:
            ids = generator.permutation(num_rows)
        elif step % 4 == 3:
            ids[::2] = num_rows // 2  # a hot row: half of the batch
        trace.append((ids, generator.standard_normal((len(ids), dim))))
    return trace


def check_optimizer(rule: Rule, trace: Iterable[tuple[Any, Any]] | None = None, num_rows: int | None = None) -> float:
    """Run a rule on a trace and compare table and state with the reference after every step.

    Built-in rules are compared with their formulas in `sparsembed.reference`; any other rule with
    its own scalar functions, run in plain Python and float64, and each on its own in float32
    for the type of what they return (a float literal would promote it to float64).

    Parameters
    ----------
    rule : Rule
    trace : iterable of (ids, grad_out), optional
        One pair per step, such as a recording of your training; see `default_trace`.
    num_rows : int, optional
        Rows of the table; by default one more than the largest id.

    Returns
    -------
    float
        The largest deviation in float32, relative to the largest movement of an element.

    Raises
    ------
    AssertionError
        If table or state deviate by more than rounding; the message names the first step.

    Examples
    --------
    >>> import sparsembed as se
    >>> se.testing.check_optimizer(se.SparseAdam(lr=0.1)) < 1e-5
    True
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a sparsembed rule such as se.SGD(lr=0.1), got {rule!r}")
    pairs = default_trace() if trace is None else trace
    if not isinstance(pairs, Iterable):
        raise TypeError(f"trace must be a list of (ids, grad_out), got {type(trace).__name__}")
    steps = []
    for number, pair in enumerate(pairs):
        if len(check.several(pair, f"trace[{number}]", "ids and grad_out")) != 2:
            raise TypeError(f"trace[{number}] must be a pair (ids, grad_out), got {len(pair)} things")
        steps.append((inputs.id_array(pair[0], f"trace[{number}] ids"), np.asarray(pair[1])))
    if len(steps) == 0:
        raise ValueError("trace must have at least one step")
    if num_rows is not None:
        num_rows = check.count(num_rows, "num_rows")
    largest = max((int(ids.max()) for ids, _ in steps if ids.size), default=0)
    shape = (largest + 1 if num_rows is None else num_rows, steps[0][1].shape[-1])
    worst = 0.0
    for dtype, tolerance in _TOLERANCES.items():
        start = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        table = EmbeddingTable.from_array(start, optimizer=rule, copy=True)
        weight, state = start, {name: np.zeros(slot.shape) for name, slot in table.state.items()}
        for number, (ids, grad) in enumerate(steps, 1):
            rounded = grad.astype(dtype)
            table.update(ids, rounded)
            weight, state = reference.update(rule, weight, state, ids, rounded, number)
            scale = max(float(np.abs(weight - start).max()), 1e-30)
            now = table.lookup(np.arange(shape[0]))  # reading `weight` would apply the missed steps to every row
            error = float(np.abs(now - weight).max())
            deviation = error / scale
            rounding = number * np.finfo(dtype).eps / 2 * float(np.abs(weight).max())  # each step rounds a weight once
            _require(
                error <= tolerance * scale + rounding,
                f"the table deviates by {deviation:.1e} of its movement",
                rule,
                dtype,
                number,
            )
            for name, slot in table.state.items() if rule.catch_up is None or number == len(steps) else ():
                size = max(float(np.abs(state[name]).max()), 1e-30)
                error = float(np.abs(slot - state[name]).max()) / size
                _require(error <= tolerance, f"state {name!r} deviates by {error:.1e}", rule, dtype, number)
            worst = max(worst, deviation) if dtype == np.float32 else worst
    _check_promotion(rule)
    return worst


def _check_promotion(rule: Rule) -> None:
    """Refuse float literals: they make float32 arithmetic float64, which is twice as slow and rounds differently."""
    from numba import typeof, types

    kind, single = type(rule), types.float32
    hyper = typeof(rule.scalars(1, np.dtype(np.float32)))
    slots, row_slots = (types.UniTuple(single, len(names)) for names in (kind.slots, kind.row_slots))
    returned = {"step": _jit.return_type(kind.step, (single, single, slots, single, hyper))}
    if kind.reduce_pair is not None and kind.row_pair is not None:
        returned["reduce_pair"] = _jit.return_type(kind.reduce_pair, (single, single, slots, hyper))
        returned["row_pair"] = _jit.return_type(kind.row_pair, (single, single, row_slots, hyper))
    if kind.reduce is not None and kind.row is not None:
        returned["reduce"] = _jit.return_type(kind.reduce, (single, single, hyper))
        returned["row"] = _jit.return_type(kind.row, (single, row_slots, hyper))
    for name, found in returned.items():
        message = f"{name} returns {found} for float32 input: move float literals into Hyper"
        _require("float64" not in str(found) and "int" not in str(found), message, rule, np.float32, 1)


def _require(condition: bool, message: str, rule: Rule, dtype: Any, step: int) -> None:
    _hold(condition, f"{rule} in {np.dtype(dtype)}, step {step}: {message}")


def check_loss(loss: Loss, scores: Any = None, labels: Any = None) -> float:
    """Run a loss on some scores, and compare it with finite differences and, compiled, with the reference.

    Parameters
    ----------
    loss : Loss
    scores : float array of shape (n,), optional
        By default 58 numbers from -20 to 20, none of them 0.  At a kink of the loss the slope is no derivative: leave
        out scores (or, for a loss of pairs, differences of 0 and a score) within 0.001 of one.
    labels : float array of shape (n,), optional
        By default numbers from the range of the loss, ends included, or from -2 to 2.  Not for a loss of pairs.

    Returns
    -------
    float
        The largest deviation in float32 from the reference, relative to the largest value.

    Raises
    ------
    TypeError
        If `loss` is no loss, or an array holds no floats.
    ValueError
        If an array has another shape, or a label is out of the range of the loss.
    AssertionError
        If the slope is not the derivative of the value, if float32 becomes float64, or if the compiled loss deviates
        by more than rounding.

    Examples
    --------
    >>> import sparsembed as se
    >>> se.testing.check_loss(se.losses.Logistic()) < 1e-5
    True
    """
    if not isinstance(loss, Loss):
        raise TypeError(f"loss must be a loss such as se.losses.Logistic(), got {loss!r}")
    s = np.linspace(-20, 20, 58) if scores is None else inputs.floats(scores, np.float64, "scores")
    y = _labels_of(loss, len(s)) if labels is None else labels
    y = inputs.floats(y, np.float64, "labels")
    for name, each in (("scores", s), ("labels", y)):
        if each.ndim != 1 or len(each) != len(s):
            raise ValueError(f"{name} must be floats of shape (n,), one number for each score, got shape {each.shape}")
    if not len(s):
        raise ValueError("scores must not be empty")
    ids, marks = np.arange(len(s))[:, None], None if loss.pair is not None else y[:, None]
    if loss.term is None:  # each score beside one of 0, the first of the bag
        ids = np.concatenate([np.full((len(s), 1), len(s)), ids], axis=1)
        marks = None if marks is None else np.concatenate([0 * marks, marks], axis=1)
    rows, ones, worst = np.append(s, 0.0)[:, None], np.ones((len(s), 1)), 0.0
    _check_loss_promotion(loss)
    moved = np.append(np.full(len(s), _STEP), 0.0)[:, None]  # the row of 0 stays
    for k in range(len(s)):
        of = (ids[k : k + 1], ones[:1], None if marks is None else marks[k : k + 1], loss)
        less, here, more = (reference.dot_loss(rows + sign * moved, *of) for sign in (-1, 0, 1))
        slope, its = (more[0] - less[0]) / (2 * _STEP), float(here[2][0, -1])
        _hold(abs(slope - its) <= 1e-4 * max(abs(its), 1), f"{loss} at {s[k]}: slope {its}, but its value has {slope}")
    for dtype, tolerance in _TOLERANCES.items():
        table = EmbeddingTable.from_array(rows.astype(dtype))
        given = None if marks is None else marks.astype(dtype)
        found = table.dot_loss(ids, ones, given, loss)
        exact = reference.dot_loss(table.weight, ids, ones, given, loss)
        pairs: Any = zip(("loss", "gradient of x", "slope"), found, exact, strict=True)
        for name, mine, its in pairs:
            deviation = float(np.abs(mine - its).max()) / max(float(np.abs(its).max()), 1e-30)
            _hold(deviation <= tolerance, f"{loss} in {dtype}: the {name} deviates by {deviation:.1e} of the largest")
            worst = max(worst, deviation) if dtype == np.float32 else worst
    return worst


def _labels_of(loss: Loss, n: int) -> Any:
    """Return n labels from the range of a loss, its ends among them where they are finite."""
    least, largest = loss.labels
    least = least if np.isfinite(least) else min(-2.0, largest - 4)
    largest = largest if np.isfinite(largest) else max(2.0, least + 4)
    found = np.random.default_rng(0).uniform(least, largest, n)
    found[:2] = [least, largest][:n]
    return found


def _check_loss_promotion(loss: Loss) -> None:
    from numba import typeof, types

    hyper, single = typeof(loss.scalars(np.dtype(np.float32))), types.float32
    for function, given in ((loss.term, 2), (loss.pair, 1)):
        if function is not None:
            found = _jit.return_type(function, (single,) * given + (hyper,))
            message = f"{loss} returns {found} for float32 input: move float literals, and whole numbers, into Hyper"
            _hold("float64" not in str(found) and "int" not in str(found), message)


def _hold(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)

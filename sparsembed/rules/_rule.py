"""What an optimizer is: hyperparameters as data, plus scalar functions that kernels inline.

A rule is a frozen dataclass of hyperparameters.  Before each step its `hyper` turns them into
a named tuple of scalars of the table's dtype; the class of that tuple tells Numba, while it
compiles a kernel, which rule's functions to inline.
"""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np

from .._cache import fingerprint
from .._inlined import register
from ._catch_up import PARTS, CatchUp, collect
from ._history import History

Schedule = float | Callable[[int], float]
_LARGEST = {char: float(np.finfo(char).max) for char in "fd"}
RULES: dict[type, type["Rule"]] = {}  # class of the named tuple -> rule
HELPERS: list[Callable[..., Any]] = []  # scalar functions that the built-in rules share
_STEP = ("step", "reduce", "reduce_pair", "row", "row_pair", "slots", "row_slots")
_HOME = __name__.rpartition(".")[0]
_MACHINERY = {*_STEP, "catching_up", *PARTS, "Hyper", "hyper", "cast", "fits", "scalars", "rate", "squares"} - {
    "slots",
    "row_slots",
}  # of the optimizers of this package
_COMPILED = {*_STEP, "catching_up", *PARTS} - {"history"}  # what kernels find by the class of `hp`


class RuleType(type):
    """The class of rules: `dir` and `help` of an optimizer show hyperparameters, not what the engine calls."""

    def __dir__(cls) -> list[str]:
        return _public(cls, super().__dir__())


class Rule(metaclass=RuleType):
    """Base class of optimizers; derive a frozen dataclass from it to write one.

    Attributes
    ----------
    Hyper : NamedTuple class
        The scalars that the functions below receive as `hp`; one class per rule.
    slots, row_slots : tuple of str
        Names of the state kept per element, and per row.  Fresh state is zero.
    squares : tuple of str
        The slots and row slots that sum squares: a state with a negative one is refused.

    Raises
    ------
    TypeError
        If the parts of a new class do not fit together.
    TypeError, ValueError
        If hyperparameters are negative or not finite; `_check` may have other ranges.

    Notes
    -----
    A rule defines these functions:

    ``hyper(self, step) -> tuple``
        The fields of `Hyper` for this step (the first is 1), as Python numbers.
    ``step(w, g, s, a, hp) -> (w, s)``
        New element and new slots from element `w`, summed gradient `g`, slots `s` (a tuple).
    ``reduce(w, g, hp) -> x`` and ``row(x, r, hp) -> (a, r)``
        Optional row stage: the mean of `reduce` over the row, with the row slots `r`, gives
        the `a` that `step` receives, and the new row slots.
    ``reduce_pair(w, g, s, hp) -> (x, y)`` and ``row_pair(x, y, r, hp) -> (a, r)``
        The same with two means, or with slots.

    ``self.rate(step)`` is the learning rate, a number or what the caller's function returns, checked.

    All but `hyper` are static, work on scalars and must not contain float literals, which
    would turn float32 arithmetic into float64: put constants into `Hyper`.  ``math.sqrt`` is
    available.  Any rule is checked against these formulas, in float64, by `sparsembed.testing.check_optimizer`.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> from dataclasses import dataclass
    >>> from typing import NamedTuple
    >>> class SignHyper(NamedTuple):
    ...     lr: float
    >>> @dataclass(frozen=True)
    ... class SignSGD(se.rules.Rule):
    ...     lr: float = 1e-2
    ...     Hyper = SignHyper
    ...     def hyper(self, step):
    ...         return (self.rate(step),)
    ...     @staticmethod
    ...     def step(w, g, s, a, hp):
    ...         return (w - hp.lr if g > 0 else w + hp.lr if g < 0 else w), s
    >>> table = se.EmbeddingTable.from_array(np.zeros((3, 1)), optimizer=SignSGD(lr=0.5))
    >>> table.update([1, 1, 2], np.array([[3.0], [2.0], [-1.0]]))
    >>> table.weight.ravel()
    array([ 0. , -0.5,  0.5])
    """

    _name: ClassVar[str]  # in messages: a form of an optimizer has the name of that
    Hyper: ClassVar[type]
    slots: ClassVar[tuple[str, ...]] = ()
    row_slots: ClassVar[tuple[str, ...]] = ()
    squares: ClassVar[tuple[str, ...]] = ()
    reduce: ClassVar[Callable[..., Any] | None] = None
    reduce_pair: ClassVar[Callable[..., Any] | None] = None
    row: ClassVar[Callable[..., Any] | None] = None
    row_pair: ClassVar[Callable[..., Any] | None] = None
    step: ClassVar[Callable[..., Any]]
    # Only for rules that equal the dense optimizer of the same name; `_catch_up.collect` copies the parts to the rule.
    catching_up: ClassVar[type[CatchUp] | None] = None
    Gap: ClassVar[type | None] = None
    gap: ClassVar[Callable[..., Any] | None] = None
    catch_up: ClassVar[Callable[..., Any] | None] = None
    is_guarded: ClassVar[Callable[..., Any] | None] = None
    is_unsettled: ClassVar[Callable[..., Any] | None] = None

    def __init_subclass__(cls, form: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._name = cls.__base__.__name__ if form and cls.__base__ else cls.__name__
        hyper = cls.__dict__.get("Hyper")
        if hyper is None:
            if own := _COMPILED & cls.__dict__.keys():
                raise TypeError(f"{cls.__name__} defines {sorted(own)}, so it needs a Hyper class of its own")
            return  # inherits the functions, and their compiled code
        _check_class(cls)
        collect(cls)
        register(RULES, cls, "rule", _COMPILED, _fingerprint)

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            given = getattr(self, field.name)
            value = tuple(map(plain, given)) if isinstance(given, list | tuple) else plain(given)
            if value is not given:  # only numbers are kept, so that rules are hashable
                object.__setattr__(self, field.name, value)
            self._check(field.name, getattr(self, field.name))

    def __dir__(self) -> list[str]:
        return _public(type(self), super().__dir__())

    def _check(self, name: str, value: Any) -> None:
        """Refuse a hyperparameter that is not finite or is negative; override for other ranges."""
        if name == "lr" and callable(value):
            return
        check_number(f"{self._name}({name}=...)", value)

    def hyper(self, step: int) -> tuple[float, ...]:
        """Return the fields of `Hyper` at a step."""
        raise NotImplementedError(f"{type(self).__name__} must define hyper(self, step)")

    def history(self, dtype: np.dtype[Any], base: int) -> History:
        """Start a history at a step that every row has taken; only for rules with a `catch_up`."""
        return (self.catching_up or CatchUp).history(self, dtype, base)

    def rate(self, step: int) -> float:
        """Return the learning rate at a step; `lr` is a number or a callable of the step."""
        lr = getattr(self, "lr")  # noqa: B009  (a field of every subclass)
        if not callable(lr):
            return float(lr)
        value = plain(lr(step))
        if isinstance(value, float) and -1e-6 < value < 0:  # some schedules end there by rounding
            raise ValueError(
                f"{self._name}: lr({step}) must not be negative, got {value!r}; where a schedule ends a "
                "rounding below zero, pass lambda step: max(schedule(step), 0)"
            )
        check_number(f"{self._name}: lr({step})", value)
        return float(value)

    def scalars(self, step: int, dtype: np.dtype[Any]) -> Any:
        """Return `Hyper` at a step, as scalars of the table's dtype."""
        return self.cast(self.hyper(step), step, dtype)

    @staticmethod
    def fits(values: tuple[float, ...], dtype: np.dtype[Any]) -> bool:
        """Whether a dtype can hold the fields of `Hyper`."""
        return sum(map(abs, values)) <= _LARGEST[dtype.char]  # False for NaN, too

    def cast(self, values: tuple[float, ...], step: int, dtype: np.dtype[Any]) -> Any:
        """Return the fields of `Hyper` as scalars of the table's dtype."""
        if not self.fits(values, dtype):
            raise ValueError(f"{self} at step {step} gives {values}, which {dtype} cannot hold; use smaller numbers")
        return type(self).Hyper(*map(dtype.type, values))


def keeps_state(rule: Rule, other: Any) -> bool:
    """Whether a rule goes on from the state of another: the same optimizer, and no other slots or missed steps."""
    if type(rule) is type(other):
        return True
    if not isinstance(other, Rule) or rule._name != other._name or rule.catch_up or other.catch_up:
        return False
    return (rule.slots, rule.row_slots) == (other.slots, other.row_slots)


def _public(cls: type, names: Iterable[str]) -> list[str]:
    """Return the names that users of an optimizer need; all names of `Rule` itself, which authors of rules need."""
    home = cls.__module__.rpartition(".")[0]
    return [name for name in names if cls is Rule or home != _HOME or name not in _MACHINERY]


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a scalar function that rules call, for kernels of both devices; return it."""
    HELPERS.append(function)
    return function


def but_lr(rule: Any) -> dict[str, Any]:
    """Return the hyperparameters of a rule without the learning rate, by name."""
    return {field.name: getattr(rule, field.name) for field in fields(rule) if field.name != "lr"}


def plain(value: Any) -> Any:
    """Return the number in an array or tensor without dimensions; return anything else unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Refuse anything but a finite number in [0, below)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    if isinstance(value, int) and value > sys.float_info.max:
        raise ValueError(f"{name} must be a number that float64 can hold, got one of {value.bit_length()} bits")
    if not (0 <= value < below):  # False for NaN, too
        limit = "" if below == math.inf else f" and below {below}"
        raise ValueError(f"{name} must be finite, not negative{limit}, got {value!r}")


def check_betas(name: str, value: Any) -> None:
    """Refuse anything but two numbers in [0, 1)."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers, got {value!r}")
    for beta in value:
        check_number(name, beta, below=1.0)


def _check_class(cls: type[Rule]) -> None:
    if wrong := sorted({*cls.squares} - {*cls.slots, *cls.row_slots}):
        raise TypeError(f"{cls.__name__}.squares names {wrong}, which are none of its slots and row_slots")
    if (cls.reduce is None) != (cls.row is None) or (cls.reduce_pair is None) != (cls.row_pair is None):
        raise TypeError(f"{cls.__name__} must define both reduce and row, or neither; or both of their pairs")
    if cls.row_slots and cls.row is None and cls.row_pair is None:
        raise TypeError(f"{cls.__name__} has row_slots, so it must define reduce and row")


def _fingerprint(cls: type[Rule]) -> str:
    """Return a text that changes when the code of a rule changes, for the disk cache."""
    functions = (
        cls.step,
        cls.reduce,
        cls.reduce_pair,
        cls.row,
        cls.row_pair,
        cls.gap,
        cls.catch_up,
        cls.is_guarded,
        cls.is_unsettled,
    )
    return (
        cls.__qualname__
        + f"{getattr(cls.Hyper, '_fields', ())}{cls.slots}{cls.row_slots}"
        + "".join(map(fingerprint, functions))
    )

"""What a loss is: numbers as data, plus a scalar function that kernels inline, as an optimizer is.

The class of `Hyper`, a named tuple of scalars in the dtype of the scores, tells Numba, while it compiles a kernel,
which loss's function to inline.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from typing import Any, ClassVar

import numpy as np

from .._cache import fingerprint
from .._inlined import register
from ..rules._rule import plain

LOSSES: dict[type, type["Loss"]] = {}  # class of the named tuple -> loss
_FUNCTIONS = {"term": ("s", "y", "hp"), "pair": ("d", "hp")}


class Loss:
    """Base class of losses; derive a frozen dataclass from it to write one.

    Attributes
    ----------
    Hyper : NamedTuple class
        The scalars that the function below receives as `hp`, at least one; one class per loss.
    labels : tuple of two float
        The least and the largest label that the loss allows; by default every number.

    Raises
    ------
    TypeError
        If the parts of a new class do not fit together, or a field is no number.
    ValueError
        If a field is not finite.

    Notes
    -----
    A loss defines one of two functions:

    ``term(s, y, hp) -> (value, slope)``
        The loss of one score `s` with the label `y`, and its derivative with respect to `s`.
    ``pair(d, hp) -> (value, slope)``
        The loss of a pair, and its derivative: `d` is the score of one of the other ids of a bag less that of the
        first, which should be the larger one.

    and ``hyper(self) -> tuple``, the fields of `Hyper` as Python numbers; by default the fields of the dataclass, in
    their order.

    The function is static, takes arguments of these names, works on scalars, and must neither raise nor assert.
    It must not contain float literals or whole numbers in sums and products: both would turn float32 arithmetic into
    float64.  Put constants into `Hyper`.  ``math.exp`` and the other functions of ``math`` that Numba knows are
    available.  `sparsembed.testing.check_loss` checks a loss.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> from dataclasses import dataclass
    >>> from typing import NamedTuple
    >>> class HingeHyper(NamedTuple):
    ...     zero: float
    ...     one: float
    ...     margin: float
    >>> @dataclass(frozen=True)
    ... class Hinge(se.losses.Loss):
    ...     margin: float = 1.0
    ...     Hyper = HingeHyper
    ...     def hyper(self):
    ...         return 0.0, 1.0, self.margin
    ...     @staticmethod
    ...     def pair(d, hp):
    ...         short = hp.margin + d
    ...         return (short, hp.one) if short > 0 else (hp.zero, hp.zero)
    >>> table = se.EmbeddingTable.from_array(np.array([[2.0], [1.5], [0.0]]))
    >>> table.dot_loss([[0, 1, 2]], [[1.0]], loss=Hinge())
    (0.5, array([[-0.5]]), array([[-1.,  1.,  0.]]))
    """

    Hyper: ClassVar[type]
    labels: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    term: ClassVar[Callable[..., Any] | None] = None
    pair: ClassVar[Callable[..., Any] | None] = None
    _over_bags: ClassVar[bool] = False  # whether all scores of a bag have one loss, as in Softmax

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        hyper = cls.__dict__.get("Hyper")
        if hyper is None:
            if own := {*_FUNCTIONS} & cls.__dict__.keys():
                raise TypeError(f"{cls.__name__} defines {sorted(own)}, so it needs a Hyper class of its own")
            return  # inherits the function, and its compiled code
        _check_class(cls, hyper)
        register(LOSSES, cls, "loss", _FUNCTIONS, _fingerprint)

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = plain(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            name = f"{type(self).__name__}({field.name}=...)"
            if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
                raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}")

    def hyper(self) -> tuple[float, ...]:
        """Return the fields of `Hyper`."""
        if not hasattr(self, "__dataclass_fields__"):
            raise TypeError(
                f"{type(self).__name__} must be a dataclass, or define hyper: decorate it with @dataclass(frozen=True)"
            )
        return tuple(float(getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]

    def scalars(self, dtype: np.dtype[Any]) -> Any:
        """Return `Hyper` as scalars of a dtype."""
        kind, given = type(self), tuple(map(plain, self.hyper()))
        if len(given) != len(kind.Hyper._fields):  # type: ignore[attr-defined]
            raise TypeError(f"{kind.__name__}.hyper must return one number for each field of Hyper, got {given!r}")
        for value in given:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{kind.__name__}.hyper must return numbers, got {value!r}")
            if not abs(value) <= float(np.finfo(dtype).max):
                raise ValueError(f"{kind.__name__}.hyper must return numbers that {dtype} can hold, got {value!r}")
        return kind.Hyper(*map(dtype.type, given))

    def ends(self, dtype: np.dtype[Any]) -> Any:
        """Return the least and the largest label that are allowed, both finite, as scalars of a dtype."""
        most = float(np.finfo(dtype).max)
        return dtype.type(max(self.labels[0], -most)), dtype.type(min(self.labels[1], most))


def _check_class(cls: type[Loss], hyper: type) -> None:
    if not getattr(hyper, "_fields", ()):
        raise TypeError(f"{cls.__name__}.Hyper must be a NamedTuple with at least one field, such as `one: float`")
    if (cls.term is not None) + (cls.pair is not None) + cls._over_bags != 1:
        raise TypeError(f"{cls.__name__} must define term (a loss of each score) or pair (of two), one of them")
    for name, takes in _FUNCTIONS.items():
        if (function := getattr(cls, name)) is not None:
            _check_function(f"{cls.__name__}.{name}", function, takes)
    least, largest = _range_of(cls)
    if not least < largest:
        raise TypeError(f"{cls.__name__}.labels must be the least and the largest label, got {cls.labels!r}")


def _check_function(name: str, function: Any, takes: tuple[str, ...]) -> None:
    if not callable(function) or (found := tuple(signature(function).parameters)) != takes:
        its = f"({', '.join(found)})" if callable(function) else type(function).__name__
        raise TypeError(f"{name} must be a static function of ({', '.join(takes)}), in these names, got {its}")


def _range_of(cls: type[Loss]) -> tuple[float, float]:
    try:
        least, largest = map(float, cls.labels)
    except (TypeError, ValueError):
        raise TypeError(f"{cls.__name__}.labels must be two numbers, got {cls.labels!r}") from None
    return least, largest


def _fingerprint(cls: type[Loss]) -> str:
    """Return a text that changes when the code of a loss changes, for the disk cache."""
    return f"{cls.__qualname__}{getattr(cls.Hyper, '_fields', ())}{cls._over_bags}" + "".join(
        map(fingerprint, (cls.term, cls.pair))
    )

"""Classes whose functions kernels inline, rules and losses: kernels know each by the class of its scalars."""

import dis
from collections.abc import Callable, Iterable
from hashlib import sha256
from types import CodeType, FunctionType
from typing import Any

from ._cache import names_in


def register(known: dict[type, Any], cls: Any, kind: str, functions: Iterable[str], text: Callable[[Any], str]) -> None:
    """Make a class known to kernels by its `Hyper`; refuse functions and classes that kernels could not run.

    `text` returns the fingerprint of such a class, for the disk cache.  A kernel must end on all threads before its
    caller goes on, so no function may raise.  What is compiled for a `Hyper` stays, so its code must not change.
    """
    hyper, name = cls.Hyper, cls.__name__
    earlier = known.get(hyper)
    if earlier is not None and earlier.__qualname__ != cls.__qualname__:
        raise TypeError(f"{name}.Hyper is already the Hyper of {earlier.__name__}; give each {kind} its own class")
    for each in sorted(functions):
        if _raises(getattr(cls, each, None), set()):
            raise TypeError(f"{name}.{each} raises or asserts, which a kernel cannot; return NaN for what must not be")
    if earlier is not None and text(earlier) != text(cls):
        raise TypeError(
            f"{name} has changed, and its Hyper has not; define Hyper again, too: its type is how a kernel finds the "
            f"{kind}"
        )
    known[hyper] = cls
    hyper.fingerprint = staticmethod(lambda: text(cls))
    if earlier is None:  # Numba names machine code after __name__, and two modules may both define a "MyHyper"
        home = f"{hyper.__module__}.{hyper.__qualname__}"
        hyper.__name__ = f"{hyper.__name__}_{sha256(home.encode()).hexdigest()[:8]}"


def _raises(item: object, seen: set[int]) -> bool:
    """Whether a function, or a Python function that its code calls, raises or asserts."""
    item = getattr(item, "py_func", item)
    if not isinstance(item, FunctionType) or id(item) in seen:
        return False
    seen.add(id(item))
    names = names_in(item.__code__) & item.__globals__.keys()
    used = [*(item.__globals__[name] for name in names), *(cell.cell_contents for cell in item.__closure__ or ())]
    return _has_raise(item.__code__) or any(_raises(each, seen) for each in used)


def _has_raise(code: CodeType) -> bool:
    nested = (const for const in code.co_consts if isinstance(const, CodeType))
    return any(each.opname == "RAISE_VARARGS" for each in dis.get_instructions(code)) or any(map(_has_raise, nested))

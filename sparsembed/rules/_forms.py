"""Forms of a rule: classes with other compiled functions, chosen by hyperparameters; and the decay of touched rows."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ._rule import Rule, helper, plain


def forms(choose: Callable[[dict[str, Any]], type]) -> Callable[[type], type]:
    """Return a class decorator: new instances of that class are of the class that `choose` returns for the keywords.

    A hyperparameter that is off then costs nothing: the compiled functions do not know it.
    """

    def decorate(rule: Any) -> Any:
        def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
            form = choose(kwargs)
            if cls is not rule and not issubclass(cls, form) and not _has_step(cls, rule):
                raise TypeError(
                    f"{cls.__name__} has the step of {rule.__name__}, without what {sorted(kwargs)} ask for; derive it "
                    f"from {form.__name__}, or give it a step of its own"
                )
            return object.__new__(form if cls is rule else cls)

        # For `help`: the hyperparameters.  Not of the class, whose subclasses would inherit it.
        new.__signature__ = inspect.signature(rule.__init__)  # type: ignore[attr-defined]
        rule.__new__ = staticmethod(new)
        return rule

    return decorate


def _has_step(cls: type, rule: type) -> bool:
    """Whether a class between `cls` and the rule that it derives from has a step of its own."""
    return any("step" in vars(each) for each in cls.__mro__[: cls.__mro__.index(rule)])


def is_on(given: dict[str, Any], name: str) -> bool:
    """Whether a keyword is given and not zero; what is no number is refused later."""
    value = plain(given.get(name, 0))
    return not (isinstance(value, int | float) and value == 0)


def shown(rule: Any) -> str:
    """Return the `repr` of a form: that of the class whose form it is."""
    values = ", ".join(f"{field.name}={getattr(rule, field.name)!r}" for field in fields(rule))
    return f"{rule._name}({values})"


@helper
def decayed(w, g, hp):
    """Return the gradient of an element of a touched row with L2 decay."""
    return g + hp.l2 * w


def touched(rule: Rule) -> tuple[float]:
    """Return the field `l2` of the form of a rule that decays touched rows."""
    return (rule.touched_weight_decay,)  # type: ignore[attr-defined]

"""Files of modules: the table of one, with its optimizer, as `EmbeddingTable.save` writes it."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from .. import _check as check
from ..rules import Rule
from ..rules._rule import keeps_state
from ..storage.atomic import path_of
from ..storage.loading import read_contents
from ..storage.saving import check_progress
from . import _param_groups as _groups
from ._module import TableModule
from ._table import ParameterTable


def save(module: Any, path: Any, *, progress: Callable[[int], Any] | None = None) -> None:
    """Write the table of a module to a file, with state and optimizer; `load` and `sparsembed.load` read it.

    Parameters
    ----------
    module : Embedding or EmbeddingBag
        Fused, or trained by an `Optimizer`, or not trained.
    path : str or os.PathLike
    progress : callable ``(rows) -> None``, optional
        As for `EmbeddingTable.save`.

    Raises
    ------
    TypeError, ValueError, RuntimeError, OSError
        As `EmbeddingTable.save`; and for what is no such module.

    Notes
    -----
    As ``module.table.save(path)``, and with the hyperparameters that the groups of its `Optimizer` have now, which a
    scheduler may have changed since the last step.

    Examples
    --------
    >>> import os, tempfile, torch, sparsembed as se, sparsembed.torch as st
    >>> bag = st.EmbeddingBag(10, 4, optimizer=se.Adam(lr=0.1), fused=True)
    >>> bag(torch.tensor([[1, 2]])).sum().backward()
    >>> other = st.EmbeddingBag(10, 4, optimizer=se.Adam(lr=0.5), fused=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "bag.safetensors")
    ...     st.save(bag, path)
    ...     st.load(other, path)
    >>> other.table.step, other.optimizer.lr, bool((other.weight == bag.weight).all())
    (1, 0.1, True)
    """
    table, group, rule = _trained(module)
    if group is not None and rule is not None and rule != table.optimizer:
        table.optimizer = rule
    table.save(path, progress=progress)


def load(
    module: Any,
    path: Any,
    *,
    optimizer: Any = None,
    verify: bool | None = None,
    progress: Callable[[int], Any] | None = None,
) -> None:
    """Read a file that `save` or `EmbeddingTable.save` wrote into a module: weight, state, step, hyperparameters.

    Parameters
    ----------
    module : Embedding or EmbeddingBag
        With the shape, dtype and options of the saved table.  Its optimizer (its own if it is fused, else that of its
        `Optimizer`) must be of the saved class; a module without one takes the weight alone.
    path : str or os.PathLike
    optimizer : Rule, optional
        Instead of the saved one; needed where that had a function as learning rate, or a class of somebody else.
    verify : bool, optional
        As for `sparsembed.load`.
    progress : callable ``(rows) -> None``, optional
        As for `sparsembed.load`.

    Raises
    ------
    TypeError, ValueError, OSError
        As `sparsembed.load`; and for what does not fit the module.  Nothing changes then.

    Notes
    -----
    Hyperparameters go to the group of the `Optimizer` that has the weight, and so count for all weights of that group;
    a learning rate that is a function, on either side, stays as it is in the group.

    Examples
    --------
    >>> import os, tempfile, torch, sparsembed as se, sparsembed.torch as st
    >>> bags = [st.EmbeddingBag(10, 4) for _ in range(2)]
    >>> optimizers = [st.Optimizer(each.parameters(), se.Adagrad(lr=lr)) for each, lr in zip(bags, [0.1, 0.5])]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     st.save(bags[0], os.path.join(folder, "bag.safetensors"))
    ...     st.load(bags[1], os.path.join(folder, "bag.safetensors"))
    >>> optimizers[1].param_groups[0]["lr"], bool((bags[0].weight == bags[1].weight).all())
    (0.1, True)
    """
    table, group, mine = _trained(module)
    path, progress = path_of(path), check_progress(progress)
    check.optimizer(optimizer, table._contents.table.dtype)
    verify = verify is None or check.flag(verify, "verify")
    saved = read_contents(path, optimizer, verify, progress, constrain=False)
    rule, weight, its = saved.rule, saved.table.array, table._contents
    if (got := (weight.shape, weight.dtype)) != (want := (its.table.array.shape, its.table.array.dtype)):
        raise ValueError(f"module must have the shape and dtype of the saved table, {got}, and has {want}")
    if saved.options != its.options:
        raise ValueError(f"module must have the options of the saved table, {saved.options}, and has {its.options}")
    if mine is not None and (rule is None or not keeps_state(rule, mine)):
        raise ValueError(f"the optimizer of the module must be of the class of the saved {rule}, and is {mine}")
    with its.lock:
        if rule is None or mine is None:
            table.load_state_dict({"weight": weight, "step": table.step})
        else:
            table.load_state_dict({"weight": weight, "step": saved.step} | saved.engine.columns(saved))
            if group is None:
                table.optimizer = rule
        if group is not None:
            _show(group, rule, mine)
        its.seed = saved.seed


def _trained(module: Any) -> tuple[ParameterTable, dict[str, Any] | None, Rule | None]:
    """Return the table of a module, the group of its Optimizer or None, and the rule of its next step."""
    if not isinstance(module, TableModule):
        raise TypeError(
            f"module must be a sparsembed.torch.Embedding or EmbeddingBag, got {type(module).__name__}; of a larger "
            "model save each of its tables to a file"
        )
    table: Any = module.table
    owner = table.owner()
    if owner is None:
        return table, None, table.optimizer
    weight = module._parameters["weight"]
    for index, group in enumerate(owner.param_groups):
        if any(each is weight for each in group["params"]):
            return table, group, owner._refreshed(index, group)
    return table, None, table.optimizer


def _show(group: dict[str, Any], rule: Any, mine: Any) -> None:
    """Put hyperparameters into a group, for the next step."""
    for name in _groups.hidden(rule) & group.keys():
        del group[name]
    for field in fields(rule):
        if field.name in _groups.hidden(rule):
            continue
        if field.name != "lr" or not (callable(rule.lr) or callable(mine.lr)):
            group[field.name] = getattr(rule, field.name)

"""TableWeight: a parameter whose rows are up to date whenever torch reads or writes them."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_NEW: Any = torch.nn.Parameter.__new__.__code__
# The table of each parameter.  As an attribute of the parameter, torch would pickle the table with it.
TABLES: Any = WeakTensorKeyDictionary()

_Tensor = torch.Tensor
_FIELDS = (
    "grad requires_grad shape dtype device layout is_leaf grad_fn ndim is_sparse is_meta _version _backward_hooks "
    "is_cuda is_cpu is_quantized nbytes itemsize retains_grad name"
)
# Functions that neither read nor write numbers.  Every training loop calls them, so they must not flush the table.
_ABOUT = {
    *(getattr(_Tensor, name).__get__ for name in _FIELDS.split()),
    *(getattr(_Tensor, name).__set__ for name in ("grad", "requires_grad", "_backward_hooks")),
    *(_Tensor.size, _Tensor.dim, _Tensor.numel, _Tensor.stride, _Tensor.is_contiguous, _Tensor.__len__),
    *(_Tensor.is_complex, _Tensor.get_device, _Tensor.element_size, _Tensor.is_shared, _Tensor.storage_offset),
    *(_Tensor.data_ptr, _Tensor.is_inference, _Tensor.is_floating_point, torch.is_floating_point),
    *(_Tensor.requires_grad_, _Tensor.register_hook, _Tensor.register_post_accumulate_grad_hook),
}


class TableWeight(torch.nn.Parameter):
    """The parameter of a table whose rows catch up.

    Code may reach the weight without its module, through ``model.parameters()`` or an older list of parameters.  It
    must read what the dense optimizer would have left, and missed steps must not change what it writes.  So the table
    is flushed before any function of torch that may read or write the numbers.  Functions about gradients, shapes and
    hooks are exempt: clipping and ``zero_grad`` cost no pass over the table.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func not in _ABOUT:
                for weight in _weights([*args, *kwargs.values()]):
                    table = TABLES.get(weight)
                    # If the memory was replaced, the new memory holds no rows that missed steps.
                    if table is not None and weight.data_ptr() == table.address:
                        table.flush()
            result = func(*args, **kwargs)
        if func is _Tensor.detach and sys._getframe(1).f_code is _NEW:  # expects the class of its argument
            result.__class__ = cls
        return result

    def __repr__(self) -> str:
        return f"Parameter containing:\n{self.detach().requires_grad_(self.requires_grad)!r}"


def _weights(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the weights among the arguments of a function, in lists, too."""
    for value in values:
        if isinstance(value, TableWeight):
            yield value
        elif isinstance(value, tuple | list):
            yield from _weights(value)


@contextlib.contextmanager
def unwatched(parameter: Any) -> Iterator[None]:
    """Make a weight an ordinary parameter, for modes of torch that look at its class."""
    if type(parameter) is not TableWeight:
        yield
        return
    parameter.__class__ = torch.nn.Parameter
    try:
        yield
    finally:
        parameter.__class__ = TableWeight


def watch(parameter: Any) -> None:
    """Make a parameter a `TableWeight`; a parameter of another subclass keeps its class."""
    if type(parameter) is torch.nn.Parameter:
        parameter.__class__ = TableWeight

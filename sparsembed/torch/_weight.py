"""TableWeight: a parameter whose rows are up to date whenever torch reads or writes them."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_NEW: Any = torch.nn.Parameter.__new__.__code__
# The table of each parameter.  Not an attribute of the parameter, which torch would pickle with it.
TABLES: Any = WeakTensorKeyDictionary()

_Tensor = torch.Tensor
_FIELDS = (
    "grad requires_grad shape dtype device layout is_leaf grad_fn ndim is_sparse is_meta _version _backward_hooks "
    "is_cuda is_cpu is_quantized nbytes itemsize retains_grad name"
)
# What neither reads nor writes numbers: asked in every training loop, which must not pass over the whole table.
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

    Whoever reaches the weight without asking its module, through ``model.parameters()`` or a list kept from earlier,
    must find what the dense optimizer would have left there, and what is written there must be the last word.  So the
    table is flushed before any function of torch that may read or write the numbers.  Gradients, shapes and hooks
    are none of them: clipping and ``zero_grad`` cost no pass over the table.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func not in _ABOUT:
                for weight in _weights([*args, *kwargs.values()]):
                    table = TABLES.get(weight)
                    # If the memory was replaced, nothing lies here that the table could bring up to date.
                    if table is not None and weight.data_ptr() == table.address:
                        table.flush()
            result = func(*args, **kwargs)
        if func is _Tensor.detach and sys._getframe(1).f_code is _NEW:  # which wants the class that it was given
            result.__class__ = cls
        return result

    def __repr__(self) -> str:
        return f"Parameter containing:\n{self.detach().requires_grad_(self.requires_grad)!r}"


def _weights(values: Iterable[Any]) -> Iterator[Any]:
    """Find weights among the arguments of a function, which may be lists."""
    for value in values:
        if isinstance(value, TableWeight):
            yield value
        elif isinstance(value, tuple | list):
            yield from _weights(value)


@contextlib.contextmanager
def unwatched(parameter: Any) -> Iterator[None]:
    """Make a weight a parameter like any other, for modes of torch that look at its class."""
    if type(parameter) is not TableWeight:
        yield
        return
    parameter.__class__ = torch.nn.Parameter
    try:
        yield
    finally:
        parameter.__class__ = TableWeight


def watch(parameter: Any) -> None:
    """Make a parameter the weight of a table whose rows catch up; subclasses of others stay what they are."""
    if type(parameter) is torch.nn.Parameter:
        parameter.__class__ = TableWeight

"""Checks and messages of what only torch has: devices, dtypes, layouts, and options that exclude each other."""

from typing import Any

import torch

from .._cpu.inputs import in_range
from ..rules import Rule

DTYPES = (torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def place(device: Any, name: str) -> None:
    """Refuse memory that is not the host's."""
    if torch.device(device).type != "cpu":
        raise TypeError(
            f"{name} is on {device}, expected host memory: tables live on the CPU; move the other parts of the model "
            "alone, and look up before .to(device)"
        )


def dtype(value: Any, name: str) -> None:
    """Refuse what the engine does not train."""
    if value not in DTYPES:
        raise TypeError(f"{name} must be torch.float32 or torch.float64, got {value}")


def matrix(value: Any, name: str) -> None:
    """Refuse what is no tensor of two dimensions, such as a NumPy array."""
    if not isinstance(value, torch.Tensor):
        got = type(value).__name__
        raise TypeError(f"{name} must be a torch.Tensor, got {got}; make one with torch.from_numpy or torch.tensor")
    if value.dim() != 2:
        raise AssertionError(f"{name} must be 2-dimensional, got {value.dim()} dimensions")


def ids(value: Any, name: str = "input") -> None:
    """Refuse what is not a tensor of ids in host memory; their range is checked where they are used."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of int32 or int64 ids, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(
            f"{name} is a nested tensor, expected a plain one; look up {name}.values(), in an EmbeddingBag with "
            f"{name}.offsets() and include_last_offset=True"
        )
    place(value.device, name)
    if value.dtype not in INTEGERS:
        raise TypeError(f"{name} must be int32 or int64, got {value.dtype}; convert with .long()")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")


def outside(value: Any, num_rows: int) -> None:
    """Name the first id out of range by its place in a module's input."""
    try:
        in_range(value.detach().numpy().reshape(-1), num_rows, "input", tuple(value.shape))
    except IndexError as error:
        raise IndexError(str(error)) from None


def mode_of_training(rule: Any, fused: Any, frozen: bool) -> None:
    """Check the keywords that torch's modules do not have."""
    if not isinstance(fused, bool):
        raise TypeError(f"fused must be True or False, got {fused!r}")
    if rule is not None and not isinstance(rule, Rule):
        raise TypeError(f"optimizer must be a sparsembed optimizer such as se.SparseAdam(lr=1e-3), got {rule!r}")
    if fused and rule is None:
        raise ValueError("fused=True steps in backward, so it needs optimizer=, such as se.SparseAdam(lr=1e-3)")
    if rule is not None and not fused:
        raise ValueError(
            "optimizer= is for fused=True; else give the rule to sparsembed.torch.Optimizer(parameters, rule)"
        )
    if fused and frozen:
        raise ValueError("fused=True trains in backward, so it cannot be frozen; pass freeze=False, or leave out fused")

"""Checks and messages of what only torch has: devices, dtypes, and options that exclude each other."""

from typing import Any

import torch

from ..rules import Rule

DTYPES = (torch.float32, torch.float64)


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


def ids(value: Any, name: str = "input") -> None:
    """Refuse what is not a tensor of ids in host memory; dtype and range are checked where they are used."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of int32 or int64 ids, got {type(value).__name__}")
    place(value.device, name)


def mode_of_training(rule: Any, fused: Any, frozen: bool) -> None:
    """Check the keywords that torch's modules do not have."""
    if not isinstance(fused, bool):
        raise TypeError(f"fused must be True or False, got {fused!r}")
    if rule is not None and not isinstance(rule, Rule):
        raise TypeError(f"optimizer must be a sparsembed rule such as se.SparseAdam(lr=1e-3), got {rule!r}")
    if fused and rule is None:
        raise ValueError("fused=True steps in backward, so it needs optimizer=, such as se.SparseAdam(lr=1e-3)")
    if rule is not None and not fused:
        raise ValueError(
            "optimizer= is for fused=True; else give the rule to sparsembed.torch.Optimizer(parameters, rule)"
        )
    if fused and frozen:
        raise ValueError("fused=True trains in backward, so it cannot be frozen; pass freeze=False, or leave out fused")

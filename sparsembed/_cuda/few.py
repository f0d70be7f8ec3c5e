"""Calls with few ids: on a GPU they are as all others, and these functions say so."""

from typing import Any


def lookup_few(contents: Any, ids: Any) -> Any:
    """Return None: nothing was looked up."""
    return None


def update_few(contents: Any, ids: Any, grad_out: Any) -> bool:
    """Return False: no step was taken."""
    return False


def update_bags_few(contents: Any, bags: Any, grad_out: Any, mode: Any) -> bool:
    """Return False: no step was taken."""
    return False


def add_few(weight: Any, ids: Any, values: Any, alpha: float) -> bool:
    """Return False: nothing was added."""
    return False


def sum_few(ids: Any, grad_out: Any, num_rows: int, dim: int | None, dtype: Any, padding: int, by_count: bool) -> Any:
    """Return None: nothing was summed."""
    return None

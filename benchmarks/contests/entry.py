"""The two records that every contest is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Entry(NamedTuple):
    """A contestant: step(i) works on batch i; result(what the last step returned) is what must agree."""

    step: Callable[[int], Any]
    result: Callable[[Any], Any] = np.asarray


class Contest(NamedTuple):
    """Ours against the fastest of a peer's ways."""

    batches: int  # that there are
    moved: float  # bytes that ours must move per step
    ours: Entry
    peers: dict[str, Entry]
    atol: float = 1e-5  # how far apart results of float32 may be
    also: dict[str, Entry] = {}  # compared, but not timed

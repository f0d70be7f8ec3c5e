"""Where the time of a piece goes: kernels, the Python of our calls, draws, and what stands around them."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import sparsembed as se
from sparsembed._cpu import threads

from .job import Job, Tool

_CALLS = {
    se.EmbeddingTable: ("lookup", "update", "pool", "update_pooled", "dot", "update_dot"),
    se.Bags: ("__init__", "from_padded", "with_weights"),
    se.NegativeSampler: ("draw",),
}
KERNELS, PYTHON, DRAWS, REST = "our kernels", "Python of our calls, and kernels for few ids", "draws", "the rest"


class _Clock:
    """Adds the time since the last change to what was going on until then."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.now, self.start = REST, time.perf_counter()

    def change(self, to: str) -> str:
        end, before = time.perf_counter(), self.now
        self.seconds[before] = self.seconds.get(before, 0.0) + end - self.start
        self.now, self.start = to, time.perf_counter()
        return before


@contextlib.contextmanager
def _watched(clock: _Clock) -> Iterator[None]:
    originals: list[tuple[Any, str, Any]] = []

    def watch(owner: Any, name: str, label: str) -> None:
        held = vars(owner)[name]
        original = getattr(held, "__func__", held)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            before = clock.change(DRAWS if clock.now == DRAWS else label)  # the kernel of a draw is a draw
            try:
                return original(*arguments, **keywords)
            finally:
                clock.change(before)

        originals.append((owner, name, held))
        setattr(owner, name, type(held)(timed) if isinstance(held, classmethod) else timed)

    for owner, names in _CALLS.items():
        for name in names:
            watch(owner, name, DRAWS if name == "draw" else PYTHON)
    watch(threads, "run", KERNELS)
    try:
        yield
    finally:
        for owner, name, held in originals:
            setattr(owner, name, held)


def shares(tool: Tool, rate: float, workers: int) -> dict[str, float]:
    """Return the share of each part in the second piece of a training."""
    training = tool.start(rate, workers)
    training.piece(0)
    clock = _Clock()
    with _watched(clock):
        training.piece(1)
        clock.change(REST)
    total = sum(clock.seconds.values())
    return {label: clock.seconds.get(label, 0.0) / total for label in (KERNELS, PYTHON, DRAWS, REST)}


def lines(job: Job, found: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of the shares of our tools.

    The rest is NumPy, torch, or a loop that is compiled as a whole; torch's backward pass, in a thread of its own,
    calls our kernels, which are then counted where they run.
    """
    head = ["| tool | " + " | ".join((KERNELS, PYTHON, DRAWS, "the rest: NumPy, torch, compiled loops")) + " |"]
    head.append("|---|--:|--:|--:|--:|")
    for each in found:
        cells = [f"{100 * each['shares'][label]:.0f} %" for label in (KERNELS, PYTHON, DRAWS, REST)]
        head.append(f"| {job.name}: {each['tool']} | " + " | ".join(cells) + " |")
    return head

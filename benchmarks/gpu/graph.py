"""A lookup and an update in a CUDA graph, for `benchmarks.gpu`: captured once, launched for every batch."""

import contextlib
import gc
import importlib.util
from collections.abc import Callable
from typing import Any

from .device import OnStream

Work = Callable[[int], None]  # called with the stream to work on


class Captured:
    """A step of a table as a graph, on inputs that stay where they are.

    `by` is one of `ways`, the first if None: torch, with its tensors and its allocator, or cuda.core.
    """

    def __init__(self, device: Any, table: Any, ids: Any, grad: Any, by: str | None = None) -> None:
        by = by or ways()[0]
        self.device, self.table = device, table
        self._inputs = device.up(ids), device.up(grad)
        self.seen: Any = None
        torch = torch_on_gpu() if by == "torch" else None
        self._given = [array if torch is None else torch.as_tensor(array, device="cuda") for array in self._inputs]
        self._by_torch = torch is not None
        saved = table.state_dict()
        self._replay, self._close = capture(by, self._warm_up, self._work)
        table.load_state_dict(saved)

    def _warm_up(self, stream: int) -> None:
        """Compile, and fill pools, on the stream that is then captured."""
        for _ in range(2):
            self.table.begin_step()
            self.device.wait()
            self._work(stream)
            self.device.wait(stream)

    def _work(self, stream: int) -> None:
        ids, grad = self._given if self._by_torch else (OnStream(each, stream) for each in self._given)
        with self.table.recording():
            self.seen = self.table.lookup(ids)
            self.table.update(ids, grad)

    def put(self, ids: Any, grad: Any) -> None:
        """Other inputs, in the same place; they are arrays of the device."""
        for mine, other in zip(self._inputs, (ids, grad), strict=True):
            self.device.copy(mine, other)

    def step(self) -> None:
        """Count the step, and launch."""
        self.table.begin_step()
        self._replay()

    def close(self) -> None:
        self.device.wait()
        self._close()


def torch_on_gpu() -> Any:
    """Return torch, if it is installed and has a GPU."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch if torch.cuda.is_available() else None


def ways() -> list[str]:
    """How a graph can be captured here."""
    return ["cuda.core"] if torch_on_gpu() is None else ["torch", "cuda.core"]


def capture(by: str, warm_up: Work, work: Work) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Capture what `work` starts; returns what launches it on the default stream, and what frees it."""
    return _by_torch(torch_on_gpu(), warm_up, work) if by == "torch" else _by_cuda_core(warm_up, work)


def _by_torch(torch: Any, warm_up: Work, work: Work) -> tuple[Any, Any]:
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        warm_up(int(side.cuda_stream))
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        work(int(side.cuda_stream))
    return graph.replay, graph.reset


def _by_cuda_core(warm_up: Work, work: Work) -> tuple[Any, Any]:
    from cuda.core import LEGACY_DEFAULT_STREAM, Device
    from cuda.core.graph import GraphCompleteOptions

    stream = Device(0).create_stream()
    warm_up(int(stream.handle))
    builder = stream.create_graph_builder()
    gc.collect()  # nothing that is given back meanwhile may get into the graph
    builder.begin_building("thread_local")
    try:
        work(int(stream.handle))
    except Exception:
        with contextlib.suppress(Exception):  # the stream must not stay as it is
            builder.end_building()
        raise
    builder.end_building()
    graph = builder.complete(GraphCompleteOptions(auto_free_on_launch=True))

    def close() -> None:
        graph.close()
        builder.close()
        stream.close()

    return lambda: graph.launch(LEGACY_DEFAULT_STREAM), close

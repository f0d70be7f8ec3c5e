"""Arrays of installed frameworks, for `benchmarks.gpu`: how each adopts a device array, and whether calls take them."""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import sparsembed as se

from .graph import torch_on_gpu
from .inputs import Size, inputs, same


class Framework(NamedTuple):
    """What the check needs of a framework."""

    adopt: Callable[[Any], Any]  # a device array as its own
    kind: Any  # of array
    aside: Callable[[], Any] | None = None  # makes a new stream current; waits for it in the end
    copy: Callable[[Any], Any] = lambda array: array  # by its current stream, if it has one
    writable: bool = True


def frameworks(device: Any, rng: Any, size: Size) -> None:
    """Arrays come back as the framework's own; what it does itself on its current stream comes before and after."""
    each = next(inputs(rng, size))
    alone = se.EmbeddingTable.from_array(device.up(each.weight), se.SGD(0.1))
    alone.update(device.up(each.ids), device.up(each.grad))
    want = alone.state_dict()["weight"]
    for name, framework in adopters().items():
        for aside in filter(None, (contextlib.nullcontext, framework.aside)):
            what = name if aside is contextlib.nullcontext else f"{name}, on a stream of its own"
            table, ids, grad = (framework.adopt(device.up(a)) for a in (each.weight, each.ids, each.grad))
            device.wait()  # what was uploaded on the default stream has arrived
            with aside():
                got = se.gather(table, framework.copy(ids))
                read = framework.copy(got)
                trained = se.EmbeddingTable.from_array(table, se.SGD(0.1), copy=not framework.writable)
                trained.update(ids, framework.copy(grad))
            assert isinstance(got, framework.kind), f"{what}: a {type(got).__name__} came back"
            same(device.down(read), each.weight[each.ids], what)
            if framework.writable:
                assert trained.weight is table, f"{what}: the table is not the caller's array"
            same(trained.state_dict()["weight"], want, what)


def adopters() -> dict[str, Framework]:
    """The frameworks that are installed and have a GPU."""
    found = {}
    if (torch := torch_on_gpu()) is not None:
        found["torch"] = Framework(
            lambda array: torch.as_tensor(array, device="cuda"), torch.Tensor, lambda: _torch_aside(torch), torch.clone
        )
    if importlib.util.find_spec("numba_cuda"):
        from numba import cuda
        from numba.cuda.cudadrv.devicearray import DeviceNDArray

        found["numba"] = Framework(cuda.as_cuda_array, DeviceNDArray)
    if importlib.util.find_spec("cupy"):
        import cupy

        found["cupy"] = Framework(cupy.asarray, cupy.ndarray, lambda: _cupy_aside(cupy), cupy.copy)
    if importlib.util.find_spec("jax"):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else it takes 3/4 of the memory at once
        import jax

        with contextlib.suppress(RuntimeError):  # it has no GPU
            jax.devices("gpu")
            found["jax"] = Framework(jax.dlpack.from_dlpack, jax.Array, writable=False)  # has no streams to choose from
    return found


@contextlib.contextmanager
def _torch_aside(torch: Any) -> Iterator[None]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


@contextlib.contextmanager
def _cupy_aside(cupy: Any) -> Iterator[None]:
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        yield
    stream.synchronize()


ALL = {"arrays of frameworks": frameworks}

"""The CUDA driver: events, and messages that say how to remedy an error."""

from typing import Any

from cuda.bindings import driver

_CAPTURE = range(900, 910)  # errors of calls that the capture of a CUDA graph does not allow
_BROKEN = (700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999)  # errors after which the process cannot use the GPU
FORKED = (
    "a GPU that was used before os.fork() cannot be used in the child; start processes with "
    "multiprocessing.get_context('spawn'), or use the GPU in one of them only"
)


class Mark:
    """A CUDA event: a point in the work of a queue, for which another queue can wait."""

    __slots__ = ("_destroy", "event", "queue")

    def __init__(self, queue: Any, timed: bool = False) -> None:
        flags = driver.CUevent_flags.CU_EVENT_DEFAULT if timed else driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
        self.queue, self.event = queue, checked(driver.cuEventCreate(flags), "making an event")
        self._destroy = driver.cuEventDestroy  # at exit the module may be gone

    def record(self) -> None:
        """Record the event: the point is the end of all work that the queue has been given so far."""
        checked(driver.cuEventRecord(self.event, self.queue.handle), "marking a stream")

    def __del__(self) -> None:
        if hasattr(self, "_destroy"):
            self._destroy(self.event)  # streams that wait for the event still do: CUDA frees it when it is complete


def checked(result: tuple[Any, ...], what: str) -> Any:
    """Return the result of a function of the driver, or raise for its error."""
    if result[0]:
        raise failure(_text(result[0]), what, int(result[0]))
    return result[1] if len(result) > 1 else None


def failure(text: str, what: str, number: int | None = None) -> Exception:
    """Return the exception for an error whose text begins with its name."""
    name = text.partition(":")[0].strip()
    if number is None:
        number = int(getattr(driver.CUresult, name, 0))
    if number == 2:
        error, free, total = driver.cuMemGetInfo()
        left = "" if error else f" ({free:,} of {total:,} are free)"
        return MemoryError(
            f"{what}: the GPU has not enough memory{left}; use fewer ids a call or a smaller table, or free what other "
            "libraries keep (torch.cuda.empty_cache(), cupy.get_default_memory_pool().free_all_blocks(), "
            "XLA_PYTHON_CLIENT_PREALLOCATE=false for JAX)"
        )
    advice = ""
    if number in _CAPTURE:
        advice = "; a CUDA graph is being captured, in which nothing waits for the GPU or reads from it"
    elif number in _BROKEN:
        advice = (
            "; a kernel that was started before has failed, of this library or another, and this process cannot use "
            "the GPU any more (CUDA_LAUNCH_BLOCKING=1 and compute-sanitizer show which one)"
        )
    return RuntimeError(f"{what}: {text}{advice}")


def unusable(what: str, error: Exception) -> RuntimeError:
    """Return the exception for a machine without a GPU or a driver."""
    return RuntimeError(
        f"no NVIDIA {what} can be used: {error}; device='cuda' needs one, with a driver of CUDA 12 or newer "
        "(nvidia-smi shows both)"
    )


def _text(error: Any) -> str:
    found, name = driver.cuGetErrorName(error)
    told, words = driver.cuGetErrorString(error)
    return ": ".join(each.decode() for bad, each in ((found, name), (told, words)) if not bad) or f"error {int(error)}"

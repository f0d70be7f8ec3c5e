"""The queues that are open, one for each stream of each GPU."""

import os
import sys
import threading
from typing import Any, NamedTuple

import numpy as np
from cuda.bindings import driver

from ..kernels.cuda._sharing import NONE
from ..kernels.cuda.records import move_records
from . import array
from .array import DeviceArray
from .driver import FORKED, checked, unusable
from .queue import LEGACY, PER_THREAD, Queue

_RECORDS = 1024  # most streams with a record of their own
_THREADS = 256
_queues: dict[tuple[int, int, int], Queue] = {}
_shared: dict[int, "Shared"] = {}
_forked: list[RuntimeError] = []
_lock = threading.RLock()
array.GPUS = sys.modules[__name__]


def _after_fork() -> None:
    if _queues:
        _forked.append(RuntimeError(FORKED))


os.register_at_fork(after_in_child=_after_fork)


class Shared(NamedTuple):
    """What the queues of a device share."""

    kernels: dict[Any, Any]  # kernels of cuda.core, by the key of `code.flatten`
    records: DeviceArray  # (1024, 2); made with the first queue: memory made during a capture belongs to the graph


def open_queue(device: int, stream: int) -> Queue:
    """Return the queue of a stream, and make its device current in this thread; or raise and say what is missing."""
    if _forked:
        raise _forked[0]
    key = (device, stream or LEGACY, threading.get_ident() if stream == PER_THREAD else 0)
    if (queue := _queues.get(key)) is None:
        with _lock:
            if (queue := _queues.get(key)) is None:
                try:
                    queue = _queues[key] = _made(device, stream)
                except (ImportError, MemoryError):
                    raise
                except Exception as error:
                    raise unusable(f"GPU {device}", error) from error
    queue.enter()
    return queue


def _made(device: int, stream: int) -> Queue:
    queue = Queue(device, stream, _lock)
    if device not in _shared:
        records = queue.filled((_RECORDS, 2), np.uint64, 0xFF)
        queue.wait()  # other streams use the records, too
        _shared[device] = Shared({}, records)
    queue.kernels, records = _shared[device]
    queue.record = records.part(len(queues_of(device)) % _RECORDS, 1).reshape(2)
    return queue


def device_of(pointer: int) -> int:
    """Return the number of the device of an address; for 0, the address of an empty array, the current device."""
    if _forked:
        raise _forked[0]
    kind = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    try:
        error, device = driver.cuPointerGetAttribute(kind, pointer) if pointer else driver.cuCtxGetDevice()
        if error and not pointer:
            return 0  # no device is current
        if error != driver.CUresult.CUDA_ERROR_INVALID_VALUE:
            return int(checked((error, device), "asking for a device"))
    except Exception as error:
        raise unusable("GPU", error) from error
    raise ValueError(f"{pointer:#x} is given as an address of a GPU's memory, but no GPU knows it")


def queues_of(device: int) -> list[Queue]:
    """Return the queues of a device that are open."""
    return [queue for key, queue in list(_queues.items()) if key[0] == device]


def take_records(device: int) -> Any:
    """Wait for a device; return and clear the recorded errors of all its streams, closed ones included.

    One pair of numbers for each stream, as in `Queue.record`: the first ids, and offsets, out of range.
    """
    queue = open_queue(device, 0)
    checked(driver.cuCtxSynchronize(), "waiting for the GPU")
    found = taken(queue, _shared[device].records)
    return found[(found != NONE).any(axis=1)]


def taken(queue: Any, records: DeviceArray) -> Any:
    """Wait for a queue; return the numbers in records, and clear exactly these.

    Other streams may write to the records at any time, so a kernel reads and clears each number in one atomic step.
    """
    found = queue.download(records)
    if (found != NONE).any():
        moved = queue.empty(records.shape, np.uint64)
        blocks = -(-records.size // _THREADS)
        queue.launch(move_records, blocks, _THREADS, records, records.size, moved)
        found = queue.download(moved)
    return found

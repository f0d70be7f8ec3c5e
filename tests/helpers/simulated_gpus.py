"""Device arrays whose memory is this computer's, and two GPUs that run kernels on greenlets."""

import numpy as np
import pytest
import simulator

from benchmarks.gpu import cases as gpu_cases
from sparsembed._cuda import blocks, errors, queues, views


class Held:
    """A device array of somebody's."""

    def __init__(self, array, stream=None, readonly=False, copy=True):
        self.array = np.array(array) if copy else array
        self.stream, self.readonly = stream, readonly

    @property
    def __cuda_array_interface__(self):
        a = self.array
        strides = None if a.flags.c_contiguous else a.strides
        place = (a.__array_interface__["data"][0], self.readonly)
        return {"shape": a.shape, "typestr": a.dtype.str, "data": place, "strides": strides, "version": 3,
                "stream": self.stream}  # fmt: skip


class Gpus:
    """Two devices; which streams have been asked for."""

    def __init__(self):
        self.queues, self.second = {}, []

    def open_queue(self, device, stream):
        return self.queues.setdefault((device, stream or 1), simulator.Queue(device + 1, stream=stream or 1))

    def take_records(self, device):
        records = [queue.record for (each, _), queue in self.queues.items() if each == device]
        found = np.array([simulator.flat(each).copy() for each in records], np.uint64).reshape(-1, 2)
        for each in records:
            simulator.flat(each)[:] = errors.NONE
        return found

    def device_of(self, pointer):
        return int(any(pointer == each.__cuda_array_interface__["data"][0] for each in self.second))


def simulate(monkeypatch):
    """Let two GPUs be found here until the patch is undone."""
    found = Gpus()
    monkeypatch.setattr(blocks, "THREADS", 64)  # two warps a block, where more would idle
    monkeypatch.setattr(queues, "open_queue", found.open_queue)
    monkeypatch.setattr(queues, "device_of", found.device_of)
    monkeypatch.setattr(queues, "take_records", found.take_records)
    return found


@pytest.fixture
def gpus(monkeypatch):
    found = simulate(monkeypatch)
    yield found
    errors.checks("late")
    # What is compiled without a GPU is chosen among what the benchmark believes to be every launch.
    assert {each for one in found.queues.values() for each in one.met} <= set(gpu_cases.everything())


def host(array):
    return simulator.flat(views.view(array, "result")).copy().reshape(array.shape)

"""Streams, memory and launches of a GPU, on a stand-in for the driver: what it is asked, and what it answers."""

import contextlib
import ctypes
import re
import threading
import types
import weakref
from typing import NamedTuple

import cuda.core
import numpy as np
import pytest
from cuda.bindings import driver as bindings
from cuda.core._kernel_arg_handler import ParamHolder

import sparsembed as se
import sparsembed.cuda
from benchmarks.gpu import code as gpu_code
from sparsembed._cuda import code, driver, errors, queues
from sparsembed._cuda import queue as streams
from sparsembed._cuda.array import DeviceArray
from sparsembed.kernels.cuda import records

LEGACY, STREAM, OTHER = 1, 0x1000, 0x2000
CODES = {"out of memory": 2, "invalid": 1, "no context": 201, "illegal": 700, "capture": 900, "not ready": 600}


class Memory:
    """What cuda.core lends: this computer's memory."""

    def __init__(self, size, stream):
        self.room, self.stream = np.full(size + 16, 0x7B, np.uint8), stream
        self.handle = self.room.__array_interface__["data"][0] + 15 & ~15

    def set_deallocation_stream(self, stream):
        self.stream = stream


class Driver:
    """The functions of the driver that a queue calls; `called` lists them, `failing` is what the next one answers."""

    CUcontext = CUstream = int
    CUresult, CUevent_flags = bindings.CUresult, bindings.CUevent_flags
    CUpointer_attribute = bindings.CUpointer_attribute

    def __init__(self):
        self.called, self.failing, self.capturing, self.started, self.sizes = [], {}, set(), [], ()
        self.works = {}  # what a kernel does, by its entry
        self.now = threading.local()
        self.answers = {
            "cuCtxGetCurrent": lambda: getattr(self.now, "context", 0),
            "cuCtxSetCurrent": lambda context: setattr(self.now, "context", context),
            "cuCtxGetDevice": lambda: self.now.context - 100,
            "cuPointerGetAttribute": lambda kind, pointer: 3,
            "cuMemsetD8Async": lambda to, byte, count, stream: ctypes.memset(to, byte, count) and None,
            "cuStreamIsCapturing": lambda stream: int(stream in self.capturing),
            "cuEventCreate": lambda flags: object(),
            "cuEventElapsedTime": lambda start, end: 2.5,
            "cuGetErrorName": lambda error: b"CUDA_ERROR",
            "cuGetErrorString": lambda error: b"in words",
        }
        for way in ("HtoD", "DtoH", "DtoD"):
            self.answers[f"cuMemcpy{way}Async"] = lambda to, source, n, stream: ctypes.memmove(to, source, n) and None

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments):
            self.called.append((name, *arguments))
            if code := self.failing.pop(name, 0):
                return bindings.CUresult(code), None
            if name == "cuMemGetInfo":
                return 0, 5, 7000
            answer = self.answers.get(name, lambda *_: None)(*arguments)
            return (0,) if answer is None else (0, answer)

        return call

    def launch(self, stream, config, kernel, *parameters):
        if code := self.failing.pop("launch", None):
            raise Exception(f"{code}: in words")  # as cuda.core's CUDAError, which is no RuntimeError
        packed = ParamHolder(parameters)  # what cuda.core gives to the driver
        addresses = ctypes.cast(packed.ptr, ctypes.POINTER(ctypes.c_void_p))
        raw = [ctypes.string_at(addresses[k], size) for k, size in enumerate(self.sizes)]
        self.started.append((kernel, config, stream, len(parameters), raw))
        self.works.get(kernel, lambda *_: None)(*parameters)

    def names(self):
        return [name for name, *_ in self.called]


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Two GPUs that are stand-ins, and nothing known of them."""
    made = Driver()

    class Device:
        properties, compute_capability = types.SimpleNamespace(multiprocessor_count=4), (9, 0)

        def __init__(self, number):
            self.context, self.number = types.SimpleNamespace(handle=100 + number), number
            self.memory_resource = types.SimpleNamespace(allocate=self.lend)

        def lend(self, size, stream):
            made.called.append(("allocate", size))
            return Memory(size, stream)

        def set_current(self):
            made.cuCtxSetCurrent(100 + self.number)

    stream = types.SimpleNamespace(from_handle=lambda handle: f"stream {handle:#x}")
    stand_ins = {"Device": Device, "Stream": stream, "LEGACY_DEFAULT_STREAM": "legacy", "launch": made.launch,
                 "PER_THREAD_DEFAULT_STREAM": "own", "LaunchConfig": lambda grid, block: (grid, block)}  # fmt: skip
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(cuda.core, name, stand_in)
    for module in (queues, streams, driver):
        monkeypatch.setattr(module, "driver", made)
    for name in ("_queues", "_shared"):
        monkeypatch.setattr(queues, name, {})
    monkeypatch.setattr(queues, "_forked", [])
    monkeypatch.setattr(streams, "_configs", {})
    return made


def numbers_at(pointer, count):
    return np.ctypeslib.as_array((ctypes.c_uint64 * count).from_address(pointer))


def move_records(there, count, moved):
    """`records.move_records`, all of it at once."""
    numbers_at(moved, count)[:] = numbers_at(there, count)
    numbers_at(there, count)[:] = errors.NONE


def forget_call(there, call):
    kept = numbers_at(there, 2)
    kept[kept >> 31 == call] = errors.NONE


WORKS = {records.move_records: move_records, records.forget_call: forget_call}


@pytest.fixture
def built(monkeypatch, gpu):
    """What has been compiled, by name; nothing is, and kernels of `WORKS` alone do anything."""
    made = []

    def build(kernel, kinds, capability, threads):
        made.append((kernel, kinds))
        if kernel in WORKS:
            gpu.works[f"entry_{len(made)}"] = WORKS[kernel]
        return code.Code(f"entry_{len(made)}", b"", "")

    load = types.SimpleNamespace(get_kernel=lambda name: name)
    monkeypatch.setattr(code, "build", build)
    monkeypatch.setattr(cuda.core, "ObjectCode", types.SimpleNamespace(from_cubin=lambda cubin: load))
    return made


def array(dtype, pointer=0x7000):
    return DeviceArray(pointer, (3,), dtype, None)


# ------------------------------------------------------------------------------------------ parameters


class Pair(NamedTuple):
    """Hyperparameters."""

    first: np.floating
    second: np.floating


class Other(Pair):
    """Of another rule."""


INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
SCALARS = [kind(7) for kind in (*INTEGERS, np.float32, np.float64)]
ARGUMENTS = [
    *(array(np.dtype(name)) for name in ("float32", "float64", "uint16", "int32", "int64", "uint64")),
    *SCALARS, None, 3, -1, 0.5, (np.float32(1),), (np.float32(1), np.float32(2)), (np.float64(1), np.float64(2)),
    (np.int32(-1),) * 4, Pair(np.float32(1), np.float32(2)), Pair(np.float64(1), np.float64(2)),
    Other(np.float32(1), np.float32(2)),
]  # fmt: skip


def test_what_stands_for_types_tells_them_apart():
    """Arguments have the same key if, and only if, a kernel is compiled for them alike."""
    for one in ARGUMENTS:
        for other in ARGUMENTS:
            alike = code.types_of((one, 1)) == code.types_of((other, 1))
            keys = [code.flatten(print, (each, 1))[0] for each in (one, other)]
            if keys[0] == keys[1]:
                assert alike, (one, other)
            elif alike:  # no more than a second copy of the code
                assert {type(one), type(other)} <= {int, float, np.int64, np.float64}
    assert code.flatten(print, (1,))[0] != code.flatten(len, (1,))[0]


def test_a_tuple_of_several_kinds_is_refused():
    for value in ((np.float32(1), 1), ()):
        with pytest.raises(TypeError, match="one kind of number"):
            code.types_of((value,))


def test_the_driver_gets_the_parameters_that_the_kernel_has(gpu, built):
    """As many, of the same sizes, each with the value that was given."""
    hp = se.SparseAdam().scalars(1, np.dtype(np.float32))
    arguments = (
        array(np.float32, 2**48 + 8),
        *SCALARS,
        None,
        -3,
        0.1,
        hp,
        (np.int32(-2),) * 3,
        np.int8(-1),
        array(np.int32),
    )

    def kernel(out, a, b, c, d, e, f, g, h, i, j, none, k, l, hp, some, last, more):  # noqa: E741
        out[0] = a + b + c + d + e + f + g + h + i + j + k + l + hp.eps + some[0] + last + more[0]

    with gpu_code.device_of((9, 0)):
        ptx = code.ptx_of(kernel, code.types_of(arguments), (9, 0), 256)
    gpu.sizes = [int(bits) // 8 for bits in re.findall(r"\.param \.[a-z](\d+) ", ptx)]
    queues.open_queue(0, STREAM).launch(kernel, 5, 64, *arguments)
    ((*where, count, raw),) = gpu.started
    assert where == ["entry_1", (5, 64), "stream 0x1000"]
    assert count == len(gpu.sizes)
    want = [np.uint64(2**48 + 8), *SCALARS, np.int64(0), np.int64(-3), np.float64(0.1), *hp, *(np.int32(-2),) * 3]
    assert raw == [each.tobytes() for each in [*want, np.int8(-1), np.uint64(0x7000)]]


# ------------------------------------------------------------------------------------------ launches


def test_a_kernel_is_compiled_once_for_each_kind_of_arguments_and_device(gpu, built):
    for device in (0, 1, 0):
        for stream in (0, STREAM):
            for dtype in (np.float32, np.float64, np.float32):
                queues.open_queue(device, stream).launch(print, 1, 32, array(dtype), 4)
    assert len(built) == 4
    kernels = [int(kernel[-1]) for kernel, *_ in gpu.started]
    assert kernels == [1, 2, 1] * 2 + [3, 4, 3] * 2 + [1, 2, 1] * 2


def test_threads_that_meet_a_kernel_at_once_compile_it_once(gpu, built, monkeypatch):
    build, start = code.build, threading.Barrier(4)

    def slow(*arguments):
        with contextlib.suppress(threading.BrokenBarrierError):
            threading.Barrier(2).wait(0.05)  # nobody comes: time for the others
        return build(*arguments)

    monkeypatch.setattr(code, "build", slow)

    def work():
        start.wait()
        queues.open_queue(0, 0).launch(print, 1, 32, 4)

    every = [threading.Thread(target=work) for _ in range(4)]
    for each in every:
        each.start()
    for each in every:
        each.join()
    assert (len(built), len(gpu.started)) == (1, 4)
    key, _ = code.flatten(print, (4,))  # as a thread that has waited for another one
    assert queues.open_queue(0, 0)._load(key, print, (4,)) == "entry_1"
    assert len(built) == 1


def test_a_launch_that_fails_names_the_kernel(gpu, built):
    gpu.failing["launch"] = "CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(RuntimeError, match=r"^print on 5 blocks of 64 threads: CUDA_ERROR_INVALID_VALUE: in words$"):
        queues.open_queue(0, 0).launch(print, 5, 64, 1)
    gpu.failing["launch"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(RuntimeError, match="a kernel that was started before has failed"):
        queues.open_queue(0, 0).launch(print, 5, 64, 1)


# ------------------------------------------------------------------------------------------ devices, streams


def test_the_device_is_the_current_one_of_the_thread(gpu):
    first, second = queues.open_queue(0, 0), queues.open_queue(1, 0)
    assert gpu.now.context == 101
    gpu.called.clear()
    assert queues.open_queue(1, 0) is second
    assert "cuCtxSetCurrent" not in gpu.names()
    assert queues.open_queue(0, 0) is first
    assert gpu.now.context == 100
    found = []

    def work():
        found.append(queues.open_queue(1, 0))
        found.append(gpu.now.context)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [second, 101]


def test_streams_that_have_numbers(gpu, built):
    """0 and 1 are the legacy default stream; 2 is another one in each thread."""
    legacy, own, found = queues.open_queue(0, 0), queues.open_queue(0, 2), []
    assert queues.open_queue(0, 1) is legacy
    assert (legacy.handle, own.handle) == (1, 2)
    thread = threading.Thread(target=lambda: found.append(queues.open_queue(0, 2)))
    thread.start()
    thread.join()
    assert queues.open_queue(0, 2) is own
    assert found[0] not in (own, legacy)
    assert (found[0].handle, found[0].capturing) == (1, False)  # here: it waits for the other thread's stream
    found[0].launch(print, 1, 32, 4)
    assert [stream for _, _, stream, *_ in gpu.started] == ["legacy"]
    gpu.started.clear()
    for each in (legacy, own):
        each.launch(print, 1, 32, 4)
    assert [stream for _, _, stream, *_ in gpu.started] == ["legacy", "own"]
    assert own.empty((1,), np.int32).owner.stream == "legacy"  # whichever thread gives it back


def test_each_stream_has_a_record_of_its_own(gpu, built):
    first, second = queues.open_queue(0, 0), queues.open_queue(0, STREAM)
    call = errors.note(("ids",), ((4,),), 9)
    second.write(second.record, np.array([call.number << 31 | 2, errors.NONE], np.uint64))
    sparsembed.cuda.synchronize(0, first.stream)
    gpu.called.clear()
    with pytest.raises(IndexError, match=r"ids\[2\] is out of range"):
        sparsembed.cuda.synchronize(0, STREAM)
    assert ("cuStreamSynchronize", STREAM) in gpu.called
    sparsembed.cuda.synchronize(0, STREAM)
    second.write(second.record, np.array([call.number << 31 | 2, errors.NONE], np.uint64))
    with pytest.raises(IndexError, match=r"ids\[2\] is out of range"):
        sparsembed.cuda.synchronize()
    sparsembed.cuda.synchronize()
    other = queues.open_queue(1, 0)
    assert len({each.record.pointer for each in (first, second, other)}) == 3
    assert [each.stream for each in queues.queues_of(0)] == [LEGACY, STREAM]


def test_the_records_of_all_streams_are_taken_at_once(gpu, built):
    """Streams that are gone are not asked."""
    first, second = queues.open_queue(0, STREAM), queues.open_queue(0, OTHER)
    assert len(queues.take_records(0)) == 0
    first.write(first.record, np.array([errors.NONE, 7], np.uint64))
    second.write(second.record, np.array([3, errors.NONE], np.uint64))
    gpu.called.clear()
    np.testing.assert_array_equal(queues.take_records(0), np.array([[errors.NONE, 7], [3, errors.NONE]], np.uint64))
    assert gpu.names().index("cuCtxSynchronize") < gpu.names().index("cuMemcpyDtoHAsync")
    assert {call[-1] for call in gpu.called if call[0].startswith(("cuStreamS", "cuMemcpy"))} == {LEGACY}
    assert (first.download(first.record) == errors.NONE).all()
    assert len(queues.take_records(0)) == len(queues.take_records(1)) == 0


@pytest.mark.parametrize("stream", [None, STREAM])
def test_an_error_that_is_noted_while_others_are_taken_is_not_lost(gpu, built, stream):
    """By a kernel of another thread, which has a number already, between reading the records and clearing them."""
    mine = queues.open_queue(0, STREAM)
    late, early = (errors.note(("ids",), ((4,),), 9) for _ in range(2))
    noted, copy, said = numbers_at(mine.record.pointer, 2), gpu.answers["cuMemcpyDtoHAsync"], []
    noted[0] = early.number << 31 | 2

    def read(*arguments):
        copy(*arguments)
        noted[0] = min(int(noted[0]), late.number << 31 | 3)
        gpu.answers["cuMemcpyDtoHAsync"] = copy

    gpu.answers["cuMemcpyDtoHAsync"] = read
    for each in (stream, None):
        try:
            sparsembed.cuda.synchronize(0, each)
        except IndexError as error:
            said.append(str(error))
    assert "ids[3] is out of range" in "".join(said)
    sparsembed.cuda.synchronize()


def test_a_call_that_raises_clears_what_it_has_noted_alone(gpu, built):
    """Also if another thread's call on this stream notes something between reading and clearing."""
    mine = queues.open_queue(0, STREAM)
    early, late = (errors.note(("ids",), ((4,),), 9) for _ in range(2))
    status, ids = mine.upload(np.array([2], np.uint64)), mine.upload(np.arange(4))
    noted, copy = numbers_at(mine.record.pointer, 2), gpu.answers["cuMemcpyDtoHAsync"]
    noted[0] = early.number << 31 | 2

    def read(to, source, *rest):
        copy(to, source, *rest)
        if source in (status.pointer, mine.record.pointer):
            noted[1] = late.number << 31 | 1

    gpu.answers["cuMemcpyDtoHAsync"] = read
    with pytest.raises(IndexError, match=r"ids\[2\] is 2, expected 0"):
        errors.raise_for(mine, status, early, ids)
    gpu.answers["cuMemcpyDtoHAsync"] = copy
    with pytest.raises(ValueError, match=r"offsets\[1\] does not fit"):
        sparsembed.cuda.synchronize()
    sparsembed.cuda.synchronize()


def test_a_queue_that_is_opened_while_a_graph_is_captured_needs_no_memory(gpu):
    queues.open_queue(0, 0)
    assert ("cuStreamSynchronize", LEGACY) in gpu.called  # the records are for all streams
    gpu.called.clear()
    gpu.capturing.add(STREAM)
    assert queues.open_queue(0, STREAM).record.size == 2
    assert not {"allocate", "cuStreamSynchronize"} & set(gpu.names())


def test_what_one_stream_has_made_is_used_on_another(gpu):
    first, second = queues.open_queue(0, STREAM), queues.open_queue(0, OTHER)
    made = first.empty((3,), np.int32)
    mark = first.mark()
    gpu.called.clear()
    first.after(mark, made)
    first.after(None, made)
    assert (gpu.called, made.owner.stream) == ([], "stream 0x1000")
    second.after(mark, made, None, array(np.int32))
    assert ("cuStreamWaitEvent", OTHER, mark.event, 0) in gpu.called
    assert made.owner.stream == "stream 0x2000"
    event = mark.event
    assert second.mark(mark) is mark
    assert (mark.queue, mark.event) == (second, event)
    assert gpu.called[-1] == ("cuEventRecord", event, OTHER)
    gpu.capturing |= {STREAM, OTHER}  # what a graph does is ordered by who launches it
    gpu.called.clear()
    assert first.mark(mark) is mark
    assert first.mark() is None
    first.after(mark, made)
    assert set(gpu.names()) == {"cuStreamIsCapturing"}
    gpu.capturing.clear()
    assert queues.open_queue(1, 0).mark(mark) is not mark  # an event is of one device


def test_what_others_would_give_back_is_kept_until_the_stream_is_done(gpu):
    class Lent:
        pass

    stream, first, second = queues.open_queue(0, STREAM), Lent(), Lent()
    seen = [weakref.ref(first), weakref.ref(second)]
    gpu.failing["cuEventQuery"] = CODES["not ready"]
    stream.hold(first)
    del first
    assert seen[0]() is not None
    gpu.answers["cuEventQuery"] = lambda event: gpu.failing.update(cuEventQuery=CODES["not ready"])  # the first is done
    stream.hold(second)
    del second
    assert [each() is None for each in seen] == [True, False]
    gpu.capturing.add(STREAM)
    stream.hold(third := Lent())
    seen.append(weakref.ref(third))
    del third
    assert seen[2]() is None  # a graph: who launches it keeps what it needs


def test_time_is_the_devices(gpu):
    stream = queues.open_queue(0, STREAM)
    gpu.called.clear()
    assert stream.elapsed(stream.wait) == 2.5e-3
    assert [name for name in gpu.names() if name != "cuEventCreate"][:4] == [
        "cuEventRecord", "cuStreamSynchronize", "cuEventRecord", "cuEventSynchronize"]  # fmt: skip


# ------------------------------------------------------------------------------------------ memory


def test_memory_goes_there_and_back(gpu):
    stream = queues.open_queue(0, STREAM)
    values = np.arange(12, dtype=np.int64).reshape(3, 4)
    there = stream.upload(values[:, ::2])
    np.testing.assert_array_equal(stream.download(there), values[:, ::2])
    copied = stream.filled((3, 2), np.int64, 0xFF)
    assert (stream.download(copied) == -1).all()
    stream.copy(copied, there)
    stream.write(there, values[:, 1::2])
    np.testing.assert_array_equal(stream.download(copied), values[:, ::2])
    np.testing.assert_array_equal(stream.download(there), values[:, 1::2])
    assert {call[-1] for call in gpu.called if call[0].startswith("cuMemcpy")} == {STREAM}
    assert there.owner.stream == "stream 0x1000"
    with pytest.raises(ValueError, match="host must have 48 bytes, got 24"):
        stream.write(there, values[0, :3])


def test_empty_arrays_need_no_memory(gpu):
    stream = queues.open_queue(0, 0)
    gpu.called.clear()
    for made in (stream.empty((0, 3), np.int32), stream.filled((0,), np.int32, 0), stream.upload(np.zeros((2, 0)))):
        assert (made.pointer, made.owner) == (0, None)
        stream.copy(made, made)
    assert gpu.called == []
    assert stream.download(made).shape == (2, 0)


def test_a_graph_does_not_copy_from_the_host(gpu):
    stream = queues.open_queue(0, STREAM)
    there = stream.upload(np.zeros(3))
    gpu.capturing.add(STREAM)
    with pytest.raises(RuntimeError, match="which a CUDA graph cannot repeat"):
        stream.write(there, np.ones(3))
    gpu.failing["cuStreamSynchronize"] = CODES["capture"]
    with pytest.raises(RuntimeError, match="a CUDA graph is being captured"):
        stream.download(there)


def test_a_graph_that_is_captured_lends_its_own_memory(gpu, monkeypatch):
    def refuses(size, stream):
        raise RuntimeError("cannot perform memory operations on a capturing stream")

    lend = types.SimpleNamespace(allocate=lambda size, stream: Memory(size, f"graph {stream}"))
    monkeypatch.setattr(cuda.core, "GraphMemoryResource", lambda device: lend)
    stream = queues.open_queue(0, STREAM)
    stream._memory = types.SimpleNamespace(allocate=refuses)
    with pytest.raises(RuntimeError, match="12 bytes on GPU 0: cannot perform"):
        stream.empty((3,), np.int32)
    gpu.capturing.add(STREAM)
    assert stream.empty((3,), np.int32).owner.stream == "graph stream 0x1000"


def test_too_little_memory_says_what_to_do(gpu):
    stream = queues.open_queue(0, 0)

    def lend(size, stream):
        raise Exception("CUDA_ERROR_OUT_OF_MEMORY: in words")  # as cuda.core's CUDAError, which is no RuntimeError

    stream._memory = types.SimpleNamespace(allocate=lend)
    with pytest.raises(MemoryError, match=r"40 bytes on GPU 0: .* \(5 of 7,000 are free\); use fewer ids"):
        stream.empty((10,), np.int32)


# ------------------------------------------------------------------------------------------ what is missing


def test_the_device_of_an_address(gpu):
    assert queues.device_of(0x7000) == 3
    gpu.now.context = 102
    assert queues.device_of(0) == 2  # of an empty array
    gpu.failing["cuCtxGetDevice"] = CODES["no context"]
    assert queues.device_of(0) == 0
    gpu.failing["cuPointerGetAttribute"] = CODES["invalid"]
    with pytest.raises(ValueError, match="0x7000 is given as an address of a GPU's memory, but no GPU knows it"):
        queues.device_of(0x7000)


def test_without_a_driver_every_way_in_says_so(monkeypatch):
    class Held:
        def __init__(self, typestr):
            self.__cuda_array_interface__ = {"shape": (2, 2), "typestr": typestr, "data": (4096, False), "version": 3}

    def missing(*_):
        raise type("DynamicLibNotFoundError", (RuntimeError,), {})("libcuda.so.1")

    for module in (queues, streams, driver):
        monkeypatch.setattr(module.driver, "cuPointerGetAttribute", missing, raising=False)
    monkeypatch.setattr(cuda.core, "Device", missing)
    for call in (
        lambda: se.gather(Held("<f4"), Held("<i8")),
        lambda: se.plan(Held("<i8"), 3),
        lambda: se.EmbeddingTable(3, 2, device="cuda"),
        sparsembed.cuda.synchronize,
    ):
        with pytest.raises(RuntimeError, match=r"no NVIDIA GPU.* can be used: libcuda.so.1; .*nvidia-smi"):
            call()


def test_a_forked_child_is_told():
    queues._after_fork()
    queues.open_queue(0, 0)  # no GPU had been used before: the child may
    queues._after_fork()
    for call in (lambda: queues.open_queue(0, 0), lambda: queues.device_of(0x7000)):
        with pytest.raises(RuntimeError, match=r"before os\.fork"):
            call()

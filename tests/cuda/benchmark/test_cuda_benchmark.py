"""``python -m benchmarks.gpu`` in the simulator: its checks pass, and fail where a kernel is tampered with."""

import contextlib
import json
import math
import re
import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import simulator

import sparsembed as se
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import device, frameworks, graph, inputs, overhead, peers, report, works
from sparsembed._cuda import array, blocks, catch_up, engine, errors, launch, queues, reading, sorting
from sparsembed.rules import rmsprop

RULES = (se.SGD(0.1), se.RowwiseAdagrad(0.1), se.Adam(0.1))
SMALL = inputs.Size(20, 50, ((np.float32, np.int64, 4), (np.float64, np.int32, 3)), 2, RULES)
TINY = SMALL._replace(kinds=SMALL.kinds[:1])
PLANS = {}  # sorting takes most of the time in the simulator, and the tests mostly sort the same ids


class Device(device.Device):
    """This computer; its clock says that the first of two takes a microsecond a call, and the second three."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def new_stream(self):
        self._streams.append(len(self._streams) + 5)
        return self._streams[-1]

    def free(self):
        return 10**6

    def trim(self):
        pass

    def seconds(self, work):
        work()
        return 1.0

    def clock(self):
        self.calls += 1
        return self.calls * 1e-3

    def machine(self):
        return {"device": "A Device 200", "driver": "1", "cuda": 2}


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    opened = {}
    monkeypatch.setattr(blocks, "THREADS", 64)

    def open_queue(number, stream):
        stream = stream or 1  # two names of the default stream
        return opened.setdefault((number, stream), simulator.Queue(stream, stream=stream))

    monkeypatch.setattr(queues, "open_queue", open_queue)
    monkeypatch.setattr(queues, "device_of", lambda pointer: 0)

    def take_records(number):
        records = [simulator.flat(each.record) for each in opened.values()]
        found = np.array(records, np.uint64).reshape(-1, 2)
        for each in records:
            each[:] = errors.NONE
        return found

    monkeypatch.setattr(queues, "take_records", take_records)
    monkeypatch.setattr(sorting, "plan", sorted_once(sorting.plan))
    monkeypatch.setattr(graph, "capture", captured)
    monkeypatch.setattr(graph, "ways", lambda: ["cuda.core", "another"])
    monkeypatch.setattr(frameworks, "adopters", dict)
    monkeypatch.setattr(overhead, "adopters", dict)
    yield Device()
    errors.checks("late")


def sorted_once(plan):
    """Sort the same ids once only."""

    def found(queue, ids, num_rows, bag_offsets=None, *rest):
        given = [None if each is None else simulator.flat(each).tobytes() for each in (ids, bag_offsets)]
        key = (*given, ids.dtype, num_rows)
        if key not in PLANS:
            PLANS[key] = plan(queue, ids, num_rows, bag_offsets, *rest)
        return PLANS[key]

    return found


def captured(by, warm_up, work):
    """What stands for a graph: the work, again."""
    warm_up(9)
    return lambda: work(9), lambda: None


EVERY = command.every_check(SMALL)


@pytest.mark.parametrize("name", EVERY)
def test_checks_pass(gpu, name):
    EVERY[name](gpu, np.random.default_rng(3), SMALL if name not in command.bits.ALL else TINY)
    gpu.wait()


# ------------------------------------------------------------------------------------------ checks can fail


def changed(where, by="more", only=lambda queue: True):
    """Wrap what starts a kernel: a number of the array that `where` picks from its arguments and result is changed."""

    def wrap(function):
        def wrapped(*arguments, **options):
            result = function(*arguments, **options)
            array = where(arguments, result)
            number = simulator.flat(array)[:1]
            if number.size and only(arguments[0]):
                number[0] = number[0] + number.dtype.type(0.02) if by == "more" else np.nextafter(number[0], np.inf)
            return result

        return wrapped

    return wrap


def later(first):
    """The calls of the first run are left alone."""
    calls = iter(range(10**6))
    return lambda queue: next(calls) >= first


def nothing(function):
    return lambda *arguments, **options: None


WEIGHT = lambda arguments, result: arguments[1].weight  # noqa: E731
STATE = lambda arguments, result: arguments[1].state  # noqa: E731
SUMS = lambda arguments, result: result  # noqa: E731


def argument(k):
    return lambda arguments, result: arguments[k]


HISTORY = catch_up.DeviceHistory
ADAM, SGD = f"update, {RULES[2]}", f"update, {RULES[0]}"
AGAIN, STREAMS, CPU = "the same bits again", "the same bits on two streams", "the CPU's bits"
ANOTHER = {"only": lambda queue: queue.seed > 1}  # than the default stream
TAMPERED = [
    ("gather", reading, "gather_rows", changed(argument(3), "bit"), "Mismatched elements: 1"),
    ("pool", reading, "pool_rows", changed(argument(5)), "more than rounding"),
    ("pool", reading, "pool_max", changed(argument(4), "bit"), "more than rounding"),
    ("dot", engine, "dot", changed(argument(5)), "more than rounding"),
    ("dot_loss", engine, "dot_loss", changed(argument(9)), "more than rounding"),
    ("coalesce", launch, "sum_segments", changed(SUMS), "more than rounding"),
    ("pool_gradient", launch, "sum_segments", changed(SUMS), "more than rounding"),
    ("pool_gradient", reading, "share", changed(SUMS), "more than rounding"),
    ("per_sample_weights_gradient", reading, "sample_gradient", changed(argument(6)), "more than rounding"),
    ("scatter_add", launch, "update_rows", changed(WEIGHT), "more than rounding"),
    (SGD, launch, "update_rows", changed(WEIGHT), "lookup off by"),
    (ADAM, launch, "update_rows", changed(STATE), "off by"),
    (ADAM, HISTORY, "gather", changed(argument(7)), "lookup off by"),
    (ADAM, HISTORY, "flush", nothing, "weight off by"),
    ("update_pooled", launch, "update_rows", changed(WEIGHT), "off by"),
    ("max_norm", launch, "clip_rows", nothing, "off by"),
    (AGAIN, reading, "gather_rows", changed(argument(3), "bit", later(1)), "gather"),
    (AGAIN, reading, "pool_rows", changed(argument(5), "bit", later(3)), "pool"),
    (AGAIN, launch, "sum_segments", changed(SUMS, "bit", later(4)), "coalesce|pool_gradient"),
    (AGAIN, launch, "update_rows", changed(WEIGHT, "bit", later(13)), "update|scatter_add"),
    (STREAMS, launch, "update_rows", changed(WEIGHT, "bit", **ANOTHER), "update|scatter_add"),
    (STREAMS, reading, "sample_gradient", changed(argument(6), "bit", **ANOTHER), "gradient of weights"),
    (CPU, launch, "update_rows", changed(WEIGHT, "bit"), "lookup, step 1"),
    (CPU, launch, "update_rows", changed(STATE), "Adam.*missed steps are off"),
    (
        CPU,
        catch_up.DeviceHistory,
        "gather",
        changed(argument(7)),
        "Adam.*lookup, step 1: rows that missed steps are off",
    ),
    (CPU, HISTORY, "flush", nothing, "Adam.*: weight: rows that missed steps are off"),
    ("bad ids", errors, "synchronize", nothing, "gather, late: something out of range went through"),
    (
        "bad ids",
        errors,
        "checks",
        lambda function: lambda when=None: "late",
        "gather, now: something out of range went through",
    ),
    ("bad ids", sorting, "note_offsets", nothing, "offsets, late"),
    ("bad ids", reading, "gather_rows", changed(argument(3)), "gather wrote"),
    ("bad ids", launch, "update_rows", changed(WEIGHT), "wrote"),
    ("a CUDA graph", launch, "update_rows", changed(WEIGHT, "bit", lambda queue: queue.seed > 1), "weight|lookup"),
]


@pytest.mark.parametrize(("name", "owner", "function", "tamper", "message"), TAMPERED)
def test_checks_fail_where_something_is_wrong(gpu, monkeypatch, name, owner, function, tamper, message):
    monkeypatch.setattr(owner, function, tamper(getattr(owner, function)))
    with pytest.raises(AssertionError, match=message):
        EVERY[name](gpu, np.random.default_rng(3), TINY)


@pytest.mark.parametrize(
    ("missed", "units", "good"), [(True, 3, True), (True, 100, False), (False, 1, False), (True, np.nan, False)]
)
def test_only_rows_that_missed_steps_may_be_off_by_few_units(missed, units, good):
    one, size = np.ones((2, 3), np.float32), 8 * 2 * inputs.EPS[np.dtype(np.float32)]
    got = one.copy()
    got[0] += units * inputs.EPS[np.dtype(np.float32)]
    with contextlib.nullcontext() if good else pytest.raises(AssertionError, match="weight"):
        command.bits._near(got, one, np.array([missed, False]), size * one, "weight")


@pytest.mark.parametrize(("error", "good"), [(2.0**-51, True), (1e-6, False)])
def test_another_exp_may_round_otherwise(gpu, monkeypatch, error, good):
    size = TINY._replace(kinds=SMALL.kinds[1:], steps=4, rules=(se.RMSprop(0.1),))
    EVERY[CPU](gpu, np.random.default_rng(3), size)  # compiles the CPU's kernels, with their own
    monkeypatch.setattr(rmsprop, "exp", lambda x: math.exp(x) * (1 + error))
    with contextlib.nullcontext() if good else pytest.raises(AssertionError, match="rows that missed steps are off"):
        EVERY[CPU](gpu, np.random.default_rng(3), size)


@pytest.mark.parametrize("by", ["cuda.core", "another"])
def test_each_way_to_capture_is_checked(gpu, monkeypatch, by):
    def capture(name, warm_up, work):
        replay, close = captured(name, warm_up, work)
        return (lambda: None) if name == by else replay, close

    monkeypatch.setattr(graph, "capture", capture)
    with pytest.raises(AssertionError, match=f"lookup in a graph of {by}"):
        EVERY["a CUDA graph"](gpu, np.random.default_rng(3), TINY)


def test_a_graph_that_reads_an_old_learning_rate_is_noticed(gpu, monkeypatch):
    def step(self):  # a graph asks nobody whether the step has begun
        self.table._contents.where.begun = (self.table.optimizer, self.table.step)
        self._replay()

    monkeypatch.setattr(graph.Captured, "step", step)
    with pytest.raises(AssertionError, match="lookup in a graph"):
        EVERY["a CUDA graph"](gpu, np.random.default_rng(3), TINY)


@contextlib.contextmanager
def entered(log):
    log.append("in")
    yield
    log.append("out")


@pytest.mark.parametrize("writable", [True, False])
def test_arrays_of_frameworks_are_checked_on_both_streams(gpu, monkeypatch, writable):
    log = []

    def copy(given):
        log.append("copy")
        return given

    found = frameworks.Framework(lambda given: given, array.DeviceArray, lambda: entered(log), copy, writable)
    monkeypatch.setattr(frameworks, "adopters", lambda: {"some": found})
    check = EVERY["arrays of frameworks"]
    check(gpu, np.random.default_rng(3), TINY)
    assert log == ["copy"] * 3 + ["in", *["copy"] * 3, "out"]
    with monkeypatch.context() as patch:
        patch.setattr(launch, "update_rows", changed(WEIGHT, "bit", later(2))(launch.update_rows))
        with pytest.raises(AssertionError, match="some, on a stream of its own"):
            check(gpu, np.random.default_rng(3), TINY)
    monkeypatch.setattr(frameworks, "adopters", lambda: {"some": found._replace(kind=int)})
    with pytest.raises(AssertionError, match="some: a DeviceArray came back"):
        check(gpu, np.random.default_rng(3), TINY)


@pytest.mark.parametrize("there", [True, False])
def test_jax_is_asked_for_its_gpu(monkeypatch, there):
    jax = types.ModuleType("jax")
    jax.__spec__, jax.Array, jax.dlpack = ModuleSpec("jax", None), object, types.SimpleNamespace(from_dlpack=abs)

    def devices(platform):
        if not there:
            raise RuntimeError(f"Unknown backend: {platform!r}")

    jax.devices = devices
    monkeypatch.undo()  # `adopters` is itself again
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setattr(frameworks.importlib.util, "find_spec", lambda name: jax.__spec__ if name == "jax" else None)
    found = frameworks.adopters()
    assert list(found) == (["jax"] if there else [])
    if there:
        assert found["jax"].adopt is abs
        assert not found["jax"].writable


# ------------------------------------------------------------------------------------------ measuring


def test_times_are_medians_of_pairs_in_turn(gpu, monkeypatch):
    seen, clock = [], iter([0.02, 0.02, 1.0, 3.0, 2.0, 2.0, 1.0, 4.0])

    def step(who):
        return lambda i: seen.append((who, i))

    monkeypatch.setattr(gpu, "seconds", lambda work: (work(), next(clock))[1])
    times = device.compare(gpu, step("a"), step("b"), device.Effort(3, 0.01))
    assert times.ours == 1.0
    assert times.peer == 3.0
    assert times.ratio == 3.0  # of 3, 1 and 4
    assert [who for who, _ in seen[2 * device.BATCHES :]] == list("abababab")
    assert {i for _, i in seen} == set(range(device.BATCHES))


SIZE = works.Size(200, 32, (4, 8), 0)


@pytest.fixture
def few(monkeypatch):
    """Two rules, one call a sample."""
    monkeypatch.setattr(works, "RULES", [se.SGD(0.1), se.SparseAdam(0.1)])
    monkeypatch.setattr(works, "FEW", (se.SGD,))
    monkeypatch.setattr(works, "AT_LEAST", 1)
    monkeypatch.setattr(works, "MAIN", 8)
    monkeypatch.setattr(device, "BATCHES", 1)
    monkeypatch.setattr(peers, "installed", list)


@pytest.mark.usefixtures("few")
def test_the_whole_command_runs_and_writes_what_it_found(tmp_path, capsys, monkeypatch):
    file = tmp_path / "new" / "gpu.json"
    monkeypatch.setattr(command, "run_checks", lambda *_: [{"check": "gather", "error": None}])
    monkeypatch.setattr(command.overhead, "measure", lambda device: iter([("lookup and update in a graph, SGD", 99.0)]))
    monkeypatch.setattr(command, "Effort", lambda: device.Effort(1, 0.0))
    monkeypatch.setattr(command.works, "Size", lambda: SIZE)
    assert command.main(["--json", str(file)], Device) == 0
    result, printed = json.loads(file.read_text()), capsys.readouterr().out
    names = [(line["work"], line["dim"]) for line in result["lines"]]
    assert names[:3] == [("gather", 4), ("pool sum", 4), ("update, SGD", 4)]
    assert [name for name, dim in names if dim == 8] == [
        "gather", "pool sum", "pool max", "update, SGD", "update, SparseAdam", "coalesce", "scatter_add",
        "update, SparseAdam, production ids", "pool and update_pooled, SparseAdam, production ids",
    ]  # fmt: skip
    for line in result["lines"]:
        assert line["us"] == 1e6
        assert line["GB/s"] == line["moved"] / 1e9
        assert line["share"] == line["moved"] / result["copy_bytes_per_second"]
        assert all("torch" in why or "cupy" in why for why in line["left_out"].values())
    assert "| gather | 4 | 200 | 64 | 1000000.0 | 0 |" in printed
    verdicts = {(each["work"], each["dim"], each["aim"]["of"]): each["met"] for each in result["aims"]}
    assert verdicts["gather or pool sum", None, "share"] is None
    assert verdicts["lookup and update in a graph, SGD", None, "us"] is True
    assert verdicts["update, SparseAdam", None, "torch SparseAdam"] is None  # torch is not here, or has no GPU
    assert "not measured" in printed


def test_small_calls_and_graphs_are_timed(gpu):
    found = dict(overhead.measure(gpu, ids=5, rows=9, dim=4, bursts=1, calls=1))
    assert list(found.values()) == pytest.approx([1000.0] * len(found))
    assert any("in a graph" in name for name in found)
    assert sum("checked now" in name for name in found) == 6
    assert errors.checks() == "late"


def test_what_fails_is_said_and_the_rest_goes_on(tmp_path, capsys, monkeypatch):
    def fails(device, rng, size):
        raise AssertionError("wrong")

    monkeypatch.setattr(command.checks, "ALL", {"gather": fails, "pool": lambda *_: None})
    for module in (command.steps, command.bits, command.frameworks):
        monkeypatch.setattr(module, "ALL", {})
    monkeypatch.setattr(command.steps, "of_rules", lambda size: {})
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    assert command.main(["--only", "check"], Device) == 1
    (file,) = tmp_path.iterdir()
    assert file.name == "gpu-a-device-200-check.json"
    assert json.loads(file.read_text())["checks"] == [
        {"check": "gather", "error": "AssertionError: wrong"}, {"check": "pool", "error": None},
    ]  # fmt: skip
    assert re.search("FAILED  gather.*\npassed  pool", capsys.readouterr().out)


@pytest.mark.usefixtures("few")
def test_peers_that_fail_are_left_out(gpu, monkeypatch):
    def peer(given):
        raise MemoryError("too much\nof it")

    def work(device):
        return works.Work(8, lambda i: None, None, {"one": peer, "other": lambda given: lambda i: None})

    def broken(device):
        raise RuntimeError("no room")

    where = {"dim": 4, "rows": 1, "ids": 1}
    made = [(lambda: work(gpu), {"work": "a"} | where), (lambda: broken(gpu), {"work": "b"} | where)]
    monkeypatch.setattr(command.works, "works", lambda *_: iter(made))
    one, other = command.lines(gpu, None, device.Effort(1, 0.0), 8.0)
    assert one["left_out"] == {"one": "MemoryError: too much"}
    assert one["peers"]["other"]["times_as_long"] == 1
    assert other["failed"] == "RuntimeError: no room"
    report.print_line(other)


def test_without_a_gpu_nothing_is_measured(capsys):
    def none():
        raise RuntimeError("no NVIDIA GPU 0 can be used")

    assert command.main([], none) == 2
    assert capsys.readouterr().err == "nothing measured: no NVIDIA GPU 0 can be used\n"


def test_rows_follow_the_free_memory():
    size = works.Size()
    assert works.rows_that_fit(140 * 10**9, size, 128) == 10_000_000
    for dim in size.dims:
        rows = works.rows_that_fit(24 * 10**9, size, dim)
        assert rows > 10**6
        assert rows * 4 * dim * 3 < 24 * 10**9
        assert works.rows_that_fit(140 * 10**9, size, dim) * 4 * dim >= 4 << 30
        assert works.rows_that_fit(140 * 10**9, size._replace(table=0), dim) == size.rows
    with pytest.raises(MemoryError, match="too few for dim 128"):
        works.rows_that_fit(10**9, size, 128)


def test_a_dim_without_room_is_said_and_the_next_one_measured(gpu):
    lines = [*command.lines(gpu, works.Size(10, 10**6, (4, 8)), device.Effort(1, 0.0), 1.0)]
    assert [line["failed"].split(":")[0] for line in lines] == ["MemoryError", "MemoryError"]
    for line in lines:
        report.print_line(line)


def test_aims_are_those_that_were_set():
    line = {"work": "update, Adam", "dim": 128, "rows": 10**7, "ids": 10**6, "us": 1300.0, "share": 0.71}
    line["peers"] = {"torch dense Adam": {"times_as_long": 9.0}}
    found = [each for each in report.judge([line], "NVIDIA H200") if each["met"] is not None]
    assert [(each["aim"]["of"], each["met"]) for each in found] == [
        ("share", True), ("us", False), ("torch dense Adam", False),
    ]  # fmt: skip
    assert not any(each["met"] for each in report.judge([line | {"ids": 1000}], "NVIDIA H200"))
    other = report.judge([line | {"rows": 5 * 10**6}], "NVIDIA H100")
    assert [each["aim"]["of"] for each in other if each["met"] is not None] == ["share"]
    twelve = [f"{aim.work} {aim.of} {aim.wanted}" for aim in report.AIMS]
    assert len(twelve) == len(set(twelve)) == 7
    report.print_verdicts(other)

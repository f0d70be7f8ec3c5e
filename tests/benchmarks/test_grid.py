"""The grid of all operations: it runs, it refuses wrong results, it counts; nothing here asserts a time."""

import json

import numba
import numpy as np
import pytest

from benchmarks import timing
from benchmarks.grid import calls, cells, limit, plain, run, steps, turns, verdict
from benchmarks.grid.__main__ import main
from benchmarks.grid.cells import Cell
from benchmarks.grid.data import Data, Sample, stream
from benchmarks.grid.draw import draw
from benchmarks.grid.turns import take_turns
from benchmarks.grid.way import Way, check
from benchmarks.workload import TINY

pytestmark = pytest.mark.filterwarnings("ignore")  # of frameworks
EVERY = (*cells.OPS, "adam")
PEER = {"rowwise_adagrad": "fbgemm_gpu", "adam": "torch"}  # the only library that does it; the others NumPy does, too


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A grid of the smallest axes, and no pauses."""
    threads = numba.get_num_threads()
    monkeypatch.setattr(cells, "IDS", (1, 300))
    monkeypatch.setattr(cells, "DIMS", (3, 8))
    monkeypatch.setattr(cells, "ROWS", (40, 2_000))
    monkeypatch.setattr(timing, "_PAUSE", 0)
    yield
    stream.cache_clear()
    timing.set_threads(threads)


def test_the_grid_runs_and_writes_what_it_measured(tmp_path, capsys):
    file = tmp_path / "grid.json"
    main(["--json", str(file), "--threads", "1", "--seconds", "0", "--dense"])
    result = json.loads(file.read_text())
    assert result["machine"]["threads"] == 1
    assert result["minutes"] > 0
    measured = {Cell(*(each[axis] for axis in Cell._fields)) for each in result["cells"]}
    skipped = {Cell(*(each[axis] for axis in Cell._fields)): each["reason"] for each in result["skipped"]}
    assert measured | set(skipped) == set(cells.full(dense=True))
    assert not measured & set(skipped)
    assert len(measured) == len(result["cells"])
    for cell, reason in skipped.items():
        many = (cell.kind, cell.rows, cell.ids) == ("production", 40, 300)
        without = not timing.installed(PEER.get(cell.op, "numpy")) or (cell.op == "rowwise_adagrad" and cell.dim % 4)
        assert many or without, cell
        assert ("no peer" if without else "need") in reason, cell
    for each in result["cells"]:
        counted = {name: peer["ratio"][1] for name, peer in each["peers"].items() if peer["counts"]}
        assert each["ours_us"] > 0
        assert set(counted) == {name for name in each["peers"] if each["ids"] >= 256 or not name.startswith("numpy")}
        if timing.installed("torch"):
            assert each["ratio"] == min(counted.values()) == counted[each["peer"]]
    assert f"{len(measured)} cells" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part"))
    main(["--verdict", str(file)])
    assert f"{len(measured)} cells" in capsys.readouterr().out


def test_a_run_is_resumed(tmp_path):
    file = tmp_path / "grid.json"
    arguments = ["--only", "gather", "--kind", "uniform", "--threads", "1", "--seconds", "0", "--json", str(file)]
    main(arguments)
    result = json.loads(file.read_text())
    for i, each in enumerate(result["cells"]):
        each.update(ours_us=-1.0, undisturbed=i != 2)
    disturbed = result["cells"][2]
    del result["cells"][3]
    file.write_text(json.dumps(result))
    main([*arguments, "--resume"])
    again = json.loads(file.read_text())["cells"]
    assert len(again) == len(cells.chosen(cells.full(), op=("gather",), kind=("uniform",)))
    assert [each["ours_us"] > 0 for each in again] == [False] * (len(again) - 2) + [True] * 2
    assert [again[-2][axis] for axis in Cell._fields] == [disturbed[axis] for axis in Cell._fields]
    with pytest.raises(SystemExit):
        main(["--resume"])


def test_what_would_take_minutes_is_not_run():
    data = Data(2_000, 8, 300)
    work = plain.scatter_add(data)
    dear = [way._replace(most=8 * 300 - 1) if "sorted" in way.name else way._replace(most=8 * 300) for way in work.ways]
    found = run.measure_cell(data, work._replace(ways=dear), Cell(2_000, 8, "scatter_add", 300, "uniform"), 0.0)
    assert "numpy.add.at" in {*found["peers"], *found["slow_us"]}
    assert "numpy, sorted" not in {*found["peers"], *found["slow_us"]}


def test_what_does_not_fit_into_memory_is_left_out_with_the_reason(monkeypatch):
    wanted = [Cell(2_000, 8, "gather", 300, "uniform"), Cell(2_000, 8, "sparse_adam", 1, "uniform")]
    room = cells.table_bytes(2_000, 8, 300) + cells.call_bytes("gather", 300, 8)
    monkeypatch.setattr(run, "available_memory", lambda: (1 << 30) + room)
    result = run.measure(wanted, 1, 0.0, run.Record({}, None))
    assert [each["op"] for each in result["cells"]] == ["gather"]
    assert [each["op"] for each in result["skipped"]] == ["sparse_adam"]
    assert result["skipped"][0]["reason"].startswith("memory for the state")
    monkeypatch.setattr(run, "available_memory", lambda: 1 << 30)
    result = run.measure(wanted, 1, 0.0, run.Record({}, None))
    assert {each["reason"][:20] for each in result["skipped"]} == {"memory for the table"}


def wrong_row(data, batch, result):
    data.weight[batch.ids[0]] += np.float32(2e-4)
    return result


def another_row(data, batch, result):
    data.weight[np.setdiff1d(np.arange(data.rows), batch.ids)] += np.float32(1e-7)
    return result


def wrong_result(data, batch, result):
    if isinstance(result, tuple):
        return result[0], result[1] + np.float32(0.01)
    return result + np.float32(0.01)


WRONG = [(op, wrong_result) for op in ("gather", "pool", "coalesce", "sgd", "sparse_adam")]
WRONG += [(op, spoil) for op in ("scatter_add", *steps.RULES) for spoil in (wrong_row, another_row)]


@pytest.mark.parametrize(("op", "spoil"), WRONG)
def test_wrong_results_are_refused(op, spoil):
    data = Data(2_000, 8, 300)
    work = run._PLAIN[op](data) if op in run._PLAIN else steps.step(data, op)
    batch = data.batches(300, "production")[0]
    sample = Sample(batch, data.rows)
    for way in work.ways:
        check(work, way, batch, sample, "a cell")
    if op == "adam":  # ours has a copy of the weights
        data.weight = work.ways[0].state()[0]["weight"]
    way = work.ways[0]._replace(step=lambda b: spoil(data, b, way_before.step(b)))
    way_before = work.ways[0]
    with pytest.raises(AssertionError, match="a cell: sparsembed is wrong"):
        check(work, way, batch, sample, "a cell")


def test_a_run_ends_at_a_wrong_result(monkeypatch):
    def wrong(data):
        work = plain.gather(data)
        ways = [way._replace(step=lambda b: np.ones_like(b.out)) if "take" in way.name else way for way in work.ways]
        return work._replace(ways=ways)

    monkeypatch.setitem(run._PLAIN, "gather", wrong)
    with pytest.raises(AssertionError, match=r"gather, 300 uniform ids, 2,000 rows x 8: numpy.take is wrong"):
        run.measure([Cell(2_000, 8, "gather", 300, "uniform")], 1, 0.0, run.Record({}, None))


def made_up(op, ids, ratio, ours_us=10.0, numpy_us=8.0, **others):
    """A cell as the file has it."""
    counted = {"us": ours_us * ratio, "ratio": [ratio] * 3, "counts": True}
    beside = {"us": numpy_us, "ratio": [numpy_us / ours_us] * 3, "counts": False}
    cell = {"rows": 1_000, "dim": 16, "op": op, "ids": ids, "kind": "uniform", "ours_us": ours_us, "undisturbed": True}
    return cell | {"peer": "torch", "ratio": ratio, "peers": {"torch": counted, "numpy.take": beside}} | others


MADE_UP = {
    "machine": {"processor": "A Processor", "threads": 2, "date": "2026-01-02"},
    "cells": [
        made_up("gather", 8, 0.5),
        made_up("gather", 32, 1.2, numpy_us=2.0, undisturbed=False),
        made_up("gather", 512, 0.949),
        made_up("gather", 512, 0.951, dim=64, kind="production"),
        made_up("gather", 2_048, 11.0, rows=100_000),
        made_up("pool", 512, 1.0),
        made_up("pool", 128, 1.0, numpy_us=7.5),
    ],
    "skipped": [{"rows": 1, "dim": 1, "op": "pool", "ids": 1, "kind": "uniform", "reason": "memory for a call: 9 GB"}],
}


def test_the_verdict_counts():
    found = verdict.verdict(MADE_UP)
    assert {op: each["cells"] for op, each in found.items()} == {"gather": 5, "pool": 2}
    assert [(cell["ids"], cell["ratio"]) for cell in found["gather"]["lost"]] == [(8, 0.5), (512, 0.949)]
    assert found["pool"]["lost"] == []
    assert (found["gather"]["small"], found["gather"]["small_over"], found["gather"]["small_us"]) == (2, 1, [5.0, 8.0])
    assert (found["pool"]["small"], found["pool"]["small_over"], found["pool"]["small_us"]) == (1, 0, [2.5, 2.5])
    assert (found["gather"]["skipped"], found["pool"]["skipped"]) == (0, 1)
    text = "\n".join(verdict.lines(MADE_UP))
    assert "gather: 5 cells, a peer is faster (ratio under 0.95) in 2" in text
    assert "7 cells, 2 lost, 1 disturbed" in text
    assert "left out: pool, 1 cells: memory for a call" in text


def test_heat_maps_are_drawn(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    file = tmp_path / "grid.json"
    file.write_text(json.dumps(MADE_UP))
    main(["--draw", str(file), str(tmp_path)])
    paths = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(paths) == {"grid_gather.png", "grid_pool.png"}
    assert all(content[1:4] == b"PNG" for content in paths.values())
    changed = json.loads(file.read_text())
    changed["cells"][0]["ratio"] = 2.0
    draw(changed, tmp_path)
    assert {name for name, content in paths.items() if (tmp_path / name).read_bytes() != content} == {"grid_gather.png"}


def test_blocks_take_turns_and_batches_go_on():
    done = []
    ways = [Way(name, lambda b, name=name: done.append((name, b))) for name in ("sparsembed", "torch", "numpy")]
    found = take_turns(ways, list(range(7)), seconds=0.0)
    assert [batch for _, batch in done] == [i % 7 for i in range(len(done))]
    blocks = [name for name, _ in done[-5 * 3 * turns.CALLS :: turns.CALLS]]
    assert blocks == ["sparsembed", "torch", "numpy"] * 5
    assert [len(times) for times in found.times.values()] == [5] * 3
    assert found.calls == dict.fromkeys(("sparsembed", "torch", "numpy"), 25)


def test_first_calls_of_a_block_and_hopeless_peers_do_not_count(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])
    number = dict.fromkeys(("sparsembed", "torch", "numpy"), 0)

    def way(name, seconds):
        def step(_):
            number[name] += 1
            clock[0] += seconds * ((number[name] - 7) % turns.CALLS if number[name] > 6 else 1)

        return Way(name, step)

    found = take_turns([way("sparsembed", 1e-4), way("torch", 2e-4), way("numpy", 1e-3)], [0], seconds=0.0)
    assert found.slow == {"numpy": pytest.approx(1e3)}
    assert number["numpy"] == 6
    assert found.times["sparsembed"] == pytest.approx([1450.0] * 5)  # the middle of calls 5 to 24
    assert found.ratios("torch") == pytest.approx([2.0] * 5)
    # A peer that does not count says nothing of those that do.
    ways = [way("sparsembed", 1e-4), way("torch", 4e-4), way("numpy", 1e-4)]
    found = take_turns(ways, [0], seconds=0.0, counted=lambda each: each.family != "numpy")
    assert set(found.times) == {"sparsembed", "torch", "numpy"}


def test_quick_has_every_value_of_every_axis_and_filters_choose(monkeypatch):
    monkeypatch.undo()
    for axis, values in (("ids", cells.IDS), ("dim", cells.DIMS), ("rows", cells.ROWS), ("kind", cells.KINDS)):
        for op in cells.OPS:
            assert {getattr(cell, axis) for cell in cells.quick() if cell.op == op} == set(values)
    assert len(cells.full()) == len(cells.OPS) * 300
    assert len(cells.quick()) < len(cells.full()) / 8
    assert {cell.op for cell in cells.full(dense=True)} == set(EVERY)
    few = cells.chosen(cells.full(), op=("gather", "pool"), ids=(32,), dim=(), rows=(1_000,), kind=("uniform",))
    assert len(few) == 2 * len(cells.DIMS)


@pytest.mark.parametrize(
    "arguments",
    [["--only", "gathering"], ["--ids", "7"], ["--ids", "x"], ["--json", "no/such/folder/a.json"],
     ["--draw", "a.json", "no/such/folder"], ["--only", "gather", "--kind", "hot"]],
)  # fmt: skip
def test_the_grid_refuses_what_would_come_to_nothing(arguments, monkeypatch):
    monkeypatch.setattr(run, "_measure_tables", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        main(arguments)


def test_calls_are_a_table(capsys, monkeypatch):
    monkeypatch.setattr(calls, "ROWS", 500)
    main(["--calls", "--threads", "1", "--seconds", "0"])
    text = capsys.readouterr().out
    for name in ("numpy.take", "lookup", "pool of ready bags", "plan", "update, SGD", "update, Adam", "coalesce"):
        assert f"\n{name} " in text
    assert "of 10 times one" in text


@pytest.mark.parametrize("kind", limit.KINDS)
def test_the_limit_reads_and_writes_every_row_once(kind):
    batches = limit.Batches(TINY, kind)
    kernel = limit.Limit(batches, 1, 2)
    kernel.step(0)
    changed = kernel.flat.reshape(2, TINY.num_rows, TINY.dim)
    rows, first = np.unique(np.sort(batches.ids[0]), return_index=True)
    expected = np.ones((TINY.num_rows, TINY.dim))
    expected[rows] = 0.999 + 0.001 * np.add.reduceat(batches.grads[0], first)  # gradients lie in the order of rows
    np.testing.assert_allclose(changed, np.stack([expected] * 2), rtol=1e-5)


def test_the_limit_is_reported(tmp_path, monkeypatch, capsys):
    file = tmp_path / "grid.json"
    shares, size = limit.shares, TINY._replace(copy_bytes=1 << 16)
    monkeypatch.setattr(limit, "shares", lambda threads: shares(threads, size, (3_000,), 0.0))
    only = ["--only", "gather", "--ids", "1", "--rows", "40", "--threads", "1", "--seconds", "0"]
    main([*only, "--json", str(file), "--limit"])
    found = json.loads(file.read_text())["limit"]
    assert [(each["op"], each["kind"]) for each in found["updates"]] == [
        (op, kind) for kind in limit.KINDS for op in limit.UPDATES
    ]
    for each in found["updates"]:
        assert each["kernel_us"] > 0
        assert each["share_of_copy"] > 0
        assert min(each["share"]) > 0
    assert "time of the kernel over that of table.update" in capsys.readouterr().out

"""The benchmarks run; nothing here asserts a time."""

import inspect
import itertools
import json
import re
from pathlib import Path

import numba
import numpy as np
import pytest

import sparsembed as se
from benchmarks import (
    bench_calls,
    bench_first_call,
    bench_grid,
    bench_kernels,
    bench_limits,
    bench_memory,
    bench_training,
    cases,
    contests,
    dashboard,
    ids,
    peers,
    phases,
    readme,
    scaling,
    timing,
)
from benchmarks.workload import FULL, TINY

SUITE = (bench_calls, bench_first_call, bench_grid, bench_kernels, bench_limits, bench_memory, bench_training)
BENCHMARKS = [
    pytest.param(cls, name, id=f"{cls.__module__.split('.')[-1]}.{cls.__name__}.{name}")
    for module in SUITE
    for _, cls in inspect.getmembers(module, inspect.isclass)
    for name in dir(cls)
    if cls.__module__ == module.__name__ and name.startswith(("time_", "track_", "peakmem_"))
]


@pytest.fixture
def tiny(monkeypatch):
    """Every shape of the suite at its smallest."""
    threads = numba.get_num_threads()
    small = TINY._replace(copy_bytes=1 << 16)
    monkeypatch.setattr(cases, "SHAPES", dict.fromkeys(cases.SHAPES, small))
    monkeypatch.setattr(cases, "BASE", small)
    monkeypatch.setattr(bench_limits, "EFFORT", TINY.effort)
    small_cells = {name: cell._replace(rows=600, dim=8, ids=300) for name, cell in bench_grid.CELLS.items()}
    monkeypatch.setattr(bench_grid, "CELLS", small_cells)
    monkeypatch.setattr(bench_grid, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "_PAUSE", 0)
    cases.prepare.cache_clear()
    yield
    cases.prepare.cache_clear()
    timing.set_threads(threads)


def _reuse(stream):
    """Share of the lookups by how often their row is looked up."""
    counts = np.unique(stream, return_counts=True)[1]
    edges = np.array([0, *ids.EDGES[1:-1], counts.sum()])
    return np.histogram(counts, bins=edges + 0.5, weights=counts)[0] / len(stream)


def test_production_ids_match_the_source_at_a_million_lookups():
    stream = ids.make("production", 1_000_000, 1_000_000, np.random.default_rng(7))
    assert len(stream) == 1_000_000
    expected = np.array(ids.SHARES)
    # A row of the last bin needs 32,769 lookups, which is more than the bin's 1.9 % of a million: it is
    # one row of 18,981, and falls into the bin before.
    expected[-2:] = expected[-2:].sum(), 0
    # Sums are exact but for rounding to whole rows; the source has three decimals, which add up to 1.001.
    np.testing.assert_allclose(_reuse(stream), expected, rtol=2e-3, atol=1e-4)
    # What the source says of rows: 0.473 are looked up once, and a row 6.9 times on average.
    counts = np.unique(stream, return_counts=True)[1]
    assert (counts == 1).mean() == pytest.approx(0.473, rel=0.02)
    assert counts.mean() == pytest.approx(6.9, rel=0.02)


def test_production_ids_match_the_source_as_far_as_a_small_batch_allows():
    shares, expected = (
        _reuse(ids.make("production", 1_000_000, 100_000, np.random.default_rng(7))),
        np.array(ids.SHARES),
    )
    # 100,000 lookups: the last three bins hold 1,898 to 3,097 lookups, less than one of their rows takes.
    np.testing.assert_allclose(shares[:10], expected[:10], rtol=5e-3, atol=1e-4)
    assert shares[14:].sum() == 0
    assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 17, 100, 4097])
@pytest.mark.parametrize("name", sorted(ids.STREAMS))
def test_streams_have_the_right_number_of_valid_ids(name, count):
    stream = ids.make(name, 5_000, count, np.random.default_rng(0))
    assert stream.dtype == np.int64
    assert len(stream) == count
    assert count == 0 or (stream.min() >= 0 and stream.max() < 5_000)


def test_streams_repeat_with_their_seed_and_are_shuffled():
    for name in ids.STREAMS:
        one, two, other = (ids.make(name, 5_000, 1_000, np.random.default_rng(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, two)
        assert (one != other).any()
        assert (np.diff(one) < 0).any()


def test_hot_and_distinct_streams():
    rng = np.random.default_rng(0)
    assert set(np.unique(ids.make("each 4", 10**4, 1_000, rng), return_counts=True)[1]) == {4}
    assert np.unique(ids.make("hot", 10**6, 1_000, rng), return_counts=True)[1].max() >= 500
    assert len(np.unique(ids.make("distinct", 1_000, 1_000, rng))) == 1_000
    with pytest.raises(ValueError, match="need"):
        ids.make("production", 10, 1_000, rng)


@pytest.mark.filterwarnings("ignore")  # of frameworks
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("cls", "name"), BENCHMARKS)
def test_asv_benchmarks_run(cls, name):
    if cls is bench_grid.Grid:
        pytest.importorskip("torch")  # the fastest peer of most cells; without it a ratio would mean something else
    ran = 0
    for values in itertools.product(*getattr(cls, "params", [])):
        if hasattr(cls, "param_names") and cls.param_names[0] == "shape" and values[0] != cls.params[0][0]:
            continue  # all shapes are the same one here
        benchmark = cls()
        try:
            getattr(benchmark, "setup", lambda *_: None)(*values)
        except NotImplementedError:  # such as a peer that is not installed
            continue
        value = getattr(benchmark, name)(*values)
        getattr(benchmark, "teardown", lambda *_: None)(*values)
        assert (value is None) == (not name.startswith("track_"))
        assert value is None or value > 0 or "state_bytes" in name
        ran += 1
    assert ran


@pytest.mark.usefixtures("tiny")
def test_asv_records_the_threads(monkeypatch):
    assert bench_limits.track_threads() == cases.THREADS
    monkeypatch.setattr(timing, "set_threads", lambda _: None)
    numba.set_num_threads(1)
    assert bench_limits.track_threads() == 1  # what is so, not what was asked for
    numba.set_num_threads(cases.THREADS)


def test_asv_knows_what_cannot_run():
    with pytest.raises(NotImplementedError, match="no NoSuchRule"):
        cases.rule("NoSuchRule")
    with pytest.raises(NotImplementedError, match="100,000 such ids"):
        cases.size("10,000 x 64", "production")
    assert cases.size("10,000 x 64", "uniform").num_rows == 10_000


def test_asv_times_every_rule_and_the_documented_shapes():
    rules = {name for name in se.rules.__all__ if name not in ("Rule", "RULES")} & set(dir(se))
    assert rules <= set(cases.RULES), rules - set(cases.RULES)
    assert {size.dim for size in cases.SHAPES.values()} == {16, 33, 64, 128, 256}
    assert {size.num_rows for size in cases.SHAPES.values()} == {10**k for k in range(4, 8)}


@pytest.mark.filterwarnings("ignore")  # of frameworks
def test_peers_measure_every_line_whose_peer_is_installed():
    threads = numba.get_num_threads()
    try:
        result = peers.measure(TINY, threads=1)
    finally:
        timing.set_threads(threads)
    expected = {
        (work.name.format(**TINY._asdict()), stream)
        for work in peers.WORKS
        for stream in work.streams
        if all(timing.installed(each) for each in work.needs)
    }
    assert {(line["work"], line["ids"]) for line in result["rows"]} == expected
    for line in result["rows"]:
        assert line["ours_ms"][1] > 0
        assert line["met"] in ("", "aim", "least", "no")
    json.dumps(result)


def test_peers_prints_and_saves_chosen_lines(tmp_path, capsys):
    threads, file = numba.get_num_threads(), tmp_path / "result.json"
    try:
        peers.main(["--tiny", "--cpu-time", "--only", "numpy_gather", "--json", str(file)])
    finally:
        timing.set_threads(threads)
    result = json.loads(file.read_text())
    assert [line["ids"] for line in result["rows"]] == ["uniform", "production"]
    assert result["machine"]["threads"] == 1
    assert readme.markdown(result) in capsys.readouterr().out


def test_peers_that_differ_are_not_timed():
    contest = contests.numpy_gather(TINY, "uniform")
    wrong = {"wrong": contests.Entry(lambda i: contest.ours.step(i) + 1)}
    with pytest.raises(AssertionError, match="wrong"):
        peers.check(contest._replace(peers=wrong))


@pytest.mark.parametrize("stream", ["uniform", "production"])
def test_lines_without_a_peer_are_compared_too(monkeypatch, stream):
    for build in (contests.fused_update, contests.against_sparse_adam):
        peers.check(build(TINY, stream))
    adam = se.Adam
    monkeypatch.setattr(contests.ours, "SPARSE_ADAM", se.SparseAdam(lr=1.1e-3))  # the reference's, not the table's
    with pytest.raises(AssertionError, match="reference"):
        peers.check(contests.fused_update(TINY, stream))
    monkeypatch.setattr(se, "Adam", lambda lr: adam(lr=1.1 * lr))
    with pytest.raises(AssertionError, match="itself"):
        peers.check(contests.against_sparse_adam(TINY, stream))


RESULT = {
    "machine": {
        "processor": "A Processor", "cores": 4, "threads": 2, "system": "Linux x86_64", "python": "3.12.0",
        "versions": {"sparsembed": "0.1.0", "numpy": "2.0.0"}, "date": "2026-01-02",
    },
    "size": FULL._asdict() | {"effort": FULL.effort._asdict()},
    "copy_bytes_per_second": {"numpy.copyto": 1e10, "torch copy_": 2e10},
    "left_out": ["torch"],
}  # fmt: skip


def test_readme_is_rewritten_between_the_marks(tmp_path):
    def line(kind, ours, peer):
        work = peers.Work("some work", contests.numpy_gather, 2.0, 1.3 if kind == "slower" else 4.0, kind=kind)
        pairs = timing.Paired([ours] * 3, [peer] * 3, undisturbed=True)
        return readme.row(work, FULL, "uniform", "a peer", pairs, 0.001)

    rows = [line("faster", 0.002, 0.005), line("slower", 0.005, 0.002), line("limit", 0.002, 0.01)]
    source, target = tmp_path / "result.json", tmp_path / "README.md"
    source.write_text(json.dumps(RESULT | {"rows": rows}))
    target.write_text(f"before\n{readme.START}\nold\n{readme.END}\nafter\n")
    readme.main([str(source), str(target)])
    text = target.read_text()
    assert text.startswith(f"before\n{readme.START}\n| work |")
    assert text.endswith(f"{readme.END}\nafter\n")
    assert "old" not in text
    assert "A Processor, 4 cores, 2 threads" in text
    assert "20.0 GB/s read + written, torch copy_" in text
    assert "Left out, not installed: torch." in text
    faster, slower, limit = (each.split(" | ") for each in text.splitlines() if each.startswith("| some work"))
    times = readme.TIMES
    assert faster[2:7] == ["2.00", "a peer", "5.00", f"2.5{times}", f"yes: at least 2{times} (aim 4{times})"]
    assert slower[5:7] == [f"2.5{times}", f"**no**: at most 2{times}"]
    assert limit[5:] == ["500 %", "yes: at least 400 %", "50 % |"]
    again = text
    readme.main([str(source), str(target)])
    assert target.read_text() == again


@pytest.mark.filterwarnings("ignore")  # of frameworks
def test_scaling_measures_and_draws_every_axis(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    threads = numba.get_num_threads()
    monkeypatch.setattr(timing, "_PAUSE", 0)
    few = {name: axis._replace(values=axis.values[:1]) for name, axis in scaling.AXES.items()}
    monkeypatch.setattr(scaling, "AXES", few | {"batch": few["batch"]._replace(values=(100, 200))})
    monkeypatch.setattr(scaling, "FULL", TINY)
    try:
        scaling.main(["--quick", "--threads", "1", "--json", str(tmp_path / "a.json"), "--plots", str(tmp_path)])
    finally:
        timing.set_threads(threads)
    result = json.loads((tmp_path / "a.json").read_text())
    for panels in result["axes"].values():
        assert len(panels["gather"]["sparsembed"]) >= 1
        assert all(ms > 0 for lines in panels.values() for line in lines.values() for _, ms in line)
    assert set(result["disturbed"]) <= {
        f"{name} {value}, {title}, {contestant}"
        for name, panels in result["axes"].items()
        for title, lines in panels.items()
        for contestant, line in lines.items()
        for value, _ in line
    }
    assert "disturbed" not in scaling._caption(result | {"disturbed": []}, "rows")
    assert "; 1 of the times" in scaling._caption(result | {"disturbed": ["rows 10, gather, sparsembed"]}, "rows")
    assert {path.stem for path in tmp_path.glob("*.png")} == {f"scaling_{name}" for name in scaling.AXES}
    before = {path: path.read_bytes() for path in tmp_path.glob("*.png")}
    scaling.main(["--draw", str(tmp_path / "a.json"), "--plots", str(tmp_path)])
    assert {path: path.read_bytes() for path in tmp_path.glob("*.png")} == before


def test_phases_add_up_and_leave_the_package_as_it_was(tmp_path):
    threads, file = numba.get_num_threads(), tmp_path / "a.md"
    before = {label: [getattr(*place) for place in places] for label, places in phases.PHASES.items()}
    file.write_text(f"{readme.START}{readme.END}")
    try:
        phases.main(["--tiny", "--threads", "1", str(file)])
        parts = phases.profile("pooled_step", TINY, "hot", 3)
    finally:
        timing.set_threads(threads)
    assert {"pool rows", "sort ids into segments"} <= set(parts)
    assert "gather rows" not in parts
    assert all(value >= 0 for label, value in parts.items() if label != "everything else")
    after = {label: [getattr(*place) for place in places] for label, places in phases.PHASES.items()}
    assert after == before
    assert "| sum gradients, run the rule | " in file.read_text()


def test_dashboard_runs_commits_oldest_first_and_publishes(monkeypatch):
    calls = []
    monkeypatch.setattr(dashboard, "asv", lambda *arguments, failing=0: calls.append(arguments))
    monkeypatch.setattr(dashboard, "commits", lambda number: [f"commit{k}" for k in range(number)])
    dashboard.main(["--commits", "3", "--machine", "m"])
    assert [call[0] for call in calls] == ["machine", "run", "publish"]
    assert "--bench" in calls[1]
    calls.clear()
    dashboard.main(["--commits", "0"])
    dashboard.main(["--serve"])
    assert calls == [("publish",), ("preview",)]


def test_the_readme_holds_the_table_of_the_committed_result():
    root = Path(peers.__file__).parents[1]
    result = json.loads((root / "docs/results/peers.json").read_text())
    text = (root / "README.md").read_text()
    assert readme.rewrite(text, readme.markdown(result)) == text


@pytest.mark.parametrize("arguments", [["--only", "no such line"], ["--json", "no/such/folder/a.json"]])
def test_peers_refuse_what_would_come_to_nothing(arguments, monkeypatch):
    monkeypatch.setattr(peers, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        peers.main(arguments)


@pytest.mark.parametrize("arguments", [[], ["--draw", "a.json"], ["--plots", "no/such/folder"]])
def test_scaling_refuses_what_would_come_to_nothing(arguments, monkeypatch):
    monkeypatch.setattr(scaling, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        scaling.main(arguments)


def test_dashboard_chooses_benchmarks_that_exist():
    names = ["track_threads"]
    for cls, name in (each.values for each in BENCHMARKS):
        full = f"{cls.__module__.removeprefix('benchmarks.')}.{cls.__name__}.{name}"
        names += [
            f"{full}({', '.join(map(repr, values))})" for values in itertools.product(*getattr(cls, "params", []))
        ]
    chosen = [{name for name in names if re.search(pattern, name)} for pattern in dashboard.CHOSEN]
    assert all(chosen)
    assert len(set.union(*chosen)) < len(names) / 3


def test_readme_without_marks_is_left_alone(tmp_path):
    source, target = tmp_path / "result.json", tmp_path / "README.md"
    source.write_text(json.dumps(RESULT | {"rows": []}))
    target.write_text("no marks\n")
    with pytest.raises(ValueError, match="must contain"):
        readme.main([str(source), str(target)])
    assert target.read_text() == "no marks\n"


def test_pairs_take_turns_and_go_through_the_batches():
    calls = []

    def ours(i):
        calls.append(("ours", i))
        timing.time.sleep(0.006)

    def peer(i):
        calls.append(("peer", i))
        timing.time.sleep(0.006)

    pairs = timing.paired(ours, peer, batches=3, effort=timing.Effort(4, 0.0, 0.0))
    assert len(pairs.ours) == len(pairs.peer) == 4
    # Each timed call follows a call that warms the cores, on another batch.
    assert calls[-16::2] == [(name, (i + 1) % 3) for i in range(4) for name in ("ours", "peer")]
    assert calls[-15::2] == [(name, i % 3) for i in range(4) for name in ("ours", "peer")]


def test_dlrm_compares_models_and_prints_a_table(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    from benchmarks import dlrm

    threads, file = numba.get_num_threads(), tmp_path / "a.json"
    monkeypatch.setattr(timing, "_PAUSE", 0)
    try:
        dlrm.main(["--tiny", "--cpu-time", "--json", str(file)])
    finally:
        timing.set_threads(threads)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `sparsembed.torch")]
    assert [line.split(" | ")[:2] for line in lines] == [
        [f"| `sparsembed.torch.EmbeddingBag`, {kind}", ids] for ids in dlrm.STREAMS for kind in ("unfused", "fused")
    ]
    for row in json.loads(file.read_text())["rows"]:
        assert min(row["ratio"] + row["dense_ms"]) > 0
        first, last = row["losses"]["fused"]
        assert last < first


def test_dlrm_notices_a_table_that_misses_a_step():
    torch = pytest.importorskip("torch")
    from benchmarks import dlrm

    batches = dlrm.make_batches(dlrm.TINY, "uniform")
    trainings = {kind: dlrm.Training(dlrm.TINY, batches, kind) for kind in ("torch", "unfused", "fused")}
    with torch.no_grad():
        trainings["fused"].model.bags[0](batches[0].ids[0], batches[0].offsets)
    dlrm.compare(trainings, 4)
    for training in trainings.values():
        training.step(4)
    trainings["torch"].step(5)
    with pytest.raises(AssertionError, match="unfused"):
        dlrm.compare(trainings, 4)


def test_calls_are_counted_and_few():
    """Python's part of a call with 32 ids: what a lookup and an update may take at most."""
    assert bench_calls.count(lambda: [abs(-1), str(2)])[0] == 0
    for rule in ("SGD", "SparseAdam"):
        counts = {name: bench_calls.count(call)[0] for name, call in bench_calls.calls(rule).items()}
        for name, most in {"lookup": 7, "gather": 5, "pool": 7, "update": 14, "plan": 14, "scatter_add": 14}.items():
            assert 0 < counts[name] <= most, counts

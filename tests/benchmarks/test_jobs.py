"""The jobs run at their smallest; nothing here asserts a time."""

import importlib.util
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numba
import numpy as np
import pytest

from benchmarks import readme, timing
from benchmarks.jobs import __main__ as jobs
from benchmarks.jobs import data, graph, job, ranking, report, words

ROOT = Path(jobs.__file__).parents[2]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Made-up data; threads as they were."""
    monkeypatch.delenv("SPARSEMBED_DATA", raising=False)
    monkeypatch.setattr(timing, "_PAUSE", 0)
    threads = numba.get_num_threads()
    yield
    timing.set_threads(threads)


class Counted:
    """A training that notes what it is asked for; its quality is best at the rate 2."""

    calls: list

    def __init__(self, name, rate):
        self.name, self.rate, self.pieces = name, rate, 0

    def piece(self, i):
        assert i == self.pieces
        self.pieces += 1
        self.calls.append((self.name, self.rate, i))

    def quality(self):
        return abs(self.rate - 2) + 1 / (1 + self.pieces)


def counted(higher=False, **names):
    Counted.calls = []
    tools = [
        job.Tool(name, "torch", lambda rate, threads, name=name: Counted(name, rate), rates)
        for name, rates in names.items()
    ]
    return job.Job("counted", "nothing", "loss", higher, 0.1, tools, [job.Line("ours", "rival", 1.0)], 4, 2)


def test_tools_take_turns_each_at_its_best_rate():
    made = counted(ours=(1.0, 2.0, 4.0), rival=(3.0,))
    rows, runs = job.measure(made, lambda line: None)
    last = Counted.calls[-8:]
    assert [name for name, _, _ in last] == ["ours", "rival", "rival", "ours"] * 2
    assert [i for _, _, i in last] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {name: rate for name, rate, _ in last} == {"ours": 2.0, "rival": 3.0}
    assert runs[0]["rates"] == {"1.0": 1.2, "2.0": 0.2, "4.0": 2.2}
    assert [quality for _, quality in runs[0]["curve"]] == [1.0, 1 / 3, 0.2]
    assert (rows[0]["quality"], rows[0]["as_good"]) == ([0.2, 1.2], True)


@pytest.mark.parametrize(("higher", "ours", "rival", "good"), [(False, 3.0, 2.0, False), (True, 3.0, 2.0, True)])
def test_a_worse_model_meets_no_target(higher, ours, rival, good):
    rows, _ = job.measure(counted(higher, ours=(ours,), rival=(rival,)), lambda line: None)
    assert rows[0]["as_good"] is good
    assert good or not rows[0]["met"]


def test_windows_are_of_words_of_the_same_sentence():
    text = words.corpus(3_000, 300, 1, 2)
    text = text._replace(model=type("Model", (), {"keep": np.ones(10)}))
    ids = np.array([1, 2, 3, -1, 4, -1, 5, 6, -1])
    found, near, counts = words.pairs(text, ids, np.random.default_rng(0))
    assert sorted(found.tolist()) == [1, 2, 3, 4, 5, 6]
    ends = np.concatenate([[0], np.cumsum(counts)])
    each = {int(word): near[a:b].tolist() for word, a, b in zip(found, ends[:-1], ends[1:], strict=True)}
    assert (each[2], each[4], each[5], each[6]) == ([1, 3], [], [6], [5])
    assert each[1] in ([2], [2, 3])


def test_few_negatives_weigh_as_much_as_five_a_pair(rng):
    text, slopes = words.corpus(3_000, 300, 1, 2), []
    near, counts = np.array([3, 4, 5, 6]), np.array([3, 0, 1])
    for far in (0, 2):
        loop = words.Loop(text, 0.1, 1, 8, far)
        loop.target.weight[:] = 0  # all scores are zero, so each slope is half of its weight, near words' below zero
        seen = []
        loop.target.update_dot = lambda bags, x, slope, seen=seen: seen.append((bags, slope))
        loop.step(np.array([0, 1, 2]), near, counts)
        ((bags, slope),) = seen
        sums = np.add.reduceat(np.append(np.maximum(slope, 0), 0), bags.offsets[:-1])
        sums[np.diff(bags.offsets) == 0] = 0
        slopes.append(sums)
        assert bags.ids[slope < 0].tolist() == near.tolist()
        assert (slope[slope < 0] == -0.5).all()
    for sums in slopes:
        np.testing.assert_allclose(sums, 0.5 * text.example.NEGATIVES * counts, rtol=1e-6)


def test_real_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEMBED_DATA", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "ptb.zip", "w") as archive:
        archive.writestr("ptb.train.txt", " a b \n c a b \n d \n")
        archive.writestr("ptb.valid.txt", " a \n b c \n")
    found = data.text(tokens=5, held=1)
    assert found == ("Penn Treebank", [["a", "b"], ["c", "a", "b"]], [["a"]])
    with tarfile.open(tmp_path / "WN18RR.tar.gz", "w:gz") as archive:
        for part, line in (("train", "x\tr\ty\ny\ts\tz\n"), ("valid", "z\tr\tx\n"), ("test", "x\ts\tz\n")):
            member = tarfile.TarInfo(f"{part}.txt")
            member.size = len(line)
            archive.addfile(member, io.BytesIO(line.encode()))
    read = data.triples()
    assert read[:3] == ("WN18RR", 3, 2)
    assert (read.train.tolist(), read.test.tolist()) == ([[0, 0, 1], [1, 1, 2]], [[0, 1, 2]])
    assert len(read.known) == 4
    lines = "".join(
        f"{user},{10 * item},{stars},0\n" for user in range(5) for item, stars in ((1, 5), (2, 4), (3, 3.5))
    )
    (tmp_path / "ml-latest-small-ratings.csv").write_text("userId,movieId,rating,timestamp\n" + lines)
    positives = data.ratings()
    assert (positives.users, positives.items, len(positives.train), len(positives.test)) == (5, 2, 8, 2)


def test_the_rank_does_not_count_what_is_known():
    triples = data.Triples("", 4, 1, np.array([[0, 0, 1]]), np.array([[0, 0, 2]]), np.array([[0, 0, 1], [0, 0, 2]]))
    made = graph.Graph(triples, 1, 1, 1, 1)
    entities = np.array([[1.0], [9.0], [5.0], [7.0]], np.float32)
    # Tails of 0: 1 is known, 3 is better than 2, so the rank is 2.  Heads of 2: 1 and 3 are better than 0, and 2.
    assert made.reciprocal_rank(entities, np.ones((1, 1), np.float32)) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_the_loop_of_the_graph_is_the_one_of_torch():
    pytest.importorskip("torch")
    made = graph.Graph(data.triples(300, 3, 400, 40), 8, 64, 4, 3)
    loops = [graph.Loop(made, graph.se.SparseAdam(lr=0.01)), graph.Torch(made, 0.01, sparse=True)]
    loops += [graph.TorchDot(made, 0.01, sparse=True)]
    rows = []
    for each in loops:
        each.piece(0)
        rows.append(each.rows())
    for entities, relations in rows[1:]:
        np.testing.assert_allclose(entities, rows[0][0], atol=1e-4)
        np.testing.assert_allclose(relations, rows[0][1], atol=1e-4)


def test_the_recommender_learns():
    made = ranking.job("tiny")
    tool = next(each for each in made.tools if each.name == ranking.COMPILED)
    training = tool.start(0.1, 1)
    before = training.quality()
    for i in range(10):
        training.piece(i)
    assert training.quality() > before + 0.05
    loop = made.tools[0].start(0.1, 1)
    for i in range(10):
        loop.piece(i)
    assert loop.quality() > before + 0.05


def test_jobs_run_and_are_reported(tmp_path, capsys):
    names = ["words", "ranking", "graph"] + ["clicks", "dense"] * bool(importlib.util.find_spec("torch"))
    file = tmp_path / "a.json"
    jobs.main(["--tiny", "--threads", "1", "--json", str(file), "--only", *names])
    printed = capsys.readouterr().out
    result = json.loads(file.read_text())
    assert printed == report.markdown(result) + "\n"
    assert {"gensim", "implicit", "torch"} >= set(result["left_out"])
    for module in result["left_out"]:
        assert module in printed.splitlines()[-1]
    assert len({run["job"] for run in result["runs"]}) >= 3
    for run in result["runs"]:
        assert run["engine"] in report.COLOURS
        assert np.isfinite(run["curve"]).all()
    if "clicks" in names:
        losses = [run["curve"][-1][1] for run in result["runs"] if run["job"] == "click model"]
        np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
        assert len(result["dense"]) == 1
    target = tmp_path / "README.md"
    target.write_text("<!-- jobs -->\nold\n<!-- /jobs -->\n<!-- benchmarks -->kept<!-- /benchmarks -->")
    readme.main([str(file), str(target)])
    assert target.read_text() == f"<!-- jobs -->\n{report.markdown(result)}\n<!-- /jobs -->\n" + (
        "<!-- benchmarks -->kept<!-- /benchmarks -->"
    )
    if importlib.util.find_spec("matplotlib"):
        jobs.main(["--draw", str(file), "--plot", str(tmp_path / "a.png")])
        assert (tmp_path / "a.png").stat().st_size > 10_000


def test_shares_add_up_and_leave_the_package_as_it_was(capsys):
    before = {owner: dict(vars(owner)) for owner in jobs.shares._CALLS}
    run = jobs.shares.threads.run
    found = jobs.profile([ranking.job("tiny")])
    assert [sum(each["shares"].values()) for each in found] == [pytest.approx(1.0)] * 3
    assert all(share >= 0 for each in found for share in each["shares"].values())
    assert all(each["shares"]["draws"] > 0 for each in found)
    assert {owner: dict(vars(owner)) for owner in before} == before
    assert jobs.shares.threads.run is run
    assert "| recommender: " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--only", "no such job"], ["--json", "no/such/folder/a.json"], ["--draw", "a"]])
def test_jobs_refuse_what_would_come_to_nothing(arguments, monkeypatch):
    monkeypatch.setattr(jobs, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        jobs.main(arguments)


def test_the_readme_holds_the_jobs_of_the_committed_result():
    result = json.loads((ROOT / "docs/results/jobs.json").read_text())
    text = (ROOT / "README.md").read_text()
    assert readme.rewrite(text, report.markdown(result), "jobs") == text

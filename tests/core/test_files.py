"""Saved and loaded: every rule and option goes on bit for bit; other readers open the file; what is refused."""

import json
import math
import os
import pathlib
import threading
import tracemalloc
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from bit_cases import ROWS, RULES, falling, ids_of, made, numbers
from hypothesis import given
from hypothesis import strategies as st
from injected import held
from strategies import ALL_RULES

import sparsembed as se
from sparsembed import reference
from sparsembed.storage import container, saving

DIM = 5


class PlusHyper(NamedTuple):
    lr: float


@dataclass(frozen=True)
class Plus(se.rules.Rule):
    """A rule of somebody else: two slots and one row slot."""

    lr: float = 0.5

    Hyper = PlusHyper
    slots = ("total", "squares")
    row_slots = ("mean",)

    def hyper(self, step):
        return (self.rate(step),)

    @staticmethod
    def reduce(w, g, hp):
        return g

    @staticmethod
    def row(x, r, hp):
        return x, (r[0] + x,)

    @staticmethod
    def step(w, g, s, a, hp):
        return w - hp.lr * (g + a), (s[0] + g, s[1] + g * g)


def trained(rule, dtype=np.float32, steps=4, **options):
    table = made(rule, DIM, dtype, **options)
    train(table, range(steps))
    return table


def train(table, steps):
    for k in steps if table.optimizer is not None else ():
        ids = ids_of((3, 2), np.int64, 40 + k)
        table.update(ids, numbers((3, 2, table.dim), table.weight.dtype, 50 + k))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.safetensors"


def agree(mine, its, steps=range(90, 94)):
    """Check that two tables hold the same bits, and still do after further steps."""
    names = ("step", "seed", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "optimizer")
    for _ in range(2):
        assert [getattr(mine, name) for name in names] == [getattr(its, name) for name in names]
        assert held(mine) == held(its)
        train(mine, steps)
        train(its, steps)
    assert mine.lookup(np.arange(ROWS)).tobytes() == its.lookup(np.arange(ROWS)).tobytes()
    assert held(mine) == held(its)


# ---------------------------------------------------------------------- what comes back

# What states had when sums of their bits were recorded, and what came later.
FILED = RULES | {repr(each): each for each in ALL_RULES}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FILED)
def test_every_rule_goes_on_bit_for_bit(name, dtype, path):
    rule = FILED[name]
    table = trained(rule, dtype, steps=4, rng=7)
    table.save(path)
    if rule.lr is falling:
        with pytest.raises(ValueError, match=r"function of the step; pass optimizer="):
            se.load(path)
    again = se.load(path, optimizer=rule if rule.lr is falling else None)
    assert type(again.optimizer) is type(rule)
    agree(table, again)


OPTIONS = [
    {"padding_idx": 3},
    {"padding_idx": np.int64(0), "scale_grad_by_freq": True},
    {"max_norm": 0.8, "norm_type": 1},
    {"max_norm": 0.7, "norm_type": math.inf, "padding_idx": ROWS - 1},
    {"max_norm": 1e-300},
]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_every_option_comes_back(options, path):
    table = trained(se.SparseAdam(lr=0.1), **options)
    table.save(path)
    agree(table, se.load(path))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_table_without_optimizer(dtype, path):
    table = se.EmbeddingTable(ROWS, DIM, dtype=dtype, padding_idx=2)
    table.save(path)
    agree(table, se.load(path))


def test_a_table_without_optimizer_takes_one(path):
    table = se.EmbeddingTable(ROWS, DIM, rng=0)
    table.save(path)
    again = se.load(path, optimizer=se.Adam(lr=0.1))
    twin = se.EmbeddingTable.from_array(table.weight.copy(), se.Adam(lr=0.1), rng=0)
    agree(twin, again)


@pytest.mark.parametrize("rule", [Plus(), Plus(lr=0.25)])
def test_a_rule_of_somebody_else_is_given_again(rule, path):
    table = trained(rule)
    table.save(path)
    with pytest.raises(ValueError, match=r"class .*Plus, which is not one of this package; pass optimizer="):
        se.load(path)
    agree(table, se.load(path, optimizer=rule))


def test_a_form_that_its_numbers_do_not_name(path):
    """``dataclasses.replace`` may leave an SGD whose class keeps state that its numbers do not need."""
    import dataclasses

    rule = dataclasses.replace(se.SGD(lr=0.1, momentum=0.9), momentum=0.0)
    table = trained(rule)
    table.save(path)
    agree(table, se.load(path))


@given(lr=st.floats(0, 1e3), beta=st.floats(0, 0.9), eps=st.floats(0, 1), seed=st.integers(0, 2**64 - 1))
def test_hyperparameters_come_back_to_the_last_bit(lr, beta, eps, seed, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "numbers.safetensors"
    rule = se.SparseAdam(lr=lr, betas=(beta, 0.999), eps=eps)
    se.EmbeddingTable(3, 2, rule, rng=seed).save(path)
    again = se.load(path)
    assert repr(again.optimizer) == repr(rule)
    assert again.seed == seed


@given(data=st.data())
def test_rows_come_back_whatever_they_hold(data, tmp_path_factory):
    """Any bits, NaN and infinity among them, as the reference gathers them."""
    path = tmp_path_factory.getbasetemp() / "bits.safetensors"
    dtype = np.dtype(data.draw(st.sampled_from(["f2", "f4", "f8"])))
    rows, dim = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    raw = data.draw(st.binary(min_size=rows * dim * dtype.itemsize, max_size=rows * dim * dtype.itemsize))
    weight = np.frombuffer(raw, dtype).reshape(rows, dim)
    se.EmbeddingTable.from_array(weight, copy=True).save(path)
    again = se.load(path)
    assert again.weight.tobytes() == raw
    finite = np.where(np.isfinite(weight), weight, 0)
    se.EmbeddingTable.from_array(finite).save(path)
    ids = np.arange(rows)
    np.testing.assert_array_equal(se.load(path).lookup(ids), reference.gather(finite, ids))


def test_a_strided_array_of_the_caller(path):
    whole = numbers((2 * ROWS, DIM + 2), np.float32, 1)
    table = se.EmbeddingTable.from_array(whole[::2, 1:-1], se.Adagrad(lr=0.1))
    train(table, range(3))
    table.save(path)
    agree(table, se.load(path))


def test_rows_that_missed_steps_catch_up_in_the_table_too(path):
    """Saving is an event of training: the saver and the loaded table go on alike, from a state like that of `flush`."""
    table, twin = trained(se.Adam(lr=0.1), steps=70), trained(se.Adam(lr=0.1), steps=70)
    table.save(path)
    twin.flush()
    assert held(table) == held(twin)
    agree(table, se.load(path))


def test_files_of_many_blocks_are_the_same_table(path, monkeypatch):
    """Blocks of one row, of some, and of more than the table has; read by others' block sizes, too."""
    table = trained(se.PartialRowwiseAdam(lr=0.1))
    for block in (1, 4 * DIM * 4, 5 * DIM * 4 + 1, 10**6):
        monkeypatch.setattr(saving, "BLOCK", block)
        table.save(path)
        for other in (block, 3 * DIM * 4):
            monkeypatch.setattr(saving, "BLOCK", other)
            agree(trained(se.PartialRowwiseAdam(lr=0.1), rng=table.seed), se.load(path))
            again = se.load(path, verify=False)
            assert held(again) == held(table)


def test_progress_counts_rows(path, monkeypatch):
    monkeypatch.setattr(saving, "BLOCK", 5 * DIM * 4)
    table, counts = trained(se.SparseAdam(lr=0.1)), []
    table.save(path, progress=counts.append)
    assert counts == [5, 5, 5, 5, 3]
    counts.clear()
    se.load(path, progress=counts.append)
    assert counts == [5, 5, 5, 5, 3]


def test_a_table_that_progress_updates_is_not_saved(path):
    table = trained(se.SGD(lr=0.1))
    table.save(path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="progress updated the table"):
        table.save(path, progress=lambda rows: train(table, [1]))
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_saved_beside_an_updating_thread_is_of_one_step(path):
    """All gradients are one, so every weight is a function of the step."""
    table = se.EmbeddingTable.from_array(np.zeros((20_000, 8)), se.SGD(lr=1.0))
    ids, ones, steps, seen = np.arange(20_000), np.ones((20_000, 8)), 40, set()

    def work():
        for _ in range(steps):
            table.update(ids, ones)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        table.save(path)
        again = se.load(path)
        seen.add(again.step)
        np.testing.assert_array_equal(again.weight, np.full((20_000, 8), -1.0 * again.step))
    thread.join()
    assert seen


def test_a_table_is_not_copied(path):
    """32 MiB of weight, and twice as much state, are saved within four blocks, and loaded within one copy."""
    table = se.EmbeddingTable(1 << 17, 64, se.SparseAdam(lr=0.1))
    tracemalloc.start()
    try:
        table.save(path)
        saved = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        again = se.load(path)
        loaded = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert saved < 2.5 * saving.BLOCK
    assert loaded < again.weight.nbytes * 3 + 2.5 * saving.BLOCK


# ---------------------------------------------------------------------- the file


def test_other_readers_open_it(path):
    table = trained(se.PartialRowwiseAdam(lr=0.1), padding_idx=1, rng=2**63)
    table.save(path)
    found = safetensors.numpy.load_file(path)
    names = [name for name in found if not name.startswith("__")]
    assert sorted(names) == ["exp_avg", "exp_avg_sq", "step", "weight"]
    np.testing.assert_array_equal(found["weight"], table.weight)
    np.testing.assert_array_equal(found["exp_avg"], table.state["exp_avg"])
    np.testing.assert_array_equal(found["exp_avg_sq"], table.state["exp_avg_sq"])
    assert (found["step"].dtype, found["step"].tolist()) == (np.int64, [table.step])
    with safetensors.safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["sparsembed"])
    assert (about["format"], about["kind"], about["seed"]) == (1, "table", str(2**63))
    assert about["optimizer"]["class"] == "PartialRowwiseAdam"
    assert about["optimizer"]["hyperparameters"]["betas"] == [0.9, 0.999]
    assert (about["optimizer"]["slots"], about["optimizer"]["row_slots"]) == (["exp_avg"], ["exp_avg_sq"])
    assert about["options"] == {"padding_idx": 1, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False}


@given(rows=st.integers(1, 40), dim=st.integers(1, 40), dtype=st.sampled_from(["f4", "f8"]))
def test_data_of_every_tensor_start_on_a_cache_line(rows, dim, dtype, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "aligned.safetensors"
    table = se.EmbeddingTable(rows, dim, se.PartialRowwiseAdam(), dtype=dtype)
    table.save(path)
    with path.open("rb") as file:
        tensors = container.read_header(file, "x").tensors
    assert [*tensors] == ["weight", "exp_avg", "exp_avg_sq", "step"]
    assert all(each.start % 64 == 0 for each in tensors.values())
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["weight"], table.weight)


def test_the_page_says_enough_to_write_a_reader(path):
    """What docs/saving.md says, read by nothing but json and zlib."""
    import zlib

    table = trained(se.SparseAdam(lr=0.1))
    table.save(path)
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    about = json.loads(header.pop("__metadata__")["sparsembed"])
    digits = about["header_crc32"]
    assert f"{zlib.crc32(raw[: 8 + size].replace(digits.encode(), b'0' * 8)):08x}" == digits
    rows = about["checksums"]["rows"]
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = raw[8 + size + begin : 8 + size + end]
        if name.startswith("__"):
            assert not any(data)
            continue
        assert (entry["shape"][0], about["checksums"]["crc32"][name]) == (
            entry["shape"][0],
            "".join(
                f"{zlib.crc32(data[first : first + rows * (len(data) // entry['shape'][0])]):08x}"
                for first in range(0, len(data), rows * (len(data) // entry["shape"][0]))
            ),
        )
    assert (8 + size) % 64 == 0


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["list"], np.array("x")], ids=repr)
def test_what_is_no_path(wrong, tmp_path):
    table = se.EmbeddingTable(3, 2)
    for call in (table.save, se.load):
        with pytest.raises(TypeError, match=r"path must be a str or an os\.PathLike"):
            call(wrong)


def test_a_path_may_be_text_or_path_like(path):
    table = se.EmbeddingTable(3, 2)

    class Like:
        def __fspath__(self):
            return os.fspath(path)

    for each in (str(path), pathlib.Path(path), Like()):
        table.save(each)
        assert held(se.load(each)) == held(table)
        path.unlink()


def test_wrong_arguments_are_named(path):
    table = trained(se.SparseAdam(lr=0.1))
    table.save(path)
    before = path.read_bytes()
    for call, error, match in [
        (lambda: table.save(path, progress=3), TypeError, "progress must be None or a function"),
        (lambda: se.load(path, progress="x"), TypeError, "progress must be None or a function"),
        (lambda: se.load(path, "w"), ValueError, "mode must be None, 'r' or 'r\\+', got 'w'"),
        (lambda: se.load(path, "r"), NotImplementedError, "mode='r', a mapped table, is not built yet"),
        (lambda: se.load(path, "r+"), NotImplementedError, "is not built yet"),
        (lambda: se.load(path, comm=object()), NotImplementedError, "several processes, is not built yet"),
        (lambda: se.load(path, verify=1), TypeError, "verify must be True or False, got int 1"),
        (lambda: se.load(path, device="tpu"), ValueError, "device must be 'cpu'"),
        (lambda: se.load(path, optimizer="Adam"), TypeError, "optimizer must be a sparsembed optimizer"),
        (lambda: se.load(path, optimizer=se.Adagrad()), ValueError, "optimizer must have the state of the saved Spars"),
        (lambda: se.load(path, optimizer=Plus()), ValueError, "got Plus"),
    ]:
        with pytest.raises(error, match=match):
            call()
    assert path.read_bytes() == before


def test_another_class_with_the_same_state(path):
    table = trained(se.Adam(lr=0.1))
    table.save(path)
    again = se.load(path, optimizer=se.SparseAdam(lr=0.2))
    assert (again.step, again.optimizer) == (table.step, se.SparseAdam(lr=0.2))
    np.testing.assert_array_equal(again.state["exp_avg"], table.state["exp_avg"])


def test_options_that_the_given_optimizer_does_not_take(path):
    trained(se.SparseAdam(lr=0.1), max_norm=1.0).save(path)
    with pytest.raises(ValueError, match="max_norm does not go with Adam"):
        se.load(path, optimizer=se.Adam())


def test_names_of_the_format_are_no_slots(path):
    class OwnHyper(NamedTuple):
        lr: float

    @dataclass(frozen=True)
    class Own(se.rules.Rule):
        lr: float = 1.0
        Hyper = OwnHyper
        slots = ("history", "fine", "__mine", "vocabulary.keys")

        def hyper(self, step):
            return (self.rate(step),)

        @staticmethod
        def step(w, g, s, a, hp):
            return w, s

    table = se.EmbeddingTable(3, 2, Own())
    with pytest.raises(ValueError, match=r"slots named \['history', '__mine', 'vocabulary.keys'\]"):
        table.save(path)
    assert not path.exists()


def test_a_file_of_somebody_else(path):
    safetensors.numpy.save_file({"weight": np.ones((3, 2), np.float32)}, path)
    with pytest.raises(ValueError, match=r"was not saved by sparsembed: its metadata have no 'sparsembed'"):
        se.load(path)
    safetensors.numpy.save_file({"weight": np.ones((3, 2), np.float32)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not saved by sparsembed.*EmbeddingTable.from_array"):
        se.load(path)


def test_errors_of_the_system_have_the_path(tmp_path):
    table = se.EmbeddingTable(3, 2)
    missing, folder = tmp_path / "no" / "table", tmp_path / "folder"
    folder.mkdir()
    for call, path, error in [
        (table.save, missing, FileNotFoundError),
        (se.load, missing, FileNotFoundError),
        (table.save, folder, IsADirectoryError),
        (se.load, folder, IsADirectoryError),
        (table.save, f"{tmp_path}/no/", IsADirectoryError),
        (table.save, "", IsADirectoryError),
    ]:
        with pytest.raises(error) as caught:
            call(path)
        assert caught.value.filename == str(path)
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_a_device_is_not_replaced():
    with pytest.raises(ValueError, match="ordinary file"):
        se.EmbeddingTable(3, 2).save(os.devnull)

"""Tables on a GPU are saved and loaded, and a file is the same whatever device it came from."""

import numpy as np
import pytest
from simulated_gpus import Held

import sparsembed as se

ROWS, DIM = 11, 3


def trained(rule, device, **options):
    table = se.EmbeddingTable(ROWS, DIM, rule, rng=0, device=device, **options)
    train(table, range(3))
    return table


def train(table, seeds):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        parts = rng.integers(0, ROWS, 4), rng.integers(-4, 4, (4, DIM)).astype("f4")
        table.update(*(map(Held, parts) if "cuda" in repr(table) else parts))


@pytest.mark.parametrize("rule", [se.SGD(lr=0.5), se.PartialRowwiseAdam(lr=0.1), se.Adam(lr=0.1)], ids=repr)
def test_a_table_on_a_gpu_goes_on_bit_for_bit(gpus, rule, tmp_path):
    table, path = trained(rule, "cuda:1", padding_idx=2), tmp_path / "table.safetensors"
    table.save(path)
    again = se.load(path, device="cuda:1")
    for _ in range(2):
        mine, its = table.state_dict(), again.state_dict()
        assert mine.keys() == its.keys()
        for name, value in mine.items():
            np.testing.assert_array_equal(its[name], value, err_msg=name)
        assert (again.seed, again.optimizer, again.padding_idx, again._on_device) == (0, rule, 2, True)
        for each in (table, again):
            train(each, range(5, 7))


def test_a_file_moves_between_devices(gpus, tmp_path):
    table, path, other = trained(se.SparseAdam(lr=0.1), "cuda"), tmp_path / "first", tmp_path / "second"
    table.save(path)
    host = se.load(path)
    assert not host._on_device
    host.save(other)
    assert path.read_bytes() == other.read_bytes()
    back = se.load(other, device="cuda").state_dict()
    for name, value in table.state_dict().items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)

"""Tables on a GPU that former versions have pickled are read, and go on.

``NUMBA_ENABLE_CUDASIM=1 PYTHONPATH=.:tests/helpers python tests/cuda/simulated/test_cuda_old_pickles.py`` has written
the file; what it holds is not to be written again, but a new version may add a file of its own.
"""

import pickle

import numpy as np
import pytest
from bit_cases import ROWS, RULES, falling, ids_of, numbers
from old_files import Old
from simulated_gpus import Held, host, simulate

import sparsembed as se

pytestmark = pytest.mark.usefixtures("gpus")
OLD = Old("old_pickles_cuda.npz.xz")
PLAIN = {name: rule for name, rule in RULES.items() if rule.lr is not falling}
OPTIONS = {"SparseAdam": {"padding_idx": 3, "max_norm": 2.0}, "Adagrad": {"scale_grad_by_freq": True}}
IDS, GRAD = ids_of((3, 2), np.int64, 1), numbers((3, 2, 4), np.float32, 2)


def made(name):
    table = se.EmbeddingTable.from_array(Held(numbers((ROWS, 4), np.float32, 3)), PLAIN[name], **OPTIONS.get(name, {}))
    table.update(Held(IDS), Held(GRAD))
    table.update(Held(IDS[1:]), Held(GRAD[1:]))
    return table


def after(table):
    yield "lookup", host(table.lookup(Held(IDS)))
    table.update(Held(IDS[:2]), Held(GRAD[:2]))
    yield from ((name, np.asarray(value)) for name, value in table.state_dict().items())


@pytest.mark.parametrize("name", PLAIN)
def test_an_old_pickle_is_read_on_the_gpu_that_it_was_on(name):
    table = OLD.load(name)
    assert "cuda:0" in repr(table)
    assert table.optimizer == PLAIN[name]
    for option, value in OPTIONS.get(name, {}).items():
        assert getattr(table, option) == value
    OLD.check(name, dict(after(table)))


def record():
    """Write what the present version saves."""
    for name in PLAIN:
        OLD.keep(name, pickle.dumps(made(name), protocol=4))
        OLD.put("after", name, dict(after(OLD.load(name))))
    OLD.save()


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        simulate(patch)
        record()

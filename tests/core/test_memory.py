"""What a call allocates: its result, 32 bytes per id at most, fixed blocks for hot rows, and nothing else."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from patience import HANGS

import sparsembed as se
from sparsembed._cpu import threads as _threads

ROWS, DIM, N = 5_000, 64, 40_000
FIXED = 128 << 10  # counters of the sort, scratch rows of the threads, Python's own objects
RULES = {"SGD": se.SGD(lr=0.1), "Adagrad": se.Adagrad(), "Rowwise": se.RowwiseAdagrad(), "SparseAdam": se.SparseAdam()}
IDTYPES = [np.int32, np.int64]
DTYPES = [np.float32, np.float64]


def data(dtype=np.float32, idtype=np.int64, hot=0):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, ROWS, N).astype(idtype)
    ids[:hot] = 7
    return ids, rng.standard_normal((N, DIM)).astype(dtype)


def peak(call):
    """Bytes that a call has in use at most, beyond what was in use before: compiled, with no memory kept for it."""
    call()
    getattr(sys.modules["sparsembed.plan"], "_buffers", []).clear()
    tracemalloc.start()
    try:
        result = call()
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return used, result


def test_numpy_reports_to_tracemalloc():
    assert peak(lambda: np.empty(1 << 20, np.uint8))[0] >= 1 << 20


@pytest.mark.parametrize("idtype", IDTYPES)
@pytest.mark.parametrize("dtype", [*DTYPES, np.float16])
def test_a_lookup_allocates_its_result(dtype, idtype):
    weight, (ids, _) = np.ones((ROWS, DIM), dtype), data(idtype=idtype)
    bags, out = se.Bags(ids, np.append(np.arange(0, N, 4), N)), np.empty((N, DIM), np.result_type(dtype, np.float32))
    plan, table = se.plan(ids, ROWS), se.EmbeddingTable.from_array(weight)
    reads = {
        "gather": lambda: se.gather(weight, ids),
        "view": lambda: se.gather(weight, ids.reshape(8, -1)),
        "strided": lambda: se.gather(weight[::-1], ids),
        "frozen": lambda: se.gather(np.broadcast_to(weight, weight.shape), ids),
        "plan": lambda: se.gather(weight, plan),
        "pool": lambda: se.pool(weight, bags, "mean"),
        "table": lambda: table.lookup(ids),
    }
    for name, read in reads.items():
        used, result = peak(read)
        assert result.nbytes <= used <= result.nbytes + FIXED, name
    assert peak(lambda: se.gather(weight, ids, out=out))[0] <= FIXED
    assert peak(lambda: se.pool(weight, bags, out=out[: bags.num_bags]))[0] <= FIXED


@pytest.mark.parametrize("hot", [0, 30_000])
@pytest.mark.parametrize("idtype", IDTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_workspace_of_an_update(dtype, idtype, hot):
    ids, grad = data(dtype, idtype, hot)
    table = se.EmbeddingTable(ROWS, DIM, se.SparseAdam(), dtype=dtype, rng=0)
    partials = -(-(hot + N // ROWS * 9) // 512) * DIM * grad.itemsize if hot else 0
    allowed = 32 * N + partials + FIXED
    assert allowed < grad.nbytes / 4, "the bound would not notice a copy of the gradient"
    offsets = np.append(np.arange(0, N, 2), N)
    weighted = se.Bags(ids, offsets, np.ones(N, dtype))
    bags, pooled = se.Bags(ids, offsets), grad[: N // 2]
    calls = {
        "update": lambda: table.update(ids, grad),
        "matrix": lambda: table.update(ids.reshape(4, -1), grad.reshape(4, -1, DIM)),
        "several": lambda: table.update([ids[: N // 2], ids[N // 2 :]], [grad[: N // 2], grad[N // 2 :]]),
        "scatter": lambda: se.scatter_add(table.weight, ids, grad),
        "pooled": lambda: table.update_pooled(bags, pooled),
        "weighted": lambda: table.update_pooled(weighted, pooled, "mean"),
    }
    for name, call in calls.items():
        assert peak(call)[0] <= allowed, name
    stacked = np.zeros((N, 3, DIM), dtype)  # whose gradient is cut into three
    assert peak(lambda: table.update(ids, stacked[:, 1]))[0] <= allowed
    assert peak(lambda: table.update_pooled(bags, stacked[: N // 2, 2]))[0] <= allowed
    plan = se.plan(ids, ROWS)
    assert peak(lambda: table.update(plan, grad))[0] <= partials + FIXED
    assert peak(lambda: se.plan(ids, ROWS))[0] <= 24 * N + FIXED
    used, gradient = peak(lambda: se.coalesce(ids, grad, ROWS))
    assert used <= gradient.values.nbytes + allowed


def test_a_gradient_of_few_rows_holds_little_memory():
    """Not that of the sort, which is of one number per id."""
    ids, grad = np.full(N, 7), np.ones((N, 2), np.float32)
    bags = se.Bags(ids, np.arange(0, N + 1, 2))
    for call in (lambda: se.coalesce(ids, grad, ROWS), lambda: se.pool_gradient(bags, grad[: N // 2], ROWS)):
        call()
        tracemalloc.start()
        try:
            held = [call() for _ in range(8)]
            getattr(sys.modules["sparsembed.plan"], "_buffers", []).clear()
            assert tracemalloc.get_traced_memory()[0] < N
        finally:
            tracemalloc.stop()
        assert all(each.rows.tolist() == [7] for each in held)


def addresses(call, monkeypatch):
    """Addresses of all arrays that reach the kernels while `call` runs, and of the gradients they are told of."""
    seen, run = set(), _threads.run

    def collect(value):
        if isinstance(value, np.ndarray):
            seen.add(value.__array_interface__["data"][0])
            if value.dtype == np.int64 and value.size <= 16:
                seen.update(value.ravel().tolist())  # a table of addresses
        elif isinstance(value, tuple):
            for item in value:
                collect(item)

    def watch(kernel, num_blocks, *arguments, **options):
        collect(arguments)
        return run(kernel, num_blocks, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_threads, "run", watch)
        call()
    return seen


@pytest.mark.parametrize("idtype", IDTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_gradients_and_tables_are_not_copied(dtype, idtype, monkeypatch):
    ids, grad = data(dtype, idtype)
    weight, out = np.ones((ROWS, DIM), dtype), np.empty((N, DIM), dtype)
    bags = se.Bags(ids, np.append(np.arange(0, N, 4), N), np.ones(N, dtype))
    table = se.EmbeddingTable.from_array(weight, se.SparseAdam())
    second = grad[N // 2 :]
    pooled = grad[: bags.num_bags]
    cases = [
        (lambda: se.gather(weight, ids, out=out), [weight, ids, out]),
        (lambda: table.lookup(ids), [weight, ids]),
        (lambda: se.pool(weight, bags, out=pooled.copy()), [weight, ids, bags.per_sample_weights]),
        (lambda: table.pool(bags), [weight, ids, bags.per_sample_weights]),
        (lambda: table.update(ids, grad), [weight, grad, table.state["exp_avg"]]),
        (lambda: table.update([ids[: N // 2], ids[N // 2 :]], [grad[: N // 2], second]), [weight, grad, second]),
        (lambda: table.update_pooled(bags, pooled), [weight, pooled, table.state["exp_avg"]]),
        (lambda: se.scatter_add(weight, ids, grad), [weight, grad]),
        (lambda: se.coalesce(ids, grad, ROWS), [grad]),
        (lambda: se.per_sample_weights_gradient(weight, bags, pooled), [weight, ids, pooled]),
    ]
    for number, (call, arrays) in enumerate(cases):
        missing = {array.__array_interface__["data"][0] for array in arrays} - addresses(call, monkeypatch)
        assert not missing, f"case {number} copied {len(missing)} arrays"
    assert np.shares_memory(bags.ids, ids)
    assert np.shares_memory(table.weight, weight)
    gradient = se.RowGradient(np.arange(N // 8, dtype=idtype), grad[: N // 8], ROWS)
    assert np.shares_memory(gradient.values, grad)
    assert np.shares_memory(gradient.rows, gradient._rows)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_state_takes_an_item_per_element_and_per_row(rule, dtype):
    item = np.dtype(dtype).itemsize
    expected = dict.fromkeys(rule.slots, ROWS * DIM * item) | dict.fromkeys(rule.row_slots, ROWS * item)
    zeros = se.initializers.zeros
    used, table = peak(lambda: se.EmbeddingTable(ROWS, DIM, rule, dtype=dtype, initializer=zeros))
    assert {name: array.nbytes for name, array in table.state.items()} == expected
    exact = ROWS * DIM * item + sum(expected.values())
    assert exact <= used <= exact + 8192
    assert table.weight.__array_interface__["data"][0] % 64 == 0


def test_an_initializers_array_is_not_shared_with_its_owner():
    """The caller's arrays are never written to, except `out` and the table."""
    mine = se.initializers.uniform((8, 3), rng=0)
    before = mine.copy()
    table = se.EmbeddingTable(8, 3, se.SGD(lr=1.0), initializer=lambda shape, dtype, rng: mine)
    table.update([1], np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(mine, before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_untouched_rows_take_no_physical_memory():
    """A fresh table of 1.5 GB; an update of 3 rows touches a few pages (huge ones of 2 MiB, perhaps)."""
    script = """
import re
from pathlib import Path
import numpy as np, sparsembed as se

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

def table(rows):
    return se.EmbeddingTable(rows, 64, se.SparseAdam(), initializer=se.initializers.zeros, padding_idx=0)

ids, grad = np.array([5, 1_000_000, 1_999_999, 5]), np.ones((4, 64), np.float32)
table(2_000_000).update(ids, grad)  # load the kernels
before = resident()
large = table(2_000_000)
fresh = resident()
large.update(ids, grad)
large.lookup(ids)
print(large.weight.nbytes + sum(slot.nbytes for slot in large.state.values()), fresh - before, resident() - fresh)
"""
    home = str(Path(se.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    size, fresh, touched = map(int, done.stdout.split())
    assert size == 3 * 2_000_000 * 64 * 4
    assert fresh < 16 << 20
    assert touched < 32 << 20

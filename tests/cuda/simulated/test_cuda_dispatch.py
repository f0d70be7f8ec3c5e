"""The public API on device arrays, whose memory is this computer's: kernels run on greenlets."""

import copy
import pickle
import types

import numpy as np
import pytest
from simulated_gpus import Held, host
from strategies import numbers

import sparsembed as se

pytestmark = pytest.mark.usefixtures("gpus")
RNG = np.random.default_rng(0)
WEIGHT = numbers(RNG, (9, 4), np.float32)
IDS = RNG.integers(0, 9, (3, 5))
GRAD = numbers(RNG, (3, 5, 4), np.float32)
BAGS = np.array([0, 5, 5, 15])


def test_gather_and_scatter_add_equal_the_hosts():
    held, ids = Held(WEIGHT), Held(IDS)
    np.testing.assert_array_equal(host(se.gather(held, ids)), se.gather(WEIGHT, IDS))
    out = Held(np.zeros((3, 5, 4), np.float32))
    assert se.gather(held, ids, out) is out
    np.testing.assert_array_equal(out.array, WEIGHT[IDS])
    first, second = se.gather(held, [ids, ids])
    np.testing.assert_array_equal(host(first), host(second))
    want = WEIGHT.copy()
    se.scatter_add(want, IDS, GRAD, 0.5)
    se.scatter_add(held, ids, Held(GRAD), 0.5)
    np.testing.assert_array_equal(held.array, want)


def test_plans_are_sorted_once_and_show_what_the_hosts_do():
    plan, want = se.plan(Held(IDS), 9), se.plan(IDS, 9)
    for name in ("rows", "order", "segment_offsets"):
        np.testing.assert_array_equal(host(getattr(plan, name)), getattr(want, name))
    assert isinstance(plan, se.Plan)
    held = Held(WEIGHT)
    se.scatter_add(held, plan, Held(GRAD))
    assert not np.array_equal(held.array, WEIGHT)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max"])
@pytest.mark.parametrize("weighted", [False, True])
def test_pooling_equals_the_hosts(mode, weighted):
    if mode == "max" and weighted:
        return
    flat, weights = IDS.reshape(-1), RNG.random(15).astype(np.float32) if weighted else None
    there = se.Bags(Held(flat), Held(BAGS), None if weights is None else Held(weights))
    here, grad = se.Bags(flat, BAGS, weights), GRAD[:, 0]
    assert isinstance(there, se.Bags)
    assert len(there) == 3
    np.testing.assert_allclose(host(se.pool(Held(WEIGHT), there, mode, padding_idx=2)),
                               se.pool(WEIGHT, here, mode, padding_idx=2), rtol=1e-6)  # fmt: skip
    options = {"padding_idx": 2, "scale_grad_by_freq": True}
    table = {"weight": WEIGHT} if mode == "max" else {}
    got = se.pool_gradient(there, Held(grad), 9, mode, **options, **{k: Held(v) for k, v in table.items()})
    want = se.pool_gradient(here, grad, 9, mode, **options, **table)
    np.testing.assert_array_equal(host(got.rows), want.rows)
    np.testing.assert_allclose(host(got.values), want.values, rtol=1e-5, atol=1e-7)
    assert isinstance(got.to_host(), se.RowGradient)
    if mode != "max":
        np.testing.assert_allclose(
            host(se.per_sample_weights_gradient(Held(WEIGHT), there, Held(grad), mode)),
            se.per_sample_weights_gradient(WEIGHT, here, grad, mode), rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max"])
@pytest.mark.parametrize("weighted", [False, True])
def test_several_pooled_lookups_are_one_step(mode, weighted):
    """With int32 and int64 offsets, and weights in one of the two."""
    if mode == "max" and weighted:
        return
    weights = RNG.random(5).astype(np.float32) if weighted else None
    lookups = [(IDS[0], np.array([0, 2, 5]), weights), (IDS[1:].reshape(-1), np.array([0, 0, 7, 10], np.int32), None)]
    grads = [GRAD[0, :2], GRAD[1, :3]]
    options = {"padding_idx": 2, "scale_grad_by_freq": True}
    there, here = (se.EmbeddingTable(9, 4, se.Adam(0.1), rng=3, device=each, **options) for each in ("cuda", "cpu"))
    for _ in range(2):
        there.update_pooled(
            [se.Bags(*(None if each is None else Held(each) for each in lookup)) for lookup in lookups],
            [*map(Held, grads)], mode)  # fmt: skip
        here.update_pooled([se.Bags(*lookup) for lookup in lookups], grads, mode)
    assert there.step == here.step == 2
    for name, value in here.state_dict().items():
        np.testing.assert_allclose(there.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="list of 2 gradients, one per"):
        there.update_pooled([se.Bags(*map(Held, lookups[1][:2]))] * 2, [Held(grads[1])], mode)


def test_coalesce_of_several_lookups():
    lookups, grads = [IDS, IDS[0]], [GRAD, GRAD[1]]
    got = se.coalesce([*map(Held, lookups)], [*map(Held, grads)], 9, padding_idx=int(IDS[0, 0]))
    want = se.coalesce(lookups, grads, 9, padding_idx=int(IDS[0, 0]))
    np.testing.assert_array_equal(host(got.rows), want.rows)
    np.testing.assert_array_equal(host(got.values), want.values)


RULES = [se.SGD(0.1), se.SGD(0.1, momentum=0.9), se.Adagrad(0.1), se.RowwiseAdagrad(0.1), se.SparseAdam(0.1),
         se.Adam(0.1), se.AdamW(0.1)]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_tables_train_as_on_the_host(rule):
    options = {"padding_idx": 2, "scale_grad_by_freq": True}
    there = se.EmbeddingTable(9, 4, rule, rng=3, device="cuda", **options)
    here = se.EmbeddingTable(9, 4, rule, rng=3, **options)
    flat = IDS.reshape(-1)
    for turn, mode in enumerate(("mean", "max")):
        part = slice(turn, None)
        there.update(Held(IDS[part]), Held(GRAD[part]))
        here.update(IDS[part], GRAD[part])
        there.update_pooled(se.Bags(Held(flat), Held(BAGS)), Held(GRAD[:, turn]), mode)
        here.update_pooled(se.Bags(flat, BAGS), GRAD[:, turn], mode)
        np.testing.assert_allclose(host(there.lookup(Held(IDS))), here.lookup(IDS), rtol=1e-5, atol=1e-6)
        got = there.pool(se.Bags(Held(flat), Held(BAGS)), mode)
        np.testing.assert_allclose(host(got), here.pool(se.Bags(flat, BAGS), mode), rtol=1e-5, atol=1e-6)
    there.apply(there.gradient(Held(IDS), Held(GRAD)))
    here.apply(here.gradient(IDS, GRAD))
    assert there.step == here.step == 5
    saved, want = there.state_dict(), here.state_dict()
    assert set(saved) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(saved[name], value, rtol=1e-4, atol=1e-5)
    assert (saved["weight"][2] == 0).all()


@pytest.mark.parametrize("rule", [se.Adam(lambda step: 0.1 / step), se.SGD(0.1, momentum=0.9)], ids=["Adam", "SGD"])
def test_rows_that_miss_many_steps_train_as_on_the_host(rule):
    """Each step touches two of nine rows; lookups between them read the others, and a maximum compares them."""
    there, here = (se.EmbeddingTable(9, 4, rule, rng=3, device=each) for each in ("cuda", "cpu"))
    rng, bags = np.random.default_rng(5), np.array([0, 4, 9])
    for turn in range(14):
        ids, grad = rng.integers(0, 9, 2), numbers(rng, (2, 4), np.float32)
        there.update(Held(ids), Held(grad))
        here.update(ids, grad)
        if turn % 4 == 3:
            np.testing.assert_array_equal(there.lookup(Held(IDS)).to_host(), here.lookup(IDS))
        if turn % 5 == 4:
            there.update_pooled(se.Bags(Held(np.arange(9)), Held(bags)), Held(grad), "max")
            here.update_pooled(se.Bags(np.arange(9), bags), grad, "max")
    np.testing.assert_array_equal(there.state_dict()["weight"], here.weight)


def test_a_step_from_a_maximum_reads_the_rows_of_its_bags_alone(gpus):
    """Not the table: the cost follows the batch."""
    table = se.EmbeddingTable(9, 4, se.Adam(0.1), rng=3, device="cuda")
    for _ in range(3):
        table.update_pooled(se.Bags(Held(IDS[0]), Held(np.array([0, 5]))), Held(GRAD[0, :1]), "max")
    assert "flush_rows" not in gpus.queues[0, 1].started


def test_a_gradient_leaves_out_its_own_padding():
    """Whether the table has the same, another, or none."""
    for mine, its in ((None, 2), (2, 2), (4, 2), (4, None)):
        there, here = (
            se.EmbeddingTable(9, 4, se.RowwiseAdagrad(0.1, weight_decay=0.1), rng=3, padding_idx=mine, device=each)
            for each in ("cuda", "cpu")
        )
        there.apply(se.coalesce(Held(IDS), Held(GRAD), 9, padding_idx=its))
        here.apply(se.coalesce(IDS, GRAD, 9, padding_idx=its))
        np.testing.assert_allclose(there.state_dict()["weight"], here.weight, rtol=1e-6, atol=1e-7)


def test_tables_are_saved_and_move_between_devices():
    there = se.EmbeddingTable(9, 4, se.Adam(0.1), rng=3, device="cuda:0")
    there.update(Held(IDS), Held(GRAD))
    again = pickle.loads(pickle.dumps(there))
    here = se.EmbeddingTable(9, 4, se.Adam(0.1), rng=0)
    here.load_state_dict(there.state_dict())
    for table in (again, copy.deepcopy(there)):
        table.update(Held(IDS), Held(GRAD))
    here.update(IDS, GRAD)
    np.testing.assert_array_equal(again.state_dict()["weight"], here.weight)
    assert "EmbeddingTable(9 x 4 float32, Adam" in repr(there)
    assert "cuda:0" in repr(there)
    state = there.state
    np.testing.assert_array_equal(state["exp_avg"].shape, (9, 4))
    with pytest.raises(KeyError):
        there.load_state_dict({"weight": WEIGHT})


def test_a_table_is_indexed_as_on_the_host():
    there, here = (se.EmbeddingTable(9, 4, se.Adam(0.1), rng=3, device=each) for each in ("cuda", "cpu"))
    there.update(Held(IDS), Held(GRAD))
    here.update(IDS, GRAD)
    np.testing.assert_array_equal(host(there[Held(IDS)]), here[IDS])
    first, second = there[[Held(IDS), Held(IDS[0])]]
    np.testing.assert_array_equal(host(first), here[IDS])
    np.testing.assert_array_equal(host(second), here[IDS[0]])


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("several", [False, True])
def test_what_counts_nothing_in_its_bag_gets_no_gradient(mode, several):
    """Not the product of 0 and NaN: a weight of 0, and weights that add up to nothing to divide by."""
    ids = np.array([1, 2, 3, 4, *[5] * 40, 6, 6, 7])  # 5: a run that a block sums
    weights = np.array([0, 2, 1, -1, *[0] * 40, 0, 1, 0.5], np.float32)
    offsets = np.array([0, 2, 4, 44, 45, 47])
    grad = np.full((5, 4), np.nan, np.float32)
    grad[0, 1:] = grad[4] = 1
    still = [0, 1, 5, 8] + ([3, 4] if mode == "mean" else [])  # 1 - 1
    table = se.EmbeddingTable(9, 4, se.SGD(1.0), rng=3, device="cuda")
    before = table.state_dict()["weight"]
    lookups = [(se.Bags(Held(ids), Held(offsets), Held(weights)), Held(grad))]
    if several:
        lookups.append((se.Bags(Held(ids[-1:]), Held(np.array([0, 1]))), Held(np.zeros((1, 4), np.float32))))
    table.update_pooled([bags for bags, _ in lookups], [each for _, each in lookups], mode)
    after = table.state_dict()["weight"]
    np.testing.assert_array_equal(after[still], before[still])
    assert np.isnan(after[2]).tolist() == [True, False, False, False]
    assert (after[[6, 7]] < before[[6, 7]]).all()
    if not several:
        summed = se.pool_gradient(*lookups[0], 9, mode)
        rows, values = host(summed.rows), host(summed.values)
        assert rows.tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert (values[[0, 4]] == 0).all()


def test_a_table_adopts_the_callers_array():
    held = Held(np.tile(WEIGHT, (1, 1)))
    table = se.EmbeddingTable.from_array(held, se.SGD(1.0), max_norm=1.0)
    assert np.linalg.norm(held.array, axis=1).max() <= 1
    assert table.weight is held
    before = held.array.copy()
    table.update(Held(np.array([1])), Held(np.ones((1, 4), np.float32)))
    assert (held.array != before).any(axis=1).tolist() == [False, True] + [False] * 7
    copied = se.EmbeddingTable.from_array(held, se.SGD(1.0), copy=True)
    copied.update(Held(np.array([3])), Held(np.ones((1, 4), np.float32)))
    assert (held.array[3] == before[3]).all()


def test_gradients_may_be_clipped_on_the_host():
    there, here = (se.EmbeddingTable(9, 4, se.Adam(0.1), rng=3, device=each) for each in ("cuda", "cpu"))
    for _ in range(2):
        mine, its = there.gradient(Held(IDS), Held(GRAD)).to_host(), here.gradient(IDS, GRAD)
        assert se.clip_by_global_norm([mine], 1.0) == se.clip_by_global_norm([its], 1.0)
        there.apply(mine)
        here.apply(its)
    np.testing.assert_array_equal(there.state_dict()["weight"], here.weight)


def test_arrays_of_no_framework_are_copied_to_the_host():
    there, here = (se.EmbeddingTable(9, 4, se.SparseAdam(0.1), rng=3, device=each) for each in ("cuda", "cpu"))
    there.update(Held(IDS), Held(GRAD))
    here.update(IDS, GRAD)
    np.testing.assert_array_equal(there.lookup(Held(IDS)).to_host(), here.lookup(IDS))
    np.testing.assert_array_equal(there.weight.to_host(), here.weight)
    for name, value in here.state.items():  # whose rows lie apart
        np.testing.assert_array_equal(there.state[name].to_host(), value)
    assert there.lookup(Held(IDS[:0])).to_host().shape == (0, 5, 4)
    assert repr(there.weight) == "DeviceArray(shape=(9, 4), dtype=float32)"


def test_a_recorded_update_reads_its_step_from_the_device():
    """What a CUDA graph replays: kernels with the same arguments, other scalars in the buffer."""
    rule = se.SparseAdam(lr=lambda step: 1 / step)
    one, other = (se.EmbeddingTable(9, 4, rule, rng=3, device="cuda") for _ in range(2))
    for _ in range(2):
        one.update(Held(IDS), Held(GRAD))
        other.begin_step()
        with other.recording():
            other.update(Held(IDS), Held(GRAD))
    np.testing.assert_array_equal(one.state_dict()["weight"], other.state_dict()["weight"])
    assert one.step == other.step == 2
    with (
        pytest.raises(ValueError, match="keeps a history"),
        se.EmbeddingTable(9, 4, se.Adam(), device="cuda").recording(),
    ):
        pass


def test_the_callers_stream_is_used(gpus):
    se.gather(Held(WEIGHT, stream=77), Held(IDS, stream=77))
    assert [key for key, each in gpus.queues.items() if "gather_rows" in each.started] == [(0, 77)]


def test_results_are_of_the_callers_kind(monkeypatch, gpus):
    """A stand-in for CuPy: its arrays come back, made on its current stream."""

    class ndarray(Held):  # noqa: N801  (its name there)
        device = types.SimpleNamespace(id=0)
        shape = property(lambda self: self.array.shape)
        dtype = property(lambda self: self.array.dtype)

    class Device:
        def __init__(self, number):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    cuda = types.SimpleNamespace(get_current_stream=lambda: types.SimpleNamespace(ptr=5), Device=Device)
    made = types.SimpleNamespace(ndarray=ndarray, cuda=cuda, empty=lambda shape, dtype: ndarray(np.empty(shape, dtype)))
    made.ascontiguousarray = lambda value: value
    monkeypatch.setitem(__import__("sys").modules, "cupy", made)
    got = se.gather(ndarray(WEIGHT), ndarray(IDS))
    assert type(got) is ndarray
    np.testing.assert_array_equal(got.array, WEIGHT[IDS])
    assert type(se.EmbeddingTable(9, 4, device="cuda").lookup(ndarray(IDS))) is ndarray
    assert "gather_rows" in gpus.queues[0, 5].started


def test_arrays_of_jax_are_read_as_they_are_made_and_kept_until_the_gpu_is_done(monkeypatch, gpus):
    """A stand-in for JAX: DLPack alone waits for its values, and nobody may write to them."""

    class Array:
        def __init__(self, array):
            self.array = np.array(array)

        def platform(self):
            return "cuda"

        def __dlpack_device__(self):
            return 2, 0

    class StridedMemoryView:
        @staticmethod
        def from_dlpack(value, stream_ptr):
            assert stream_ptr == 1
            a = value.array
            steps = tuple(step // a.itemsize for step in a.strides)
            place = a.__array_interface__["data"][0]
            return types.SimpleNamespace(ptr=place, shape=a.shape, strides=steps, dtype=a.dtype, readonly=False)

    numpy = types.SimpleNamespace(zeros=lambda shape, dtype: Array(np.zeros(shape, dtype)))
    dlpack = types.SimpleNamespace(from_dlpack=lambda array: Array(host(array)))
    modules = __import__("sys").modules
    monkeypatch.setitem(modules, "jax", types.SimpleNamespace(Array=Array, numpy=numpy, dlpack=dlpack))
    monkeypatch.setattr("cuda.core.utils.StridedMemoryView", StridedMemoryView)
    weight, ids = Array(WEIGHT), Array(IDS)
    got = se.gather(weight, ids)
    assert type(got) is Array
    np.testing.assert_array_equal(got.array, WEIGHT[IDS])
    held = gpus.queues[0, 1].held
    assert held == [weight, ids]  # when all of the call has been started
    assert se.gather(weight, Array(IDS[:0])).array.shape == (0, 5, 4)
    for call in (
        lambda: se.scatter_add(weight, ids, Array(GRAD)),
        lambda: se.EmbeddingTable.from_array(weight, se.SGD(0.1)),
        lambda: se.gather(Held(WEIGHT), Held(IDS), Array(GRAD)),
    ):
        with pytest.raises(ValueError, match="read-only"):
            call()
    table = se.EmbeddingTable.from_array(weight, se.SGD(0.1), copy=True)
    held.clear()
    table.update(ids, grad := Array(GRAD))
    assert held == [ids, grad]
    se.EmbeddingTable.from_array(weight).lookup(ids)
    assert held == [ids, grad, weight, ids, weight]  # the table itself may end before the GPU has read it
    here = se.EmbeddingTable.from_array(WEIGHT, se.SGD(0.1), copy=True)
    here.update(IDS, GRAD)
    np.testing.assert_array_equal(table.state_dict()["weight"], here.weight)

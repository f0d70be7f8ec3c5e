"""Nothing is lost without a word: what cannot be written to, what has another byte order, what is listed twice."""

import copy
import dataclasses
import functools
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from patience import HANGS

import sparsembed as se
from sparsembed._cpu.views import overlaps


class Detached:
    """An array-like that hands out copies, as files of arrays and frames of several blocks do."""

    def __init__(self, array):
        self.array = np.array(array)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype)


class Old(Detached):
    """The same, from before NumPy 2."""

    def __array__(self, dtype=None):
        return np.array(self.array, dtype)


class Sharing(Detached):
    """An array-like that hands out its own memory."""

    def __array__(self, dtype=None, copy=None):
        return self.array


WRITTEN = {
    "weight of scatter_add": lambda a: se.scatter_add(a, [1, 1], np.ones((2, 1))),
    "weight of a table": lambda a: se.EmbeddingTable.from_array(a, se.SGD(lr=1.0)).update([1], -2 * np.ones((1, 1))),
    "weight with padding": lambda a: se.EmbeddingTable.from_array(a, padding_idx=1),
    "weight with a largest norm": lambda a: se.EmbeddingTable.from_array(a, max_norm=1.0),
    "out of gather": lambda a: se.gather(np.full((3, 1), 2.0), [1, 0, 1], out=a),
    "out of pool": lambda a: se.pool(np.full((3, 1), 2.0), se.Bags.from_lists([[1], [0], [2]]), out=a),
    "out of pool, max": lambda a: se.pool(np.full((3, 1), 2.0), se.Bags.from_lists([[1], [0], [2]]), "max", out=a),
    "dense": lambda a: se.clip_by_global_norm([], 0.5, dense=[a]),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_hands_out_copies_is_refused_where_it_would_be_written_to(name):
    for kind in (Detached, Old):
        with pytest.raises(TypeError, match="hands out copies of its memory; pass the array itself"):
            WRITTEN[name](kind(np.full((3, 1), 3.0)))
    with pytest.raises(TypeError, match="written to in place, so it must be an array, got a list"):
        WRITTEN[name]([[3.0], [3.0], [3.0]])


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("kind", [Sharing, lambda array: memoryview(array.array), lambda array: array.array])
def test_what_shares_its_memory_is_written_to(name, kind):
    source = Sharing(np.full((3, 1), 3.0))
    WRITTEN[name](kind(source))
    assert (source.array != 3).any()


def test_a_table_that_nobody_writes_to_may_be_made_of_anything():
    for weight in (Detached(np.ones((3, 1))), [[1.0], [1.0], [1.0]]):
        assert se.EmbeddingTable.from_array(weight).lookup([2]) == 1
        trained = se.EmbeddingTable.from_array(weight, se.SGD(lr=1.0), copy=True)
        trained.update([1], np.ones((1, 1)))
        np.testing.assert_array_equal(trained.weight.ravel(), [1, 0, 1])


@pytest.mark.parametrize("order", "<>=")
def test_byte_order_is_no_precision(order):
    wide, narrow = np.dtype(f"{order}f8"), np.dtype(f"{order}f4")
    grad = np.array([[1.0, 1e300], [1e-9, 1 / 3]], wide)
    summed = se.coalesce([0, 0], grad, 2).values
    assert summed.dtype == np.float64
    np.testing.assert_array_equal(summed, [[1 + 1e-9, 1e300]])
    assert se.coalesce([0], np.ones((1, 1), narrow), 2).values.dtype == np.float32
    values = se.RowGradient([0], np.array([[1 / 3]], wide), 1).values
    assert (values.dtype, values[0, 0]) == (np.float64, 1 / 3)
    bags = se.Bags([0], [0, 1], np.array([0.1], wide))
    assert se.pool(np.ones((1, 1)), bags)[0, 0] == 0.1
    assert se.pool_gradient(bags, np.array([[1 / 3]], wide), 1).values[0, 0] == 0.1 * (1 / 3)
    slices = se.RowGradient.from_indexed_slices((np.array([[1 / 3]], wide), [0], (1, 1)))
    assert slices.values[0, 0] == 1 / 3
    table = se.EmbeddingTable.from_array(np.zeros((1, 1)), se.SGD(lr=1.0))
    table.update([0], np.array([[1 / 3]], wide))
    assert table.weight[0, 0] == -1 / 3


def test_masked_arrays_in_a_list_are_refused():
    masked = np.ma.masked_array([1.0, 2.0], mask=[True, False])
    with pytest.raises(TypeError, match="grad_out must not be a masked array"):
        se.coalesce([0, 1], [masked, masked], 3)
    with pytest.raises(TypeError, match=r"ids\[0\] must not be a masked array"):
        se.gather(np.ones((3, 1)), (np.ma.masked_array([0], mask=[True]),))


def test_an_error_of_an_objects_own_conversion_names_the_argument():
    class Broken:
        def __dlpack__(self, **_):
            raise BufferError("somewhere else")

    class Failing:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("not now")

    for value, said in ((Broken(), "BufferError: somewhere else"), (Failing(), "RuntimeError: not now")):
        with pytest.raises(TypeError, match=f"ids must be an array, got a {type(value).__name__} .*{said}"):
            se.gather(np.ones((3, 1)), value)


# ---------------------------------------------------------------------- clipping


class AlarmError(Exception):
    pass


@pytest.mark.parametrize("kind", [AlarmError, RuntimeError, ValueError, AttributeError])
def test_an_exception_of_a_signal_handler_is_not_taken_for_one_of_the_conversion(kind):
    """A handler runs at the end of any call into C, such as the conversion of an array."""

    def handler(*_, **__):
        raise error

    class Array:
        __array__ = functools.partial(handler)  # no method, which would be the conversion's own

    error = kind("alarm")
    with pytest.raises(kind) as caught:
        se.gather(np.ones((3, 2)), Array())
    assert caught.value is error
    torch = pytest.importorskip("torch")

    class Tensor(torch.Tensor):
        numpy = functools.partial(handler)

    with pytest.raises(kind) as caught:
        se.gather(np.ones((3, 2)), torch.zeros(2, dtype=torch.int64).as_subclass(Tensor))
    assert caught.value is error


def test_a_gradient_that_is_listed_twice_counts_once_and_is_scaled_once():
    gradient, dense = se.RowGradient([0], np.array([[3.0]]), 2), np.array([4.0])
    listed = [dense, dense, dense[:], dense.reshape(1)]
    assert se.clip_by_global_norm([gradient, gradient], 1.0, dense=listed) == 5
    np.testing.assert_allclose(gradient.values, 0.6)
    np.testing.assert_allclose(dense, 0.8)


@pytest.mark.parametrize("value", [4.0, np.float64(4.0), Detached(np.array(4.0))])
def test_numbers_in_dense_are_refused(value):
    with pytest.raises(
        TypeError, match=r"dense\[0\] is a float.* cannot be written to|dense\[0\] is written to in place"
    ):
        se.clip_by_global_norm([], 1.0, dense=[value])
    one = np.array(4.0)
    assert se.clip_by_global_norm([], 1.0, dense=[one, one.reshape(1)]) == 4
    np.testing.assert_allclose(one, 1)


@given(st.lists(st.tuples(st.slices(5), st.slices(4)), max_size=4), st.permutations(range(5)), st.booleans())
def test_numbers_that_several_dense_gradients_share_count_once_and_are_scaled_once(views, order, transposed):
    array = np.random.default_rng(0).standard_normal((5, 4))
    before, counted = array.copy(), np.zeros((5, 4), bool)
    given = [array.T if transposed else array[1:]] + [array[each] for each in views]
    for part in [np.s_[:] if transposed else np.s_[1:], *views]:
        counted[part] = True
    given = [given[i] for i in order if i < len(given)]
    norm = np.linalg.norm(before[counted])
    np.testing.assert_allclose(se.clip_by_global_norm([], norm / 2, dense=iter(given)), norm, rtol=1e-14)
    np.testing.assert_allclose(array, np.where(counted, before / 2, before), rtol=1e-14)


def test_dense_gradients_that_share_their_memory_in_other_ways_are_refused():
    array = np.full(6, 3.0)
    odd = array.view(np.uint8)[4:-4].view(np.float32)[1:-1]
    for one in (array.view(np.float32), odd):
        with pytest.raises(ValueError, match="share bytes, but not as the same numbers"):
            se.clip_by_global_norm([], 1.0, dense=[array, one])
    with pytest.raises(ValueError, match=r"dense\[0\] uses some memory for two elements"):
        se.clip_by_global_norm([], 1.0, dense=[as_strided(array, (3, 2, 2), (8, 8, 8))])
    np.testing.assert_array_equal(array, 3)
    se.clip_by_global_norm([], 1.0, dense=[array[::2], array[1::2]])
    assert np.linalg.norm(array) <= 1 + 1e-15


@pytest.mark.parametrize("number", [4, 4.0, True, 1j, np.float32(4), np.float64(4), np.int64(4)])
def test_numbers_that_cannot_be_written_to_are_refused_and_nothing_is_scaled(number):
    gradient, dense = se.RowGradient([0], np.array([[3.0]]), 2), np.array([4.0])
    with pytest.raises(TypeError, match=r"dense\[1\] is an? \w+, a number that cannot be written to"):
        se.clip_by_global_norm([gradient], 1.0, dense=[dense, number])
    assert (gradient.values[0, 0], dense[0]) == (3.0, 4.0)


def test_parameters_in_place_of_gradients_are_refused():
    torch = pytest.importorskip("torch")
    layer, unused = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    before = [each.detach().clone() for each in layer.parameters()]
    with pytest.raises(TypeError, match=r"dense\[0\] requires grad.*pass p\.grad"):
        se.clip_by_global_norm([], 0.1, dense=layer.parameters())
    assert all(bool((a == b).all()) for a, b in zip(before, layer.parameters(), strict=True))
    grads = [p.grad for module in (layer, unused) for p in module.parameters()]
    norm = se.clip_by_global_norm([], 0.1, dense=grads)  # None is left out
    np.testing.assert_allclose(norm, np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(
        [each.norm() for each in grads[:2]], [0.1 * np.sqrt(2 / 3), 0.1 * np.sqrt(1 / 3)], rtol=1e-5
    )


def test_gradients_of_any_iterable_are_clipped():
    one, two = (se.RowGradient([0], np.array([[number]]), 2) for number in (3.0, 4.0))
    assert se.clip_by_global_norm((each for each in (one, two)), 1.0) == 5
    np.testing.assert_allclose([one.values[0, 0], two.values[0, 0]], [0.6, 0.8])
    assert se.clip_by_global_norm(one, np.inf) == one.norm()


@given(st.data())
def test_the_norm_is_at_most_the_largest_allowed(data):
    rng = data.draw(st.integers(0, 2**32 - 1).map(np.random.default_rng))
    dtypes = st.sampled_from([np.float32, np.float64])

    def values():
        size = 10.0 ** data.draw(st.integers(-20, 20))
        return (size * rng.standard_normal((2, data.draw(st.integers(1, 9))))).astype(data.draw(dtypes))

    gradients = [se.RowGradient([0, 1], values(), 3) for _ in range(data.draw(st.integers(0, 3)))]
    dense = [values() for _ in range(data.draw(st.integers(0, 2)))]
    most = data.draw(st.floats(1e-10, 1e10))
    before = se.clip_by_global_norm(gradients, most, dense=dense)
    arrays = [*(each.values for each in gradients), *dense]
    after = np.sqrt(sum((np.asarray(each, np.longdouble) ** 2).sum() for each in arrays))
    assert after <= most * (1 + 2.0**-50) or before <= most
    if before > most:
        assert after >= most * (1 - 1e-5)


@given(st.integers(0, 5), st.integers(0, 5), *[st.sampled_from([0, 2, 4, 6, 8, 12, 16, 20, 24, 40])] * 2)
def test_overlaps_are_found_and_nothing_else_is(rows, columns, row_stride, column_stride):
    array = as_strided(np.zeros(1), (rows, columns), (row_stride, column_stride))
    places = sorted(i * row_stride + j * column_stride for i in range(rows) for j in range(columns))
    assert overlaps(array) == any(b - a < 8 for a, b in itertools.pairwise(places))


def test_rows_that_lie_between_each_other_can_be_trained():
    weight = as_strided(np.zeros(8), (2, 3), (24, 16))
    table = se.EmbeddingTable.from_array(weight, se.SGD(lr=1.0))
    table.update([1], np.array([[1.0, 2.0, 3.0]]))
    np.testing.assert_array_equal(weight, [[0, 0, 0], [-1, -2, -3]])


def test_a_factor_that_the_dtype_cannot_hold_is_refused():
    gradient = se.RowGradient([1], np.array([[0.0, 1e-10]], np.float32), 2)
    with pytest.raises(ValueError, match="factor must fit into float32, got 1e\\+39"):
        gradient.scale(1e39)
    np.testing.assert_allclose(gradient.scale(-1e38).values, [[0, -1e28]], rtol=1e-6)
    assert se.RowGradient([1], np.array([[1e-10]]), 2).scale(1e39).values == 1e29


# ---------------------------------------------------------------------- no gradient is no gradient


@pytest.mark.parametrize("dim", [1, 5, 16, 64, 65])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("nothing", [np.nan, np.inf])
def test_a_zero_factor_is_no_gradient_whatever_the_gradient_holds(nothing, dtype, dim):
    """Of a bag whose divisor is zero, a weight of zero, and the padding."""
    weights = [[1.0, -1.0], [0.0, 2.0], [1.0, 1.0]]
    bags = se.Bags.from_lists([[1, 2], [3, 4], [5, 6]], weights)
    grad = np.ones((3, dim), dtype)
    for mode, bag, touched in (("mean", 0, [3, 4, 5, 6]), ("sum", 1, [1, 2, 5, 6]), ("sqrtn", 1, [1, 2, 5, 6])):
        bad = grad.copy()
        bad[bag] = nothing
        gradient = se.pool_gradient(bags, bad, 9, mode)
        expected = se.reference.pool_gradient(bags, bad, 9, mode)
        np.testing.assert_allclose(gradient.values, expected[gradient.rows], rtol=1e-6)
        assert not expected[3 if mode != "mean" else [1, 2]].any()
        table = se.EmbeddingTable.from_array(np.zeros((9, dim), dtype), se.SGD(lr=1.0))
        table.update_pooled(bags, bad, mode)
        assert np.isfinite(table.weight[touched]).all()
        assert not table.weight[3 if mode != "mean" else [1, 2]].any()
    bad = grad.copy()
    bad[0] = nothing
    hot = se.Bags(np.ones(2000, np.int64), [0, 1000, 2000, 2000], np.tile([1.0, -1.0], 1000))  # in chunks, too
    assert not se.pool_gradient(hot, bad, 3, "mean").values.any()
    plain = se.Bags.from_lists([[0, 0], [1], [2]])
    found = se.pool_gradient(plain, bad, 3, "mean", padding_idx=0)
    np.testing.assert_array_equal(found.rows, [1, 2])
    assert np.isfinite(found.values).all()


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("weights", [[10, 100], np.array([10, 100], np.int32), np.array([10, 100], np.uint8)])
def test_whole_number_weights_are_weights_in_every_constructor(weights):
    table = np.arange(3.0)[:, None]
    rectangle = np.array([weights])
    made = [
        se.Bags([1, 2], [0, 2], weights),
        se.Bags.from_lists([[1, 2]], [weights]),
        se.Bags.from_padded(np.array([[1, 2]]), None, rectangle),
        copy.deepcopy(se.Bags([1, 2], [0, 2], weights)),
    ]
    for bags in made:
        assert bags.per_sample_weights.dtype == np.float64
        assert se.pool(table, bags)[0, 0] == 210
        np.testing.assert_array_equal(se.pool_gradient(bags, np.ones((1, 1)), 3).values.ravel(), [10, 100])
    for wrong in ([True, False], ["a", "b"], [1j, 2j]):
        with pytest.raises(TypeError, match="per_sample_weights must hold floats"):
            se.Bags([1, 2], [0, 2], wrong)


class Zero:
    """Like a tensor or a jax array of no dimensions."""

    ndim = 0

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


@pytest.mark.parametrize("lr", [np.array(0.1), np.float32(0.1), Zero(0.1)])
def test_numbers_may_be_arrays_without_dimensions(lr):
    for rule in (se.SGD(lr=lr), se.SGD(lr=lambda step: lr), se.SGD(lr=lr, momentum=Zero(0.0))):
        table = se.EmbeddingTable.from_array(np.zeros((3, 1)), rule)
        table.update([0], np.ones((1, 1)))
        np.testing.assert_allclose(table.weight[0], -0.1, rtol=1e-6)
        assert hash(rule) is not None
    assert se.Adam(betas=[np.array(0.5), Zero(0.9)]).betas == (0.5, 0.9)
    assert repr(se.SGD(lr=np.array(0.5))) == "SGD(lr=0.5)"
    with pytest.raises(TypeError, match=r"lr\(1\) must be a number, got ndarray"):
        se.SGD(lr=lambda step: np.array([0.1])).rate(1)
    with pytest.raises(TypeError, match="must be a number, got bool"):
        se.SGD(lr=np.array(True))


def test_a_schedule_that_ends_below_zero_says_what_to_do():
    with pytest.raises(ValueError, match=r"max\(schedule\(step\), 0\)"):
        se.SGD(lr=lambda step: -4e-10).rate(1)


def test_a_rate_that_the_dtype_rounds_to_zero_is_refused_where_it_divides():
    for dtype, fits in ((np.float32, False), (np.float64, True)):
        table = se.EmbeddingTable.from_array(np.ones((2, 1), dtype), se.FTRL(lr=1e-46))
        with pytest.raises(ValueError, match="its reciprocal a number"):
            dataclasses.replace(se.FTRL(), lr=1e-44 if not fits else 1e-320).scalars(1, np.dtype(dtype))
        if fits:
            table.update([0], np.ones((1, 1)))
            assert table.step == 1
        else:
            with pytest.raises(ValueError, match=r"greater than zero in float32, .* got 1e-46 at step 1"):
                table.update([0], np.ones((1, 1)))
            assert (table.step, table.weight[0, 0]) == (0, 1)


def test_no_dtype_is_no_dtype():
    with pytest.raises(TypeError, match="dtype must be float32, float64 or float16, got None"):
        se.EmbeddingTable(4, 2, dtype=None)
    with pytest.raises(TypeError, match="got None"):
        se.initializers.zeros((4, 2), dtype=None, rng=None)


TRAIN = """
import numpy as np, sparsembed as se
def train():
    found = []
    decayed, momentum = se.SGD(.1, weight_decay=.1), se.SGD(.1, momentum=.5)
    for rule in (se.Adam(lr=.1), se.AdamW(lr=.1), se.RMSprop(lr=.1), decayed, momentum):
        table = se.EmbeddingTable.from_array(np.linspace(-1, 1, 12).reshape(4, 3), rule)
        for ids in ([1, 1], [2], [0, 3], [1]):
            table.update(ids, np.ones((len(ids), 3)))
        found.append(np.concatenate([table.lookup([2, 1]), table.weight, *table.state.values()]).ravel().tolist())
    return found
"""


def test_rules_that_catch_up_train_in_plain_python_as_they_do_compiled():
    """Their coefficients lie in rows that are padded."""
    home = str(Path(se.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": paths, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", TRAIN + "import json; print(json.dumps(train()))"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    scope = {}
    exec(TRAIN, scope)
    for plain, compiled in zip(json.loads(done.stdout), scope["train"](), strict=True):
        np.testing.assert_allclose(plain, compiled, rtol=1e-12)
        assert all(map(math.isfinite, plain))

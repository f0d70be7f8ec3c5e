"""Bags: the ways to make them all lead to ids, offsets and weights."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from strategies import INPUTS, arrange, generators

import sparsembed as se


def same(bags, ids, offsets, weights=None):
    np.testing.assert_array_equal(bags.ids, ids)
    np.testing.assert_array_equal(bags.offsets, offsets)
    assert (bags.per_sample_weights is None) == (weights is None)
    if weights is not None:
        np.testing.assert_array_equal(bags.per_sample_weights, weights)
    assert len(bags) == bags.num_bags == len(offsets) - 1


@pytest.mark.parametrize("layout", INPUTS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_bags(dtype, layout):
    ids, offsets = np.array([4, 1, 4], dtype), np.array([0, 2, 2, 3], dtype)
    weights = np.array([0.5, 2, 1], np.float32)
    bags = se.Bags(arrange(ids, layout), arrange(offsets, layout), arrange(weights, layout))
    same(bags, ids, offsets, weights)
    assert bags.ids.dtype == dtype
    assert repr(bags) == "Bags(3 bags, 3 ids, weighted)"
    assert repr(se.Bags(ids, offsets)) == "Bags(3 bags, 3 ids)"


def test_what_is_copied():
    ids, offsets, weights = np.array([4, 1]), np.array([0, 2]), np.ones(2)
    bags = se.Bags(ids, offsets, weights)
    assert np.shares_memory(bags.ids, ids)
    assert np.shares_memory(bags.per_sample_weights, weights)
    offsets[:] = 9
    np.testing.assert_array_equal(bags.offsets, [0, 2])
    assert ids.flags.writeable
    assert not bags.ids.flags.writeable


@pytest.mark.parametrize("travel", [copy.deepcopy, copy.copy, lambda bags: pickle.loads(pickle.dumps(bags))])
def test_bags_travel(travel):
    """To and from the worker processes of a data loader."""
    bags = travel(se.Bags(np.array([4, 1]), np.array([0, 2]), np.ones(2)))
    same(bags, [4, 1], [0, 2], [1, 1])
    # Kernels take inputs as read-only; one that is not would have each of them compiled once more.
    assert not any(array.flags.writeable for array in (bags.ids, bags.offsets, bags.per_sample_weights))


PADDED = np.array([[3, 0, 5], [0, 0, 0], [0, 7, 0]])


@pytest.mark.parametrize("layout", INPUTS)
def test_from_padded(layout):
    ids, weights = arrange(PADDED, layout), arrange(np.arange(9.0).reshape(3, 3), layout)
    same(se.Bags.from_padded(ids, 0), [3, 5, 7], [0, 2, 2, 3])
    same(se.Bags.from_padded(ids, padding_idx=7), [3, 0, 5, 0, 0, 0, 0, 0], [0, 3, 6, 8])
    same(se.Bags.from_padded(ids, padding_idx=None), PADDED.ravel(), [0, 3, 6, 9])
    same(se.Bags.from_padded(ids, 0, weights), [3, 5, 7], [0, 2, 2, 3], [0, 2, 7])


def test_from_padded_with_a_negative_id():
    same(se.Bags.from_padded(np.array([[-1, 4], [2, -1]], np.int32), padding_idx=-1), [4, 2], [0, 1, 2])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_from_padded_empty(shape):
    same(se.Bags.from_padded(np.zeros(shape, np.int64), 0), [], [0] * (shape[0] + 1))


def test_from_lists():
    same(se.Bags.from_lists([[1, 2], [], [2]]), [1, 2, 2], [0, 2, 2, 3])
    same(se.Bags.from_lists([[1, 2], [], [2]], [[0.5, 1.0], [], [2.0]]), [1, 2, 2], [0, 2, 2, 3], [0.5, 1, 2])
    same(se.Bags.from_lists([]), [], [0])
    same(se.Bags.from_lists([[], []]), [], [0, 0, 0])
    same(se.Bags.from_lists(np.array([5], np.int32) for _ in range(2)), [5, 5], [0, 1, 2])
    assert se.Bags.from_lists([np.array([5], np.int32)] * 2).ids.dtype == np.int32


@given(st.integers(0, 9), st.integers(1, 9), st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), generators)
def test_from_csr(num_bags, num_rows, dtype, rng):
    """Pooling the bags of a sparse matrix is multiplying with it."""
    matrix = scipy.sparse.random_array((num_bags, num_rows), density=0.4, format="csr", rng=rng)
    matrix = (matrix * 3).astype(dtype)
    bags = se.Bags.from_csr(matrix)
    weight = rng.standard_normal((num_rows, 3))
    np.testing.assert_allclose(
        se.pool(weight, bags), matrix.toarray().astype(np.float64) @ weight, rtol=1e-12, atol=1e-12
    )


def test_from_csr_of_ones_is_not_weighted():
    matrix = scipy.sparse.csr_array(np.array([[0, 1, 1], [1, 0, 0]]))
    same(se.Bags.from_csr(matrix), [1, 2, 0], [0, 2, 3])
    assert se.pool(np.eye(3), se.Bags.from_csr(matrix), "max").sum() == 3


def test_from_csr_with_room_to_spare():
    """indptr may end before the arrays do, and indices may be unsorted and repeat."""
    arrays = np.array([2.0, 3.0, 4.0, 99.0]), np.array([1, 0, 1, 7], np.int32), np.array([0, 3], np.int32)
    matrix = scipy.sparse.csr_array((1, 2))
    matrix.data, matrix.indices, matrix.indptr = arrays
    same(se.Bags.from_csr(matrix), [1, 0, 1], [0, 3], [2, 3, 4])


def test_every_constructor_makes_the_same_bags(rng):
    lists, weight = [[3, 5], [], [7, 1, 1]], rng.standard_normal((9, 4))
    rectangle = np.array([[3, 5, 0], [0, 0, 0], [7, 1, 1]])
    matrix = scipy.sparse.csr_array(se.reference.bag_matrix(se.Bags.from_lists(lists), 9))
    made = [
        se.Bags.from_lists(lists),
        se.Bags.from_padded(rectangle, 0),
        se.Bags(rectangle[rectangle > 0], [0, 2, 2, 5]),
    ]
    for bags in made:
        np.testing.assert_array_equal(se.pool(weight, bags, "mean"), se.pool(weight, made[0], "mean"))
    np.testing.assert_allclose(se.pool(weight, se.Bags.from_csr(matrix), "mean"), se.pool(weight, made[0], "mean"))


def test_from_lists_with_whole_numbers_as_weights():
    bags = se.Bags.from_lists([[1, 2], [3]], [[2, 3], [0.5]])
    np.testing.assert_array_equal(bags.per_sample_weights, [2.0, 3.0, 0.5])


def test_padding_must_be_named():
    with pytest.raises(TypeError, match="padding_idx must be given: say which id fills up short rows, or None"):
        se.Bags.from_padded(PADDED)


# ------------------------------------------------------------------------------------------ parts and joins


@st.composite
def made_bags(draw, weighted=None, mode=None):
    """Bags with empty ones among them, and their lists of (ids, weights)."""
    rng = draw(generators)
    lengths = draw(st.lists(st.integers(0, 4), max_size=6))
    ids = rng.integers(0, 9, sum(lengths)).astype(draw(st.sampled_from([np.int32, np.int64])))
    weights = rng.uniform(0.5, 2, len(ids)) if (draw(st.booleans()) if weighted is None else weighted) else None
    return se.Bags(ids, np.cumsum([0, *lengths]), weights, mode=mode)


def lists_of(bags):
    ends = bags.offsets.tolist()
    weights = np.ones(len(bags.ids)) if bags.per_sample_weights is None else bags.per_sample_weights
    return [(bags.ids[a:b].tolist(), weights[a:b].tolist()) for a, b in itertools.pairwise(ends)]


indices = st.integers(-8, 8) | st.none()


@given(made_bags(mode="mean"), st.slices(6) | st.builds(slice, indices, indices, st.sampled_from([None, -1, 2, -3, 5])))
def test_a_slice_of_bags_is_that_of_the_list(bags, part):
    found = bags[part]
    assert lists_of(found) == lists_of(bags)[part]
    assert (found.mode, found.ids.dtype) == ("mean", bags.ids.dtype)
    assert (found.per_sample_weights is None) == (bags.per_sample_weights is None)
    if part.step in (None, 1) and found.ids.size:
        assert np.shares_memory(found.ids, bags.ids)


@given(made_bags(mode="sqrtn"), st.data())
def test_an_array_of_numbers_takes_bags(bags, data):
    which = data.draw(st.lists(st.integers(-len(bags), len(bags) - 1), max_size=8) if len(bags) else st.just([]))
    found = bags[np.array(which, np.int16)]
    assert lists_of(found) == [lists_of(bags)[b] for b in which]
    assert found.mode == "sqrtn"
    weight = np.random.default_rng(0).standard_normal((9, 3))
    np.testing.assert_allclose(se.pool(weight, found), se.reference.pool(weight, bags)[which], rtol=1e-12, atol=1e-12)
    assert [ids.tolist() for ids in bags] == [ids for ids, _ in lists_of(bags)]
    assert [bags[b].tolist() for b in which] == [lists_of(bags)[b][0] for b in which]


@given(st.lists(made_bags(), min_size=1, max_size=4))
def test_concatenate(parts):
    found = se.Bags.concatenate(iter(parts))
    assert lists_of(found) == [each for part in parts for each in lists_of(part)]
    assert (found.per_sample_weights is None) == all(part.per_sample_weights is None for part in parts)
    assert found.ids.dtype == np.result_type(*(part.ids for part in parts))


def test_parts_keep_the_callers_kind_and_are_read_only():
    torch = pytest.importorskip("torch")
    bags = se.Bags(torch.tensor([4, 1, 4]), [0, 2, 3], [0.5, 1.0, 2.0])
    weight = np.eye(5)
    for each in (bags[1:], bags[[1]], se.Bags.concatenate([bags])[1:], bags.with_weights([1.0, 1.0, 1.0])[1:]):
        assert isinstance(se.pool(weight, each), torch.Tensor)
        assert not any(array.flags.writeable for array in (each.ids, each.offsets, each.per_sample_weights))


@given(made_bags(weighted=False, mode="mean"), generators)
def test_other_weights_for_the_same_bags(bags, rng):
    factors = rng.uniform(0.5, 2, len(bags.ids)).astype(np.float32)
    other = bags.with_weights(factors)
    assert other.ids is bags.ids
    assert other.offsets is bags.offsets
    assert (other.mode, other.per_sample_weights.tolist()) == ("mean", factors.tolist())
    assert other.with_weights(None).per_sample_weights is None
    assert bags.per_sample_weights is None


def test_other_weights_keep_the_plan(monkeypatch):
    bags = se.Bags(se.plan(np.array([4, 1, 4]), 5), [0, 2, 3])
    other = bags.with_weights(np.array([0.5, 2.0, 3.0]))
    monkeypatch.setattr("sparsembed._cpu.gradients.sort", None)  # a sort would raise
    values = se.pool_gradient(other, np.array([[1.0], [10.0]]), 5).values
    np.testing.assert_array_equal(values, [[2.0], [30.5]])
    with pytest.raises(ValueError, match=r"one weight per id, \(3,\), got \(2,\)"):
        bags.with_weights([1.0, 2.0])


WRONG = [
    (lambda b: b[3], IndexError, "3 is out of range for 3 bags"),
    (lambda b: b[[0, -4]], IndexError, "-4 is out of range for 3 bags"),
    (lambda b: b[np.array([True, False, True])], TypeError, r"mask.*np\.flatnonzero"),
    (lambda b: b[1, 2], TypeError, "a tuple; for several pass a list"),
    (lambda b: b[[[1, 2]]], ValueError, r"shape \(1, 2\)"),
    (lambda b: b["1"], TypeError, "index must be"),
    (lambda b: b[1.0], TypeError, "index must be.*float64"),
    (lambda b: b[None], TypeError, "index must be.*None"),
    (np.asarray, TypeError, "table.pool"),
    (lambda b: b.concatenate([]), ValueError, "at least one Bags"),
    (lambda b: b.concatenate(b), TypeError, "list of Bags, got a Bags"),
    (lambda b: b.concatenate([b, None]), TypeError, r"bags\[1\] must be a Bags, got None"),
    (lambda b: b.concatenate([b, se.Bags([1], [0, 1], mode="sum")]), ValueError, "one mode, got 'mean', 'sum'"),
    (lambda b: b.concatenate([b, se.Bags([1], [0, 1])]), ValueError, "one mode, got 'mean', None"),
    (lambda b: b.concatenate([b], mode="sum"), ValueError, "one mode, got 'mean' with mode='sum'"),
    (lambda b: se.Bags(b.ids, b.offsets, mode="max").with_weights(np.ones(3)), ValueError, "takes no per_sample_w"),
]


@pytest.mark.parametrize(("call", "error", "says"), WRONG)
def test_wrong_parts(call, error, says):
    with pytest.raises(error, match=says):
        call(se.Bags(np.array([4, 1, 4]), [0, 2, 2, 3], mode="mean"))


# ------------------------------------------------------------------------------------------ modes

MODES = ("sum", "mean", "sqrtn", "max")
WAYS = {
    "Bags": lambda m: se.Bags([3, 5, 7], [0, 2, 2, 3], mode=m),
    "from_padded": lambda m: se.Bags.from_padded(PADDED, 0, mode=m),
    "from_lists": lambda m: se.Bags.from_lists([[3, 5], [], [7]], mode=m),
    "from_csr": lambda m: se.Bags.from_csr(scipy.sparse.csr_array(np.eye(9)[[3, 5, 7]]), mode=m),
    "concatenate": lambda m: se.Bags.concatenate([se.Bags([3, 5], [0, 2, 2]), se.Bags([7], [0, 1])], mode=m),
    "concatenated": lambda m: se.Bags.concatenate([se.Bags([3, 5], [0, 2, 2], mode=m), se.Bags([7], [0, 1], mode=m)]),
    "pickled": lambda m: pickle.loads(pickle.dumps(se.Bags([3, 5], [0, 2, 2], mode=m))),
    "copied": lambda m: copy.deepcopy(se.Bags([3, 5], [0, 2, 2], mode=m)),
}


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("way", WAYS)
def test_every_constructor_takes_a_mode(way, mode):
    bags = WAYS[way](mode)
    assert bags.mode == mode
    assert ("mode" in repr(bags)) == (mode is not None)
    weight = np.random.default_rng(0).standard_normal((9, 3))
    np.testing.assert_array_equal(se.pool(weight, bags), se.pool(weight, bags, mode or "sum"))


def calls(bags, rng, size=9):
    """Every operation of a mode, on arguments of its own, as a function of the mode."""
    weight, grad = rng.standard_normal((size, 3)), rng.standard_normal((len(bags), 3))

    def pooled(mode):
        return [se.pool(weight, bags, mode), new().pool(bags, mode)]

    def new():
        return se.EmbeddingTable.from_array(weight.copy(), se.SGD(lr=0.5))

    def updated(mode):
        several = [new() for _ in range(3)]
        several[0].update_pooled(bags, grad, mode)
        several[1].update_pooled([bags], [grad], mode)
        several[2].update_pooled([bags, bags], [grad, 2 * grad], mode)
        return [table.weight for table in several]

    def gradient(mode):
        at = weight if (mode or bags.mode) == "max" else None
        found = se.pool_gradient(bags, grad, size, mode, weight=at)
        expected = se.reference.pool_gradient(bags, grad, size, mode, weight=at)
        np.testing.assert_allclose(found.values, expected[found.rows], rtol=1e-12, atol=1e-12)
        return [found.values]

    def factors(mode):
        if (mode or bags.mode) == "max" and bags.mode in (None, "max"):
            return []
        return [se.per_sample_weights_gradient(weight, bags, grad, mode)]

    def referred(mode):
        return [se.reference.pool(weight, bags, mode)]

    return {each.__name__: each for each in (pooled, updated, gradient, factors, referred)}


@pytest.mark.parametrize("many", [False, True])  # the small calls, and the others
@pytest.mark.parametrize("mode", MODES)
def test_operations_use_the_mode_of_the_bags(mode, many, rng):
    size = 20_000 if many else 9
    ids, offsets = rng.integers(0, size, size), np.append(np.arange(0, size, 4), size)
    plain, own = se.Bags(ids, offsets), se.Bags(ids, offsets, mode=mode)
    seed = int(rng.integers(1 << 30))
    expected, found = (calls(bags, np.random.default_rng(seed), size) for bags in (plain, own))
    for name in expected:
        for own, of_call, used in ((expected, None, "sum"), (found, None, mode), (found, mode, mode)):
            for each, same_as in zip(own[name](of_call), expected[name](used), strict=True):
                np.testing.assert_array_equal(each, same_as)
        for other in {*MODES} - {mode}:
            with pytest.raises(ValueError, match=rf"mode must be '{mode}'.*got '{other}'"):
                found[name](other)


@pytest.mark.parametrize("modes", [("mean", "sum"), ("mean", None), (None, "max")])
def test_lists_of_bags_agree_on_a_mode(modes):
    table = se.EmbeddingTable(9, 2, se.SGD(lr=0.5), rng=0)
    before, grad = table.weight.copy(), np.ones((1, 2), np.float32)
    with pytest.raises(ValueError, match=r"one mode, got '.*' of .*, '.*' of bags"):
        table.update_pooled([se.Bags([1], [0, 1], mode=mode) for mode in modes], [grad, grad])
    assert table.step == 0
    np.testing.assert_array_equal(table.weight, before)


def test_modes_are_checked_when_bags_are_made():
    for mode in ("avg", 0, ["sum"], True):
        with pytest.raises(ValueError, match="mode must be one of"):
            se.Bags([1], [0, 1], mode=mode)
        with pytest.raises(ValueError, match="mode must be one of"):
            se.pool(np.eye(3), se.Bags([1], [0, 1]), mode)
    with pytest.raises(ValueError, match="takes no per_sample_weights"):
        se.Bags([1], [0, 1], [2.0], mode="max")

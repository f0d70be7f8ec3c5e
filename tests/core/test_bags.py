"""Bags: the ways to make them all lead to ids, offsets and weights."""

import copy
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
    same(se.Bags.from_padded(ids), [3, 5, 7], [0, 2, 2, 3])
    same(se.Bags.from_padded(ids, padding_idx=7), [3, 0, 5, 0, 0, 0, 0, 0], [0, 3, 6, 8])
    same(se.Bags.from_padded(ids, padding_idx=None), PADDED.ravel(), [0, 3, 6, 9])
    same(se.Bags.from_padded(ids, 0, weights), [3, 5, 7], [0, 2, 2, 3], [0, 2, 7])


def test_from_padded_with_a_negative_id():
    same(se.Bags.from_padded(np.array([[-1, 4], [2, -1]], np.int32), padding_idx=-1), [4, 2], [0, 1, 2])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_from_padded_empty(shape):
    same(se.Bags.from_padded(np.zeros(shape, np.int64)), [], [0] * (shape[0] + 1))


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
    made = [se.Bags.from_lists(lists), se.Bags.from_padded(rectangle), se.Bags(rectangle[rectangle > 0], [0, 2, 2, 5])]
    for bags in made:
        np.testing.assert_array_equal(se.pool(weight, bags, "mean"), se.pool(weight, made[0], "mean"))
    np.testing.assert_allclose(se.pool(weight, se.Bags.from_csr(matrix), "mean"), se.pool(weight, made[0], "mean"))


def test_from_lists_with_whole_numbers_as_weights():
    bags = se.Bags.from_lists([[1, 2], [3]], [[2, 3], [0.5]])
    np.testing.assert_array_equal(bags.per_sample_weights, [2.0, 3.0, 0.5])

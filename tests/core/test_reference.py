"""The oracle itself, against numbers computed by hand."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse

import sparsembed as se
from sparsembed import reference

NAN = np.nan
WEIGHT = np.array([[1.0, 8.0], [3.0, 4.0], [5.0, 0.0]])


def same(actual, expected):
    np.testing.assert_allclose(actual, np.asarray(expected, np.float64), rtol=1e-15, atol=0, strict=True)


def test_onehot():
    matrix = reference.onehot(np.array([[2, 0], [2, 1]]), 4)
    assert scipy.sparse.issparse(matrix)
    same(matrix.toarray(), [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]])
    assert reference.onehot([], 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [(1, [3, 4]), ([2, 2], [[5, 0], [5, 0]]), ([[0], [1]], [[[1, 8]], [[3, 4]]])],
)
def test_gather(ids, expected):
    same(reference.gather(WEIGHT.astype(np.float32), ids), expected)


def test_gather_nothing():
    assert reference.gather(WEIGHT, np.zeros((0, 3), int)).shape == (0, 3, 2)


def test_scatter_add():
    values = np.array([[1.0, 0.0], [0.0, 2.0], [4.0, 0.0]])
    same(reference.scatter_add(WEIGHT, [2, 0, 2], values), [[1, 10], [3, 4], [10, 0]])
    same(reference.scatter_add(WEIGHT, [2, 0, 2], values, alpha=-2), [[1, 4], [3, 4], [-5, 0]])
    assert WEIGHT[2, 0] == 5


def test_coalesce():
    same(reference.coalesce([[2, 0], [2, 2]], [[[1], [10]], [[2], [4]]], 4), [[10], [0], [7], [0]])


#  bags: (0, 2), (), (1, 1, 2), (2,); weights 1 3 | | 1 2 1 | 4
IDS, OFFSETS = np.array([0, 2, 1, 1, 2, 2]), np.array([0, 2, 2, 5, 6])
WEIGHTS = np.array([1.0, 3.0, 1.0, 2.0, 1.0, 4.0])
PLAIN, WEIGHTED = se.Bags(IDS, OFFSETS), se.Bags(IDS, OFFSETS, WEIGHTS)
ROOT = {n: np.sqrt(n) for n in (2.0, 3.0, 5.0, 6.0, 10.0)}
MATRICES = [
    (PLAIN, "sum", None, [[1, 0, 1], [0, 0, 0], [0, 2, 1], [0, 0, 1]]),
    (PLAIN, "sum", 2, [[1, 0, 0], [0, 0, 0], [0, 2, 0], [0, 0, 0]]),
    (PLAIN, "mean", None, [[1 / 2, 0, 1 / 2], [0, 0, 0], [0, 2 / 3, 1 / 3], [0, 0, 1]]),
    (PLAIN, "mean", 2, [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]),
    (PLAIN, "sqrtn", None, [[1 / ROOT[2], 0, 1 / ROOT[2]], [0, 0, 0], [0, 2 / ROOT[3], 1 / ROOT[3]], [0, 0, 1]]),
    (PLAIN, "sqrtn", 2, [[1, 0, 0], [0, 0, 0], [0, 2 / ROOT[2], 0], [0, 0, 0]]),
    (WEIGHTED, "sum", None, [[1, 0, 3], [0, 0, 0], [0, 3, 1], [0, 0, 4]]),
    (WEIGHTED, "sum", 1, [[1, 0, 3], [0, 0, 0], [0, 0, 1], [0, 0, 4]]),
    (WEIGHTED, "mean", None, [[1 / 4, 0, 3 / 4], [0, 0, 0], [0, 3 / 4, 1 / 4], [0, 0, 1]]),
    (WEIGHTED, "mean", 1, [[1 / 4, 0, 3 / 4], [0, 0, 0], [0, 0, 1], [0, 0, 1]]),
    (WEIGHTED, "sqrtn", None, [[1 / ROOT[10], 0, 3 / ROOT[10]], [0, 0, 0], [0, 3 / ROOT[6], 1 / ROOT[6]], [0, 0, 1]]),
    (WEIGHTED, "sqrtn", 2, [[1, 0, 0], [0, 0, 0], [0, 3 / ROOT[5], 0], [0, 0, 0]]),
]


@pytest.mark.parametrize(("bags", "mode", "padding", "matrix"), MATRICES)
def test_bag_matrix_pool_and_gradient(bags, mode, padding, matrix):
    """Pooling is a matrix: its product is the pool, its transpose's the gradient."""
    matrix = np.array(matrix, np.float64)
    grad = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    close = {"rtol": 1e-15, "atol": 1e-15, "strict": True}
    np.testing.assert_allclose(reference.bag_matrix(bags, 3, mode, padding).toarray(), matrix, **close)
    np.testing.assert_allclose(reference.pool(WEIGHT, bags, mode, padding), matrix @ WEIGHT, **close)
    np.testing.assert_allclose(reference.pool_gradient(bags, grad, 3, mode, padding), matrix.T @ grad, **close)


def test_pool_literal():
    same(reference.pool(WEIGHT, WEIGHTED, "mean"), [[4, 2], [0, 0], [3.5, 3], [5, 0]])


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_pool_ignores_what_the_padding_row_holds(mode):
    weight = np.array([[1.0], [NAN], [2.0]])
    np.testing.assert_array_equal(reference.pool(weight, se.Bags.from_lists([[0, 1], [1]]), mode, 1), [[1], [0]])


def test_pool_zero_divisor():
    bags = se.Bags.from_lists([[0, 1], [2]], [[2.0, -2.0], [0.0]])
    for mode in ("mean", "sqrtn"):
        expected = {"mean": [[0, 0], [0, 0]], "sqrtn": [[-4 / np.sqrt(8), 8 / np.sqrt(8)], [0, 0]]}[mode]
        np.testing.assert_allclose(reference.pool(WEIGHT, bags, mode), expected, rtol=1e-15)


TIES = np.array([[1.0, 7.0, NAN, 2.0], [5.0, 7.0, 1.0, NAN], [5.0, 6.0, NAN, 9.0]])


def test_max():
    bags = se.Bags(np.array([0, 1, 2, 2, 0, 2]), np.array([0, 3, 3, 5, 6]))  # (0, 1, 2), (), (2, 0), (2,)
    winners = [[1, 0, 0, 1], [-1, -1, -1, -1], [3, 4, 3, 3], [5, 5, 5, 5]]
    np.testing.assert_array_equal(reference.argmax(TIES, bags), winners)
    np.testing.assert_array_equal(reference.argmax(TIES, bags, 2), [[1, 0, 0, 1], [-1] * 4, [4] * 4, [-1] * 4])
    pooled = [[5, 7, NAN, NAN], [0, 0, 0, 0], [5, 7, NAN, 9], [5, 6, NAN, 9]]
    np.testing.assert_array_equal(reference.pool(TIES, bags, "max"), pooled)
    grad = np.array([[1.0] * 4, [2.0] * 4, [4.0] * 4, [8.0] * 4])
    expected = [[0, 5, 1, 0], [1, 0, 0, 1], [12, 8, 12, 12]]
    same(reference.pool_gradient(bags, grad, 3, "max", weight=TIES), expected)


def test_per_sample_weights_gradient():
    grad = np.array([[1.0, 1.0], [9.0, 9.0], [1.0, 0.0], [0.0, 1.0]])
    # <grad, row>: bag 0 has 9 and 5, bag 2 has 3, 3, 5, bag 3 has 0
    same(reference.per_sample_weights_gradient(WEIGHT, WEIGHTED, grad), [9, 5, 3, 3, 5, 0])
    same(reference.per_sample_weights_gradient(WEIGHT, PLAIN, grad, padding_idx=2), [9, 0, 3, 3, 0, 0])
    # mean of bag 0: (9 + 15) / 4 = 6, so (9 - 6) / 4 and (5 - 6) / 4; bag 2: (3 + 6 + 5) / 4 = 3.5
    mean = [0.75, -0.25, -0.125, -0.125, 0.375, 0]
    same(reference.per_sample_weights_gradient(WEIGHT, WEIGHTED, grad, "mean"), mean)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("padding", [None, 1])
def test_per_sample_weights_gradient_by_differences(mode, padding, rng):
    grad, h = rng.standard_normal((4, 2)), 1e-6

    def loss(weights):
        return (grad * reference.pool(WEIGHT, se.Bags(IDS, OFFSETS, weights), mode, padding)).sum()

    slopes = [(loss(WEIGHTS + h * unit) - loss(WEIGHTS - h * unit)) / (2 * h) for unit in np.eye(6)]
    analytic = reference.per_sample_weights_gradient(WEIGHT, WEIGHTED, grad, mode, padding)
    np.testing.assert_allclose(analytic, slopes, rtol=1e-7, atol=1e-8)


def test_per_sample_weights_gradient_zero_divisor():
    bags = se.Bags.from_lists([[0, 1], [2]], [[2.0, -2.0], [0.0]])
    same(reference.per_sample_weights_gradient(WEIGHT, bags, np.ones((2, 2)), "mean"), [0, 0, 0])


class HalfHyper(NamedTuple):
    lr: float


@dataclass(frozen=True)
class Half(se.rules.Rule):
    """w -= lr * (mean |g| + count), where the row slot counts updates and the slot keeps g."""

    lr: float
    Hyper = HalfHyper
    slots, row_slots = ("last",), ("count",)

    def hyper(self, step):
        return (self.rate(step),)

    @staticmethod
    def reduce(w, g, hp):
        return abs(g)

    @staticmethod
    def row(x, r, hp):
        return x + r[0], (r[0] + 1,)

    @staticmethod
    def step(w, g, s, a, hp):
        return w - hp.lr * a, (g,)


# rule, first row, gradients of steps 1, 2, 3, the row after each, the state after the last
TRACES = [
    (se.SGD(lr=0.5), [1, 2], [[2, 0], [0, 4], [1, 1]], [[0, 2], [0, 0], [-0.5, -0.5]], {}),
    (se.SGD(lr=float), [1, 2], [[2, 0], [0, 4], [1, 1]], [[-1, 2], [-1, -6], [-4, -9]], {}),
    (se.Adagrad(lr=1.0, lr_decay=1.0, eps=0.0), [10], [[3], [4], [0]], [[9], [8.6], [8.6]], {"sum": [25]}),
    (
        se.Adagrad(lr=6.0, initial_accumulator_value=16.0, eps=1.0),
        [10, 1],
        [[3, 0], [0, 3], [12, 0]],
        [[7, 1], [7, -2], [7 - 72 / 14, -2]],
        {"sum": [153, 9]},
    ),
    (
        se.RowwiseAdagrad(lr=3.0, eps=0.0),
        [10, 10, 10, 10],
        [[1, 1, 1, 1], [3, 1, 1, 1], [4, 2, 0, 0]],
        [[7, 7, 7, 7], [2.5, 5.5, 5.5, 5.5], [-1.5, 3.5, 5.5, 5.5]],
        {"sum": 9},
    ),
    (se.RowwiseAdagrad(lr=1.0, eps=1.0), [10, 0], [[1, 1], [0, 0]], [[9.5, -0.5], [9.5, -0.5]], {"sum": 1}),
    (
        se.RowwiseAdagrad(lr=1.0, eps=0.0, weight_decay=0.1),
        [10, 10, 10, 10],
        [[1, 1, 1, 1], [3, 1, 1, 1]],
        [[8, 8, 8, 8], [5.7, 6.7, 6.7, 6.7]],
        {"sum": 4},
    ),
    (
        se.RowwiseAdagrad(lr=1.0, eps=0.0, weight_decay=0.5, weight_decay_mode="l2"),
        [2, 2, 2, 2],
        [[0, 0, 0, 0], [2.5, 0.5, 0.5, 0.5]],
        [[1, 1, 1, 1], [-0.5, 0.5, 0.5, 0.5]],
        {"sum": 4},
    ),
    (se.SGD(lr=0.5, touched_weight_decay=1.0), [2, 4], [[2, 0], [0, 0]], [[0, 2], [0, 1]], {}),
    (
        se.SGD(lr=1.0, momentum=0.5, touched_weight_decay=1.0),
        [4],
        [[1], [1]],
        [[-1], [-3.5]],
        {"momentum_buffer": [2.5]},
    ),
    (se.Adagrad(lr=1.0, eps=0.0, touched_weight_decay=0.5), [4], [[1], [2.5]], [[3], [2.2]], {"sum": [25]}),
    (
        se.SparseAdam(lr=1.0, betas=(0.5, 0.75), eps=0.0, touched_weight_decay=0.5),
        [2],
        [[1], [-2.5]],
        [[1], [4 / 3]],
        {"exp_avg": [-0.5], "exp_avg_sq": [1.75]},
    ),
    (
        se.SparseAdam(lr=1.0, betas=(0.5, 0.75), eps=0.0),
        [10],
        [[2], [-2], [0]],
        [[9], [28 / 3], [28 / 3 + 2 / 7 * np.sqrt(37 / 84)]],
        {"exp_avg": [-0.25], "exp_avg_sq": [1.3125]},
    ),
    # eps is added to the root of the uncorrected moment: 1 * sqrt(1/4) / (1/2) * 1 / (1 + 1)
    (
        se.SparseAdam(lr=1.0, betas=(0.5, 0.75), eps=1.0),
        [10, 0],
        [[2, 0]],
        [[9.5, 0]],
        {"exp_avg": [1, 0], "exp_avg_sq": [1, 0]},
    ),
    (Half(lr=0.5), [1, 1], [[2, -4], [0, 2]], [[-0.5, -0.5], [-1.5, -1.5]], {"last": [0, 2], "count": 2}),
]


@pytest.mark.parametrize(("rule", "row", "grads", "rows", "state"), TRACES)
def test_update(rule, row, grads, rows, state):
    """Row 2 is looked up twice a step, with gradients that sum to `grads`; row 1 is padding."""
    weight = np.array([[0.0] * len(row), [0.0] * len(row), row], np.float32)
    slots = {name: np.zeros((3, *np.shape(value))) for name, value in state.items()}
    for step, (grad, expected) in enumerate(zip(np.array(grads, np.float64), rows, strict=True), 1):
        batch = [2, 1, 2], [grad - 1, grad, np.ones(len(row))]
        before = weight.copy(), {name: value.copy() for name, value in slots.items()}
        new, new_slots = reference.update(rule, weight, slots, *batch, step, padding_idx=1)
        np.testing.assert_array_equal(weight, before[0])  # a pure function
        assert all((slots[name] == before[1][name]).all() for name in slots)
        np.testing.assert_allclose(new, [[0] * len(row), [0] * len(row), expected], rtol=1e-14)
        weight, slots = new, new_slots
    for name, value in state.items():
        np.testing.assert_allclose(slots[name], [np.zeros_like(value), np.zeros_like(value), value], rtol=1e-14)


def test_decay_of_touched_rows_leaves_the_others():
    """Rows 0 and 2 move on by their momentum alone."""
    rule = se.SGD(lr=1.0, momentum=0.5, touched_weight_decay=0.5)
    state = {"momentum_buffer": np.array([[2.0], [2.0], [0.0]])}
    weight, state = reference.update(rule, [[4.0], [4.0], [4.0]], state, [1, 1], [[1.0], [1.0]], 2)
    same(weight, [[3], [-1], [4]])
    same(state["momentum_buffer"], [[1], [5], [0]])


def test_update_takes_state_in_any_order():
    state = {"exp_avg": np.full((1, 1), 3.0), "exp_avg_sq": np.full((1, 1), 5.0)}
    batch = [0], [[1.0]], 1
    one, _ = reference.update(se.SparseAdam(lr=1.0), [[0.0]], state, *batch)
    two, _ = reference.update(se.SparseAdam(lr=1.0), [[0.0]], dict(reversed(state.items())), *batch)
    assert one == two


def test_update_without_ids():
    weight, state = reference.update(se.Adagrad(), WEIGHT, {"sum": np.ones((3, 2))}, [], np.zeros((0, 2)), 1)
    same(weight, WEIGHT)
    same(state["sum"], np.ones((3, 2)))

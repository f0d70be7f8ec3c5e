"""Scores of rows, and steps from their gradients: against the reference, and against what they are made of."""

import numpy as np
import pytest
from hypothesis import given
from strategies import COMBOS, TRAINED, arrange, assert_close, numbers, pick_ids, pooled

import sparsembed as se
from sparsembed import reference
from sparsembed._engine import CPU

RULES = [
    se.SGD(lr=0.5),
    se.SparseAdam(lr=0.1),
    se.Adam(lr=0.1),
    se.SGD(lr=0.1, momentum=0.9),
    se.RowwiseAdagrad(lr=0.1),
]


def plain(bags):
    return bags.with_weights(None)


def check_scores(result, weight, bags, x, padding):
    assert result.dtype == np.result_type(weight.dtype, np.float32)
    expected = reference.dot(weight, bags, x, padding)
    assert_close(result, expected, reference.dot(abs(weight.astype("f8")), bags, abs(x), padding), weight.shape[1])


@given(pooled(modes=["sum"]))
def test_dot(case):
    bags, x, padding = plain(case.bags), case.grad_out, case.padding_idx
    result = se.dot(case.weight, bags, x, padding_idx=padding)
    check_scores(result, case.weight, bags, x, padding)
    out = np.empty_like(result)
    assert se.dot(case.weight, bags, x, out, padding_idx=padding) is out  # the general way, the other one of few ids
    np.testing.assert_array_equal(out, result)
    copied = se.dot(np.ascontiguousarray(case.weight), bags, x, padding_idx=padding)
    np.testing.assert_array_equal(copied, result)  # wherever rows lie


@pytest.mark.parametrize(("dtype", "id_dtype", "layouts"), COMBOS)
def test_many_ids(dtype, id_dtype, layouts, rng):
    """Many blocks on several threads, which begin and end within bags; long bags and empty ones."""
    weight = arrange(numbers(rng, (500, 33), dtype), layouts[-1])
    lengths = np.append(rng.integers(0, 40, 3000), [0, 20_000, 0, 0])
    ids = pick_ids(rng, lengths.sum(), 500, "zipf").astype(id_dtype)
    bags = se.Bags(ids, np.cumsum([0, *lengths]))
    x = numbers(rng, (len(bags), 33), np.result_type(dtype, np.float32))
    result = se.dot(weight, bags, x, padding_idx=0)
    check_scores(result, weight, bags, x, 0)
    before = se.set_num_threads(1)
    try:
        np.testing.assert_array_equal(se.dot(weight, bags, x, padding_idx=0), result)
    finally:
        se.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_width(dtype, rng):
    """Rows of every number of registers and lanes; the same bits for rows on any address."""
    for dim in (*range(1, 132), 192, 300):
        weight, ids, x = numbers(rng, (9, dim), dtype), rng.integers(0, 9, (4, 3)), numbers(rng, (4, dim), dtype)
        result = se.dot(weight, ids, x)
        check_scores(result, weight, ids, x, None)
        np.testing.assert_array_equal(se.dot(arrange(weight, "some columns"), ids, arrange(x, "some columns")), result)
        np.testing.assert_array_equal(se.dot(weight, ids.reshape(-1, 1), x.repeat(3, 0)).reshape(4, 3), result)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_shapes_without_anything(shape):
    ids, x = np.zeros(shape, np.int64), np.ones((shape[0], 4), np.float32)
    result = se.dot(np.ones((5, 4), np.float32), ids, x)
    assert (result == 4).all()
    assert result.shape == shape
    table = se.EmbeddingTable(5, 4, se.SGD(lr=0.1), initializer=se.initializers.zeros)
    table.update_dot(ids, x, np.ones(shape, np.float32))
    assert table.step == 1


def test_an_empty_table():
    weight, x = np.ones((0, 4), np.float32), np.ones((2, 4), np.float32)
    assert se.dot(weight, np.zeros((2, 0), np.int64), x).shape == (2, 0)
    with pytest.raises(IndexError, match="ids"):
        se.dot(weight, [[0], [0]], x)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(bad):
    weight = np.array([[1.0, bad], [0.0, 2.0], [bad, 1.0]], np.float32)
    result = se.dot(weight, [[0, 1, 2]], np.ones((1, 2), np.float32), padding_idx=2)
    np.testing.assert_array_equal(result, np.array([[bad, 2.0, 0.0]], np.float32))


# ---------------------------------------------------------------------- tables


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(("dtype", "id_dtype", "_"), TRAINED)
def test_tables_read_rows_with_the_steps_that_they_have_missed(rule, dtype, id_dtype, _, rng):
    table = se.EmbeddingTable(60, 20, rule, dtype=dtype, padding_idx=3, rng=0)
    for _step in range(4):
        table.update(rng.integers(0, 60, 7), numbers(rng, (7, 20), dtype))
    held = [each.tobytes() for each in (table._contents.table.array, table._contents.state, table._contents.last)]
    ids, x = rng.integers(0, 60, (9, 4)).astype(id_dtype), numbers(rng, (9, 20), dtype)
    result, rows = table.dot(ids, x), table.lookup(ids)
    np.testing.assert_array_equal(result, se.dot(rows.reshape(-1, 20), np.arange(36).reshape(9, 4), x))
    out = np.empty_like(result)
    assert table.dot(se.Bags(ids.reshape(-1), np.arange(0, 37, 4)), x, out=out.reshape(-1)).base is not None
    np.testing.assert_array_equal(out, result)
    assert held == [
        each.tobytes() for each in (table._contents.table.array, table._contents.state, table._contents.last)
    ]


def everything(table):
    return {name: np.asarray(value).tobytes() for name, value in table.state_dict().items()}


@given(pooled(modes=["sum"], combos=TRAINED))
def test_a_step_is_that_of_weighted_bags(case):
    """Bit for bit, with few ids in one compiled call and step by step; the gradient as a value is the same one."""
    rng = np.random.default_rng(len(case.bags.ids))
    scores = numbers(rng, len(case.bags.ids), case.weight.dtype, grid=True)
    options = {"optimizer": se.SparseAdam(lr=0.1), "padding_idx": case.padding_idx, "copy": True}
    one, two, three = (se.EmbeddingTable.from_array(case.weight, **options) for _ in range(3))
    bags = plain(case.bags)
    for _ in range(2):
        one.update_dot(bags, case.grad_out, scores)
        two.update_pooled(bags.with_weights(scores), case.grad_out, check_finite=True)
        three.apply(three.gradient_dot(bags, case.grad_out, scores))
    assert everything(one) == everything(two)
    np.testing.assert_allclose(three.weight, one.weight, rtol=1e-4, atol=1e-4)
    expected = reference.pool_gradient(
        bags.with_weights(scores), case.grad_out, len(case.weight), "sum", case.padding_idx
    )
    gradient = three.gradient_dot(bags, case.grad_out, scores)
    scale = reference.pool_gradient(
        bags.with_weights(abs(scores)), abs(case.grad_out), len(case.weight), "sum", case.padding_idx
    )
    assert_close(gradient.to_dense(), expected, scale, max(len(bags.ids), 1))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_list_is_one_step(rule, rng):
    tables = [se.EmbeddingTable(30, 6, rule, rng=0) for _ in range(2)]
    ids, x, scores = rng.integers(0, 30, (2, 8, 3)), numbers(rng, (2, 8, 6), "f4"), numbers(rng, (2, 8, 3), "f4")
    bags = [se.Bags(each.reshape(-1), np.arange(0, 25, 3)) for each in ids]
    for _ in range(3):
        tables[0].update_dot(list(ids), list(x), list(scores))
        tables[1].update_pooled([b.with_weights(g.reshape(-1)) for b, g in zip(bags, scores, strict=True)], list(x))
    assert tables[0].step == 3
    assert everything(tables[0]) == everything(tables[1])
    flat = [each.reshape(-1) for each in scores]
    together = tables[0].gradient_dot(bags, list(x), flat)
    apart = tables[0].gradient_dot(ids[0], x[0], scores[0]) + tables[0].gradient_dot(bags[1], x[1], flat[1])
    np.testing.assert_allclose(together.to_dense(), apart.to_dense(), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences(rng):
    table = se.EmbeddingTable(7, 3, dtype=np.float64, rng=0)
    ids, x, push = rng.integers(0, 7, (4, 2)), numbers(rng, (4, 3), "f8"), numbers(rng, (4, 2), "f8")
    gradient, weight, step = table.gradient_dot(ids, x, push).to_dense(), table.weight.copy(), 1e-6
    for r, c in np.ndindex(weight.shape):
        moved = weight.copy()
        moved[r, c] += step
        slope = ((se.dot(moved, ids, x) - se.dot(weight, ids, x)) * push).sum() / step
        assert abs(slope - gradient[r, c]) < 1e-6
    bags = se.Bags(ids.reshape(-1), np.arange(0, 9, 2))
    np.testing.assert_allclose(
        table.pool(bags.with_weights(push.reshape(-1))), (push[:, :, None] * weight[ids]).sum(axis=1), rtol=1e-12
    )


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_plans_are_taken(rule, rng):
    ids, x, scores = rng.integers(0, 30, (8, 3)), numbers(rng, (8, 6), "f4"), numbers(rng, (8, 3), "f4")
    tables = [se.EmbeddingTable(30, 6, rule, rng=0) for _ in range(2)]
    plan = se.plan(ids, 30)
    np.testing.assert_array_equal(tables[0].dot(plan, x), tables[1].dot(ids, x))
    tables[0].update_dot(plan, x, scores)
    tables[1].update_dot(ids, x, scores)
    assert everything(tables[0]) == everything(tables[1])


@pytest.mark.parametrize("n", [40, 3000])
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("by_freq", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_weighted_steps_of_few_ids_have_the_bits_of_others(rule, by_freq, mode, n, rng):
    ids, lengths = pick_ids(rng, n, 50, "hot"), np.sort(rng.integers(0, n + 1, n // 4))
    weights = numbers(rng, n, "f8", grid=True)  # with zeros
    bags, grad = se.Bags(ids, np.array([0, *lengths, n]), weights), numbers(rng, (n // 4 + 1, 24), "f4")
    options = {"padding_idx": 1, "scale_grad_by_freq": by_freq}
    few, many = (se.EmbeddingTable(50, 24, rule, rng=0, **options) for _ in range(2))
    for _ in range(2):
        assert CPU.update_bags_few(few._contents, bags, grad, mode)
        many.update_pooled(bags, grad, mode, check_finite=True)
    assert everything(few) == everything(many)


def test_the_kind_of_the_result_is_that_of_the_weight_before_that_of_x(rng):
    """With few ids as with many, and whatever the number of threads."""
    torch = pytest.importorskip("torch")
    weight, x = numbers(rng, (200_000, 32), "f4"), numbers(rng, (10_000, 32), "f4")
    ids = rng.integers(0, 200_000, (10_000, 10))
    for n in (10, 10_000):
        results = [
            se.dot(torch.from_numpy(weight), ids[:n], x[:n]),
            se.dot(weight, ids[:n], torch.from_numpy(x[:n])),
            se.dot(weight, torch.from_numpy(ids[:n]), x[:n]),
        ]
        assert all(isinstance(each, torch.Tensor) for each in results)
        assert isinstance(se.dot(weight, ids[:n], x[:n]), np.ndarray)


# ---------------------------------------------------------------------- refused

W, IDS, X, G = np.ones((5, 3), np.float32), np.array([[0, 1], [4, 2]]), np.ones((2, 3), np.float32), np.ones((2, 2))
BAGS = se.Bags(IDS.reshape(-1), np.array([0, 2, 4]))
REFUSED = {
    "weighted": (lambda t: t.dot(BAGS.with_weights(np.ones(4)), X), ValueError, "bags must have no per_sample_weights"),
    "mode": (lambda t: t.dot(se.Bags(IDS[0], [0, 2], mode="mean"), X[:1]), ValueError, "no mode but 'sum'.*'mean'"),
    "one axis": (
        lambda t: t.dot([0, 1], X),
        ValueError,
        r"ids of shape \(n, k\).*\(2,\).*ids\[:, None",
    ),
    "three axes": (lambda t: t.dot(np.zeros((2, 2, 2), int), X), ValueError, r"got ids of shape \(2, 2, 2\)"),
    "floats": (lambda t: t.dot(IDS * 0.5, X), TypeError, "bags must be integers"),
    "outside": (lambda t: t.dot([[0, 1], [5, 2]], X), IndexError, "is 5, expected 0 <= id < 5"),
    "negative": (lambda t: t.dot([[0, -1], [4, 2]], X), IndexError, "is -1"),
    "no x": (lambda t: t.dot(IDS, None), TypeError, r"x must be a float array of shape \(2, 3\), got None"),
    "vector": (lambda t: t.dot(IDS, X[0]), ValueError, r"x must have shape \(2, 3\), one vector for each bag"),
    "other dim": (lambda t: t.dot(IDS, X[:, :2]), ValueError, r"x must have shape \(2, 3\).*\(2, 2\)"),
    "integers": (lambda t: t.dot(IDS, X.astype(int)), TypeError, "x must hold floats, got int64"),
    "another shape of out": (
        lambda t: t.dot(IDS, X, out=np.ones(4, "f4")),
        ValueError,
        r"out must have shape \(2, 2\)",
    ),
    "out of another dtype": (lambda t: t.dot(IDS, X, out=np.ones((2, 2))), TypeError, "out must be float32"),
    "out in x": (lambda t: t.dot(IDS[:1], X[:1], out=X[:1, :2]), ValueError, "out must not share memory with x"),
    "scores": (lambda t: t.update_dot(IDS, X, G[0]), ValueError, r"grad_scores must have shape \(2, 2\)"),
    "scores of bags": (lambda t: t.update_dot(BAGS, X, G), ValueError, r"grad_scores must have shape \(4,\)"),
    "no scores": (lambda t: t.update_dot(IDS, X, None), TypeError, "grad_scores is None"),
    "NaN": (lambda t: t.update_dot(IDS, X, G * np.nan, check_finite=True), ValueError, "grad_scores is nan"),
    "NaN in x": (lambda t: t.update_dot(IDS, X * np.nan, G, check_finite=True), ValueError, "x is nan at row 0"),
    "two and one": (lambda t: t.update_dot([IDS, IDS], [X], [G, G]), ValueError, "lists of one length"),
    "list and array": (lambda t: t.update_dot([IDS], X, G), ValueError, "lists of one length"),
    "second x": (lambda t: t.update_dot([IDS, IDS], [X, X[0]], [G, G]), ValueError, r"x\[1\] must have shape"),
    "second bags": (lambda t: t.update_dot([IDS, IDS[0]], [X, X], [G, G]), ValueError, r"bags\[1\] must be Bags"),
    "second": (lambda t: t.update_dot([IDS, IDS], [X, X], [G, G[0]]), ValueError, r"grad_scores\[1\] must have shape"),
    "outside in a step": (lambda t: t.update_dot([[0, 1], [5, 2]], X, G), IndexError, "5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, message = REFUSED[name]
    table = se.EmbeddingTable(5, 3, se.SGD(lr=0.1), rng=0)
    before = everything(table)
    with pytest.raises(error, match=message):
        call(table)
    assert everything(table) == before


def test_without_an_optimizer_there_is_no_step():
    with pytest.raises(ValueError, match="no optimizer"):
        se.EmbeddingTable(5, 3).update_dot(IDS, X, G)
    assert len(se.EmbeddingTable(5, 3).gradient_dot(IDS, X, G).rows) == 4


def test_lists_of_numbers_are_arrays():
    table = se.EmbeddingTable(5, 3, se.SGD(lr=1.0), initializer=se.initializers.zeros)
    table.update_dot([[0, 1], [4, 1]], [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]], [[1.0, 0.0], [2.0, -1.0]])
    np.testing.assert_array_equal(table.weight[[0, 1, 4]], [[-1, -2, -3], [1, 1, 1], [-2, -2, -2]])
    assert table.dot([[0]], [[1.0, 0.0, 0.0]]) == -1

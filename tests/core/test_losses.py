"""Losses of scores: against the float64 reference, its finite differences, and the calls that they replace."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import EPS, INPUTS, STRIDED, arrange, assert_close, numbers, pick_ids, pooled

import sparsembed as se
from sparsembed import reference
from sparsembed.losses._exponential import single_exp, single_log1p

LOSSES = {
    "logistic": se.losses.Logistic(),
    "squared": se.losses.Squared(),
    "pairwise": se.losses.Pairwise(),
    "softmax": se.losses.Softmax(),
    "softmax, labels": se.losses.Softmax(),
}
# Few, because each compiles a kernel of its own for each loss.
ALL = [(np.float32, np.int64, ["contiguous"])]
OTHERS = [
    (np.float64, np.int32, ["contiguous"]),
    (np.float32, np.int64, STRIDED),
    (np.float16, np.int64, ["contiguous"]),
]


class HuberHyper(NamedTuple):
    half: float
    delta: float


@dataclass(frozen=True)
class Huber(se.losses.Loss):
    delta: float = 1.0
    Hyper = HuberHyper

    def hyper(self):
        return 0.5, self.delta

    @staticmethod
    def term(s, y, hp):
        d = s - y
        if abs(d) <= hp.delta:
            return hp.half * d * d, d
        return hp.delta * (abs(d) - hp.half * hp.delta), hp.delta if d > 0 else -hp.delta


def labels_for(name, rng, n, dtype):
    """Labels, or None; 0 and 1 are among those of the logistic loss."""
    if name in ("pairwise", "softmax"):
        return None
    if name == "squared":
        return numbers(rng, n, dtype)
    return np.round(rng.random(n) * 4).astype(dtype) / 4


def check(found, case, bags, labels, loss, weights):
    """A-priori bounds: scores are off by a few roundings of their terms, and all slopes are at most those of `most`."""
    total, grad_x, grad_scores = found
    exact = reference.dot_loss(case.weight, bags, case.grad_out, labels, loss, weights, case.padding_idx)
    dtype, dim = grad_scores.dtype, case.weight.shape[1]
    sizes = reference.dot(abs(case.weight.astype("f8")), bags, abs(case.grad_out), case.padding_idx)
    lengths = np.diff(bags.offsets)
    shares = np.ones(len(lengths)) if weights is None else np.abs(np.asarray(weights, np.float64))
    marks = np.zeros(len(sizes)) if labels is None else np.abs(np.asarray(labels, np.float64))
    longest = max([*lengths, 1])
    most = np.repeat(shares, lengths) * (1 + marks.max(initial=0)) * (2 + sizes.max(initial=0) + marks) * longest
    assert grad_scores.shape == sizes.shape
    assert type(total) is float
    assert_close(grad_scores, exact[2], most, dim + 8)
    bound = (dim + 8) * EPS[dtype] * (most * (1 + sizes + marks)).sum()
    assert abs(total - exact[0]) <= bound
    rows = np.abs(case.weight.astype("f8"))
    assert_close(grad_x, exact[1], reference.pool(rows, bags.with_weights(most), "sum", case.padding_idx), dim + 40)


@pytest.mark.parametrize("name", LOSSES)
@given(case=pooled(modes=["sum"], combos=ALL), weighted=st.booleans(), layout=st.sampled_from(INPUTS))
def test_losses(name, case, weighted, layout):
    compare(name, case, weighted, layout)


@given(case=pooled(modes=["sum"], combos=OTHERS), weighted=st.booleans(), layout=st.sampled_from(INPUTS))
def test_losses_of_other_tables(case, weighted, layout):
    compare("logistic", case, weighted, layout)


def compare(name, case, weighted, layout):
    rng = np.random.default_rng(len(case.bags.ids))
    bags, dtype, loss = case.bags.with_weights(None), np.result_type(case.weight.dtype, np.float32), LOSSES[name]
    labels = labels_for(name, rng, len(bags.ids), dtype)
    labels = None if labels is None else arrange(labels, layout)
    weights = arrange(numbers(rng, len(bags), dtype, grid=True), layout) if weighted else None
    table = se.EmbeddingTable.from_array(case.weight, padding_idx=case.padding_idx)
    found = table.dot_loss(bags, case.grad_out, labels, loss, weights=weights)
    check(found, case, bags, labels, loss, weights)
    np.testing.assert_array_equal(found[1], table.pool(bags.with_weights(found[2])))
    assert (found[2][bags.ids == case.padding_idx] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_many_bags_have_the_same_bits_for_any_number_of_threads(name, rng):
    lengths = np.append(rng.integers(0, 9, 9000), [0, 9000, 0])
    ids, x = pick_ids(rng, lengths.sum(), 500, "zipf"), numbers(rng, (len(lengths), 40), "f4")
    bags, table = se.Bags(ids, np.cumsum([0, *lengths])), se.EmbeddingTable(500, 40, rng=0, padding_idx=0)
    labels, results = labels_for(name, rng, len(ids), "f4"), []
    before = se.get_num_threads()
    for threads in (1, 2):
        se.set_num_threads(threads)
        results.append(table.dot_loss(bags, x, labels, LOSSES[name]))
    se.set_num_threads(before)
    assert results[0][0] == results[1][0]
    for one, two in zip(results[0][1:], results[1][1:], strict=True):
        np.testing.assert_array_equal(one, two)
    exact = reference.dot_loss(table.weight, bags, x, labels, LOSSES[name], None, 0)
    np.testing.assert_allclose(results[0][0], exact[0], rtol=1e-5)
    np.testing.assert_allclose(results[0][2], exact[2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results[0][1], exact[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_the_reference_are_those_of_finite_differences(name, rng):
    """Of weights and of x, for repeated ids, padding and weighted bags."""
    weight, x, ids = rng.standard_normal((6, 3)), rng.standard_normal((4, 3)), rng.integers(0, 6, (4, 5))
    ids[1, 0], ids[2] = 5, 5
    labels, shares, step = labels_for(name, rng, (4, 5), "f8"), rng.random(4), 1e-6
    weight[5] = 0

    def loss(weight, x):
        return reference.dot_loss(weight, ids, x, labels, LOSSES[name], shares, 5)

    _, grad_x, grad_scores = loss(weight, x)
    for b, c in np.ndindex(x.shape):
        moved = x.copy()
        moved[b, c] += step
        assert abs((loss(weight, moved)[0] - loss(weight, x)[0]) / step - grad_x[b, c]) < 1e-4
    bags = se.Bags(ids.reshape(-1), np.arange(0, 21, 5), grad_scores.reshape(-1))
    grad = reference.pool_gradient(bags, x, 6, "sum", 5)
    for r, c in np.ndindex(5, 3):
        moved = weight.copy()
        moved[r, c] += step
        assert abs((loss(moved, x)[0] - loss(weight, x)[0]) / step - grad[r, c]) < 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_scores_are_finite(name, dtype):
    rows = np.array([-1e4, 0.0, 1e4, -300, 300, 90, -90], dtype)[:, None]
    ids = np.stack(np.meshgrid(range(7), range(7)), axis=-1).reshape(-1, 2)
    table, labels = se.EmbeddingTable.from_array(rows), None
    if name not in ("pairwise", "softmax"):
        labels = np.tile([[1.0, 0.0]], (49, 1))
    found = table.dot_loss(ids, np.ones((49, 1), dtype), labels, LOSSES[name])
    exact = reference.dot_loss(rows, ids, np.ones((49, 1)), labels, LOSSES[name])
    assert all(np.isfinite(each).all() for each in found)
    for mine, its in ((found[0], exact[0]), (found[2], exact[2])):
        np.testing.assert_allclose(mine, its, rtol=6e-7 if dtype == np.float32 else 1e-14, atol=1e-30)


@pytest.mark.parametrize("name", ["logistic", "softmax"])
def test_scores_that_are_no_numbers_give_a_loss_that_is_none(name):
    table = se.EmbeddingTable.from_array(np.array([[1.0], [np.nan]]))
    labels = np.array([[0.0, 1.0]]) if name == "logistic" else None
    total, _, grad_scores = table.dot_loss([[0, 1]], [[1.0]], labels, LOSSES[name])
    assert math.isnan(total)
    assert np.isnan(grad_scores[0, 1])


def test_rows_are_read_with_the_steps_that_they_have_missed(rng):
    table = se.EmbeddingTable(60, 20, se.Adam(lr=0.1), padding_idx=3, rng=0)
    for _ in range(4):
        table.update(rng.integers(0, 60, 7), numbers(rng, (7, 20), "f4"))
    held = [each.tobytes() for each in (table._contents.table.array, table._contents.state, table._contents.last)]
    plain = se.EmbeddingTable.from_array(table.lookup(np.arange(60)), padding_idx=3)
    for shape in ((9, 4), (2, 65)):  # whose rows are kept, and those of a long bag
        ids, x = rng.integers(0, 60, shape), numbers(rng, (shape[0], 20), "f4")
        labels = labels_for("logistic", rng, shape, "f4")
        for mine, its in zip(table.dot_loss(ids, x, labels), plain.dot_loss(ids, x, labels), strict=True):
            np.testing.assert_array_equal(mine, its)
    assert held == [
        each.tobytes() for each in (table._contents.table.array, table._contents.state, table._contents.last)
    ]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_shapes_without_anything(name, shape):
    labels = None if name in ("pairwise", "softmax") else np.ones(shape)
    table = se.EmbeddingTable(5, 4, initializer=se.initializers.zeros)
    total, grad_x, grad_scores = table.dot_loss(np.zeros(shape, int), np.ones((shape[0], 4)), labels, LOSSES[name])
    assert (grad_x.shape, grad_scores.shape) == ((shape[0], 4), shape)
    expected = {"logistic": math.log(2), "squared": 0.5}.get(name, 0.0) if shape == (1, 1) else 0
    assert total == pytest.approx(expected)
    assert not grad_x.any()


def test_a_first_id_that_is_padding_is_right_for_nobody():
    table = se.EmbeddingTable.from_array(np.array([[0.0], [1.0], [2.0]]), padding_idx=0)
    ids, x = [[0, 1, 2], [1, 0, 2], [0, 0, 0]], np.ones((3, 1))
    for loss in (se.losses.Pairwise(), se.losses.Softmax()):
        total, grad_x, grad_scores = table.dot_loss(ids, x, loss=loss)
        assert not grad_scores[[0, 2]].any()
        assert not grad_x[[0, 2]].any()
        assert total == pytest.approx(math.log(1 + math.e))
        assert grad_scores[1, 1] == 0
    total, _, grad_scores = table.dot_loss(ids, x, [[9, 1, 0], [0, 9, 1], [9, 9, 9]], se.losses.Softmax())
    assert total == pytest.approx(2 * math.log(1 + math.e) - 1 - 2 + 2 * 1)
    assert not grad_scores[ids == np.zeros((3, 3))].any()


def test_labels_of_integers_and_booleans_are_converted(rng):
    table, ids, x = se.EmbeddingTable(9, 4, rng=0), rng.integers(0, 9, (5, 3)), numbers(rng, (5, 4), "f4")
    hit = rng.random((5, 3)) < 0.5
    expected = table.dot_loss(ids, x, hit.astype("f4"))
    for labels in (hit, hit.astype(int), hit.astype("f8"), hit.tolist()):
        found = table.dot_loss(ids, x, labels)
        assert found[0] == expected[0]
        np.testing.assert_array_equal(found[2], expected[2])


def test_a_step_lowers_the_loss(rng):
    """The gradients fit `update_dot`: word vectors with negative sampling."""
    words, contexts = (se.EmbeddingTable(30, 8, se.SparseAdam(lr=0.05), rng=seed) for seed in (0, 1))
    centres, ids, labels = rng.integers(0, 30, 40), rng.integers(0, 30, (40, 6)), np.eye(1, 6).repeat(40, 0)
    losses = []
    for _ in range(30):
        x = words.lookup(centres)
        loss, grad_x, grad_scores = contexts.dot_loss(ids, x, labels)
        contexts.update_dot(ids, x, grad_scores)
        words.update(centres, grad_x)
        losses.append(loss)
    assert losses[-1] < 0.8 * losses[0]


def test_results_are_of_the_callers_kind(rng):
    torch = pytest.importorskip("torch")
    table, ids, x = se.EmbeddingTable(9, 4, rng=0), rng.integers(0, 9, (5, 3)), numbers(rng, (5, 4), "f4")
    labels = np.ones((5, 3), "f4")
    total, *grads = table.dot_loss(torch.from_numpy(ids), torch.from_numpy(x), torch.from_numpy(labels))
    assert type(total) is float
    assert all(isinstance(each, torch.Tensor) for each in grads)
    rows = torch.from_numpy(table.weight.copy()).requires_grad_()
    vectors = torch.from_numpy(x).requires_grad_()
    scores = (rows[torch.from_numpy(ids)] * vectors[:, None]).sum(-1)
    its = torch.nn.functional.binary_cross_entropy_with_logits(scores, torch.from_numpy(labels), reduction="sum")
    its.backward()
    assert total == pytest.approx(its.item(), rel=1e-6)
    torch.testing.assert_close(grads[0], vectors.grad)
    for right in (None, 2):
        marks = None if right is None else np.eye(3, dtype="f4")[[right] * 5]
        vectors.grad = None
        total, grad_x, _ = table.dot_loss(ids, x, marks, se.losses.Softmax())
        scores = (rows[torch.from_numpy(ids)] * vectors[:, None]).sum(-1)
        target = torch.full((5,), right or 0)
        its = torch.nn.functional.cross_entropy(scores, target, reduction="sum")
        its.backward()
        assert total == pytest.approx(its.item(), rel=1e-6)
        np.testing.assert_allclose(grad_x, vectors.grad.numpy(), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------- a loss of one's own


def test_a_loss_of_ones_own(rng):
    assert se.testing.check_loss(Huber(delta=2.0)) < 1e-5
    table, ids, x = se.EmbeddingTable(9, 4, rng=0), rng.integers(0, 9, (5, 3)), numbers(rng, (5, 4), "f4")
    labels = numbers(rng, (5, 3), "f4")
    wide, narrow = (table.dot_loss(ids, x, labels, Huber(delta)) for delta in (100.0, 0.01))
    squared = table.dot_loss(ids, x, labels, se.losses.Squared())
    assert wide[0] == pytest.approx(squared[0], rel=1e-6)
    np.testing.assert_allclose(wide[2], squared[2], rtol=1e-6)
    np.testing.assert_allclose(narrow[2], np.sign(squared[2]) * 0.01, rtol=1e-6)


@pytest.mark.parametrize("name", ["logistic", "squared", "pairwise", "softmax"])
def test_losses_are_checked(name):
    assert se.testing.check_loss(LOSSES[name]) < 1e-6


def test_wrong_losses_are_found():
    class First(NamedTuple):
        two: float

    @dataclass(frozen=True)
    class WrongSlope(se.losses.Loss):
        def hyper(self):
            return (2.0,)

        Hyper = First

        @staticmethod
        def term(s, y, hp):
            return s * s, s

    with pytest.raises(AssertionError, match="slope"):
        se.testing.check_loss(WrongSlope())

    class Another(NamedTuple):
        two: float

    @dataclass(frozen=True)
    class Wide(se.losses.Loss):
        def hyper(self):
            return (2.0,)

        Hyper = Another

        @staticmethod
        def term(s, y, hp):
            return 0.5 * s * s, s

    with pytest.raises(AssertionError, match=r"float64.* for float32 input"):
        se.testing.check_loss(Wide())


def test_classes_that_do_not_fit_together():
    class Nothing(NamedTuple):
        pass

    def derive(**members):
        return type("Mine", (se.losses.Loss,), members)

    with pytest.raises(TypeError, match="needs a Hyper class"):
        derive(term=staticmethod(lambda s, y, hp: (s, s)))
    with pytest.raises(TypeError, match="at least one field"):
        derive(Hyper=Nothing, term=staticmethod(lambda s, y, hp: (s, s)))
    with pytest.raises(TypeError, match="already the Hyper of Huber"):
        derive(Hyper=HuberHyper, term=staticmethod(lambda s, y, hp: (s, s)))

    class Empty(NamedTuple):
        one: float

    with pytest.raises(TypeError, match="must define term"):
        derive(Hyper=Empty)
    with pytest.raises(TypeError, match="must define term"):
        derive(Hyper=Empty, term=staticmethod(len), pair=staticmethod(len))
    for value, error in ((math.nan, ValueError), (math.inf, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"Huber\(delta="):
            Huber(value)
    assert Huber(np.float32(2)) == Huber(2.0)


def test_exponentials_are_those_of_math(rng):
    """To 2 and 4 units of rounding; plain Python computes the same bits as compiled code."""
    x = np.append(-np.abs(rng.normal(0, 12, 3000)), [0, -87, -86.9, -100, -1e30]).astype("f4")
    found = np.array([single_exp(each) for each in x], np.float64)
    np.testing.assert_allclose(found, np.where(x < -87, 0, np.exp(x.astype("f8"))), rtol=2 * 2**-24, atol=0)
    e = np.append(rng.random(3000), [0, 1]).astype("f4")
    found = np.array([single_log1p(each) for each in e], np.float64)
    np.testing.assert_allclose(found, np.log1p(e.astype("f8")), rtol=4 * 2**-24, atol=0)
    assert np.isnan(single_exp(np.float32(math.nan)))


# ---------------------------------------------------------------------- refused

IDS, X, Y = np.array([[0, 1], [4, 2]]), np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)
BAGS = se.Bags(IDS.reshape(-1), np.array([0, 2, 4]))
REFUSED = {
    "no labels": (lambda t: t.dot_loss(IDS, X), TypeError, r"labels is None, but Logistic needs.*\(2, 2\)"),
    "other shape": (lambda t: t.dot_loss(IDS, X, Y[0]), ValueError, r"labels must have shape \(2, 2\).*\(2,\)"),
    "of bags": (lambda t: t.dot_loss(BAGS, X, Y), ValueError, r"labels must have shape \(4,\)"),
    "minus one": (lambda t: t.dot_loss(IDS, X, -Y), ValueError, r"labels must be numbers from 0.0 to 1.0.*got -1.0"),
    "NaN": (lambda t: t.dot_loss(IDS, X, Y * np.nan), ValueError, "labels must be numbers.*got nan at score 0"),
    "NaN, squared": (lambda t: t.dot_loss(IDS, X, Y * np.nan, se.losses.Squared()), ValueError, "labels.*Squared"),
    "below 0": (lambda t: t.dot_loss(IDS, X, -Y, se.losses.Softmax()), ValueError, "labels must be numbers from 0.0"),
    "of pairs": (lambda t: t.dot_loss(IDS, X, Y, se.losses.Pairwise()), ValueError, "labels must be None for Pairwise"),
    "text": (lambda t: t.dot_loss(IDS, X, "12"), TypeError, "labels"),
    "class": (lambda t: t.dot_loss(IDS, X, Y, se.losses.Logistic), TypeError, r"loss must be a loss such as"),
    "name": (lambda t: t.dot_loss(IDS, X, Y, "logistic"), TypeError, "loss must be a loss such as"),
    "weights": (lambda t: t.dot_loss(IDS, X, Y, weights=Y), ValueError, r"weights must have shape \(2,\)"),
    "weight": (lambda t: t.dot_loss(IDS, X, Y, weights=2.0), ValueError, r"weights must have shape \(2,\)"),
    "outside": (lambda t: t.dot_loss([[0, 1], [5, 2]], X, Y), IndexError, "is 5"),
    "negative": (lambda t: t.dot_loss([[0, -1], [4, 2]], X, Y), IndexError, "is -1"),
    "weighted": (lambda t: t.dot_loss(BAGS.with_weights(np.ones(4)), X), ValueError, "bags must have no per_sample"),
    "no x": (lambda t: t.dot_loss(IDS, None, Y), TypeError, "x must be a float array"),
    "other x": (lambda t: t.dot_loss(IDS, X[:, :2], Y), ValueError, r"x must have shape \(2, 3\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, message = REFUSED[name]
    table = se.EmbeddingTable(5, 3, se.SGD(lr=0.1), rng=0)
    before = table.weight.copy()
    with pytest.raises(error, match=message):
        call(table)
    np.testing.assert_array_equal(table.weight, before)


def test_an_empty_table_has_no_rows_to_read():
    table = se.EmbeddingTable.from_array(np.ones((1, 3), np.float32))
    with pytest.raises(IndexError, match="1"):
        table.dot_loss([[1]], X[:1], [[1.0]])


class OneHyper(NamedTuple):
    one: float


def made(**parts):
    """Return a new loss class of one field, with a Hyper of its own unless one is given."""

    class MadeHyper(NamedTuple):
        one: float

    parts = {"Hyper": MadeHyper, "hyper": lambda self: (1.0,), "__qualname__": "Made"} | parts
    return dataclass(frozen=True)(type("Made", (se.losses.Loss,), parts))


def strict(s, y, hp):
    assert y <= hp.one
    return s, hp.one


def calls_strict(s, y, hp):
    return strict(s, y, hp)


def of_pairs(d, hp):
    return d, hp.one


def of_scores(s, y, hp):
    return s - y, hp.one


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"term": staticmethod(strict)}, "raises or asserts"),
        ({"term": staticmethod(calls_strict)}, "raises or asserts"),
        (
            {"term": staticmethod(lambda score, label, hp: (score, hp.one))},
            r"\(s, y, hp\), in these names, got \(score,",
        ),
        ({"pair": staticmethod(of_scores)}, r"of \(d, hp\)"),
        ({"term": 3}, "got int"),
        ({"pair": staticmethod(of_pairs), "labels": None}, "must be two numbers"),
        ({"term": staticmethod(of_scores), "labels": (0,)}, "must be two numbers"),
        ({"term": staticmethod(of_scores), "labels": (1, 0)}, "least and the largest label"),
        ({"term": staticmethod(of_scores), "pair": staticmethod(of_pairs)}, "one of them"),
    ],
)
def test_losses_that_kernels_cannot_run_are_refused(parts, says):
    with pytest.raises(TypeError, match=says):
        made(**parts)


def test_a_loss_that_is_defined_again_needs_a_new_hyper():
    made(Hyper=OneHyper, term=staticmethod(of_scores))
    made(Hyper=OneHyper, term=staticmethod(of_scores))  # the same: a notebook's cell that runs again
    with pytest.raises(TypeError, match="define Hyper again"):
        made(Hyper=OneHyper, term=staticmethod(lambda s, y, hp: (y - s, -hp.one)))


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ((), TypeError, "one number for each field"),
        (("a",), TypeError, "must return numbers"),
        ((1e300,), ValueError, "float32 can hold"),
        ((math.nan,), ValueError, "float32 can hold"),
    ],
)
def test_scalars_of_a_loss_are_checked(values, error, says):
    loss = made(pair=staticmethod(of_pairs), hyper=lambda self: values)()
    table = se.EmbeddingTable(3, 2, rng=0)
    with pytest.raises(error, match=says):
        table.dot_loss([[0, 1]], np.ones((1, 2), np.float32), loss=loss)


def test_the_base_class_is_no_loss():
    with pytest.raises(TypeError, match="neither term nor pair"):
        se.EmbeddingTable(3, 2, rng=0).dot_loss([[0, 1]], np.ones((1, 2), np.float32), loss=se.losses.Loss())


def test_labels_are_finite():
    table = se.EmbeddingTable(3, 2, rng=0)
    for loss in (se.losses.Softmax(), se.losses.Squared()):
        with pytest.raises(ValueError, match="labels must be numbers from"):
            table.dot_loss([[0, 1]], np.ones((1, 2), np.float32), np.array([[np.inf, 0]], np.float32), loss)
    with pytest.raises(TypeError, match="pass it as loss=Pairwise"):
        table.dot_loss([[0, 1]], np.ones((1, 2), np.float32), se.losses.Pairwise())


def test_a_pair_whose_difference_overflows_has_no_loss():
    table = se.EmbeddingTable.from_array(np.array([[3e38], [-3e38]], np.float32))
    loss, grad_x, slopes = table.dot_loss([[0, 1]], np.ones((1, 1), np.float32), loss=se.losses.Pairwise())
    assert (loss, grad_x.tolist(), np.abs(slopes).tolist()) == (0.0, [[0.0]], [[0.0, 0.0]])


class TwiceHyper(NamedTuple):
    two: float


@dataclass(frozen=True)
class Twice(se.losses.Squared):
    """A loss with the name of another one as its base, and a range of labels above 1."""

    Hyper = TwiceHyper
    labels = (2.0, 5.0)

    def hyper(self):
        return (2.0,)

    @staticmethod
    def term(s, y, hp):
        return (s - y) * (s - y), hp.two * (s - y)


class WrongHyper(NamedTuple):
    two: float


@dataclass(frozen=True)
class Wrong(Twice):
    Hyper = WrongHyper

    @staticmethod
    def term(s, y, hp):
        return (s - y) * (s - y), hp.two * (s - y) * y


def test_the_check_of_losses_knows_derived_ones_and_their_labels():
    assert se.testing.check_loss(Twice()) < 1e-5
    with pytest.raises(AssertionError, match="slope"):
        se.testing.check_loss(Wrong())
    with pytest.raises(ValueError, match="must not be empty"):
        se.testing.check_loss(Twice(), [])

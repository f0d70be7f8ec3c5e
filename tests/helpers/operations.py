"""Every public operation, once: the same body runs wherever arrays may lie, and is compared with the reference.

A case takes a place, and yields (what it is, what the operation gave, what the reference gives in float64).
"""

import copy
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import sparsembed as se
from sparsembed import reference

RNG = np.random.default_rng(3)
ROWS, DIM, PADDING = 9, 4, 2
WEIGHT = RNG.standard_normal((ROWS, DIM)).astype(np.float32)
IDS = RNG.integers(0, ROWS, (3, 5))
GRAD = RNG.standard_normal((3, 5, DIM)).astype(np.float32)
OFFSETS, FACTORS = np.array([0, 5, 5, 9, 15]), RNG.uniform(0.5, 2.0, 15).astype(np.float32)
POOLED = RNG.standard_normal((4, DIM)).astype(np.float32)
RULE = se.SparseAdam(lr=0.1, eps=1e-3)
MODES = ("sum", "mean", "sqrtn", "max")


class Place(NamedTuple):
    """Where arrays lie: how they get there, and back."""

    array: Any  # of a NumPy array
    read: Any  # a NumPy array of it

    def table(self):
        """Return a table of WEIGHT, but for its padding."""
        return se.EmbeddingTable.from_array(self.array(WEIGHT.copy()), RULE, padding_idx=PADDING)

    def bags(self, weighted):
        """Return bags here, and the same on the host."""
        parts = [IDS.reshape(-1), OFFSETS, *([FACTORS] if weighted else [])]
        return se.Bags(*map(self.array, parts)), se.Bags(*parts)


def cleared():
    """The weights of a new table."""
    weight = WEIGHT.astype(np.float64)
    weight[PADDING] = 0
    return weight


def stepped(gradients):
    """The reference's table after steps with dense gradients."""
    weight, state = cleared(), {name: np.zeros((ROWS, DIM)) for name in RULE.slots}
    for k, gradient in enumerate(gradients):
        rows = np.flatnonzero(gradient.any(axis=1))
        weight, state = reference.update(RULE, weight, state, rows, gradient[rows], k + 1, PADDING)
    return {"weight": weight, "step": len(gradients)} | state


def dense(place, gradient):
    """A gradient of some rows, as an array of all, without padding."""
    array = np.zeros((ROWS, DIM))
    array[place.read(gradient.rows)] = place.read(gradient.values)
    return array


def coalesced():
    total = reference.coalesce(IDS, GRAD, ROWS)
    total[PADDING] = 0
    return total


def everything(table, want):
    """Compare all that a table saves."""
    for name, value in table.state_dict().items():
        yield name, np.asarray(value), want[name]


def gather(place):
    weight = place.array(WEIGHT)
    yield "ids", place.read(se.gather(weight, place.array(IDS))), reference.gather(WEIGHT, IDS)
    several = se.gather(weight, [place.array(IDS), place.array(IDS[0])])
    for ids, each in zip((IDS, IDS[0]), several, strict=True):
        yield "several", place.read(each), reference.gather(WEIGHT, ids)


def scatter_add(place):
    weight = place.array(WEIGHT.copy())
    se.scatter_add(weight, place.array(IDS), place.array(GRAD), 0.5)
    yield "weight", place.read(weight), reference.scatter_add(WEIGHT, IDS, GRAD, 0.5)


def coalesce(place):
    for by_freq in (False, True):
        got = se.coalesce(place.array(IDS), place.array(GRAD), ROWS, scale_grad_by_freq=by_freq)
        yield "rows", place.read(got.rows), np.unique(IDS)
        yield "values", dense(place, got), reference.coalesce(IDS, GRAD, ROWS, by_freq)


def pool(place, mode, weighted):
    (there, here), weight = place.bags(weighted), place.array(WEIGHT)
    for padding in (None, PADDING):
        got = place.read(se.pool(weight, there, mode, padding_idx=padding))
        yield f"padding {padding}", got, reference.pool(WEIGHT, here, mode, padding)


def pool_gradient(place, mode, weighted):
    there, here = place.bags(weighted)
    weight = {"weight": place.array(WEIGHT)} if mode == "max" else {}
    got = se.pool_gradient(there, place.array(POOLED), ROWS, mode, padding_idx=PADDING, **weight)
    yield "values", dense(place, got), reference.pool_gradient(here, POOLED, ROWS, mode, PADDING, WEIGHT)


def per_sample_weights_gradient(place, mode, weighted):
    there, here = place.bags(weighted)
    got = se.per_sample_weights_gradient(place.array(WEIGHT), there, place.array(POOLED), mode)
    yield "factors", place.read(got), reference.per_sample_weights_gradient(WEIGHT, here, POOLED, mode)


def dot(place):
    (there, here), weight = place.bags(False), place.array(WEIGHT)
    for padding in (None, PADDING):
        got = place.read(se.dot(weight, there, place.array(POOLED), padding_idx=padding))
        yield f"padding {padding}", got, reference.dot(WEIGHT, here, POOLED, padding)
    got = place.read(se.dot(weight, place.array(IDS), place.array(GRAD[:, 0])))
    yield "rows of ids", got, reference.dot(WEIGHT, IDS, GRAD[:, 0])


def table_dot(place):
    """Also of rows that have missed steps, and steps of several sets of scores."""
    (there, here), x = place.bags(False), place.array(GRAD[:, 0])
    late = se.EmbeddingTable.from_array(place.array(WEIGHT.copy()), se.Adam(lr=0.1))
    for ids in IDS:
        late.update(place.array(ids), place.array(GRAD[0]))
    scores = place.read(late.dot(there, place.array(POOLED)))
    yield "scores of late rows", scores, reference.dot(np.asarray(late.state_dict()["weight"]), here, POOLED)
    table = place.table()
    yield "scores", place.read(table.dot(place.array(IDS), x)), reference.dot(cleared(), IDS, GRAD[:, 0], PADDING)
    lookups, vectors = [there, place.array(IDS)], [place.array(POOLED), x]
    pushes = [place.array(FACTORS), place.array(GRAD[..., 1])]
    rows = se.Bags(IDS.reshape(-1), np.arange(0, 16, 5), GRAD[..., 1].reshape(-1))
    want = reference.pool_gradient(here.with_weights(FACTORS), POOLED, ROWS, "sum", PADDING)
    want = want + reference.pool_gradient(rows, GRAD[:, 0], ROWS, "sum", PADDING)
    yield "gradient", dense(place, table.gradient_dot(lookups, vectors, pushes)), want
    table.update_dot(lookups, vectors, pushes)
    yield from everything(table, stepped([want]))


def table_dot_loss(place):
    """Every kind of loss, also of rows that have missed steps."""
    (there, here), x, labels = place.bags(False), place.array(POOLED), np.round(RNG.random(15), 2).astype("f4")
    late = se.EmbeddingTable.from_array(place.array(WEIGHT.copy()), se.Adam(lr=0.1))
    late.update(place.array(IDS[0]), place.array(GRAD[0]))
    shares, pair, softmax = np.array([1.0, 2.0, 0.5, 3.0], "f4"), se.losses.Pairwise(), se.losses.Softmax()
    for table, loss, marks, weights in (
        (place.table(), se.losses.Logistic(), labels, None),
        (late, se.losses.Squared(), labels, shares),
        (place.table(), pair, None, shares),
        (late, softmax, None, None),
        (place.table(), softmax, labels, shares),
    ):
        padding = None if table is late else PADDING
        given = [None if each is None else place.array(each) for each in (marks, weights)]
        found = table.dot_loss(there, x, given[0], loss, weights=given[1])
        weight = np.asarray(table.state_dict()["weight"])
        exact = reference.dot_loss(weight, here, POOLED, marks, loss, weights, padding)
        yield f"{loss}: loss", place.read(found[0]), exact[0]
        yield f"{loss}: gradient of x", place.read(found[1]), exact[1]
        yield f"{loss}: gradient of scores", place.read(found[2]), exact[2]
    found, ones = place.table().dot_loss(place.array(IDS), place.array(GRAD[:, 0]), loss=pair), GRAD[:, 0]
    exact = reference.dot_loss(cleared(), IDS, ones, None, pair, None, PADDING)
    for name, mine, its in zip(("loss", "gradient of x", "gradient of scores"), found, exact, strict=True):
        yield f"rows of ids: {name}", place.read(mine), its


def lookup(place):
    table, want = place.table(), reference.gather(cleared(), IDS)
    yield "lookup", place.read(table.lookup(place.array(IDS))), want
    yield "in brackets", place.read(table[place.array(IDS)]), want


def table_pool(place, mode, weighted):
    there, here = place.bags(weighted)
    yield "pool", place.read(place.table().pool(there, mode)), reference.pool(cleared(), here, mode, PADDING)


def update(place):
    table = place.table()
    for _ in range(2):
        table.update(place.array(IDS), place.array(GRAD))
    yield from everything(table, stepped([coalesced()] * 2))


def update_pooled(place, mode, weighted):
    table, (there, here) = place.table(), place.bags(weighted)
    table.update_pooled(there, place.array(POOLED), mode)
    gradient = reference.pool_gradient(here, POOLED, ROWS, mode, PADDING, cleared())
    yield from everything(table, stepped([gradient]))


def gradient_and_apply(place):
    table = place.table()
    gradient = table.gradient(place.array(IDS), place.array(GRAD))
    yield "gradient", dense(place, gradient), coalesced()
    table.apply(gradient)
    yield from everything(table, stepped([coalesced()]))


def gradient_pooled(place, mode, weighted):
    table, (there, here) = place.table(), place.bags(weighted)
    gradient = table.gradient_pooled(there, place.array(POOLED), mode)
    want = reference.pool_gradient(here, POOLED, ROWS, mode, PADDING, cleared())
    yield "gradient", dense(place, gradient), want
    table.apply(gradient)
    yield from everything(table, stepped([want]))


def blocks(place):
    table = place.table()
    table.update(place.array(IDS), place.array(GRAD))
    found = [(first, place.read(vectors)) for first, vectors in table.blocks(4)]
    yield "first", [first for first, _ in found], [0, 4, 8]
    yield "vectors", np.concatenate([vectors for _, vectors in found]), stepped([coalesced()])["weight"]


def set_rows(place):
    for reset in (False, True):
        table, want = place.table(), stepped([coalesced()])
        table.update(place.array(IDS), place.array(GRAD))
        table.set_rows([7, 3, 4], POOLED[:3], reset=reset)
        want["weight"][[7, 3, 4]] = POOLED[:3]
        for name in RULE.slots if reset else ():
            want[name][[7, 3, 4]] = 0
        yield from everything(table, want)


def take(place):
    table, rows = place.table(), [5, 2, 8, 5]
    table.update(place.array(IDS), place.array(GRAD))
    some, want = table.take(rows), stepped([coalesced()])
    yield "padding", some.padding_idx, 1
    yield from everything(some, {name: value if name == "step" else value[rows] for name, value in want.items()})
    yield from everything(table, want)


def astype(place):
    table = place.table()
    table.update(place.array(IDS), place.array(GRAD))
    yield from everything(table.astype(np.float64), stepped([coalesced()]))


def reset_state(place):
    table, want = place.table(), stepped([coalesced()])
    table.update(place.array(IDS), place.array(GRAD))
    table.reset_state()
    yield from everything(table, {name: value * (name == "weight") for name, value in want.items()})
    table.optimizer = se.SGD(lr=0.5)
    table.update(place.array(IDS), place.array(GRAD))
    yield "another optimizer", np.asarray(table.state_dict()["weight"]), want["weight"] - 0.5 * coalesced()


def weights_only(place):
    trained, reader = place.table(), place.table()
    for table in (trained, reader):
        table.update(place.array(IDS), place.array(GRAD))
    reader.load_state_dict({"weight": np.asarray(trained.state_dict()["weight"])}, strict=False)
    want = stepped([coalesced()])
    yield from everything(reader, {name: value * (name == "weight") for name, value in want.items()})


def state_dict(place):
    first, second = place.table(), place.table()
    first.update(place.array(IDS), place.array(GRAD))
    second.load_state_dict(first.state_dict())
    for table in (first, second):
        table.update(place.array(IDS), place.array(GRAD))
        yield from everything(table, stepped([coalesced()] * 2))


def deepcopy(place):
    first = place.table()
    first.update(place.array(IDS), place.array(GRAD))
    second = copy.deepcopy(first)
    second.update(place.array(IDS), place.array(GRAD))
    yield from everything(second, stepped([coalesced()] * 2))
    yield from everything(first, stepped([coalesced()]))


CASES = {each.__name__: each for each in (gather, scatter_add, coalesce, dot, table_dot, table_dot_loss)}
CASES |= {each.__name__: each for each in (lookup, update, gradient_and_apply)}
CASES |= {each.__name__: each for each in (state_dict, deepcopy)}
CASES |= {each.__name__: each for each in (blocks, set_rows, take, astype, reset_state, weights_only)}
for _case in (pool, pool_gradient, per_sample_weights_gradient, table_pool, update_pooled, gradient_pooled):
    for _mode in MODES[:3] if _case is per_sample_weights_gradient else MODES:
        for _weighted in (False, True) if _mode != "max" else (False,):
            _name = f"{_case.__name__}, {_mode}{', weighted' if _weighted else ''}"
            CASES[_name] = partial(_case, mode=_mode, weighted=_weighted)


def check(case, place):
    """Run a case in a place."""
    for name, got, want in CASES[case](place):
        assert np.shape(got) == np.shape(want), name
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5, err_msg=name)

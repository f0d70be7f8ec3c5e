"""What `test_bits` pins: training and calls on small inputs, which are made by exact arithmetic.

A case is a generator of (name, array); its arrays, in order, are what is pinned.
"""

import itertools
from functools import partial

import numpy as np
from every import EVERY

import sparsembed as se


def falling(step):
    """A schedule."""
    return 0.25 / step


RULES = {
    "SGD": se.SGD(lr=0.3),
    "SGD, schedule": se.SGD(lr=falling),
    "SGD, decay": se.SGD(lr=0.1, weight_decay=0.05),
    "SGD, momentum": se.SGD(lr=0.1, momentum=0.9),
    "SGD, momentum, schedule": se.SGD(lr=falling, momentum=0.9),
    "SGD, momentum, dampening": se.SGD(lr=0.1, momentum=0.8, dampening=0.3),
    "SGD, momentum, decay": se.SGD(lr=0.1, momentum=0.9, weight_decay=0.05),
    "SGD, nesterov": se.SGD(lr=0.1, momentum=0.9, nesterov=True),
    "SGD, nesterov, decay": se.SGD(lr=0.1, momentum=0.7, nesterov=True, weight_decay=0.02),
    "Adagrad": se.Adagrad(lr=0.1),
    "Adagrad, options": se.Adagrad(lr=falling, lr_decay=0.5, initial_accumulator_value=0.1, eps=1e-3),
    "RowwiseAdagrad": se.RowwiseAdagrad(lr=0.1),
    "RowwiseAdagrad, schedule": se.RowwiseAdagrad(lr=falling),
    "RowwiseAdagrad, decoupled": se.RowwiseAdagrad(lr=0.1, weight_decay=0.01),
    "RowwiseAdagrad, l2": se.RowwiseAdagrad(lr=0.1, weight_decay=0.01, weight_decay_mode="l2"),
    "Adam": se.Adam(lr=0.1),
    "Adam, options": se.Adam(lr=falling, betas=(0.7, 0.9), eps=1e-3),
    "AdamW": se.AdamW(lr=0.1),
    "AdamW, options": se.AdamW(lr=falling, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1),
    "SparseAdam": se.SparseAdam(lr=0.1),
    "SparseAdam, options": se.SparseAdam(lr=falling, betas=(0.5, 0.9), eps=0.1),
    "RMSprop": se.RMSprop(lr=0.01),
    "RMSprop, options": se.RMSprop(lr=falling, alpha=0.8, eps=1e-3),
    "FTRL": se.FTRL(lr=0.1),
    "FTRL, options": se.FTRL(lr=falling, beta=0.5, l1=0.02, l2=0.1),
    "LAMB": se.LAMB(lr=0.1),
    "LAMB, options": se.LAMB(lr=falling, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.05),
    "PartialRowwiseAdam": se.PartialRowwiseAdam(lr=0.1),
    "PartialRowwiseAdam, options": se.PartialRowwiseAdam(lr=falling, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.05),
}
ROWS, DIMS, MODES = 23, (1, 3, 17, 64), ("sum", "mean", "sqrtn", "max")
PAIRS = list(itertools.product((np.float32, np.float64), (np.int32, np.int64)))


# ---------------------------------------------------------------------- inputs


def mixed(size, seed):
    """Return `size` uint64 that look random: splitmix64."""
    with np.errstate(over="ignore"):
        x = (np.arange(1, size + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def numbers(shape, dtype, seed):
    """Return numbers in [-1, 1) that fill the mantissa, so that their sums round."""
    bits = {2: 10, 4: 24, 8: 53}[np.dtype(dtype).itemsize]
    whole = (mixed(int(np.prod(shape)), seed) >> np.uint64(64 - bits)).astype(np.int64) - (1 << (bits - 1))
    return (whole / 2.0 ** (bits - 1)).astype(dtype).reshape(shape)


def ids_of(shape, dtype, seed, num_rows=ROWS):
    """Return ids; most are of the first rows."""
    size = int(np.prod(shape))
    most = np.where(mixed(size, seed + 500) % 4 == 0, num_rows, max(num_rows // 3, 1)).astype(np.uint64)
    return (mixed(size, seed) % most).astype(dtype).reshape(shape)


def hot_ids(size, dtype, seed):
    """Return ids of which row 3 has more than 4096, and row 5 more than 512."""
    ids = ids_of((size,), dtype, seed, num_rows=40)
    place = mixed(size, seed + 900) % 100
    ids[place < 80], ids[place >= 86] = 3, 5
    assert (ids == 3).sum() > 4096
    assert (ids == 5).sum() > 512
    return ids


def bags_of(dtype, id_dtype, seed, weighted, num_rows=ROWS):
    """Return 7 bags, of which some are empty."""
    offsets = np.cumsum([0, 3, 0, 5, 1, 2, 0, 4]).astype(id_dtype)
    weights = numbers((15,), dtype, seed + 70) if weighted else None
    return se.Bags(ids_of((15,), id_dtype, seed, num_rows), offsets, weights)


# ---------------------------------------------------------------------- tables


def made(rule, dim, dtype, seed=1, num_rows=ROWS, **options):
    return se.EmbeddingTable.from_array(numbers((num_rows, dim), dtype, seed), rule, **options)


def everything(table):
    """What training has changed."""
    table.flush()
    yield "weight", table.weight
    for name, array in table.state.items():
        yield name, np.ascontiguousarray(array)
    yield "step", np.array([table.step])


def train(table, dtype, id_dtype, seed=0):
    """Take steps of all kinds on single rows, with lookups in between."""
    dim = table.dim
    for k in range(3):
        ids = ids_of((4, 3), id_dtype, seed + 10 + k, num_rows=table.num_rows)
        table.update(ids, numbers((4, 3, dim), dtype, seed + 20 + k))
        yield f"lookup {k}", table.lookup(ids_of((5,), id_dtype, seed + 30 + k))
    several = [ids_of(shape, id_dtype, seed + 40 + k) for k, shape in enumerate([(6,), (2, 3)])]
    grads = [numbers((*ids.shape, dim), dtype, seed + 50 + k) for k, ids in enumerate(several)]
    table.update(several, grads)
    gradient = table.gradient(several, grads)
    yield "gradient", np.asarray(gradient.values)
    table.apply(gradient)
    table.update(se.plan(several[1], table.num_rows), grads[1])
    yield "lookup", table.lookup(np.arange(table.num_rows, dtype=id_dtype))


def update(rule, dtype, id_dtype):
    """Train tables of some widths."""
    for dim, padding in (*((dim, None) for dim in DIMS), (17, 2)):
        table = made(rule, dim, dtype, padding_idx=padding)
        for part in (train(table, dtype, id_dtype), everything(table)):
            for name, array in part:
                yield f"{name}, dim {dim}, {padding}", array


def train_pooled(table, dtype, id_dtype, modes=MODES):
    """Take steps on bags, with pooling in between."""
    for k, (mode, weighted) in enumerate(itertools.product(modes, (False, True))):
        if mode == "max" and weighted:
            continue
        bags = bags_of(dtype, id_dtype, 60 + k, weighted)
        yield f"pool, {mode}, {weighted}", table.pool(bags, mode)
        table.update_pooled(bags, numbers((7, table.dim), dtype, 80 + k), mode)
    for mode in modes:
        pair = [bags_of(dtype, id_dtype, 90 + k, False) for k in range(2)]
        table.update_pooled(pair, [numbers((7, table.dim), dtype, 95 + k) for k in range(2)], mode)


def update_pooled(rule, dtype, id_dtype):
    """Train tables by bags, in all modes."""
    for dim in (3, 17):
        table = made(rule, dim, dtype)
        for part in (train_pooled(table, dtype, id_dtype), everything(table)):
            for name, array in part:
                yield f"{name}, dim {dim}", array


def hot(rule, dtype, id_dtype):
    """Train a table on rows that a batch has hundreds and thousands of times; more threads than one share the work."""
    table = made(rule, 64, dtype, num_rows=40)
    for k in range(2):
        ids = hot_ids(6000, id_dtype, k)
        table.update(ids, numbers((6000, 64), dtype, k) / 64)
        yield f"lookup {k}", table.lookup(np.arange(40, dtype=id_dtype))
    yield from everything(table)


def options(rule, dtype, id_dtype):
    """Train tables with each option, and with all of them."""
    some = [{"padding_idx": 2}, {"scale_grad_by_freq": True}]
    if rule.catch_up is None:
        some += [{"max_norm": 0.75}, {"max_norm": 1.5, "norm_type": 1.0}]
    every = {name: value for each in some for name, value in each.items()}
    for given in [*some, every]:
        table = made(rule, 5, dtype, **given)
        parts = (train(table, dtype, id_dtype), train_pooled(table, dtype, id_dtype, ("mean", "max")))
        for name, array in itertools.chain(*parts, everything(table)):
            yield f"{name}, {given}", array


# ---------------------------------------------------------------------- functions


def gather(dtype, id_dtype):
    for dim in DIMS:
        weight = numbers((ROWS, dim), dtype, 1)
        yield f"dim {dim}", se.gather(weight, ids_of((4, 3), id_dtype, 2))
        yield f"strided, dim {dim}", se.gather(weight[::-2], ids_of((9,), id_dtype, 3, ROWS // 2))
        for k, each in enumerate(se.gather(weight, [ids_of((2,), id_dtype, 4), ids_of((1, 3), id_dtype, 5)])):
            yield f"several {k}, dim {dim}", each
    yield "many", se.gather(numbers((40, 64), dtype, 6), ids_of((5000,), id_dtype, 7, 40))


def pool(dtype, id_dtype):
    kind = np.result_type(dtype, np.float32)
    for dim, mode, weighted, padding in itertools.product(DIMS, MODES, (False, True), (None, 2)):
        if mode == "max" and weighted:
            continue
        bags = bags_of(kind, id_dtype, 8, weighted)
        result = se.pool(numbers((ROWS, dim), dtype, 1), bags, mode, padding_idx=padding)
        yield f"{mode}, {weighted}, {padding}, dim {dim}", result
    many = se.Bags(ids_of((9000,), id_dtype, 9, 40), np.arange(0, 9001, 30).astype(id_dtype))
    for mode in MODES:
        yield f"many, {mode}", se.pool(numbers((40, 64), dtype, 6), many, mode)


def scatter_add(dtype, id_dtype):
    for dim in DIMS:
        weight = numbers((ROWS, dim), dtype, 1)
        se.scatter_add(weight, ids_of((4, 3), id_dtype, 2), numbers((4, 3, dim), dtype, 3))
        se.scatter_add(weight, ids_of((9,), id_dtype, 4), numbers((9, dim), dtype, 5), alpha=-0.3)
        yield f"dim {dim}", weight
    weight = numbers((40, 64), dtype, 6)
    se.scatter_add(weight, hot_ids(6000, id_dtype, 7), numbers((6000, 64), dtype, 8))
    yield "hot", weight


def of(gradient, name):
    yield f"rows, {name}", np.asarray(gradient.rows)
    yield f"values, {name}", np.asarray(gradient.values)


def coalesce(dtype, id_dtype):
    for dim, padding, by_freq in itertools.product(DIMS, (None, 2), (False, True)):
        given = {"padding_idx": padding, "scale_grad_by_freq": by_freq}
        grad = numbers((6, 4, dim), dtype, 3)
        yield from of(se.coalesce(ids_of((6, 4), id_dtype, 2), grad, ROWS, **given), f"{given}, dim {dim}")
        several = [ids_of((4,), id_dtype, 4), ids_of((2, 3), id_dtype, 5)]
        grads = [numbers((4, dim), dtype, 6), numbers((2, 3, dim), dtype, 7)]
        yield from of(se.coalesce(several, grads, ROWS, **given), f"several, {given}, dim {dim}")
    yield from of(se.coalesce(hot_ids(6000, id_dtype, 7), numbers((6000, 64), dtype, 8), 40), "hot")
    many = ids_of((70_000,), id_dtype, 9, 3000)  # so many are sorted by several threads
    yield from of(se.coalesce(many, numbers((70_000, 1), dtype, 10), 3000), "many")


def pool_gradient(dtype, id_dtype):
    for dim, mode, weighted in itertools.product(DIMS, MODES, (False, True)):
        if mode == "max" and weighted:
            continue
        weight = numbers((ROWS, dim), dtype, 1) if mode == "max" else None
        for padding, by_freq in ((None, False), (2, True)):
            given = {"padding_idx": padding, "scale_grad_by_freq": by_freq}
            bags = bags_of(dtype, id_dtype, 8, weighted)
            grad = se.pool_gradient(bags, numbers((7, dim), dtype, 2), ROWS, mode, weight=weight, **given)
            yield from of(grad, f"{mode}, {weighted}, {given}, dim {dim}")
    bags = se.Bags(hot_ids(6000, id_dtype, 9), np.arange(0, 6001, 30).astype(id_dtype))
    for mode in MODES[:3]:
        yield from of(se.pool_gradient(bags, numbers((200, 64), dtype, 3), 40, mode), f"hot, {mode}")


def per_sample_weights_gradient(dtype, id_dtype):
    for dim, mode, weighted, padding in itertools.product(DIMS, MODES[:3], (False, True), (None, 2)):
        bags, weight = bags_of(dtype, id_dtype, 8, weighted), numbers((ROWS, dim), dtype, 1)
        result = se.per_sample_weights_gradient(weight, bags, numbers((7, dim), dtype, 2), mode, padding_idx=padding)
        yield f"{mode}, {weighted}, {padding}, dim {dim}", result


# ---------------------------------------------------------------------- all of them

FUNCTIONS = (gather, pool, scatter_add, coalesce, pool_gradient, per_sample_weights_gradient)
HALF = [(np.float16, each) for each in (np.int32, np.int64)]  # of functions that only read


# Each kind of update is a kernel for each form of rule and each pair of dtypes, and seconds of compiling.
FORMS = list(dict.fromkeys(type(rule) for rule in RULES.values()))
OPTIONS = {
    "SGD": (np.float32, np.int64),
    "Adagrad": (np.float64, np.int32),
    "Adam": (np.float32, np.int32),
    "SparseAdam": (np.float32, np.int64),
    "RowwiseAdagrad, l2": (np.float64, np.int64),
}
# What small batches take in one compiled call in every run, as this call is the same for all rules but for their step:
# one form of each mechanism (no state, state, a row stage with row state, and with more, steps that rows miss).
IN_ONE_CALL = {
    "update_pooled": ("SGD", "SparseAdam", "RowwiseAdagrad", "LAMB", "SGD, decay", "Adam"),
    "options": ("SGD", "RowwiseAdagrad, l2", "Adam"),
}


def pair_of(rule):
    """Return the pair of dtypes, of numbers and ids, of cases with one pair for each form of rule."""
    return PAIRS[FORMS.index(type(rule)) % len(PAIRS)]


def pairs_of(rule):
    """Return the pairs of dtypes that every run trains a rule with; that of a form is that of the optimizer.

    Both of numbers with int64, which other tests use, too; and int32 with one of them, for a form of each mechanism.
    """
    form = next(kind for kind in type(rule).__mro__ if kind in FORMS)
    number, pairs = FORMS.index(form), [(dtype, np.int64) for dtype in (np.float32, np.float64)]
    if form in {type(RULES[name]) for name in IN_ONE_CALL["update_pooled"]}:
        pairs.append(((np.float32, np.float64)[number % 2], np.int32))
    return PAIRS if EVERY else pairs


def groups():
    """Return {group: {case: function without arguments}}; a group is one test."""
    found = {}
    for name, rule in RULES.items():
        one, some = [pair_of(rule)], [OPTIONS[name]] if name in OPTIONS else []
        several = {update: PAIRS, update_pooled: one, hot: PAIRS, options: some}
        for function, pairs in several.items():
            if pairs:
                group = f"{function.__name__}, {name}"
                found[group] = {_named(group, pair): partial(function, rule, *pair) for pair in pairs}
    for function in FUNCTIONS:
        pairs = PAIRS + HALF if function in (gather, pool) else PAIRS
        found[function.__name__] = {_named(function.__name__, pair): partial(function, *pair) for pair in pairs}
    return found


def covering(way):
    """Return the groups with the cases that every run takes: the rest of `groups` takes minutes more to compile.

    The general way has all rules; `test_few_steps` compares the call of small batches with it, and `test_options` with
    the reference.
    """
    forms = {function: {type(RULES[name]) for name in names} for function, names in IN_ONE_CALL.items()}
    found = {}
    for group, cases in groups().items():
        function, _, name = group.partition(", ")
        if EVERY:
            found[group] = cases
        elif function in ("update", "hot"):
            names = {_named(group, pair) for pair in pairs_of(RULES[name])}
            found[group] = {case: function for case, function in cases.items() if case in names}
        elif way == "general" or function not in IN_ONE_CALL or type(RULES[name]) in forms[function]:
            found[group] = cases
    return found


def _named(group, pair):
    return f"{group}, {np.dtype(pair[0])}, {np.dtype(pair[1])}"

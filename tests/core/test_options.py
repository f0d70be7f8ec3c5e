"""Every option works as documented or raises: no option is silently ignored."""

import functools
import inspect
import itertools
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from strategies import typed

import sparsembed as se

ROWS, DIM, PADDING = 12, 3, 2
RULES = {name: getattr(se, name) for name in se.rules.__all__ if name != "Rule"}
BASE = {"lr": 0.1, "weight_decay": 0.1}
# A value for every hyperparameter of every rule that is not the one in BASE, nor the default.
OTHER = {
    "lr": 0.4,
    "lr_decay": 0.5,
    "initial_accumulator_value": 2.0,
    "eps": 0.5,
    "betas": (0.5, 0.7),
    "weight_decay": 0.3,
    "weight_decay_mode": "l2",
    "touched_weight_decay": 0.3,
    "momentum": 0.5,
    "dampening": 0.3,
    "nesterov": True,
    "alpha": 0.5,
    "beta": 2.0,
    "l1": 5.0,
    "l2": 50.0,
}
FOREIGN = [
    *("amsgrad", "centered", "maximize", "foreach", "fused", "capturable", "differentiable"),
    *(
        "max_norm",
        "norm_type",
        "scale_grad_by_freq",
        "sparse",
        "lazy",
        "clipnorm",
        "gradient_clipping",
        "beta1",
        "decay",
    ),
]
CALLS = [
    *(se.gather, se.pool, se.scatter_add, se.coalesce, se.pool_gradient, se.per_sample_weights_gradient, se.plan),
    *(se.Bags, se.Bags.from_padded, se.Bags.from_lists, se.EmbeddingTable, se.EmbeddingTable.from_array),
    *(se.EmbeddingTable.lookup, se.EmbeddingTable.pool, se.EmbeddingTable.update, se.EmbeddingTable.update_pooled),
    *(se.EmbeddingTable.gradient, se.EmbeddingTable.apply, se.clip_by_global_norm, *RULES.values()),
    *(se.EmbeddingTable.gradient_pooled, se.EmbeddingTable.blocks, se.EmbeddingTable.set_rows, se.EmbeddingTable.take),
    *(se.EmbeddingTable.astype, se.EmbeddingTable.load_state_dict, se.EmbeddingTable.save, se.load, se.warm_up),
    *(se.Bags.from_csr, se.Bags.concatenate, se.Bags.with_weights, se.set_num_threads),
]


# What an option needs beside it, or else raises.
BESIDE = {
    (se.SGD, "dampening"): {"momentum": 0.5},
    (se.SGD, "nesterov"): {"momentum": 0.5},
    (se.SGD, "touched_weight_decay"): {"weight_decay": 0.0},
    (se.FTRL, "l1"): {"beta": 0.0},
}
REFUSED = {(se.Adam, "weight_decay"): "use AdamW"}


def make(rule, **given):
    own = {field.name for field in fields(rule) if (rule, field.name) not in REFUSED}
    return rule(**{name: value for name, value in BASE.items() if name in own} | given)


def batch(step, lookup):
    """A ragged batch with repeats, padding, an empty bag and a bag of padding only."""
    rng = np.random.default_rng([step, lookup])
    ids = np.concatenate([rng.integers(0, ROWS, 14), [PADDING, 5, 5, PADDING]])
    offsets = np.array([0, 5, 5, 9, 14, 17, 18])
    return ids, offsets, rng.uniform(0.5, 2.0, len(ids)), rng.standard_normal((len(ids), DIM))


START = np.random.default_rng(0).standard_normal((ROWS, DIM))


def trained(dtype, rule, padding, lookups, mode, weighted):
    """Table and state after two steps of the engine."""
    table = se.EmbeddingTable.from_array(START.astype(dtype), rule, padding_idx=padding)
    for step in (1, 2):
        ids, offsets, weights, grads = zip(*(batch(step, lookup) for lookup in range(lookups)), strict=True)
        grads = [grad.astype(dtype) for grad in grads]
        if mode is None:
            table.update(*((ids[0], grads[0]) if lookups == 1 else (list(ids), grads)))
            continue
        bags = [se.Bags(i, o, w if weighted else None) for i, o, w in zip(ids, offsets, weights, strict=True)]
        grads = [grad[: each.num_bags] for grad, each in zip(grads, bags, strict=True)]
        table.update_pooled(*((bags[0], grads[0]) if lookups == 1 else (bags, grads)), mode)
    return [table.weight, *table.state.values()]


@functools.cache
def expected(dtype, rule, padding, lookups, mode, weighted):
    """The same by the reference, in float64."""
    weight, state = START.astype(dtype).astype(np.float64), None
    if padding is not None:
        weight[padding] = 0
    state = {name: np.zeros((ROWS, DIM)) for name in rule.slots} | {name: np.zeros(ROWS) for name in rule.row_slots}
    for step in (1, 2):
        dense, touched = np.zeros_like(weight), []
        for ids, offsets, weights, grad in (batch(step, lookup) for lookup in range(lookups)):
            touched.append(ids)
            if mode is None:
                dense += se.reference.coalesce(ids, grad, ROWS)
                continue
            bags = se.Bags(ids, offsets, weights if weighted else None)
            table = weight if mode == "max" else None
            dense += se.reference.pool_gradient(bags, grad[: bags.num_bags], ROWS, mode, padding, table)
        rows = np.unique(np.concatenate(touched))
        rated = replace(rule, lr=rule.lr(step)) if callable(rule.lr) else rule
        weight, state = se.reference.update(rated, weight, state, rows, dense[rows], step, padding)
    return [weight, *state.values()]


def differ(these, those):
    return not np.allclose(these[0], those[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("option", [*OTHER, *FOREIGN])
def test_a_rules_own_options_act_and_foreign_ones_raise(rule, option):
    assert {field.name for field in fields(rule)} <= set(OTHER)
    if option not in {field.name for field in fields(rule)}:
        with pytest.raises(TypeError, match=option):
            make(rule, **{option: OTHER.get(option, True)})
        return
    if (rule, option) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[rule, option]):
            make(rule, **{option: OTHER[option]})
        return
    beside = BESIDE.get((rule, option), {})
    if "momentum" in beside:
        with pytest.raises(ValueError, match="needs momentum"):
            make(rule, **{option: OTHER[option]})
    plain, other = make(rule, **beside), make(rule, **beside | {option: OTHER[option]})
    assert plain != other
    combination = (None, 1, None, False)
    found = trained(np.float64, other, *combination)
    for got, wanted in zip(found, expected(np.float64, other, *combination), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)
    assert differ(found, trained(np.float64, plain, *combination))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_foreign_options_of_calls_raise(call):
    own = set(inspect.signature(call).parameters)
    for option in {
        *FOREIGN,
        "include_last_offset",
        "mode",
        "alpha",
        "dtype",
        "padding_idx",
        "per_sample_weights",
    } - own:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
            call(**{option: None})


def decaying(step):
    return 0.2 / step


@pytest.mark.parametrize(("name", "dtype"), typed(RULES))
@pytest.mark.parametrize("mode", [None, "sum", "mean", "sqrtn", "max"])
def test_every_combination_acts_or_raises(name, dtype, mode):
    """padding x learning-rate schedule x several lookups x weights; each is compared with the call without it."""
    rule = RULES[name]
    tolerance = 1e-4 if dtype == np.float32 else 1e-11
    weights = (False,) if mode is None else (False, True)
    for padding, lr, lookups, weighted in itertools.product((None, PADDING), (0.1, decaying), (1, 2), weights):
        key = (dtype, make(rule, lr=lr), padding, lookups, mode, weighted)
        if mode == "max" and weighted:
            with pytest.raises(ValueError, match=r"max.*per_sample_weights"):
                trained(*key)
            continue
        found, wanted = trained(*key), expected(*key)
        for got, right in zip(found, wanted, strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(got, right, rtol=tolerance, atol=tolerance)
        without = {
            "padding": padding is not None and (*key[:2], None, *key[3:]),
            "schedule": lr is decaying and (dtype, make(rule), *key[2:]),
            "lookups": lookups == 2 and (*key[:3], 1, *key[4:]),
            "weights": weighted and (*key[:5], False),
            "mode": mode in ("mean", "sqrtn", "max") and not weighted and (*key[:4], "sum", False),
        }
        for option, other in without.items():
            assert not other or differ(wanted, expected(*other)), option


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_float16_table_reads_and_does_not_train(rule):
    with pytest.raises(TypeError, match="float16"):
        se.EmbeddingTable(ROWS, DIM, make(rule), dtype=np.float16)
    table = se.EmbeddingTable(ROWS, DIM, dtype=np.float16, rng=0)
    ids, offsets, weights, grad = batch(1, 0)
    assert table.lookup(ids).dtype == np.float32
    assert table.pool(se.Bags(ids, offsets, weights), "mean").dtype == np.float32
    assert table.gradient(ids, grad).values.dtype == np.float32
    with pytest.raises(ValueError, match="no optimizer, so it cannot be updated"):
        table.update(ids, grad)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def training():
    """A table in the middle of training, with a learning rate that a test may break."""
    w = SimpleNamespace(rate=0.1)
    w.table = se.EmbeddingTable(8, 3, se.SparseAdam(lr=lambda step: w.rate), rng=0)
    w.table.update(IDS, GRAD)
    return w


def contents(table):
    return [array.tobytes() for array in (table.weight, *table.state.values())], table.step


def schedule(w, value):
    w.rate = value
    w.table.update(IDS, GRAD)


def frozen(w):
    w.table.weight.flags.writeable = False
    try:
        w.table.update(IDS, GRAD)
    finally:
        w.table.weight.flags.writeable = True


IDS, GRAD, SGD, from_array = np.array([1, 5]), ones(2, 3), se.SGD(lr=0.1), se.EmbeddingTable.from_array
BAGS = se.Bags(IDS, np.array([0, 1, 2]))
sparse, wide = se.RowGradient(IDS, GRAD, 8), se.RowGradient(IDS, ones(2, 3, dtype=np.float64), 8)
TOGETHER = {
    "fewer_gradients": (lambda w: w.table.update([IDS, IDS], [GRAD]), "grad_out.*list of 2.*got 1"),
    "one_gradient": (lambda w: w.table.update([IDS, IDS], ones(2, 2, 3)), "grad_out.*list of 2"),
    "second_shape": (lambda w: w.table.update([IDS, IDS], [GRAD, ones(1, 3)]), r"grad_out\[1\].*\(1, 3\)"),
    "second_nan": (lambda w: w.table.update([IDS] * 2, [GRAD, GRAD * np.nan], check_finite=True), "grad_out.*nan"),
    "fewer_pooled": (lambda w: w.table.update_pooled([BAGS] * 2, [GRAD], "max"), "grad_out.*2.*got 1"),
    "pooled_shape": (lambda w: w.table.update_pooled([BAGS] * 2, [GRAD, ones(3, 3)], "max"), r"grad_out.*\(3, 3\)"),
    "max_needs_weight": (lambda w: se.pool_gradient(BAGS, GRAD, 8, "max"), "weight=.*pooled"),
    "other_weight": (lambda w: se.pool_gradient(BAGS, GRAD, 9, "max", weight=ones(8, 3)), "num_rows = 9.*8"),
    "no_weights": (lambda w: se.per_sample_weights_gradient(ones(8, 3), BAGS, GRAD, "max"), "per_sample_weights"),
    "several_out": (lambda w: se.gather(ones(8, 3), [IDS, IDS], out=ones(2, 3)), "out.*several"),
    "no_optimizer": (lambda w: from_array(ones(8, 3)).update(IDS, GRAD), "no optimizer.*set table.optimizer"),
    "frozen": (frozen, "read-only"),
    "read_only": (lambda w: from_array(np.broadcast_to(ones(8, 1), (8, 3)), SGD), "read-only.*copy=True"),
    "repeated": (lambda w: from_array(as_strided(ones(3), (8, 3), (0, 4)), SGD), "memory.*copy=True"),
    "overlapping": (lambda w: from_array(as_strided(ones(10), (8, 3), (4, 4)), SGD), "memory.*copy=True"),
    "overflow": (lambda w: se.EmbeddingTable(2**40, 2**40), r"num_rows \* dim.*smaller"),
    "unequal": (lambda w: sparse + se.RowGradient(IDS, GRAD, 9), r"\(8, 3\) and \(9, 3\)"),
    "dtypes": (lambda w: sparse + wide, "float32 and float64"),
    **{
        f"schedule_{v}": (lambda w, v=v: schedule(w, v), rf"lr\(2\).*{v}|cannot hold")
        for v in (np.nan, -1, None, 1e300)
    },
}


@pytest.mark.parametrize("name", TOGETHER)
def test_arguments_that_do_not_fit_together(name):
    wrong, says = TOGETHER[name]
    w = training()
    before = contents(w.table)
    with pytest.raises((TypeError, ValueError), match=f"(?s){says}"):
        wrong(w)
    assert contents(w.table) == before
    w.rate = 0.1
    w.table.update(IDS, GRAD)  # and no lock is left behind
    assert w.table.step == 2

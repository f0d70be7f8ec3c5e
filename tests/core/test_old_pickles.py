"""Pickles and state dicts that former versions have written are read, and what they hold works.

``PYTHONPATH=tests/helpers python tests/core/test_old_pickles.py`` has written the file; what it holds is not to be
written again, but a new version may add a file of its own.
"""

import pickle

import numpy as np
import pytest
from bit_cases import ROWS, RULES, bags_of, everything, falling, ids_of, made, numbers
from old_files import Old

import sparsembed as se

OLD = Old("old_pickles.npz.xz")
F, I = np.float32, np.int64  # noqa: E741
PLAIN = {name: rule for name, rule in RULES.items() if rule.lr is not falling}  # schedules are pickled by name
SEVERAL = [ids_of((6,), I, 1), ids_of((2, 3), I, 2)]
TABLES = {
    **{name: (rule, F, {}) for name, rule in PLAIN.items()},
    "none": (None, F, {"padding_idx": 4}),
    "none, float16": (None, np.float16, {}),
    "padding": (PLAIN["SparseAdam"], F, {"padding_idx": 3}),
    "max_norm": (PLAIN["Adagrad"], F, {"max_norm": 0.8, "norm_type": 1.0}),
    "by_freq": (PLAIN["SGD"], F, {"scale_grad_by_freq": True}),
    "every option": (PLAIN["SparseAdam"], F, {"max_norm": 2.0, "padding_idx": 0, "scale_grad_by_freq": True}),
    "float64": (PLAIN["SGD, momentum"], np.float64, {"padding_idx": 3}),
}


# ---------------------------------------------------------------------- what comes of each


def after_plan(plan):
    table = made(PLAIN["SGD"], 3, F)
    parts = plan.ids if plan.several else [plan.ids]
    grads = [numbers((*part.shape, 3), F, 5 + k) for k, part in enumerate(parts)]
    table.update(plan, grads if plan.several else grads[0])
    looked = se.gather(table.weight, plan)
    yield from {"rows": plan.rows, "order": plan.order, "offsets": plan.segment_offsets}.items()
    yield from {"counts": plan.counts, "weight": table.weight, "num_rows": plan.num_rows}.items()
    yield from ((f"lookup {k}", each) for k, each in enumerate(looked if plan.several else [looked]))
    assert [part.shape for part in parts] == plan.shapes
    assert not plan.rows.flags.writeable


def after_bags(bags):
    grad = se.pool_gradient(bags, numbers((7, 3), F, 6), ROWS, "mean")
    yield "pool", se.pool(numbers((ROWS, 3), F, 5), bags, "sqrtn")
    yield from {"rows": grad.rows, "values": grad.values, "ids": bags.ids, "offsets": bags.offsets}.items()
    if bags.per_sample_weights is not None:
        yield "weights", bags.per_sample_weights
    assert len(bags) == bags.num_bags == 7


def after_gradient(gradient):
    table = made(PLAIN["SparseAdam"], 3, F)
    table.apply(gradient)
    double = gradient + gradient
    yield from {"rows": gradient.rows, "values": gradient.values, "twice": double.values}.items()
    yield from {"weight": table.weight, "num_rows": gradient.num_rows, "norm": gradient.norm()}.items()


def after_rule(rule):
    table = made(rule, 3, F)
    train(table, range(3))
    yield from everything(table)
    assert hash(rule) == hash(rule)
    assert isinstance(rule, se.rules.Rule)


def after_table(table):
    yield "lookup", table.lookup(ids_of((4,), I, 9))
    yield "pool", table.pool(bags_of(F, I, 10, False), "mean")
    if table.optimizer is not None:
        train(table, range(4, 7))
        table.update_pooled(bags_of(F, I, 11, True), numbers((7, table.dim), table.weight.dtype, 12), "sum")
    yield from everything(table)
    about = {name: getattr(table, name) for name in ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq")}
    yield from ((name, -1.0 if value is None else float(value)) for name, value in about.items())


def train(table, steps):
    for k in steps:
        ids = ids_of((3, 2), I, 40 + k)
        table.update(ids, numbers((3, 2, table.dim), table.weight.dtype, 50 + k))


def trained(name, steps=4):
    rule, dtype, options = TABLES[name]
    table = made(rule, 3, dtype, **options)
    if rule is not None:
        train(table, range(steps))
    return table


def objects():
    """What is pickled, and what is done with it afterwards."""
    rows = np.array([1, 4, 6])
    found = {
        "plan": (se.plan(SEVERAL[1], ROWS), after_plan),
        "plan, int32": (se.plan(SEVERAL[0].astype(np.int32), ROWS), after_plan),
        "plan, several": (se.plan(SEVERAL, ROWS), after_plan),
        "plan, hot": (se.plan(np.repeat(np.arange(3), [600, 3, 1])[::-1], ROWS), after_plan),
        "bags": (bags_of(F, I, 3, False), after_bags),
        "bags, weighted": (bags_of(F, I, 3, True), after_bags),
        "bags, int32, float64": (bags_of(np.float64, np.int32, 3, True), after_bags),
        "gradient": (se.RowGradient(rows, numbers((3, 3), F, 4), ROWS), after_gradient),
        "gradient, coalesced": (se.coalesce(SEVERAL[0], numbers((6, 3), F, 4), ROWS), after_gradient),
    }
    found |= {f"rule, {name}": (rule, after_rule) for name, rule in PLAIN.items()}
    return found | {f"table, {name}": (trained(name), after_table) for name in TABLES}


NAMES = ["plan", "plan, int32", "plan, several", "plan, hot", "bags", "bags, weighted", "bags, int32, float64"]
NAMES += [
    "gradient",
    "gradient, coalesced",
    *(f"rule, {name}" for name in PLAIN),
    *(f"table, {name}" for name in TABLES),
]
MAKERS = {"plan": after_plan, "bags": after_bags, "gradient": after_gradient, "rule": after_rule, "table": after_table}


# ---------------------------------------------------------------------- tests


@pytest.mark.parametrize("name", NAMES)
def test_an_old_pickle_is_read_and_what_it_holds_works(name):
    OLD.check(name, dict(MAKERS[name.partition(",")[0]](OLD.load(name))))


@pytest.mark.parametrize("name", PLAIN)
def test_an_old_rule_equals_a_new_one(name):
    assert OLD.load(f"rule, {name}") == PLAIN[name]
    assert type(OLD.load(f"rule, {name}")) is type(PLAIN[name])
    assert OLD.load(f"table, {name}").optimizer == PLAIN[name]


@pytest.mark.parametrize("name", TABLES)
def test_an_old_state_dict_is_read(name):
    rule, dtype, options = TABLES[name]
    table = se.EmbeddingTable(ROWS, 3, rule, dtype=dtype, rng=0, **options)
    table.load_state_dict(OLD.of("state", name) | {"step": int(OLD.of("state", name)["step"])})
    OLD.check(f"table, {name}", dict(after_table(table)))


@pytest.mark.parametrize("name", TABLES)
def test_a_new_state_dict_has_the_same_names_and_dtypes(name):
    new, old = trained(name).state_dict(), OLD.of("state", name)
    assert sorted(new) == sorted(old)
    for key, value in old.items():
        assert key == "step" or (new[key].dtype, new[key].shape) == (value.dtype, value.shape)


def test_objects_within_others_stay_the_same_ones():
    nested = OLD.load("nested")
    first, (second, plan), bags = nested["table"], nested["more"], nested["bags"]
    assert first is second
    assert first.step == 90
    assert isinstance(plan, se.Plan)
    OLD.check("nested", dict(after_table(first)) | {"pooled": first.pool(bags)})


def test_everything_is_recorded():
    assert OLD.names("bytes") == [*NAMES, "nested"]
    assert list(objects()) == NAMES
    assert OLD.names("state") == list(TABLES)


def record():
    """Write what the present version saves."""
    for name, (value, after) in objects().items():
        saved = pickle.dumps(value, protocol=4)
        OLD.keep(name, saved)
        OLD.put("after", name, dict(after(pickle.loads(saved))))
    for name in TABLES:
        OLD.put("state", name, trained(name).state_dict())
    table, bags = trained("Adam", steps=90), bags_of(F, I, 3, True)  # rows far behind
    saved = pickle.dumps({"table": table, "more": [table, se.plan(SEVERAL, ROWS)], "bags": bags}, protocol=4)
    OLD.keep("nested", saved)
    again = pickle.loads(saved)
    OLD.put("after", "nested", dict(after_table(again["table"])) | {"pooled": again["table"].pool(bags)})
    OLD.save()


if __name__ == "__main__":
    record()

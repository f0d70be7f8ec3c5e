"""check_optimizer: passes every rule, built in or not, and catches wrong ones."""

import dataclasses
import inspect
import math
import pickle
import pydoc
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from strategies import ALL_RULES

import sparsembed as se
from sparsembed import testing
from sparsembed.rules._history import History

each_rule = pytest.mark.parametrize("rule", ALL_RULES, ids=str)


class MomentumHyper(NamedTuple):
    lr: float
    mu: float


@dataclass(frozen=True)
class Momentum(se.rules.Rule):
    """Heavy ball on touched rows: one slot."""

    lr: float = 0.1
    mu: float = 0.9
    Hyper = MomentumHyper
    slots = ("momentum",)

    def hyper(self, step):
        return self.rate(step), self.mu

    @staticmethod
    def step(w, g, s, a, hp):
        m = hp.mu * s[0] + g
        return w - hp.lr * m, (m,)


class EverythingHyper(NamedTuple):
    lr: float
    beta: float
    rest: float
    eps: float
    one: float


@dataclass(frozen=True)
class Everything(se.rules.Rule):
    """A row stage, five slots and four row slots, all different: a rule may have any number of them."""

    lr: float = 0.1
    beta: float = 0.5
    Hyper = EverythingHyper
    slots, row_slots = ("mean", "square", "largest", "last", "before"), ("norm", "count", "rate", "former")

    def hyper(self, step):
        return self.rate(step) / step, self.beta, 1 - self.beta, 1e-3, 1.0

    @staticmethod
    def reduce(w, g, hp):
        return g * g + hp.rest * abs(w)

    @staticmethod
    def row(x, r, hp):
        norm = hp.beta * r[0] + x
        rate = hp.one / (math.sqrt(norm) + hp.eps)
        return rate, (norm, r[1] + hp.one, rate, r[2])

    @staticmethod
    def step(w, g, s, a, hp):
        mean, square = hp.beta * s[0] + hp.rest * g, hp.beta * s[1] + hp.rest * g * g
        largest = max(s[2], abs(g))
        change = a * mean / (math.sqrt(square) + largest + hp.eps)
        return w - hp.lr * (change + hp.rest * s[3] - hp.rest * s[4]), (mean, square, largest, g, s[3])


class RowHyper(NamedTuple):
    lr: float
    tiny: float


@dataclass(frozen=True)
class RowNormalised(se.rules.Rule):
    """A row stage and two slots, but no row slots."""

    lr: float = 0.1
    Hyper = RowHyper
    slots = ("sum", "count")

    def hyper(self, step):
        return self.rate(step), 1e-6

    @staticmethod
    def reduce(w, g, hp):
        return g * g

    @staticmethod
    def row(x, r, hp):
        return math.sqrt(x) + hp.tiny, r

    @staticmethod
    def step(w, g, s, a, hp):
        return w - hp.lr * g / a, (s[0] + g, s[1] + a)


@pytest.mark.parametrize("rule", [*ALL_RULES, se.FTRL(lr=0.5, l1=0.1, l2=0.1), se.FTRL(lr=0.5)], ids=str)
def test_built_in_rules_pass(rule):
    assert testing.check_optimizer(rule) < 1e-5


@pytest.mark.parametrize("rule", [Momentum(), Everything(), RowNormalised()], ids=str)
def test_rules_of_users_pass(rule):
    assert 0 < testing.check_optimizer(rule) < 1e-5


@pytest.mark.parametrize("rule", [ALL_RULES[-1], Everything()], ids=str)
def test_traces(rule):
    """A trace of one's own: ids of any shape, more rows than ids, no ids."""
    rng = np.random.default_rng(1)
    shapes = [(3, 4), (0,), (20,), (2, 2, 2)]
    trace = [(rng.integers(0, 6, shape), rng.standard_normal((*shape, 33))) for shape in shapes]
    assert testing.check_optimizer(rule, trace, num_rows=9) < 1e-5
    assert testing.check_optimizer(rule, iter(trace)) < 1e-5


def test_default_trace_meets_what_goes_wrong():
    trace = testing.default_trace(num_rows=50, dim=3, steps=8, rng=1)
    lengths = [len(ids) for ids, _ in trace]
    assert lengths == [0, 1, 50, 1536] * 2
    assert all(grad.shape == (len(ids), 3) for ids, grad in trace)
    assert max(np.bincount(trace[3][0])) > 512
    assert len(np.unique(trace[2][0])) == 50


def derived(base, name, **changes):
    """A subclass of a rule with some functions replaced, and so a Hyper class of its own."""
    hyper = NamedTuple(f"{name}Hyper", [(field, float) for field in base.Hyper._fields])
    functions = {key: staticmethod(value) if key != "hyper" else value for key, value in changes.items()}
    return type(name, (base,), {"Hyper": hyper, **functions})


def ascent(w, g, s, a, hp):
    return w + hp.lr * g, s


def square_not_kept(w, g, s, a, hp):
    return w - hp.step_size * g / (math.sqrt(s[0] + g * g) + hp.eps), s


def late_correction(self, step):
    return se.SparseAdam.hyper(self, step + 1)


def no_mean(w, g, hp):
    return g


def slightly_off(w, g, s, a, hp):
    return w - hp.lr * g * (hp.lr + hp.lr + hp.lr + hp.lr - hp.lr * hp.lr), s  # lr = 0.268: a factor of 1.00018


WRONG = [
    (derived(se.SGD, "Ascent", step=ascent)(lr=0.5), "table"),
    (derived(se.SGD, "SlightlyOff", step=slightly_off)(lr=0.268), "table"),
    (derived(se.Adagrad, "Forgetful", step=square_not_kept)(lr=0.1), "table|sum"),
    (derived(se.SparseAdam, "Late", hyper=late_correction)(lr=0.1), "table"),
    (derived(se.RowwiseAdagrad, "Unsquared", reduce=no_mean)(lr=0.1), "table|sum"),
]


@pytest.mark.parametrize(("rule", "what"), WRONG, ids=[type(rule).__name__ for rule, _ in WRONG])
def test_wrong_rules_are_caught(rule, what):
    with pytest.raises(AssertionError, match=rf"step \d+: .*({what}).* deviates"):
        testing.check_optimizer(rule)


def literal_in_step(w, g, s, a, hp):
    return w - 0.5 * hp.lr * g, s


def literal_in_slot(w, g, s, a, hp):
    return w - hp.lr * g, (s[0] + 1.0,)


def literal_in_reduce(w, g, hp):
    return 0.5 * g * g


def literal_in_row(x, r, hp):
    return 1.0 / (x + hp.eps), (r[0] + x,)


def literal_in_row_slot(x, r, hp):
    return hp.eps, (r[0] + 0.5 * x,)


class RowwiseHyper(NamedTuple):
    lr: float
    eps: float


@dataclass(frozen=True)
class Rowwise(se.rules.Rule):
    """Not derived from a built-in rule, whose formula it would be compared with."""

    lr: float = 0.1
    Hyper = RowwiseHyper
    row_slots = ("sum",)
    reduce = staticmethod(lambda w, g, hp: g * g)
    row = staticmethod(lambda x, r, hp: (hp.lr / (x + hp.eps), (r[0] + x,)))
    step = staticmethod(lambda w, g, s, a, hp: (w - a * g, s))

    def hyper(self, step):
        return self.lr, 1e-3


LITERALS = [
    derived(Momentum, "LiteralInStep", step=literal_in_step),
    derived(Momentum, "LiteralInSlot", step=literal_in_slot),
    derived(Rowwise, "LiteralInReduce", reduce=literal_in_reduce),
    derived(Rowwise, "LiteralInRow", row=literal_in_row),
    derived(Rowwise, "LiteralInRowSlot", row=literal_in_row_slot),
]


# A step of few ids compiles one kernel for each dtype; the trace that is the default takes the general way, too.
FEW = [(np.array([1, 2, 1]), np.ones((3, 4)))]


@pytest.mark.parametrize("kind", LITERALS, ids=lambda each: each.__name__)
def test_float_literals_are_caught(kind):
    """They would compute in float64: twice as slow, and rounded differently."""
    assert testing.check_optimizer(Rowwise(), FEW) < 1e-5
    with pytest.raises(AssertionError, match=r"float64.*float literals"):
        testing.check_optimizer(kind(), FEW)


@each_rule
def test_a_rule_is_an_immutable_value(rule):
    twin = dataclasses.replace(rule)
    assert twin == rule
    assert hash(twin) == hash(rule)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert dataclasses.replace(rule, lr=0.125) != rule
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.lr = 1.0
    assert eval(repr(rule), vars(se)) == rule


@each_rule
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scalars_have_the_dtype_of_the_table(rule, dtype):
    scalars = rule.scalars(3, np.dtype(dtype))
    assert type(scalars) is type(rule).Hyper
    assert {type(each) for each in scalars} == {dtype}
    np.testing.assert_allclose(scalars, rule.hyper(3), rtol=1e-7)


class SlotsHyper(NamedTuple):
    lr: float


@dataclass(frozen=True)
class TooManySlots(se.rules.Rule):
    lr: float = 0.1
    Hyper = SlotsHyper
    slots = ("m",)

    def hyper(self, step):
        return (self.lr,)

    @staticmethod
    def step(w, g, s, a, hp):
        return w - hp.lr * g, (g, g)


class NoSlotsHyper(NamedTuple):
    lr: float


@dataclass(frozen=True)
class TooFewSlots(TooManySlots):
    Hyper = NoSlotsHyper

    @staticmethod
    def step(w, g, s, a, hp):
        return w - hp.lr * g, ()


@pytest.mark.parametrize("kind", [TooManySlots, TooFewSlots])
def test_a_rule_that_returns_other_slots_than_it_declares_writes_nothing(kind):
    table = se.EmbeddingTable(4, 3, optimizer=kind(), rng=0)
    before = table.weight.copy()
    with pytest.raises(Exception, match=f"{kind.__name__}.step must return a tuple of 1 numbers"):
        table.update([0, 3], np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(table.weight, before)
    assert table.step == 0
    assert not table.state["m"].any()


def test_huge_and_listed_hyperparameters():
    with pytest.raises(ValueError, match="must be a number that float64 can hold"):
        se.SGD(lr=10**400)
    assert hash(se.SparseAdam(betas=[0.9, 0.99])) == hash(se.SparseAdam(betas=(0.9, 0.99)))


class HalvingHyper(NamedTuple):
    lr: float


class HalvingGap(NamedTuple):
    factor: float


@dataclass(frozen=True)
class Halving(se.rules.Rule):
    """A rule of a user whose rows shrink by a half a step, with the parts of catching up as its own."""

    lr: float = 0.1
    Hyper, Gap = HalvingHyper, HalvingGap

    def hyper(self, step):
        return (self.rate(step),)

    @staticmethod
    def step(w, g, s, a, hp):
        return w / 2 - hp.lr * g, s

    def history(self, dtype, base):
        return History(1, 1, np.zeros((1, 1)), 0, None, dtype, base)

    @staticmethod
    def gap(entries, first, newest, ages, reach, out, hp):
        out[0] = 2.0 ** (first - newest)

    @staticmethod
    def catch_up(w, s, c, hp):
        return c.factor * w, s


def test_the_parts_of_catching_up_are_one_class_or_the_rules_own():
    assert se.Adam.catching_up is not None
    assert se.SparseAdam.catching_up is None
    for rule in (se.Adam, se.AdamW, se.RMSprop, Halving):
        parts = rule.catching_up
        assert (rule.Gap, rule.gap, rule.catch_up) == (parts.Gap, parts.gap, parts.catch_up)
        assert rule().history(np.dtype("f4"), 3).base == parts.history(rule(), np.dtype("f4"), 3).base == 3
    table = se.EmbeddingTable.from_array(np.ones((3, 2)), optimizer=Halving(lr=0.5))
    table.update([1], np.zeros((1, 2)))
    table.update([1], np.ones((1, 2)))
    assert table.lookup([0, 1]).tolist() == [[0.25, 0.25], [-0.25, -0.25]]


def test_half_of_what_catching_up_needs_is_refused():
    with pytest.raises(TypeError, match=r"Partial must define \['Gap', 'catch_up'\]"):

        class Partial(se.rules.Rule):
            Hyper = type("PartialHyper", (HalvingHyper,), {})
            step, gap = Halving.step, Halving.gap

    with pytest.raises(TypeError, match=r"Both defines catching_up, so \['gap'\] must be in that class"):

        class Both(se.rules.Rule):
            Hyper = type("BothHyper", (HalvingHyper,), {})
            step, gap, catching_up = Halving.step, Halving.gap, Halving.catching_up

    with pytest.raises(TypeError, match=r"Inherited defines \['catch_up'\], so it needs a Hyper class of its own"):

        class Inherited(Halving):
            catch_up = Halving.catch_up


BUILT_IN = [getattr(se, name) for name in se.rules.__all__ if name != "Rule"]


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda each: each.__name__)
def test_hyperparameters_after_the_learning_rate_are_keywords(kind):
    """Those of torch come in another order."""
    arguments = list(inspect.signature(kind).parameters.values())
    assert arguments[0].name == "lr"
    assert {each.kind for each in arguments[1:]} <= {inspect.Parameter.KEYWORD_ONLY}
    assert kind(0.25).lr == 0.25
    with pytest.raises(TypeError, match="positional arguments"):
        kind(0.25, 0.5)


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda each: each.__name__)
def test_help_shows_hyperparameters_and_no_machinery(kind):
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    inner = {"cast", "fits", "scalars", "history", "gap", "catch_up", "is_guarded", "row_pair", "reduce_pair"}
    for shown in (dir(kind), dir(kind(lr=0.5)), re.findall(r"^ \|  (\w+)", text, re.MULTILINE)):
        assert not inner & set(shown)
        assert {"slots", "row_slots", *inspect.signature(kind).parameters} - {"lr"} <= set(shown)
    assert inner <= set(dir(se.rules.Rule))  # an author of rules needs them
    assert {"cast", "step", "hyper"} <= set(dir(Momentum)) & set(dir(Momentum()))


TOUCHED = [rule for rule in ALL_RULES if getattr(rule, "touched_weight_decay", 0)]


def test_decay_of_touched_rows_costs_nothing_where_it_is_off():
    """The class of the scalars finds the compiled kernel, so an optimizer without decay has the kernel of before."""
    assert {type(rule).__base__ for rule in TOUCHED} == {se.SGD, se.Adagrad, se.SparseAdam}
    for rule in TOUCHED:
        kind = type(rule).__base__
        assert "l2" in type(rule).Hyper._fields
        assert type(kind(lr=0.1)) is type(kind(lr=0.1, touched_weight_decay=np.float32(0))) is kind
        assert "l2" not in kind.Hyper._fields
        assert dataclasses.replace(kind(lr=rule.lr), touched_weight_decay=0.05).hyper(1)[-1] == 0.05
        off = dataclasses.replace(rule, touched_weight_decay=0)
        table = se.EmbeddingTable(5, 2, rule, rng=0)
        table.optimizer = off  # keeps its form, and so the table's kernels
        twin = se.EmbeddingTable(5, 2, dataclasses.replace(kind(lr=rule.lr), **but_decay(rule)), rng=0)
        for each in (table, twin):
            each.update([1, 1], np.ones((2, 2), np.float32))
        np.testing.assert_allclose(table.weight, twin.weight, rtol=1e-6)


def but_decay(rule):
    return {name: value for name, value in vars(rule).items() if name not in ("lr", "touched_weight_decay")}


@pytest.mark.parametrize("rule", TOUCHED, ids=str)
def test_hyperparameters_of_a_form_are_named_after_the_optimizer(rule):
    name = type(rule).__base__.__name__
    assert repr(rule).startswith(f"{name}(")
    with pytest.raises(ValueError, match=rf"^{name}\(touched_weight_decay=...\) must be finite"):
        dataclasses.replace(rule, touched_weight_decay=-0.5)
    with pytest.raises(TypeError, match=rf"^{name}\(touched_weight_decay=...\) must be a number, got str"):
        type(rule).__base__(lr=0.1, touched_weight_decay="0.5")
    with pytest.raises(TypeError, match=rf"^{name}: lr\(1\) must be a number, got NoneType"):
        dataclasses.replace(rule, lr=lambda step: None).rate(1)


def test_decay_of_touched_rows_and_of_all_exclude_each_other():
    both = {"weight_decay": 0.1, "touched_weight_decay": 0.2}
    for more in ({}, {"momentum": 0.9}):
        with pytest.raises(ValueError, match=r"SGD\(touched_weight_decay=0.2\) .* weight_decay=0.1 .* pass one"):
            se.SGD(lr=0.1, **both, **more)
    touched, all_rows = se.SGD(0.1, touched_weight_decay=0.2), se.SGD(0.1, weight_decay=0.2)
    for change in ({"weight_decay": 0.1, "touched_weight_decay": 0.0}, {"momentum": 0.5}):
        with pytest.raises(ValueError, match="make a new SGD"):
            dataclasses.replace(touched, **change)
    # A table that could decay all rows can go on with those of a step: its kernels are the same.
    table = se.EmbeddingTable.from_array(np.ones((3, 1)), all_rows)
    table.update([1], np.zeros((1, 1)))
    table.optimizer = dataclasses.replace(all_rows, weight_decay=0.0, touched_weight_decay=0.5)
    table.update([1], np.zeros((1, 1)))
    table.update([2], np.zeros((1, 1)))
    np.testing.assert_allclose(table.weight.ravel(), [0.98, 0.98 * 0.95, 0.98 * 0.95], rtol=1e-15)


@pytest.mark.parametrize("number", [np.float32(0.5), np.array(0.5), 1], ids=repr)
def test_a_schedule_may_return_any_number(number):
    """An array without dimensions, too, which is what schedules of optax return."""
    assert se.SGD(lr=lambda step: number * step).rate(2) == 2 * float(number)


def test_schedules_of_optax_are_learning_rates():
    optax = pytest.importorskip("optax")
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    table = se.EmbeddingTable.from_array(np.zeros((2, 1)), se.SGD(lr=lambda step: schedule(step - 1)))
    for _ in range(3):
        table.update([1], np.ones((1, 1)))
    assert table.weight.ravel().tolist() == [0, -2.25]
    with pytest.raises(TypeError, match=r"SGD: lr\(3\) must be a number, got ArrayImpl"):
        se.SGD(lr=lambda step: optax.constant_schedule(0.1)(step) + np.ones(1) * schedule(0)).rate(3)


def test_a_subclass_that_would_leave_out_an_option_is_refused():
    """It has the step of the plain form; one with a step of its own knows what it does."""

    class Mine(se.SparseAdam):
        pass

    assert Mine(0.1).touched_weight_decay == 0
    with pytest.raises(TypeError, match="derive it from TouchedSparseAdam"):
        Mine(0.1, touched_weight_decay=0.5)

    class Other(se.SGD):
        pass

    for option in ("momentum", "weight_decay", "touched_weight_decay"):
        with pytest.raises(TypeError, match="or give it a step of its own"):
            Other(0.1, **{option: 0.5})


def ruled(hyper, step, **parts):
    rule = {"Hyper": hyper, "step": staticmethod(step), "hyper": lambda self, step: (1.0,), "__qualname__": "Ruled"}
    return type("Ruled", (se.rules.Rule,), rule | parts)


def stays(w, g, s, a, hp):
    return w, s


def stays_behind(w, s, c, hp):
    return w, s


def test_rules_that_kernels_cannot_run_are_refused():
    class RuledHyper(NamedTuple):
        one: float

    def strict_step(w, g, s, a, hp):
        assert g == g
        return w, s

    def strict_gap(entries, first, newest, ages, reach, out, hp):
        raise ValueError

    with pytest.raises(TypeError, match="step raises or asserts"):
        ruled(RuledHyper, strict_step)
    moves = {"gap": staticmethod(strict_gap), "catch_up": staticmethod(stays_behind), "Gap": RuledHyper}
    with pytest.raises(TypeError, match="gap raises or asserts"):
        ruled(RuledHyper, stays, **moves)
    ruled(RuledHyper, stays)
    ruled(RuledHyper, stays)  # the same
    with pytest.raises(TypeError, match="define Hyper again"):
        ruled(RuledHyper, lambda w, g, s, a, hp: (w - g, s))

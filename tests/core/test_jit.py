"""`sparsembed.jit`: single rows, in loops that are compiled here."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.core.errors import TypingError
from patience import HANGS

import sparsembed as se
from sparsembed.jit import add_row, dot_row, hyper, prefetch_row, read_row, row_step

DTYPES = [np.float32, np.float64]


# With all that changes bits or tests more, and first, so that what is shared with kernels is compiled for this loop.
@numba.njit(fastmath=True, boundscheck=True, error_model="python")
def use(weight, row, a, x, out):
    prefetch_row(weight, row)
    score = dot_row(weight, row, x)
    read_row(weight, row, out)
    add_row(weight, row, a, x)
    return score


@numba.njit
def read(weight, row, x, out):
    se.jit.read_row(weight, row=row, out=out)
    return se.jit.dot_row(weight, row=row, x=x)


def laid_out(values, layout):
    """The same numbers in rows that are contiguous, apart, backwards, or in columns that are apart."""
    rows, dim = values.shape
    if layout == "C":
        return values.copy()
    if layout == "F":
        return np.array(values, order="F")  # a copy, also of one column, which `asfortranarray` would hand back
    place = np.zeros((2 * rows, 2 * dim + 3), values.dtype)
    view = {"rows": place[::2, 3 : 3 + dim], "back": place[1::2, :dim][::-1], "columns": place[::2, 3::2]}[layout]
    view[:] = values
    return view


LAYOUTS = st.sampled_from(["C", "F", "rows", "back", "columns"])


# Of a weight and of a row; with each layout it is compiled anew.
KINDS = st.sampled_from([(np.float32, "i4"), (np.float64, "i8"), (np.float64, "u4"), (np.float32, "u8")])


@given(st.integers(1, 300), KINDS, LAYOUTS, st.integers(0, 99))
def test_rows_are_read_multiplied_and_added_to(dim, kinds, layout, seed):
    dtype, kind = kinds
    rng = np.random.default_rng(seed)
    values, x = rng.standard_normal((5, dim)).astype(dtype), rng.standard_normal(dim).astype(dtype)
    weight, out, row = laid_out(values, layout), np.empty(dim, dtype), np.dtype(kind).type(seed % 5)
    score = use(weight, row, 0.3, x, out)
    exact = values[row].astype(np.float64) @ x.astype(np.float64)
    scale = np.abs(values[row].astype(np.float64)) @ np.abs(x.astype(np.float64))
    assert abs(score - exact) <= dim * np.finfo(dtype).eps * scale
    np.testing.assert_array_equal(out, values[row])
    values[row] += dtype(0.3) * x
    np.testing.assert_array_equal(weight, values)


@given(st.integers(1, 300), LAYOUTS, st.integers(0, 99))
def test_rows_of_half_numbers_are_read(dim, layout, seed):
    rng = np.random.default_rng(seed)
    values, x = rng.standard_normal((5, dim)).astype(np.float16), rng.standard_normal(dim).astype(np.float32)
    weight, out = laid_out(values, layout).view(np.uint16), np.empty(dim, np.float32)
    weight.flags.writeable = False
    score = read(weight, seed % 5, x, out)
    row = values[seed % 5].astype(np.float32)
    np.testing.assert_array_equal(out, row)
    assert abs(score - row.astype(np.float64) @ x) <= dim * np.finfo(np.float32).eps * (np.abs(row) @ np.abs(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dot_product_has_the_same_bits_wherever_rows_lie_and_whatever_the_options_of_the_loop(rng, dtype):
    for dim in (1, 15, 100, 300):
        values, x, out = rng.standard_normal((3, dim)).astype(dtype), rng.standard_normal(dim).astype(dtype), [0, 0]
        for layout in ("C", "rows", "back"):
            copy = laid_out(values, layout)
            copy.flags.writeable = False
            out = np.empty(dim, dtype)
            assert read(copy, 1, x, out) == use(values.copy(), 1, 0, x, out) == dot_row(values, 1, x)
            np.testing.assert_array_equal(out, values[1])


@pytest.mark.parametrize("dim", [1, 15, 16, 37, 100, 300])
def test_a_row_may_be_added_to_itself(rng, dim):
    weight = rng.standard_normal((3, dim)).astype(np.float32)
    expected = weight[1] + np.float32(0.3) * weight[1]
    add_row(weight, 1, 0.3, weight[1])
    np.testing.assert_array_equal(weight[1], expected)


def test_functions_work_outside_of_loops_too():
    weight, out = np.arange(6.0).reshape(3, 2), np.empty(2)
    prefetch_row(weight, 2)
    assert dot_row(weight, 2, np.array([1.0, 2.0])) == 14
    add_row(weight, 2, 2, np.array([1.0, 2.0]))
    read_row(weight, 2, out)
    assert out.tolist() == [6, 9]


def test_rows_allocate_nothing_and_take_no_options_of_the_loop():
    """`use` has no arithmetic of its own, so whatever it has of `fastmath` would have come from there."""
    use(np.zeros((3, 2)), 1, 1.0, np.zeros(2), np.zeros(2))
    for signature in use.signatures:
        code = use.inspect_llvm(signature)
        assert re.search(r"= f(add|mul) ", code)
        assert not re.search(r"= f(add|mul) (fast|contract|reassoc)", code)
        assert "NRT_MemInfo_alloc" not in code
        assert "NRT_Allocate" not in code


GOOD = {"weight": np.zeros((3, 2)), "row": 1, "a": 1.0, "x": np.zeros(2), "out": np.zeros(2)}
FROZEN = np.zeros((3, 2))
FROZEN.flags.writeable = False


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"weight": np.zeros(2)}, "weight must be"),
        ({"weight": np.zeros((3, 2), int)}, "weight must be"),
        ({"weight": np.zeros((3, 2), np.float16)}, r"array.view\(np.uint16\)"),
        ({"weight": FROZEN}, "writeable"),
        ({"weight": [[1.0, 2.0]]}, "weight must be"),
        ({"row": 1.0}, "row must be an integer"),
        ({"a": np.zeros(2)}, "a must be a number"),
        ({"x": np.zeros(2, np.float32)}, "x must be a contiguous vector .dim,. of float64"),
        ({"x": np.zeros(4)[::2]}, "np.ascontiguousarray"),
        ({"out": FROZEN[0]}, "out must be .*writeable"),
        ({"out": np.zeros((1, 2))}, "out must be"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*reflected list:Warning")
def test_what_does_not_fit_is_refused_while_numba_compiles(bad, message):
    with pytest.raises(TypingError, match=message):
        use(*(GOOD | bad).values())


class CentredHyper(NamedTuple):
    lr: float
    rest: float
    one: float


@dataclass(frozen=True)
class Centred(se.rules.Rule):
    """A rule of two means over the row, one of which depends on the slots, with row slots."""

    lr: float = 0.1
    rest: float = 0.3
    Hyper = CentredHyper
    slots = ("mean", "last")
    row_slots = ("sum", "other")

    def hyper(self, step):
        return self.rate(step), self.rest, 1.0

    @staticmethod
    def reduce_pair(w, g, s, hp):
        return w * g, s[0] * s[0] + g

    @staticmethod
    def row_pair(x, y, r, hp):
        return hp.one + x * x, (r[0] + x, r[1] + y)

    @staticmethod
    def step(w, g, s, a, hp):
        m = s[0] + hp.rest * (g - s[0])
        return w - hp.lr * m / a, (m, g)


RULES = [
    se.SGD(0.1),
    se.SGD(0.1, touched_weight_decay=0.01),
    se.Adagrad(0.1, lr_decay=0.1),
    se.Adagrad(0.1, touched_weight_decay=0.01),
    se.RowwiseAdagrad(0.1, weight_decay=0.01),
    se.SparseAdam(lambda step: 0.1 / step),
    se.SparseAdam(0.1, touched_weight_decay=0.01),
    se.PartialRowwiseAdam(0.1),
    se.LAMB(0.1),
    se.FTRL(0.1),
    Centred(),
]


def fresh(rule, num_rows, dim, dtype):
    """State as `row_step` documents it."""
    state = np.zeros((num_rows, len(rule.slots), dim), dtype)
    return (state, np.zeros((num_rows, len(rule.row_slots)), dtype)) if rule.row_slots else state


def columns(rule, state):
    """The state by name, as `table.state` has it."""
    slots, row_slots = state if rule.row_slots else (state, None)
    found = {name: slots[:, k] for k, name in enumerate(rule.slots)}
    return found | {name: row_slots[:, k] for k, name in enumerate(rule.row_slots)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}")
def test_a_step_of_a_row_has_the_bits_of_an_update(rng, rule, dtype):
    step = row_step(rule)

    @numba.njit(fastmath=True)
    def train(weight, state, row, grad, hyper):
        step(weight, state, row, grad, hyper)

    for dim in range(1, 301):
        start = rng.standard_normal((3, dim)).astype(dtype)
        table = se.EmbeddingTable.from_array(start, rule, copy=True)
        weight, state = start, fresh(rule, 3, dim, dtype)
        for number in (1, 2):
            grad = rng.standard_normal(dim).astype(dtype)
            grad[rng.random(dim) < 0.1] = 0
            table.update([1], grad[None])
            train(weight, state, 1, grad, hyper(rule, number, dtype))
        np.testing.assert_array_equal(table.weight, weight)
        assert table.state.keys() == columns(rule, state).keys()
        for name, found in columns(rule, state).items():
            np.testing.assert_array_equal(table.state[name], found, err_msg=name)


def test_a_loop_goes_on_from_the_state_of_a_table_and_back(rng):
    """What the documentation says of state: views of one slot, and a copy of several."""
    grads = rng.standard_normal((2, 4))
    for rule in (se.Adagrad(0.1), se.SparseAdam(0.1)):
        table, other = (se.EmbeddingTable.from_array(np.ones((3, 4)), rule, copy=True) for _ in range(2))
        for each in (table, other):
            each.update([2], grads[:1])
        table.update([2], grads[1:])
        many = len(rule.slots) > 1
        state = np.stack([other.state[name] for name in rule.slots], axis=1) if many else other.state["sum"][:, None]
        row_step(rule)(other.weight, state, 2, grads[1], hyper(rule, 2, np.float64))
        for k, name in enumerate(rule.slots if many else ()):
            other.state[name][:] = state[:, k]
        np.testing.assert_array_equal(table.weight, other.weight)
        for name in rule.slots:
            np.testing.assert_array_equal(table.state[name], other.state[name])


def test_one_function_for_all_rules_of_a_class():
    assert row_step(se.Adagrad(0.1)) is row_step(se.Adagrad(0.2, eps=1.0))
    assert row_step(se.Adagrad(0.1)) is not row_step(se.Adagrad(0.1, touched_weight_decay=0.1))


@pytest.mark.parametrize(
    "rule", [se.Adam(0.1), se.AdamW(0.1), se.RMSprop(0.1), se.SGD(0.1, momentum=0.9), se.SGD(0.1, weight_decay=0.1)]
)
def test_rules_whose_rows_catch_up_are_refused_by_name(rule):
    with pytest.raises(ValueError, match=rf"{rule._name}\(.*history.*SparseAdam"):
        row_step(rule)


def test_bad_arguments_of_steps_are_refused():
    for function in (row_step, lambda rule: hyper(rule, 1)):
        with pytest.raises(TypeError, match="rule must be"):
            function("SGD")
    with pytest.raises(ValueError, match="step must be at least 1"):
        hyper(se.SGD(0.1), 0)
    with pytest.raises(TypeError, match="float32 or float64"):
        hyper(se.SGD(0.1), 1, np.float16)
    weight, state, grad, rule = np.zeros((3, 2)), np.zeros((3, 1, 2)), np.zeros(2), se.Adagrad(0.1)
    step, its = row_step(rule), hyper(rule, 1, np.float64)
    for bad, message in (
        ((weight, state, 1, grad, hyper(rule, 1)), "hyper must be"),
        ((weight, state, 1, grad, hyper(se.SGD(0.1), 1, np.float64)), "hyper must be"),
        ((weight, state, 1, grad, (0.1, 0.0, 0.0)), "hyper must be"),
        ((weight, state[0], 1, grad, its), r"state must be an array \(num_rows, 1, dim\)"),
        ((weight, None, 1, grad, its), "state must be"),
        ((weight, (state, weight), 1, grad, its), "state must be"),
        ((weight, state, 1, grad.astype(np.float32), its), "grad must be"),
        ((FROZEN, state, 1, grad, its), "writeable"),
    ):
        with pytest.raises(TypingError, match=message):
            step(*bad)
    rule = se.RowwiseAdagrad(0.1)
    with pytest.raises(TypingError, match="state must be the pair of"):
        row_step(rule)(weight, state, 1, grad, hyper(rule, 1, np.float64))


PROGRAM = """
import sys
import numba
import numpy as np
import sparsembed as se

@numba.njit
def use(weight, row, x, out):
    se.jit.prefetch_row(weight, row)
    se.jit.read_row(weight, row, out)
    return se.jit.dot_row(weight, row, x)

rng, found = np.random.default_rng(0), []
for dtype in (np.float32, np.float64):
    weight, out, x = rng.standard_normal((4, 101)).astype(dtype), np.empty(101, dtype), np.ones(101, dtype)
    found += [use(weight, 2, x, out), out, use(np.asfortranarray(weight), np.int32(3), x, out)]
    se.jit.add_row(weight, 1, 0.5, x)
    for rule in (se.SGD(0.1), se.RowwiseAdagrad(0.1), se.LAMB(0.1)):
        state = np.zeros((4, len(rule.slots), 101), dtype)
        state = (state, np.zeros((4, 1), dtype)) if rule.row_slots else state
        se.jit.row_step(rule)(weight, state, 2, x, se.jit.hyper(rule, 1, dtype))
        found += [weight.copy(), *(state if rule.row_slots else [state])]
half, out = weight.astype(np.float16).view(np.uint16), np.empty(101, np.float32)
found += [use(half, 2, np.ones(101, np.float32), out), out]
np.savez(sys.argv[1], *found)
"""


def test_plain_python_equals_compiled(tmp_path):
    results = []
    for plain in "01":
        path = str(tmp_path / f"{plain}.npz")
        environment = os.environ | {"NUMBA_DISABLE_JIT": plain}
        subprocess.run([sys.executable, "-c", PROGRAM, path], check=True, env=environment, timeout=HANGS)
        with np.load(path) as saved:
            results.append([saved[name] for name in saved.files])
    assert len(results[0]) == len(results[1]) == 22
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_page_on_compiled_loops_runs_and_prints_what_it_says(capsys):
    page = Path(__file__).parents[2] / "docs" / "compiled-loops.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(code, {"__name__": "compiled_loops"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)

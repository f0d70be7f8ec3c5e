"""What the tests draw, how close is close, and the list of rules."""

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from every import EVERY
from hypothesis import strategies as st

import sparsembed as se

# One line per rule (and per branch of it); every test of updates and check_optimizer runs them all.
ALL_RULES = [
    se.SGD(lr=0.5),
    se.Adagrad(lr=0.1),
    se.Adagrad(lr=0.1, lr_decay=0.5, initial_accumulator_value=0.1, eps=1e-3),
    se.SGD(lr=0.5, touched_weight_decay=0.05),
    se.Adagrad(lr=0.1, initial_accumulator_value=0.1, touched_weight_decay=0.05),
    se.SparseAdam(lr=0.1, touched_weight_decay=0.05),
    se.RowwiseAdagrad(lr=0.1),
    se.RowwiseAdagrad(lr=0.1, weight_decay=0.01),
    se.RowwiseAdagrad(lr=0.1, weight_decay=0.01, weight_decay_mode="l2"),
    se.SparseAdam(lr=0.1),
    se.SparseAdam(lr=0.1, betas=(0.5, 0.9), eps=0.1),
    se.LAMB(lr=0.1, weight_decay=0.01),
    se.PartialRowwiseAdam(lr=0.1, weight_decay=0.01),
]


def typed(rules: Any) -> Any:
    """Return pairs of rule and dtype of a table: each rule with one of the two in turn, as each compiles anew."""
    both = [np.float32, np.float64]
    return [(rule, dtype) for k, rule in enumerate(rules) for dtype in (both if EVERY else [both[k % 2]])]


# ---------------------------------------------------------------------- how close is close

EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}
RULE_TERMS = 32  # roundings of one step of a rule, together


def assert_close(actual: Any, expected: Any, scale: Any, terms: Any = 1) -> None:
    """Check the a-priori bound of a sum of products: |error| <= (terms + 8) * eps * sum of |products|.

    `scale` is that sum, `terms` the number of products; 8 covers the few operations around it.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    bound = (np.asarray(terms) + 8) * EPS[actual.dtype] * np.asarray(scale)
    excess = np.abs(actual - expected) - np.broadcast_to(bound, actual.shape)
    assert not actual.size or excess.max() <= 0, f"off by {excess.max():.3g} more than the bound"  # NaN fails


def dense(gradient: se.RowGradient) -> Any:
    """A gradient of some rows as an array of all."""
    array = np.zeros((gradient.num_rows, gradient.dim), np.asarray(gradient.values).dtype)
    array[gradient.rows] = gradient.values
    return array


# ---------------------------------------------------------------------- how arrays lie in memory

GAP = 77  # what lies between the elements of a strided array
LAYOUTS = {  # name: (shape of the buffer for an array of shape s, the array in the buffer)
    "contiguous": (lambda s: s, lambda b: b),
    "fortran": (lambda s: s[::-1], lambda b: b.T),
    "every other row": (lambda s: (2 * s[0], *s[1:]), lambda b: b[::2]),
    "every other column": (lambda s: (*s[:-1], 2 * s[-1]), lambda b: b[..., ::2]),
    "some columns": (lambda s: (*s[:-1], s[-1] + 5), lambda b: b[..., 2:-3]),
    "reversed": (lambda s: s, np.flip),
}
STRIDED = [name for name in LAYOUTS if name not in ("contiguous", "fortran")]
INPUTS = [*LAYOUTS, "read-only", "memory-mapped", "unaligned"]  # what ids and gradients may be


def arrange(array: Any, layout: str) -> Any:
    """Copy an array to a layout in memory."""
    array = np.asarray(array)
    if layout == "memory-mapped" and array.size:
        with tempfile.TemporaryFile() as file:
            file.write(array.tobytes())
            file.flush()
            return np.memmap(file, array.dtype, mode="r", shape=array.shape)
    if layout == "unaligned":
        view: Any = np.ndarray(array.shape, array.dtype, np.empty(array.nbytes + 1, np.uint8), offset=1)
    else:
        shape, select = LAYOUTS["contiguous" if array.ndim == 0 or layout not in LAYOUTS else layout]
        view = select(np.full(shape(array.shape), GAP, array.dtype))
    view[...] = array
    view.flags.writeable = layout != "read-only"
    return view


# ---------------------------------------------------------------------- what is drawn

# (table, ids, layouts of the table): few, because each compiles kernels of its own.
DTYPES = [(np.float32, np.int32), (np.float32, np.int64), (np.float64, np.int32), (np.float64, np.int64)]
TRAINED = [(*each, ["contiguous"]) for each in DTYPES]
TWO_TRAINED = TRAINED[1:3]  # each dtype once, where the test is about something else: the other two are in `TRAINED`
COMBOS = [
    *TRAINED,
    (np.float32, np.int64, ["fortran"]),
    (np.float32, np.int32, STRIDED),
    (np.float64, np.int64, STRIDED),
    (np.float16, np.int64, ["contiguous"]),
    (np.float16, np.int32, STRIDED),
]
MODES = ["sum", "mean", "sqrtn", "max"]
PATTERNS = ["random", "unique", "equal", "zipf", "hot"]
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)
dims = st.sampled_from([1, 3, 15, 16, 33, 64])
table_sizes = st.sampled_from([1, 2, 9, 64, 300])
shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(0, 90)),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4)),
)


def numbers(rng: Any, shape: Any, dtype: Any, grid: bool = False) -> Any:
    """Draw normal numbers, or eighths in [-4, 4], whose sums are exact in any order."""
    values = rng.integers(-32, 33, shape) / 8 if grid else rng.standard_normal(shape)
    return np.asarray(values).astype(dtype)


def pick_ids(rng: Any, n: int, num_rows: int, pattern: str) -> Any:
    """Draw n ids; "hot" gives half of them to one row."""
    if pattern == "unique" and n <= num_rows:
        return rng.permutation(num_rows)[:n]
    if pattern == "equal":
        return np.full(n, rng.integers(num_rows))
    ids = (rng.zipf(1.3, n) - 1) % num_rows if pattern == "zipf" else rng.integers(0, num_rows, n)
    if pattern == "hot":
        ids[::2] = rng.integers(num_rows)
    return ids


@st.composite
def id_arrays(draw: Any, num_rows: int, dtype: Any) -> Any:
    """Ids of 0 to 3 dimensions in any layout; one batch in six is long, with runs over 512 and 1024."""
    rng, pattern, layout = draw(generators), draw(st.sampled_from(PATTERNS)), draw(st.sampled_from(INPUTS))
    long = draw(st.integers(0, 5)) == 5
    shape = (draw(st.integers(550, 1300)), 2) if long else draw(shapes)
    ids = pick_ids(rng, int(np.prod(shape)), num_rows, pattern)
    return arrange(ids.astype(dtype).reshape(shape), layout)


@dataclass
class Lookup:
    """A table and what one step looks up in it."""

    weight: Any
    ids: Any
    grad_out: Any


@st.composite
def lookups(draw: Any, combos: Any = COMBOS, grid: Any = None) -> Lookup:
    dtype, id_dtype, layouts = draw(st.sampled_from(combos))
    num_rows, dim, rng = draw(table_sizes), draw(dims), draw(generators)
    weight = arrange(numbers(rng, (num_rows, dim), dtype), draw(st.sampled_from(layouts)))
    ids = draw(id_arrays(num_rows, id_dtype))
    kind = np.result_type(dtype, np.float32)
    exact = draw(st.booleans()) if grid is None else grid
    grad = numbers(rng, (*ids.shape, dim), kind, exact)
    return Lookup(weight, ids, arrange(grad, draw(st.sampled_from(INPUTS))))


@dataclass
class Pooled:
    """A table, bags of its rows, and the gradient of what they are pooled into."""

    weight: Any
    bags: se.Bags
    grad_out: Any
    mode: str
    padding_idx: int | None

    def factors(self) -> Any:
        """Of each occurrence: |factor| in its bag, the bag's |divisor| (inf for 0), and the bag; in float64."""
        bags, given = self.bags, self.bags.per_sample_weights
        bag_of = np.repeat(np.arange(len(bags)), np.diff(bags.offsets))
        weights = np.where(bags.ids == self.padding_idx, 0.0, 1.0 if given is None else given)
        sums = np.abs(np.bincount(bag_of, weights**2 if self.mode == "sqrtn" else weights, minlength=len(bags)))
        divisor = {"mean": sums, "sqrtn": np.sqrt(sums)}.get(self.mode, np.ones(len(bags)))
        divisors = np.where(divisor == 0, np.inf, divisor)[bag_of]
        return np.abs(weights) / divisors, divisors, bag_of


@st.composite
def pooled(draw: Any, modes: Any = MODES, combos: Any = COMBOS) -> Pooled:
    dtype, id_dtype, layouts = draw(st.sampled_from(combos))
    num_rows, dim, rng, mode = draw(table_sizes), draw(dims), draw(generators), draw(st.sampled_from(modes))
    lengths = draw(st.lists(st.sampled_from([0, 0, 1, 2, 3, 4, 5, 9, 40]), max_size=12))
    if draw(st.integers(0, 7)) == 7:
        lengths.append(1100)  # hot rows, when the pattern repeats them
    ids = pick_ids(rng, sum(lengths), num_rows, draw(st.sampled_from(PATTERNS))).astype(id_dtype)
    kind = np.result_type(dtype, np.float32)
    weighted = mode != "max" and draw(st.booleans())
    given = arrange(numbers(rng, len(ids), kind, grid=True), draw(st.sampled_from(INPUTS))) if weighted else None
    bags = se.Bags(arrange(ids, draw(st.sampled_from(INPUTS))), np.cumsum([0, *lengths]).astype(id_dtype), given)
    # Eighths tie often, as maxima should.
    weight = arrange(numbers(rng, (num_rows, dim), dtype, grid=mode == "max"), draw(st.sampled_from(layouts)))
    grad_out = arrange(numbers(rng, (len(lengths), dim), kind), draw(st.sampled_from(INPUTS)))
    padding = draw(st.one_of(st.none(), st.integers(0, num_rows - 1)))
    return Pooled(weight, bags, grad_out, mode, padding)

"""Every wrong call raises before anything is written, with a message that says what to do about it.

`CALLS` holds one right call of every public function, `BAD` wrong values of its arguments.  Each test
makes the right call with some arguments replaced, and compares every byte that it might have written.
"""

import inspect
import re
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
from numpy.lib.stride_tricks import as_strided

import sparsembed as se

NAN, INF, ROWS, DIM = float("nan"), float("inf"), 8, 3


class Of:
    """An argument that is taken from the world of the test."""

    def __init__(self, take):
        self.take = take

    def __repr__(self):
        return "of_the_world"


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def read_only(array):
    array.flags.writeable = False
    return array


def world():
    """A table in the middle of training, and whatever else a call may write to."""
    w = SimpleNamespace(weight=np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32), rate=0.1)
    w.table = se.EmbeddingTable.from_array(w.weight, se.SparseAdam(lr=lambda step: w.rate), padding_idx=0)
    w.table.update([1, 2, 2], ones(3, DIM))
    w.out, w.dense = np.full((2, DIM), 7, np.float32), np.full(4, 8.0)
    w.gradient = se.RowGradient(np.array([1, 4]), ones(2, DIM), ROWS)
    return w


def contents(w):
    arrays = [w.weight, *w.table.state.values(), w.out, w.dense, w.gradient.values]
    return [array.tobytes() for array in arrays], w.table.step


IDS, OFFSETS, FACTORS, GRAD = np.array([1, 5]), np.array([0, 1, 2]), np.array([0.5, 2.0]), ones(2, DIM)
BAGS, PLAIN = se.Bags(IDS, OFFSETS, FACTORS), se.Bags(IDS, OFFSETS)
WEIGHT, OUT, SGD = Of(lambda w: w.weight), Of(lambda w: w.out), se.SGD(lr=0.1)
POOLED = {"bags": BAGS, "grad_out": GRAD, "mode": "mean", "padding_idx": 0}
OPTIONS = {"max_norm": 1.0, "norm_type": 2.0, "scale_grad_by_freq": True}
FILES = Path(tempfile.mkdtemp())


def saved(table):
    table.save(FILES / "table")
    return FILES / "table"


CALLS = {
    "plan": {"ids": IDS, "num_rows": ROWS},
    "gather": {"weight": WEIGHT, "ids": IDS, "out": OUT},
    "pool": {"weight": WEIGHT, "bags": BAGS, "mode": "mean", "out": OUT, "padding_idx": 0},
    "dot": {"weight": WEIGHT, "bags": PLAIN, "x": GRAD, "out": None, "padding_idx": 0},
    "scatter_add": {"weight": WEIGHT, "ids": IDS, "values": GRAD, "alpha": 1.0},
    "coalesce": {"ids": IDS, "grad_out": GRAD, "num_rows": ROWS, "padding_idx": 0, "scale_grad_by_freq": True},
    "pool_gradient": POOLED | {"num_rows": ROWS, "weight": None, "scale_grad_by_freq": True},
    "per_sample_weights_gradient": POOLED | {"weight": WEIGHT},
    "clip_by_global_norm": {"gradients": Of(lambda w: [w.gradient]), "max_norm": 1.0, "dense": Of(lambda w: [w.dense])},
    "show_versions": {},
    "RowGradient": {"rows": np.array([1, 4]), "values": GRAD, "num_rows": ROWS},
    "RowGradient.scale": {"factor": 2.0},
    "RowGradient.norm": {},
    "RowGradient.clip_rows": {"max_norm": 1.0},
    "RowGradient.clip_values": {"limit": 0.5},
    "RowGradient.unscale": {"loss_scale": 1024.0},
    "RowGradient.is_finite": {},
    "RowGradient.to_host": {},
    "RowGradient.to_dense": {},
    "RowGradient.to_torch": {},
    "RowGradient.from_torch": {"tensor": Of(lambda w: w.gradient.to_torch())},
    "RowGradient.to_scipy": {},
    "RowGradient.from_scipy": {"matrix": scipy.sparse.csr_array(np.eye(3))},
    "RowGradient.to_indexed_slices": {},
    "RowGradient.from_indexed_slices": {"slices": (GRAD, IDS, (ROWS, DIM))},
    "Bags": {"ids": IDS, "offsets": OFFSETS, "per_sample_weights": FACTORS, "mode": "mean"},
    "Bags.from_padded": {
        "ids": np.array([[1, 0], [5, 4]]), "padding_idx": 0, "per_sample_weights": ones(2, 2), "mode": "sum"},
    "Bags.from_lists": {"ids": [[1, 2], [5]], "per_sample_weights": [[1.0, 2.0], [0.5]], "mode": "sqrtn"},
    "Bags.from_csr": {"matrix": scipy.sparse.csr_array(np.eye(3)), "mode": "max"},
    "Bags.concatenate": {"bags": [BAGS, PLAIN], "mode": "mean"},
    "Bags.with_weights": {"per_sample_weights": FACTORS},
    "NegativeSampler": {"counts": ones(9), "power": 0.75, "seed": 0, "exclude": PLAIN},
    "NegativeSampler.draw": {"n": 2, "k": 3, "keys": [0, 1]},
    "EmbeddingTable": {
        "num_rows": ROWS, "dim": DIM, "optimizer": SGD, "dtype": np.float32, "padding_idx": 0,
        "initializer": se.initializers.zeros, "rng": 0, "device": "cpu"} | OPTIONS,
    "EmbeddingTable.from_array": {
        "weight": WEIGHT, "optimizer": SGD, "copy": True, "rng": 0, "padding_idx": 0} | OPTIONS,
    "EmbeddingTable.save": {"path": Of(lambda w: FILES / "new"), "progress": None},
    "load": {
        "path": Of(lambda w: saved(w.table)), "mode": None, "optimizer": se.SparseAdam(), "comm": None, "device": "cpu",
        "verify": True, "progress": None},
    "EmbeddingTable.lookup": {"ids": IDS},
    "EmbeddingTable.pool": {"bags": BAGS, "mode": "sum"},
    "EmbeddingTable.update": {"ids": IDS, "grad_out": GRAD, "check_finite": True},
    "EmbeddingTable.update_pooled": {"bags": BAGS, "grad_out": GRAD, "mode": "mean", "check_finite": True},
    "EmbeddingTable.gradient": {"ids": IDS, "grad_out": GRAD},
    "EmbeddingTable.gradient_pooled": {"bags": BAGS, "grad_out": GRAD, "mode": "mean", "check_finite": True},
    "EmbeddingTable.dot": {"bags": IDS[:, None], "x": GRAD, "out": None},
    "EmbeddingTable.update_dot": {"bags": PLAIN, "x": GRAD, "grad_scores": FACTORS, "check_finite": True},
    "EmbeddingTable.gradient_dot": {"bags": PLAIN, "x": GRAD, "grad_scores": FACTORS},
    "EmbeddingTable.dot_loss": {
        "bags": PLAIN, "x": GRAD, "labels": FACTORS, "loss": se.losses.Squared(), "weights": FACTORS},
    "EmbeddingTable.blocks": {"size": 3},
    "EmbeddingTable.set_rows": {"ids": IDS, "vectors": GRAD, "reset": True},
    "EmbeddingTable.take": {"rows": IDS},
    "EmbeddingTable.astype": {"dtype": np.float64, "rounding": None},
    "EmbeddingTable.reset_state": {},
    "get_num_threads": {},
    "set_num_threads": {"n": 1},
    "warm_up": {"table": Of(lambda w: w.table), "ids_dtype": np.int32, "bags": False},
    "EmbeddingTable.apply": {"gradient": se.RowGradient(IDS, GRAD, ROWS), "check_finite": True},
    "EmbeddingTable.flush": {},
    "EmbeddingTable.synchronize": {},
    "EmbeddingTable.state_dict": {},
    "EmbeddingTable.load_state_dict": {"state_dict": Of(lambda w: w.table.state_dict()), "strict": True},
    "testing.default_trace": {"num_rows": 5, "dim": 2, "steps": 2, "rng": 0},
    "testing.check_optimizer": {"rule": SGD, "trace": [(IDS, GRAD)], "num_rows": ROWS},
    "testing.check_loss": {"loss": se.losses.Squared(), "scores": np.array([1.0, 2.0]), "labels": np.array([0.5, 3.0])},
}  # fmt: skip
INITIALIZERS = [f"initializers.{name}" for name in ("zeros", "uniform", "normal", "truncated_normal", "glorot_uniform")]
RULES = [name for name in se.rules.__all__ if name != "Rule"]
for _path in (*INITIALIZERS, *RULES):
    _signature = inspect.signature(eval(f"se.{_path}"))
    _required = {"shape": (4, 2), "lr": 0.1}
    CALLS[_path] = {name: _required.get(name, given.default) for name, given in _signature.parameters.items()}

# Any value will do for these: a flag, or something that NumPy checks.
ON_A_GPU = {"EmbeddingTable.begin_step", "EmbeddingTable.recording"}
FREE = {"copy", "check_finite", "rng", "steps"}
LOOKUPS = "plan gather scatter_add coalesce EmbeddingTable.lookup EmbeddingTable.update EmbeddingTable.gradient"
STEPS = "EmbeddingTable.update EmbeddingTable.gradient"
BOTH = "EmbeddingTable.update_pooled EmbeddingTable.gradient_pooled"
GRADIENTS = f"{STEPS} coalesce {BOTH} pool_gradient per_sample_weights_gradient"
READS = "gather pool dot per_sample_weights_gradient"
STEPS_DOT = "EmbeddingTable.update_dot EmbeddingTable.gradient_dot"
DOTS = f"dot EmbeddingTable.dot EmbeddingTable.dot_loss {STEPS_DOT}"
POOLS = f"pool EmbeddingTable.pool {BOTH} pool_gradient per_sample_weights_gradient"
COUNTS = "plan coalesce pool_gradient RowGradient EmbeddingTable testing.check_optimizer"
TABLES = "EmbeddingTable EmbeddingTable.from_array"
PADDED = "pool dot coalesce pool_gradient per_sample_weights_gradient EmbeddingTable EmbeddingTable.from_array"
BETAS = " ".join(rule for rule in RULES if "betas" in CALLS[rule])
SPECIAL = ("betas", "weight_decay_mode", "nesterov")
FIELDS = [(rule, name) for rule in RULES for name in CALLS[rule] if name not in SPECIAL]
several = [IDS, np.array([[2], [9]])]
trap = "B, 1.*silently averages"
strided = as_strided(ones(3), (ROWS, DIM), (0, 4))
odd = np.frombuffer(bytearray(4 * ROWS * DIM + 1), np.uint8, offset=1).view(np.float32).reshape(ROWS, DIM)


def tracked(array):
    """A torch tensor that requires grad."""
    return pytest.importorskip("torch").tensor(array, requires_grad=True)


def outside(index):
    """A CSR array with an index that its shape does not allow, which scipy does not notice by itself."""
    matrix = scipy.sparse.csr_array(np.eye(3))
    matrix.indices[1] = index
    return matrix


bad_bags = se.Bags(np.array([1, 9]), OFFSETS)

# (calls, argument, wrong value, exception, what the message says besides the argument's name)
BAD = [
    *((f"{LOOKUPS} Bags", "ids", np.array(v), TypeError, r) for v, r in (([1.0, 2], "float64"), ([True], "bool"))),
    *((f"{LOOKUPS} Bags", "ids", v, TypeError, "int64") for v in (None, "12")),
    (f"{LOOKUPS} Bags", "ids", np.array([2**70]), IndexError, f"below.*{2**70}"),
    (f"{LOOKUPS} Bags", "ids", np.array([1, 2**63], np.uint64), IndexError, r"ids\[1\] is 9223372036854775808.*below"),
    (f"{LOOKUPS} Bags", "ids", np.array([True, False]), TypeError, r"boolean mask.*np\.flatnonzero\(mask\)"),
    *((f"{LOOKUPS} Bags", "ids", v, TypeError, "nulls.*drop or fill") for v in (np.array([1.0, NAN]), [1, None])),
    *((f"{LOOKUPS} Bags", "ids", v, TypeError, r) for v, r in (
        (slice(2), "a slice.*np.arange"), ({1, 5}, r"a set.*list\(ids\)"), (iter([1, 5]), r"iterator.*list\(ids\)"),
        (scipy.sparse.csr_array(np.eye(3)), "a csr_array.*from_csr"), (PLAIN, "a Bags.*pool"), ("12", "a str.*key"),
        (np.array(["a", "b"]), "<U1.*np.unique"), ([1.5, 2.0], "float64.*astype"), (1 + 2j, "complex128"))),
    (f"{LOOKUPS} Bags", "ids", np.ma.array([1, 5], mask=[0, 1]), TypeError, "masked.*fill"),
    (f"{LOOKUPS} Bags", "ids", [[1, 2], [5]], ValueError, "list"),
    (LOOKUPS, "ids", np.array([1, ROWS]), IndexError, r"ids\[1\] is 8.* < 8"),
    (LOOKUPS, "ids", np.array([[1, 2], [-7, -2**31]], np.int32), IndexError, r"ids\[1, 0\] is -7.*0 <="),
    (LOOKUPS.replace("gather ", ""), "ids", several, IndexError, r"ids\[1\]\[1, 0\] is 9"),
    (LOOKUPS.replace("plan ", ""), "ids", se.plan([1, 50], 99), IndexError, "50.* 8"),
    ("Bags", "ids", np.array([[1, 5]]), ValueError, r"\(1, 2\).*from_padded"),
    ("Bags", "ids", se.plan([IDS, IDS], ROWS), ValueError, "several"),
    (LOOKUPS.replace("gather ", ""), "ids", [IDS, se.plan([IDS, IDS], ROWS)], ValueError, r"ids\[1\].*several.*list"),
    ("Bags.from_padded", "ids", IDS, ValueError, r"\(2,\)"),
    ("Bags.from_padded", "ids", ones(2, 2), TypeError, "float32"),
    *(("Bags.from_lists", "ids", v, (TypeError, ValueError), "list|float") for v in ([1, 2], [[1.5]], None)),
    *((COUNTS, "num_rows", v, TypeError, "integer") for v in (8.0, "8", True)),
    *((COUNTS, "num_rows", v, ValueError, f"{v}") for v in (0, -8, 2**63)),
    ("plan coalesce pool_gradient", "num_rows", 3, IndexError, "5.*< 3"),
    *(("EmbeddingTable testing.default_trace", "dim", v, (TypeError, ValueError), "") for v in (0, 2.0, -1)),
    ("testing.default_trace", "num_rows", 0, ValueError, ""),
    (f"{READS} scatter_add EmbeddingTable.from_array", "weight", np.ones((8, 3), int), TypeError, "int64.*astype"),
    *((f"{READS} scatter_add EmbeddingTable.from_array", "weight", v, (TypeError, ValueError), "float32|aligned")
      for v in (None, odd, 5)),
    *((f"{READS} scatter_add", "weight", v, ValueError, "shape") for v in (ones(ROWS), ones(ROWS, 0))),
    (f"{READS} scatter_add EmbeddingTable.from_array", "weight", ones(ROWS), ValueError, r"pass bias\[:, None\]"),
    *(("scatter_add", "weight", v, (TypeError, ValueError), r) for v, r in (
        (read_only(ones(8, 3)), "read-only.*copy"), (ones(8, 3, dtype=np.float16), "float16"),
        (ones(8, 3).tolist(), "list"), (strided, "memory"))),
    ("pool_gradient", "weight", WEIGHT, ValueError, "'mean'"),
    (GRADIENTS, "grad_out", ones(3, DIM), ValueError, r"\(2, 3\).*got \(3, 3\)$"),
    (GRADIENTS.replace("coalesce", "").replace("pool_gradient", ""), "grad_out", ones(2, 4), ValueError, r"\(2, 4\)$"),
    (f"{STEPS} coalesce", "grad_out", ones(2, 1, DIM), ValueError, trap),
    (f"{STEPS} coalesce", "grad_out", ones(2, 2, DIM), ValueError, trap),
    *((GRADIENTS, "grad_out", v, (TypeError, ValueError), "float|shape|list") for v in (
        None, np.ones((2, 3), int), ones(2, 3, dtype=complex), ones(2, 3, dtype=np.longdouble), 1.0, [GRAD] * 3)),
    *(("EmbeddingTable.update EmbeddingTable.update_pooled", "grad_out", np.array([[1, 1, 1], [1, v, 1]]), ValueError,
       f"{v} at .*1.*1") for v in (NAN, INF)),
    *(("scatter_add RowGradient", "values", v, (TypeError, ValueError), "float|shape") for v in (None, ones(3, DIM))),
    *(("scatter_add", "alpha", v, (TypeError, ValueError), f"{v}") for v in (NAN, -INF, "x", None)),
    ("scatter_add", "alpha", 1e300, ValueError, "float32"),
    *(("gather pool", "out", v, (TypeError, ValueError), r) for v, r in (
        (ones(3, DIM), r"\(2, 3\).*\(3, 3\)"), (ones(2, DIM, dtype=np.float64), "float32.*float64"),
        (read_only(ones(2, DIM)), "writeable"), (ones(2, 6)[:, ::2], "contiguous"), (list(ones(2, DIM)), "list"),
        (Of(lambda w: w.weight[:2]), "memory.*weight"))),
    *((POOLS, "mode", v, ValueError, f"{v!r}") for v in ("avg", 0, "max")),
    *((POOLS, "bags", v, TypeError, r) for v, r in (
        (IDS, r"an ndarray.*se.Bags\(ids, offsets\)"), ([[1, 5]], "a list.*Bags.from_lists"),
        (IDS[None], "an ndarray.*Bags.from_padded"), (scipy.sparse.csr_array(np.eye(3)), "a csr_array.*from_csr"),
        (None, "None"), (iter([[1]]), "from_lists"))),
    (POOLS, "bags", se.Bags(IDS, OFFSETS, mode="sqrtn"), ValueError, "'sqrtn', as the bags were"),
    (GRADIENTS, "grad_out", None, TypeError, r"is None.*was requires_grad_\(\) called on the rows\?"),
    (GRADIENTS, "grad_out", Of(lambda w: tracked(GRAD)), TypeError, r"grad_out requires grad.*pass rows\.grad"),
    ("scatter_add RowGradient", "values", Of(lambda w: tracked(GRAD)), TypeError, "values requires grad"),
    (POOLS, "bags", bad_bags, IndexError, r"bags.ids\[1\] is 9"),
    ("EmbeddingTable.update_pooled", "bags", [PLAIN, bad_bags], (IndexError, ValueError), "9|list"),
    ("EmbeddingTable.update_pooled", "bags", [], ValueError, "empty"),
    ("EmbeddingTable.update_pooled", "bags", se.Bags(IDS, OFFSETS, np.array([NAN, 1])), ValueError, "weights.* nan"),
    *((PADDED, "padding_idx", v, (TypeError, ValueError, IndexError), f"{v}|bool") for v in (-1, 8, 0.5, True)),
    *(("Bags.from_padded", "padding_idx", v, TypeError, "integer") for v in (0.5, "0")),
    *(("clip_by_global_norm", "gradients", v, (TypeError, ValueError), "RowGradient|nan") for v in (
        GRAD, Of(lambda w: [w.gradient, GRAD]), None, [se.RowGradient(IDS, GRAD * NAN, ROWS)])),
    *(("clip_by_global_norm", "max_norm", v, (TypeError, ValueError), f"{v}") for v in (-1.0, NAN, "x", None)),
    *(("clip_by_global_norm", "dense", v, (TypeError, ValueError), r) for v, r in (
        (Of(lambda w: w.dense), r"list of arrays, got an ndarray; for one array pass dense=\[array\]"),
        (None, "got None"), ({"w": ones(1)}, r"a dict; pass its values\(\)"), ([4.0], r"\[0\] is a float.*written"),
         ([[8.0, 8.0]], "list"), ([np.full(4, 8)], "int64"),
        ([np.ones(3), read_only(np.full(4, 8.0))], r"dense\[1\].*read-only"))),
    *(("RowGradient", "rows", np.array(v), (TypeError, ValueError, IndexError), r) for v, r in (
        ([4, 1], "increasing"), ([1, 1], "increasing"), ([[1, 4]], "one-dim"),
        ([1, 8], r"\[1\] is 8"), ([1.0, 4], "64"))),
    *(("RowGradient.scale", "factor", v, (TypeError, ValueError), f"{v}") for v in (NAN, INF, "x", None)),
    *(("RowGradient.clip_rows", "max_norm", v, (TypeError, ValueError), f"{v}") for v in (-1.0, NAN, INF, "x", None)),
    *(("RowGradient.clip_values", "limit", v, (TypeError, ValueError), f"{v}") for v in (-1.0, NAN, INF, "x", None)),
    *(("RowGradient.unscale", "loss_scale", v, (TypeError, ValueError), "") for v in (
        0, -1.0, NAN, INF, "x", None, 1e300, 1e-300)),
    *(("RowGradient.from_torch", "tensor", v, (TypeError, ValueError), r) for v, r in (
        (np.eye(3), "ndarray"), (None, "NoneType"),
        (Of(lambda w: w.gradient.to_torch().to_dense()), "strided.*coalesce"),
        (Of(lambda w: w.gradient.to_torch().bfloat16()), "bfloat16.*float()"),
        (Of(lambda w: w.gradient.to_torch().to_dense().to_sparse()), "one sparse dimension"))),
    *(("RowGradient.from_scipy", "matrix", v, (TypeError, ValueError), r) for v, r in (
        (np.eye(3), "ndarray.*tocsr"), (scipy.sparse.coo_array(np.eye(3)), "coo_array.*tocsr"),
        (scipy.sparse.csr_array(np.eye(3, dtype=int)), "int64"), (scipy.sparse.csr_array(np.eye(3) * 1j), "complex"),
        (scipy.sparse.csr_array(np.ones(3)), r"\(3,\)"), (outside(3), ""), (outside(-1), ""))),
    *(("RowGradient.from_indexed_slices", "slices", v, (TypeError, ValueError, IndexError), r) for v, r in (
        (None, "dense_shape"), ((GRAD, IDS), "dense_shape"), ((GRAD, IDS, None), "dense_shape"),
        ((GRAD, IDS, (ROWS,)), "dense_shape"), ((GRAD, IDS, (ROWS, 2)), r"\(2, 2\)"), ((GRAD, IDS, (5, DIM)), "5.*< 5"),
        ((GRAD, IDS[None], (ROWS, DIM)), r"\(1, 2\)"), ((GRAD, IDS * 1.0, (ROWS, DIM)), "float64"),
        ((GRAD[:1], IDS, (ROWS, DIM)), r"\(1, 3\)"), ((GRAD.astype(int), IDS, (ROWS, DIM)), "int64"),
        ((GRAD, IDS, (8.0, 3.0)), "dense_shape.*integer"))),
    *(("Bags", "offsets", np.array(v), (TypeError, ValueError), r) for v, r in (
        ([0.0, 2], "float64"), ([0, 2, 1, 2], "decrease.*2 then 1.*position 2"), ([0, 1], r"len\(ids\) = 2, got 1"),
        ([0, 3], "got 3"), ([1, 2], r"start at 0.*1"), ([[0, 2]], r"\(1, 2\)"), (IDS[:0], "num_bags"), (2, r"\(\)"))),
    *(("Bags Bags.from_padded", "per_sample_weights", v, (TypeError, ValueError), "float|shape|one weight") for v in (
        ones(3), 1.0, np.ones(2, bool), np.ones((2, 2), bool))),
    *(("Bags Bags.from_padded Bags.from_lists Bags.from_csr Bags.concatenate", "mode", v, ValueError, f"{v!r}")
      for v in ("avg", 0, ["sum"])),
    ("Bags Bags.from_padded Bags.from_lists", "mode", "max", ValueError, "takes no per_sample_weights"),
    ("Bags.from_padded", "padding_idx", ..., TypeError, "say which id fills up short rows, or None"),
    *(("Bags.with_weights", "per_sample_weights", v, (TypeError, ValueError), "float|one weight") for v in (
        ones(3), 1.0, np.ones(2, bool))),
    *(("Bags.concatenate", "bags", v, (TypeError, ValueError), r) for v, r in (
        (None, "list of Bags, got None"), (PLAIN, "list of Bags, got a Bags"), ([], "at least one"),
        ([PLAIN, IDS], r"bags\[1\] must be a Bags, got an ndarray"))),
    *(("Bags.from_lists", "per_sample_weights", v, (TypeError, ValueError), "") for v in ([[1.0]], [1.0], [[1], [1]])),
    *(("Bags.from_csr", "matrix", v, TypeError, r) for v, r in (
        (scipy.sparse.coo_array(np.eye(3)), "coo_array.*tocsr"), (np.eye(3), "ndarray"),
        (scipy.sparse.csr_array(np.eye(3) * 2j), "complex"))),
    *((TABLES, "optimizer", v, TypeError, "sparsembed optimizer") for v in ("adam", se.SGD, 0.1)),
    *((TABLES, "max_norm", v, (TypeError, ValueError), f"{v}") for v in (0, -1.0, NAN, INF, "x", True)),
    *(("EmbeddingTable", "device", v, ValueError, "'cuda:1'") for v in ("tpu", "cuda:", 1, None)),
    *((TABLES, "norm_type", v, (TypeError, ValueError), f"{v}") for v in (0, -1.0, -INF, NAN, "x", None, True)),
    *((f"{TABLES} coalesce pool_gradient", "scale_grad_by_freq", v, TypeError, "True or False") for v in (None, 1)),
    *((f, "dtype", v, TypeError, v) for f in ("EmbeddingTable", *INITIALIZERS) for v in ("int32", "foo", "complex64")),
    *(("EmbeddingTable", "initializer", v, (TypeError, ValueError), "") for v in (
        None, "zeros", lambda s, dtype, rng: ones(2, 2), lambda s, dtype, rng: np.ones(s), lambda s, dtype, rng: None)),
    *((f, "shape", v, (TypeError, ValueError), "") for f in INITIALIZERS for v in ((-1, 2), 5)),
    *((f"initializers.{f}", a, v, (TypeError, ValueError), f"{v}") for f, a in (
        ("uniform", "low"), ("uniform", "high"), ("normal", "mean"), ("normal", "std"), ("truncated_normal", "mean"),
        ("truncated_normal", "std"), ("truncated_normal", "bound")) for v in (NAN, INF, "x")),
    *((f"initializers.{f}", a, -2.0, ValueError, "-2") for f, a in (
        ("uniform", "high"), ("normal", "std"), ("truncated_normal", "std"), ("truncated_normal", "bound"))),
    *((f, a, v, ValueError, f"{v}.*|not negative") for f, a in FIELDS for v in (-0.1, NAN, INF)),
    *((f, a, v, TypeError, "number") for f, a in FIELDS for v in ("x", None, True, (0.1,), np.ones(2))),
    *(("SGD", "nesterov", v, TypeError, "True or False") for v in ("x", None, 1)),
    *((BETAS, "betas", v, (TypeError, ValueError), "") for v in (0.9, (0.9,), (0.9, 1.0), (NAN, 0.9), (-1, 0))),
    *(("RowwiseAdagrad", "weight_decay_mode", v, ValueError, f"{v!r}.*|'l2'") for v in ("L2", None, 1)),
    *(("EmbeddingTable.apply", "gradient", v, (TypeError, ValueError), r) for v, r in (
        (GRAD, "update"), (se.RowGradient(IDS, ones(2, 4), ROWS), r"\(8, 3\).*\(8, 4\)"),
        (se.RowGradient(IDS, GRAD, 9), r"\(9, 3\)"), (se.RowGradient(IDS, GRAD * NAN, ROWS), "nan at row 0"))),
    ("load EmbeddingTable.save", "path", 3, TypeError, "os.PathLike.*int"),
    ("load EmbeddingTable.save", "progress", 3, TypeError, "function.*3"),
    *(("load", name, v, (TypeError, ValueError, NotImplementedError), r) for name, v, r in (
        ("mode", "w", "'w'"), ("mode", "r", "not built"), ("optimizer", "Adam", "se.SparseAdam"),
        ("comm", object(), "not built"), ("device", "tpu", "'tpu'"), ("verify", 1, "True or False"),
    )),
    *(("EmbeddingTable.load_state_dict", "state_dict", v, (TypeError, ValueError, KeyError), r) for v, r in (
        (None, ""), ({}, "missing"), (Of(lambda w: w.table.state_dict() | {"x": 1}), "'x'"),
        *((Of(lambda w, e=e: w.table.state_dict() | e), n) for n, e in (
            ("step", {"step": -1}), ("step", {"step": 1.5}), ("step", {"step": [1, 2]}), ("step", {"step": "3"}),
            ("exp_avg.*got", {"exp_avg": ones(2, 2)}), ("weight.*float64", {"weight": np.ones((8, 3))}))))),
    *((f, name, v, TypeError, "True or False") for v in (None, 1) for f, name in (
        ("EmbeddingTable.load_state_dict", "strict"), ("EmbeddingTable.set_rows", "reset"), ("warm_up", "bags"))),
    *((f"EmbeddingTable.{f}", name, np.array(v), e, r) for f, name in (("set_rows", "ids"), ("take", "rows"))
      for v, e, r in (([1.0, 2], TypeError, "float64"), ([1, ROWS], IndexError, "8"), ([[1, 5]], ValueError, "shape"))),
    *(("EmbeddingTable.set_rows", "vectors", v, (TypeError, ValueError), "numbers|shape") for v in (
        None, "x", ones(3, 3))),
    *(("EmbeddingTable.set_rows", "ids", v, ValueError, "once|padding") for v in ([2, 2], [0, 1])),
    *(("EmbeddingTable.blocks", "size", v, (TypeError, ValueError), "integer|least") for v in (0, None, 1.5)),
    *(("EmbeddingTable.astype", "dtype", v, TypeError, "float32") for v in ("int32", None)),
    ("EmbeddingTable.astype", "rounding", "nearest", ValueError, "None"),
    *(("set_num_threads", "n", v, (TypeError, ValueError), "integer|most|least") for v in (0, None, 10**6)),
    *(("NegativeSampler", "counts", v, TypeError, "integers or floats") for v in (None, "12", [True])),
    *(("NegativeSampler", "counts", v, ValueError, "got|expected") for v in ([], [0], [1, -1], [NAN], ones(2, 2))),
    *(("NegativeSampler", "power", v, (TypeError, ValueError), "number|finite") for v in (None, "1", -1.0, INF)),
    *(("NegativeSampler", "seed", v, (TypeError, ValueError), "integer") for v in ("1", -1, True)),
    *(("NegativeSampler", "exclude", v, TypeError, "CSR.*Bags") for v in ([[1]], scipy.sparse.coo_array(np.eye(3)))),
    ("NegativeSampler", "exclude", bad_bags, IndexError, "id 9 at position 1"),
    *(("NegativeSampler.draw", name, v, (TypeError, ValueError), "integer|least") for name in "nk" for v in (-1, 0.5)),
    *(("NegativeSampler.draw", "keys", v, (TypeError, ValueError), "given|integers|shape") for v in (None, [0.5], [0])),
    ("NegativeSampler.draw", "keys", [0, 2], IndexError, r"keys\[1\] is 2"),
    *((DOTS, "bags", v, TypeError, "integers") for v in (None, GRAD, "12", np.array([True, False]))),
    *((DOTS, "bags", v, ValueError, r"\(n, k\)|per_sample_weights|mode") for v in (
        IDS, BAGS, se.Bags(IDS, OFFSETS, mode="mean"))),
    (DOTS, "bags", se.Bags([1, -1], OFFSETS), IndexError, "-1"),
    ("dot EmbeddingTable.dot", "bags", np.array([[1], [9]]), IndexError, r"9"),
    *(("EmbeddingTable.dot_loss", "loss", v, TypeError, "se.losses|losses.Logistic") for v in (
        None, "logistic", se.losses.Squared)),
    ("EmbeddingTable.dot_loss", "loss", se.losses.Pairwise(), ValueError, "labels must be None for Pairwise"),
    *(("EmbeddingTable.dot_loss", "labels", v, TypeError, "float|None|grad|array") for v in (
        None, "12", PLAIN, Of(lambda w: tracked(FACTORS)))),
    *(("EmbeddingTable.dot_loss", "labels", v, ValueError, "shape|nan") for v in (
        ones(3), ones(1, 2), 1.0, np.array([NAN, 1]))),
    *(("EmbeddingTable.dot_loss", "weights", v, TypeError, "float|grad") for v in (
        "12", np.array([True, False]), Of(lambda w: tracked(FACTORS)))),
    *(("EmbeddingTable.dot_loss", "weights", v, ValueError, "shape") for v in (ones(3), ones(2, 1), 1.0)),
    *((DOTS, "x", v, TypeError, "float|grad") for v in (None, PLAIN, np.ones((2, DIM), int))),
    (DOTS, "x", Of(lambda w: tracked(GRAD)), TypeError, "x requires grad"),
    *((DOTS, "x", v, ValueError, r"shape \(2, ") for v in (ones(2, DIM + 1), ones(3, DIM), ones(DIM))),
    *(("dot EmbeddingTable.dot", "out", v, (TypeError, ValueError), "shape|float32|written|contiguous") for v in (
        ones(3), np.ones((2, 1)), [1.0, 2.0], read_only(ones(2)))),
    *((STEPS_DOT, "grad_scores", v, TypeError, "float|None|grad") for v in (None, "12", np.array([True, False]))),
    *((STEPS_DOT, "grad_scores", v, ValueError, "shape") for v in (ones(3), ones(1, 2), 1.0)),
    ("EmbeddingTable.update_dot", "grad_scores", np.array([NAN, 1]), ValueError, "is nan at index 0"),
    ("EmbeddingTable.update_dot", "x", np.array([[1, 1, 1], [1, INF, 1]], "f4"), ValueError, "is inf at row 1"),
    *(("warm_up", "table", v, TypeError, "EmbeddingTable") for v in (None, ones(2, 2))),
    *(("warm_up", "ids_dtype", v, TypeError, "int32 or int64") for v in (None, float, "x")),
    *(("testing.check_optimizer", "rule", v, TypeError, "rule") for v in ("adam", se.SGD)),
    *(("testing.check_optimizer", "trace", v, (TypeError, ValueError), "") for v in ([], [1], 5)),
    *(("testing.check_loss", "loss", v, TypeError, "loss") for v in ("squared", se.losses.Squared)),
    *(("testing.check_loss", "scores", v, (TypeError, ValueError), "float|array") for v in ("12", ones(2, 2), PLAIN)),
    *(("testing.check_loss", "labels", v, (TypeError, ValueError), "float|array") for v in ("12", ones(3), PLAIN)),
]  # fmt: skip
CASES = [(call, *row) for calls, *row in BAD for call in calls.split()]
LABELS = [
    f"{path}-{name}-{re.sub('[^a-z0-9.]+', '_', repr(value).split(' at 0x')[0])[:25]}"
    for path, name, value, *_ in CASES
]
# What a message may name instead of the argument.
ALSO = {
    "slices": "values|indices|dense_shape",
    "matrix": "indices",
    "ids": "plan",
    "bags": "per_sample_weights",
    "loss": "labels",
    "dtype": "data type",
    "shape": "dimensions",
    "state_dict": "step",
}


def function(path, w):
    owner, _, name = path.rpartition(".")
    owners = {"EmbeddingTable": w.table, "RowGradient": w.gradient, "Bags": PLAIN}
    owners["NegativeSampler"] = se.NegativeSampler(ones(9), exclude=PLAIN)
    return getattr(owners.get(owner) or (getattr(se, owner) if owner else se), name)


def call(path, w, replaced):
    given = CALLS[path] | replaced
    if path.endswith("_torch"):
        pytest.importorskip("torch")
    given = {name: value.take(w) if isinstance(value, Of) else value for name, value in given.items()}
    return function(path, w)(**given)


@pytest.mark.parametrize("path", CALLS)
def test_the_right_call_is_right(path):
    call(path, world(), {})


@pytest.mark.parametrize(("path", "argument", "value", "error", "says"), CASES, ids=LABELS)
def test_a_wrong_argument_is_refused_before_anything_is_written(path, argument, value, error, says):
    w = world()
    before = contents(w)
    with pytest.raises(error) as caught:
        call(path, w, {argument: value})
    assert contents(w) == before
    message = str(caught.value)
    assert re.search(rf"\b({argument}|{ALSO.get(argument, argument)})\b", message), (
        f"does not name {argument}: {message}"
    )
    assert re.search(rf"(?s){says}", message), f"does not say {says}: {message}"
    w.table.update(IDS, GRAD)  # and no lock is left behind
    assert w.table.step == 2


def test_the_walk_is_complete():
    """Every public function is in `CALLS`, and every argument of it in `BAD` or `FREE`."""
    public = set()
    for name in set(se.__all__) - {
        "Plan",
        "reference",
        "rules",
        "jit",
    }:  # `jit` checks types alone
        value = getattr(se, name)
        if not isinstance(value, ModuleType):
            public.add(name)
        members = [(each, getattr(value, each)) for each in dir(value) if each[0] != "_"]
        here = [each for each, member in members if inspect.isroutine(member) and "sparsembed" in member.__module__]
        if name not in RULES:
            public |= {f"{name}.{each}" for each in here}
    assert set(CALLS) == public - ON_A_GPU
    walked = {(path, argument) for path, argument, *_ in CASES}
    missing = {(path, name) for path, given in CALLS.items() for name in given if name not in FREE} - walked
    assert missing == set()
    for path, given in CALLS.items():
        assert set(inspect.signature(function(path, world())).parameters) == set(given), path


@pytest.mark.parametrize("path", sorted(ON_A_GPU))
def test_steps_apart_from_their_updates_are_for_a_gpu(path):
    name = path.partition(".")[2]
    table = se.EmbeddingTable(ROWS, DIM, se.SGD(0.1))
    with pytest.raises(ValueError, match=rf"^{name}\(\) is for tables on a GPU"):
        getattr(table, name)()
    assert table.step == 0

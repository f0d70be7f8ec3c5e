"""What every public argument does with the kinds of values that users pass by mistake: one table, held by a test.

The table is tests/data/outcomes.txt.  ``python tests/core/test_outcomes.py > tests/data/outcomes.txt`` writes it anew,
and then each line is to be read: a wrong outcome that is kept is held, too.
"""

import re
import sys
import warnings
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse

import sparsembed as se

ROWS, DIM = 8, 3
IDS, OFFSETS = np.array([1, 5]), np.array([0, 1, 2])
ACCEPTED = "accepted"
TABLE = Path(__file__).parent.parent / "data" / "outcomes.txt"


def grad():
    return np.ones((2, DIM), np.float32)


def bags():
    return se.Bags(IDS, OFFSETS)


def tensor(array):
    torch = pytest.importorskip("torch")
    return torch.tensor(array, requires_grad=np.asarray(array).dtype.kind == "f")


def column():
    """What NumPy makes of a column of whole numbers with a null."""
    return np.array([1.0, np.nan])


KINDS = {  # what is passed in place of the right argument
    "None": lambda: None,
    "int": lambda: 1,
    "float": lambda: 1.0,
    "NumPy scalar": lambda: np.float32(1),
    "tensor that requires grad": lambda: tensor(np.ones((2, DIM), np.float32)),
    "mask": lambda: np.array([True, False]),
    "column with nulls": column,
    "tuple of ints": lambda: (1, 2),
    "CSR array": lambda: scipy.sparse.csr_array(np.ones((2, DIM))),
    "Bags": bags,
    "generator": lambda: (each for each in [1, 2]),
    "masked array": lambda: np.ma.array([1, 2], mask=[False, True]),
    "str": lambda: "12",
    "set": lambda: {1, 2},
    "slice": lambda: slice(2),
    "table": lambda: se.EmbeddingTable(2, DIM),
}


def set_optimizer(table, value):
    table.optimizer = value


def world():
    w = SimpleNamespace(weight=np.zeros((ROWS, DIM), np.float32))
    w.table = se.EmbeddingTable.from_array(w.weight, se.SGD(lr=0.1))
    w.gradient = se.RowGradient(IDS, grad(), ROWS)
    return w


CALLS = {  # "function argument": a call with a value of that argument
    "lookup ids": lambda w, v: w.table.lookup(v),
    "update ids": lambda w, v: w.table.update(v, grad()),
    "update grad_out": lambda w, v: w.table.update(IDS, v),
    "gradient ids": lambda w, v: w.table.gradient(v, grad()),
    "gradient grad_out": lambda w, v: w.table.gradient(IDS, v),
    "apply gradient": lambda w, v: w.table.apply(v),
    "table.pool bags": lambda w, v: w.table.pool(v),
    "table.pool mode": lambda w, v: w.table.pool(bags(), v),
    "update_pooled bags": lambda w, v: w.table.update_pooled(v, grad()),
    "update_pooled grad_out": lambda w, v: w.table.update_pooled(bags(), v),
    "update_pooled mode": lambda w, v: w.table.update_pooled(bags(), grad(), v),
    "gradient_pooled bags": lambda w, v: w.table.gradient_pooled(v, grad()),
    "gradient_pooled grad_out": lambda w, v: w.table.gradient_pooled(bags(), v),
    "gradient_pooled mode": lambda w, v: w.table.gradient_pooled(bags(), grad(), v),
    "table.dot bags": lambda w, v: w.table.dot(v, grad()),
    "table.dot x": lambda w, v: w.table.dot(bags(), v),
    "table.dot out": lambda w, v: w.table.dot(bags(), grad(), out=v),
    "dot_loss bags": lambda w, v: w.table.dot_loss(v, grad(), np.ones(2)),
    "dot_loss x": lambda w, v: w.table.dot_loss(bags(), v, np.ones(2)),
    "dot_loss labels": lambda w, v: w.table.dot_loss(bags(), grad(), v),
    "dot_loss loss": lambda w, v: w.table.dot_loss(bags(), grad(), np.ones(2), v),
    "dot_loss weights": lambda w, v: w.table.dot_loss(bags(), grad(), np.ones(2), weights=v),
    "update_dot bags": lambda w, v: w.table.update_dot(v, grad(), np.ones(2)),
    "update_dot x": lambda w, v: w.table.update_dot(bags(), v, np.ones(2)),
    "update_dot grad_scores": lambda w, v: w.table.update_dot(bags(), grad(), v),
    "gradient_dot grad_scores": lambda w, v: w.table.gradient_dot(bags(), grad(), v),
    "table[...]": lambda w, v: w.table[v],
    "set_rows ids": lambda w, v: w.table.set_rows(v, np.zeros((2, DIM))),
    "set_rows vectors": lambda w, v: w.table.set_rows(IDS, v),
    "take rows": lambda w, v: w.table.take(v),
    "blocks size": lambda w, v: w.table.blocks(v),
    "table.optimizer = optimizer": lambda w, v: set_optimizer(w.table, v),
    "load_state_dict state_dict": lambda w, v: w.table.load_state_dict(v),
    "load_state_dict strict": lambda w, v: w.table.load_state_dict({}, strict=v),
    "EmbeddingTable num_rows": lambda w, v: se.EmbeddingTable(v, DIM),
    "EmbeddingTable optimizer": lambda w, v: se.EmbeddingTable(ROWS, DIM, v),
    "EmbeddingTable padding_idx": lambda w, v: se.EmbeddingTable(ROWS, DIM, padding_idx=v),
    "EmbeddingTable initializer": lambda w, v: se.EmbeddingTable(ROWS, DIM, initializer=v),
    "EmbeddingTable max_norm": lambda w, v: se.EmbeddingTable(ROWS, DIM, max_norm=v),
    "EmbeddingTable rng": lambda w, v: se.EmbeddingTable(ROWS, DIM, rng=v),
    "warm_up table": lambda w, v: se.warm_up(v),
    "plan ids": lambda w, v: se.plan(v, ROWS),
    "from_array weight": lambda w, v: se.EmbeddingTable.from_array(v, se.SGD(lr=0.1)),
    "gather weight": lambda w, v: se.gather(v, [1, 0]),
    "gather ids": lambda w, v: se.gather(w.weight, v),
    "gather out": lambda w, v: se.gather(w.weight, IDS, v),
    "scatter_add weight": lambda w, v: se.scatter_add(v, [1, 0], grad()),
    "scatter_add ids": lambda w, v: se.scatter_add(w.weight, v, grad()),
    "scatter_add values": lambda w, v: se.scatter_add(w.weight, IDS, v),
    "coalesce ids": lambda w, v: se.coalesce(v, grad(), ROWS),
    "coalesce grad_out": lambda w, v: se.coalesce(IDS, v, ROWS),
    "pool weight": lambda w, v: se.pool(v, se.Bags([1, 0], OFFSETS)),
    "pool bags": lambda w, v: se.pool(w.weight, v),
    "pool out": lambda w, v: se.pool(w.weight, bags(), out=v),
    "pool mode": lambda w, v: se.pool(w.weight, bags(), v),
    "pool_gradient bags": lambda w, v: se.pool_gradient(v, grad(), ROWS),
    "pool_gradient grad_out": lambda w, v: se.pool_gradient(bags(), v, ROWS),
    "pool_gradient mode": lambda w, v: se.pool_gradient(bags(), grad(), ROWS, v),
    "per_sample_weights_gradient bags": lambda w, v: se.per_sample_weights_gradient(w.weight, v, grad()),
    "per_sample_weights_gradient grad_out": lambda w, v: se.per_sample_weights_gradient(w.weight, bags(), v),
    "per_sample_weights_gradient mode": lambda w, v: se.per_sample_weights_gradient(w.weight, bags(), grad(), v),
    "clip_by_global_norm gradients": lambda w, v: se.clip_by_global_norm(v, 1.0),
    "clip_by_global_norm dense": lambda w, v: se.clip_by_global_norm([], 1.0, v),
    "clip_by_global_norm dense[0]": lambda w, v: se.clip_by_global_norm([], 1.0, [v]),
    "RowGradient rows": lambda w, v: se.RowGradient(v, grad(), ROWS),
    "RowGradient values": lambda w, v: se.RowGradient(IDS, v, ROWS),
    "RowGradient +": lambda w, v: w.gradient + v,
    "RowGradient -": lambda w, v: w.gradient - v,
    "RowGradient *": lambda w, v: w.gradient * v,
    "RowGradient /": lambda w, v: w.gradient / v,
    "Bags ids": lambda w, v: se.Bags(v, OFFSETS),
    "Bags offsets": lambda w, v: se.Bags(IDS, v),
    "Bags per_sample_weights": lambda w, v: se.Bags(IDS, OFFSETS, v),
    "Bags mode": lambda w, v: se.Bags(IDS, OFFSETS, mode=v),
    "from_padded ids": lambda w, v: se.Bags.from_padded(v, 0),
    "from_padded per_sample_weights": lambda w, v: se.Bags.from_padded(IDS[None], 0, v),
    "from_padded mode": lambda w, v: se.Bags.from_padded(IDS[None], 0, mode=v),
    "from_lists mode": lambda w, v: se.Bags.from_lists([[1], [2]], mode=v),
    "from_csr mode": lambda w, v: se.Bags.from_csr(scipy.sparse.csr_array(np.eye(3)), mode=v),
    "concatenate mode": lambda w, v: se.Bags.concatenate([bags()], mode=v),
    "from_padded padding_idx": lambda w, v: se.Bags.from_padded(IDS[None], v),
    "from_lists ids": lambda w, v: se.Bags.from_lists(v),
    "from_lists per_sample_weights": lambda w, v: se.Bags.from_lists([[1], [2]], v),
    "from_csr matrix": lambda w, v: se.Bags.from_csr(v),
    "concatenate bags": lambda w, v: se.Bags.concatenate(v),
    "with_weights per_sample_weights": lambda w, v: bags().with_weights(v),
    "bags[...]": lambda w, v: bags()[v],
}


def outcome(call, kind):
    """Return "accepted" or the class of the error, and its text."""
    w = world()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            CALLS[call](w, KINDS[kind]())
    except Exception as error:
        assert w.table.step == 0
        assert not w.weight.any()
        return type(error).__name__, str(error)
    return ACCEPTED, ""


def words_of(message):
    """Return the part of a message that says what came, and what to do, without the name of the argument."""
    if "RowGradient" in message and "must" not in message:  # Python's or NumPy's own words
        return ""
    found = re.search(r"(got |is None|requires grad|must not be|is written|cannot|the norm).*", message)
    return (found.group() if found else message)[:100].strip()


def main():
    """Print the table: arguments with the same outcomes together."""
    rows = {}
    for call in CALLS:
        found = tuple((kind, *outcome(call, kind)) for kind in KINDS)
        rows.setdefault(tuple((kind, what, words_of(text)) for kind, what, text in found), []).append(call)
    for outcomes, calls in rows.items():
        lines = [f"    {kind:27}{what:12}{words}".rstrip() for kind, what, words in outcomes]
        sys.stdout.write("\n".join([", ".join(calls), *lines]) + "\n\n")


def table():
    """Return the outcome and the words of each argument and kind."""
    found = {}
    for filled, lines in groupby(TABLE.read_text().splitlines(), key=bool):
        if filled:
            calls, *each = lines
            for line in each:
                what, _, words = line[31:].partition(" ")
                found |= {(call, line[:31].strip()): (what, words.strip()) for call in calls.split(", ")}
    return found


HELD = table() if TABLE.exists() else {}


@pytest.mark.parametrize("call", CALLS)
def test_outcomes(call):
    """Errors name the argument, say what came, and leave the table of the world as it was."""
    for kind in KINDS:
        what, words = HELD[call, kind]
        found, message = outcome(call, kind)
        assert found == what, f"{kind}: {message}"
        assert words in message, f"{kind}: {message}"
        name = call.split()[-1]
        if found != ACCEPTED and name.isidentifier() and not re.search(r"ids\[|norm of the|^out ", message):
            assert re.search(rf"\b(?:{name}|grad_out|values)\b", message), f"{kind}: {message}"


def test_the_table_has_each_argument_and_kind_once():
    assert set(HELD) == {(call, kind) for call in CALLS for kind in KINDS}


if __name__ == "__main__":
    main()

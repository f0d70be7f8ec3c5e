"""The fastest possible update: a kernel that reads and writes the same rows, and does next to nothing with them.

For the rows of a batch in increasing order, as our update visits them, it reads gradients one after another, and reads
and writes a row of the weights and of each slot.  It knows its rows (no sorting), and its gradients lie in order.
A copy moves as many bytes, but in order: no update of random rows is as fast.
"""

import functools
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

import sparsembed as se

from .. import timing
from ..workload import FULL, Batches, Size
from .steps import RULES
from .turns import take_turns
from .way import Way

UPDATES = ("sgd", "adagrad", "sparse_adam")
ROWS, KINDS = (1_000_000, 4_000_000), ("uniform", "production")
_AHEAD = 8  # rows; 5 to 12 take as long
_LINE = 16  # float32 in a cache line
_CHUNK = 2_048  # gradients that a thread takes at once: where one is late, the other goes on


def _prefetch(typing, array, index):  # type: ignore[no-untyped-def]
    """Ask for the cache line of an element of a flat array."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        line = builder.bitcast(builder.gep(data, [arguments[1]]), pointer)
        builder.call(function, [line, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


prefetch = (lambda array, index: None) if config.DISABLE_JIT else intrinsic(_prefetch)


@functools.lru_cache
def kernel(dim: int) -> Any:
    """Return the kernel of rows of `dim` numbers, which the compiler knows."""

    @njit(nogil=True, fastmath=True)
    def modify_rows(flat, arrays, rows, starts, grads, total, begin, end):  # type: ignore[no-untyped-def]
        """Change rows `begin` to `end` of a batch in each of `arrays` arrays, which lie one after another in `flat`."""
        size = len(flat) // arrays
        for i in range(begin, end):
            if i + _AHEAD < len(rows):
                for a in range(arrays):
                    for c in range(0, dim, _LINE):
                        prefetch(flat, a * size + rows[i + _AHEAD] * dim + c)
            for c in range(dim):
                total[c] = grads[starts[i], c]
            for j in range(starts[i] + 1, starts[i + 1]):
                for c in range(dim):
                    total[c] += grads[j, c]
            for a in range(arrays):
                first = a * size + rows[i] * dim
                row = flat[first : first + dim]
                for c in range(dim):
                    row[c] = row[c] * np.float32(0.999) + total[c] * np.float32(0.001)

    return modify_rows


class Limit:
    """The kernel on its own arrays, on all threads; step(i) works on batch i."""

    def __init__(self, batches: Batches, slots: int, threads: int) -> None:
        self.kernel, self.arrays, self.threads = kernel(batches.size.dim), 1 + slots, threads
        self.dim, self.grads = batches.size.dim, batches.grads
        self.flat = se.initializers.zeros((self.arrays * batches.weight.size,))  # on cache lines, as ours
        self.flat.fill(1)
        self.rows, self.starts, self.chunks = [], [], []
        for ids in batches.ids:
            rows, counts = np.unique(ids, return_counts=True)
            starts = np.append(0, np.cumsum(counts))
            ends = np.unique(np.searchsorted(starts, np.append(np.arange(0, len(ids), _CHUNK), len(ids))))
            self.rows.append(rows)
            self.starts.append(starts)
            self.chunks.append(list(itertools.pairwise(ends.tolist())))

    def step(self, i: int) -> None:
        chunks = iter(self.chunks[i])  # `next` of a list's iterator is one step of the interpreter
        others = [threading.Thread(target=self._work, args=(i, chunks)) for _ in range(1, self.threads)]
        for thread in others:
            thread.start()
        self._work(i, chunks)
        for thread in others:
            thread.join()

    def _work(self, i: int, chunks: Iterator[tuple[int, int]]) -> None:
        total = np.empty(self.dim, np.float32)
        for begin, end in chunks:
            self.kernel(self.flat, self.arrays, self.rows[i], self.starts[i], self.grads[i], total, begin, end)


def shares(threads: int, size: Size = FULL, rows: tuple[int, ...] = ROWS, seconds: float = 2.0) -> dict[str, Any]:
    """Measure ``table.update`` in turn with the kernel: time of the kernel over ours, and that of a copy over ours."""
    timing.set_threads(threads)
    copies = timing.copy_bandwidth(size.copy_bytes, timing.Effort(5, 0.0, 0.0))
    found = []
    for num_rows in rows:
        for kind in KINDS:
            batches = Batches(size._replace(num_rows=num_rows), kind)
            for op in UPDATES:
                found.append(_share(batches, op, threads, seconds, max(copies.values())) | {"kind": kind})
    return {"ids": size.lookups, "dim": size.dim, "copy_bytes_per_second": copies, "updates": found}


def _share(batches: Batches, op: str, threads: int, seconds: float, bandwidth: float) -> dict[str, Any]:
    rule: se.rules.Rule = RULES[op]
    table, limit = batches.table(rule), Limit(batches, len(rule.slots), threads)
    ways: list[Any] = [
        Way("sparsembed", lambda i: table.update(batches.ids[i], batches.grads[i])),
        Way("kernel", limit.step),
    ]
    for i in range(batches.number):  # touches all memory
        ways[0].step(i)
        ways[1].step(i)
    with timing.no_garbage_collection():
        turns = take_turns(ways, list(range(batches.number)), seconds)  # type: ignore[arg-type]
    ours = turns.median("sparsembed")
    return {
        "op": op,
        "rows": batches.size.num_rows,
        "unique": batches.unique,
        "ours_us": round(ours, 1),
        "kernel_us": round(turns.median("kernel"), 1),
        "share": [round(each, 4) for each in timing.quartiles(turns.ratios("kernel"))],
        "share_of_copy": round(1e6 * batches.updated(batches.lookups, rule) / bandwidth / ours, 4),
    }


def lines(limit: dict[str, Any]) -> Iterator[str]:
    """Yield the shares as text."""
    if limit:
        yield f"the limit, {limit['ids']:,} ids, dim {limit['dim']}: time of the kernel over that of table.update"
    for each in limit.get("updates", ()):
        low, middle, high = each["share"]
        yield (
            f"  {each['op']:<12} {each['rows']:>9,} rows, {each['kind']:<10} {100 * middle:.0f} % ({100 * low:.0f} to"
            f" {100 * high:.0f}); ours {each['ours_us']:,.0f} us, kernel {each['kernel_us']:,.0f} us;"
            f" of a copy {100 * each['share_of_copy']:.0f} %"
        )

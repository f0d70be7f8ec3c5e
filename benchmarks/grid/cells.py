"""The cells of the grid: which there are, which are chosen, and how much memory each takes."""

from collections.abc import Iterable
from typing import Any, NamedTuple

IDS = (1, 8, 32, 128, 512, 2_048, 8_192, 32_768, 100_000, 1_000_000)
DIMS = (1, 16, 64, 128, 300)
ROWS = (1_000, 100_000, 4_000_000)
KINDS = ("uniform", "production")
STEPS = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 0, "sparse_adam": 2, "adam": 2}  # -> slots of the size of the table
OPS = ("gather", "pool", "scatter_add", "coalesce", *(name for name in STEPS if name != "adam"))
DENSE_ELEMENTS = 100_000 * 64  # torch's dense Adam passes over all of them, four arrays in each step
SMALL = 256  # below, NumPy is compared by the difference in time, which is what a call costs


class Cell(NamedTuple):
    """A square of the grid, in the order of the work: a table is made once for all that is done with it."""

    rows: int
    dim: int
    op: str
    ids: int
    kind: str

    def __str__(self) -> str:
        return f"{self.op}, {self.ids:,} {self.kind} ids, {self.rows:,} rows x {self.dim}"


def full(dense: bool = False) -> list[Cell]:
    """Return all cells; `dense` adds exact Adam, on tables whose dense gradient is not too large."""
    ops = (*OPS, "adam") if dense else OPS
    cells = [Cell(r, d, op, n, k) for r in ROWS for d in DIMS for op in ops for n in IDS for k in KINDS]
    return [cell for cell in cells if cell.op != "adam" or cell.rows * cell.dim <= DENSE_ELEMENTS]


def quick(dense: bool = False) -> list[Cell]:
    """Return the cells on the three lines through (100,000 rows, dim 64, 2,048 ids), and one place far from them."""

    def on_a_line(cell: Cell) -> bool:
        middle = (cell.rows == 100_000, cell.dim == 64, cell.ids == 2_048)
        return sum(middle) >= 2 and (cell.dim in (64, 16) or cell.kind == "uniform")

    many = (4_000_000, 128, 32_768)
    return [cell for cell in full(dense) if on_a_line(cell) or (cell.rows, cell.dim, cell.ids) == many]


def chosen(cells: Iterable[Cell], **values: tuple[Any, ...]) -> list[Cell]:
    """Return the cells whose axes have one of the values; an axis without values is not looked at."""
    looked_at = {axis: any_of for axis, any_of in values.items() if any_of}
    return [cell for cell in cells if all(getattr(cell, axis) in any_of for axis, any_of in looked_at.items())]


def table_bytes(rows: int, dim: int, most_ids: int) -> int:
    """Bytes of a table and of the gradients that batches are cut from."""
    return 4 * dim * (rows + most_ids + most_ids // 4)


def work_bytes(op: str, rows: int, dim: int) -> int:
    """Bytes beside the table: our state and the peers', and a copy that peers make of it while they start."""
    copies = 2 * STEPS.get(op, 0) + (op in ("pool", "adagrad", "rowwise_adagrad")) + 3 * (op == "adam")
    return 4 * dim * rows * copies


def call_bytes(op: str, ids: int, dim: int) -> int:
    """Bytes of what one call makes: peers' steps hold the vectors, sorted and summed gradients and moments at once."""
    return 4 * dim * ids * {"gather": 2, "pool": 2, "scatter_add": 3, "coalesce": 4}.get(op, 8)

"""Some cells of the grid (``python -m benchmarks.grid``): our time, and that of the fastest peer over ours."""

from typing import Any

from . import cases, timing
from .grid.cells import Cell
from .grid.run import NotMeasuredError, one

SECONDS = 1.0
CELLS: dict[str, Cell] = {
    str(cell): cell
    for cell in [
        Cell(100_000, 64, "gather", 32, "uniform"),
        Cell(100_000, 64, "gather", 2_048, "uniform"),
        Cell(4_000_000, 64, "gather", 100_000, "uniform"),
        Cell(100_000, 64, "pool", 2_048, "uniform"),
        Cell(4_000_000, 64, "pool", 100_000, "production"),
        Cell(100_000, 64, "scatter_add", 2_048, "uniform"),
        Cell(100_000, 64, "coalesce", 2_048, "production"),
        Cell(100_000, 64, "sparse_adam", 32, "uniform"),
        Cell(100_000, 64, "sparse_adam", 2_048, "production"),
        Cell(100_000, 128, "adagrad", 8_192, "uniform"),
        Cell(100_000, 64, "sgd", 2_048, "uniform"),
        Cell(4_000_000, 16, "rowwise_adagrad", 32_768, "production"),
    ]
}


class Grid:
    """Results are compared with float64 first; ours and peers take turns in blocks of calls."""

    params = [list(CELLS)]
    param_names = ["cell"]

    def setup(self, cell: str) -> None:
        timing.set_threads(cases.THREADS)
        if not timing.installed("torch"):
            raise NotImplementedError("torch is not installed")

    def measured(self, cell: str) -> dict[str, Any]:
        try:
            return one(CELLS[cell], SECONDS)
        except NotMeasuredError as reason:
            raise NotImplementedError(str(reason)) from None

    def track_microseconds(self, cell: str) -> float:
        return float(self.measured(cell)["ours_us"])

    track_microseconds.unit = "us"

    def track_times_faster(self, cell: str) -> float:
        return float(self.measured(cell)["ratio"])

    track_times_faster.unit = "times"

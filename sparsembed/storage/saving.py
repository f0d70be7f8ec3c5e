"""The file of a table: what stands in it, and how it is written."""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .._contents import Contents
from .._engine import CPU
from .._typing import Array
from . import container
from .atomic import naming, path_of, replacing
from .optimizers import described

BLOCK = 1 << 24  # bytes that are written, read and summed at a time
OWN = ("weight", "step", "tail", "drawn", "last_step", "history")  # names of the format; "drawn" and so on are to come
OWN_STARTS = ("vocabulary.", "__")
STEP = np.dtype(np.int64)


def check_progress(progress: Any) -> Callable[[int], Any]:
    """Return a function of the number of rows; refuse what cannot be called."""
    if progress is not None and not callable(progress):
        raise TypeError(
            f"progress must be None or a function of the number of rows such as tqdm(...).update, got {progress!r}"
        )
    return progress or (lambda rows: None)


def rows_in_block(dim: int, dtype: np.dtype[Any]) -> int:
    """Return how many rows are written, read and summed at a time, of every tensor."""
    return max(1, BLOCK // (dim * dtype.itemsize))


def save_contents(contents: Contents, path: Any, progress: Any) -> None:
    """Write what a table holds to a file; see `EmbeddingTable.save`."""
    path, progress = path_of(path), check_progress(progress)
    with contents.lock, replacing(path) as file:
        optimizer = described(contents.rule)
        slots = [] if optimizer is None else [*optimizer["slots"], *optimizer["row_slots"]]
        if wrong := [name for name in slots if name in OWN or name.startswith(OWN_STARTS)]:
            raise ValueError(
                f"slots named {wrong} of {contents.rule} cannot be saved: the format gives {[*OWN]} and names that "
                f"start with {[*OWN_STARTS]} another meaning; name them otherwise"
            )
        contents.engine.synchronize(contents)
        contents.flush()
        step = contents.step
        arrays: Mapping[str, Any] = {"weight": contents.table.array} | contents.engine.columns(contents)
        if contents.engine is not CPU:
            saved = contents.engine.saved(contents)
            arrays = {name: saved[name] for name in arrays}
        about = {
            "format": container.VERSION,
            "kind": "table",
            "optimizer": optimizer,
            "options": _options(contents),
            "seed": str(contents.seed),
        }
        contents.saving = True
        try:
            _write(file, path, about, arrays, step, progress)
        finally:
            contents.saving = False
        if contents.step != step:
            raise RuntimeError("progress updated the table while it was saved; nothing was saved")


def _options(contents: Contents) -> dict[str, Any]:
    options = contents.options
    padding = None if options.padding_idx is None else int(options.padding_idx)
    norm_type = "inf" if options.norm_type == math.inf else options.norm_type  # JSON has no infinity
    return options._replace(padding_idx=padding)._asdict() | {"norm_type": norm_type}


def _write(
    file: Any, path: str, about: dict[str, Any], arrays: Mapping[str, Array], step: int, progress: Callable[[int], Any]
) -> None:
    """Write all tensors, block by block of rows, and then the header, whose checksums are known by then."""
    weight = arrays["weight"]
    num_rows, rows = len(weight), rows_in_block(weight.shape[1], weight.dtype)
    parts = {name: (array.dtype, array.shape) for name, array in arrays.items()} | {"step": (STEP, (1,))}
    entries = container.laid_out(parts)
    sums = {name: ["0" * 8] * -(-shape[0] // rows) for name, (_, shape) in parts.items()}

    def header() -> bytes:
        joined = {name: "".join(each) for name, each in sums.items()}
        return container.encoded(about | {"checksums": {"rows": rows, "crc32": joined}}, entries)

    data = len(header())
    starts = {name: data + entries[name]["data_offsets"][0] for name in parts}
    for first in range(0, num_rows, rows):
        stop = min(first + rows, num_rows)
        for name, array in arrays.items():
            sums[name][first // rows] = _put(file, path, starts[name] + row_bytes(array) * first, array[first:stop])
        progress(stop - first)
    sums["step"][0] = _put(file, path, starts["step"], np.array([step], STEP))
    write_at(file, path, 0, memoryview(header()))


def row_bytes(array: Array) -> int:
    """Return how many bytes of the file a row has."""
    return math.prod(array.shape[1:]) * array.itemsize


def _put(file: Any, path: str, start: int, block: Array) -> str:
    """Write a block of rows in little endian, and return its checksum; it is copied only where it does not lie so."""
    view = bytes_of(np.ascontiguousarray(block, block.dtype.newbyteorder("<")))
    write_at(file, path, start, view)
    return f"{zlib.crc32(view):08x}"


def bytes_of(array: Array) -> memoryview:
    """Return the memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def write_at(file: Any, path: str, start: int, view: memoryview) -> None:
    """Write all bytes at a place of the file; errors of the system name `path`."""
    with naming(path):
        file.seek(start)
        while len(view):
            view = view[file.write(view) :]

"""Tables from files."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _check as check
from .._contents import Contents
from .._cpu import memory, norms
from .._engine import CPU, device_name, engine_for
from .._first_rows import SEEDS
from .._options import Options
from .._saved import check_slots, check_step
from .._typing import Array
from ..rules import Rule
from ..table import EmbeddingTable
from . import DamagedError, container
from .atomic import naming, path_of
from .optimizers import chosen, slots_of
from .saving import STEP, bytes_of, check_progress, row_bytes, rows_in_block


def load(
    path: Any,
    mode: str | None = None,
    *,
    optimizer: Rule | None = None,
    comm: Any = None,
    device: str = "cpu",
    verify: bool | None = None,
    progress: Callable[[int], Any] | None = None,
) -> EmbeddingTable:
    """Read a table from a file that `EmbeddingTable.save` wrote; it goes on bit for bit as the saved one.

    Parameters
    ----------
    path : str or os.PathLike
    mode : None
        Into memory.  "r" and "r+", to map the file, are not built yet.
    optimizer : Rule, optional
        Instead of the saved one, with the same slots; needed where the saved one had a function as learning rate, or a
        class that is not of this package.  A table that was saved without one takes any.
    comm : None
        For tables of several processes, which are not built yet.
    device : str
        As for `EmbeddingTable`.
    verify : bool, optional
        Whether the checksums of all tensors are compared; yes by default.  That of the header always is.
    progress : callable ``(rows) -> None``, optional
        Called with the number of rows done since it was last called, such as ``tqdm(...).update``.

    Returns
    -------
    EmbeddingTable
        In memory of its own; the file is closed.

    Raises
    ------
    sparsembed.storage.DamagedError
        If the bytes are not those that were saved: cut off, changed, or never a safetensors file.
    ValueError
        For a file of another program or of a newer version, for an optimizer that is needed or does not fit, and for
        an unknown mode or device.
    TypeError
        For arguments of another type.
    NotImplementedError
        For what is not built yet.
    OSError
        Of the system, with the path.

    See Also
    --------
    EmbeddingTable.save : Write the file.

    Notes
    -----
    Nothing that a file names is imported or run, and nothing is allocated that the size of the file does not back:
    the table, and 16 MiB.  With `verify` a table of 768 MB was read at 0.3 to
    0.6 GB/s on one core, without at 0.8 to 1.2.

    Examples
    --------
    >>> import os, tempfile, numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable(1000, 4, optimizer=se.Adam(lr=0.1), rng=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "table.safetensors")
    ...     table.save(path)
    ...     again = se.load(path)
    >>> for each in (table, again):
    ...     each.update([3, 5], np.ones((2, 4), np.float32))
    >>> again.step, again.optimizer == table.optimizer, bool((again.weight == table.weight).all())
    (1, True, True)
    """
    path, progress = path_of(path), check_progress(progress)
    _check_built(mode, comm)
    check.optimizer(optimizer, np.dtype(np.float32))
    engine, verify = engine_for(device_name(device)), verify is None or check.flag(verify, "verify")
    where = engine.place(device)
    contents = read_contents(path, optimizer, verify, progress)
    if engine is not CPU:
        state = {"weight": contents.table.array, "step": contents.step} | CPU.columns(contents)
        found = {"optimizer": contents.rule, "state_dict": state, "seed": contents.seed, "device": where.device}
        return EmbeddingTable._made(found | contents.options._asdict())
    return EmbeddingTable._of(contents)


def _check_built(mode: Any, comm: Any) -> None:
    if mode not in (None, "r", "r+"):
        raise ValueError(f"mode must be None, 'r' or 'r+', got {mode!r}")
    if mode is not None:
        raise NotImplementedError(f"mode={mode!r}, a mapped table, is not built yet; load into memory with mode=None")
    if comm is not None:
        raise NotImplementedError("comm=, a table of several processes, is not built yet; leave it out")


def read_contents(
    path: str, optimizer: Rule | None, verify: bool, progress: Callable[[int], Any], constrain: bool = True
) -> Contents:
    """Return what a file holds; `constrain`: the padding row is zero, and no row above `max_norm`."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        with naming(path):
            header = container.read_header(file, path)
        contents = _contents_of(file, path, header, optimizer, verify, progress)
    if constrain and contents.padding >= 0:  # torch's modules let it hold anything
        contents.table.array[contents.padding] = 0
    if constrain and contents.limit is not None:
        norms.clip_rows(contents.table.array, contents.limit)
    return contents


def _contents_of(
    file: Any,
    path: str,
    header: container.Header,
    optimizer: Rule | None,
    verify: bool,
    progress: Callable[[int], Any],
) -> Contents:
    """Return the contents as they were saved; nothing is made before the header is known to fit together."""
    try:
        weight, rule, options, seed = _described(header, optimizer)
        rows, sums = _checksums(header, rows_in_block(weight.shape[1], weight.dtype), verify)
    except (TypeError, ValueError, IndexError, OverflowError) as error:  # what checks and constructors raise
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    saved_step = np.zeros(1, STEP)
    _read(file, path, header.tensors, {"step": saved_step}, 1, sums, check_progress(None))
    step = check.count(int(saved_step[0]), f"{path}: step", least=0)
    check_step(rule, step, f"{path}: step")
    if step and rule is not None and header.about["optimizer"] is None:
        raise ValueError(
            f"{path} was saved at step {step} without an optimizer; load it without optimizer=, call reset_state(), "
            "and set table.optimizer"
        )
    native = weight.dtype.newbyteorder("=")
    contents = Contents(CPU, CPU.hold(None, memory.empty(weight.shape, native), rule, options, step, False), seed)
    arrays = {"weight": contents.table.array}
    if header.about["optimizer"] is not None:  # else no state was saved, and it is fresh
        arrays |= CPU.columns(contents)
    _read(file, path, header.tensors, arrays, rows, sums, progress)
    check_slots(rule, arrays | CPU.columns(contents), f"{path}: state")
    return contents


def _described(header: container.Header, optimizer: Rule | None) -> tuple[container.Tensor, Rule | None, Options, int]:
    """Return the tensor of the weight, the optimizer, the options and the seed; refuse tensors that do not fit."""
    about, tensors = header.about, header.tensors
    if (kind := about.get("kind")) != "table":
        raise ValueError(f"it holds a {kind!r}, and this version of sparsembed reads files of kind 'table'")
    if "optimizer" not in about:
        raise ValueError("it does not say its optimizer, not even that there was none")
    rule = chosen(about["optimizer"], optimizer)
    slots, row_slots = slots_of(about["optimizer"])
    if wrong := sorted({"weight", "step", *slots, *row_slots} ^ tensors.keys()):
        raise ValueError(f"its tensors are not those of a table of this version; missing or left over: {wrong}")
    weight = tensors["weight"]
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise ValueError(f"its weight must have shape (num_rows, dim), and has {weight.shape}")
    if weight.code not in ("F32", "F64", "F16"):
        raise ValueError(f"its weight must be F32, F64 or F16, and is {weight.code}")
    shapes = dict.fromkeys(slots, weight.shape) | dict.fromkeys(row_slots, weight.shape[:1])
    wanted = {name: (weight.code, shape) for name, shape in shapes.items()} | {"step": ("I64", (1,))}
    for name, each in wanted.items():
        if (got := tensors[name][:2]) != each:
            raise ValueError(f"its {name} must be {each[0]} of shape {each[1]}, and is {got[0]} of shape {got[1]}")
    return weight, rule, _options(about.get("options"), weight, rule), _seed(about.get("seed"))


def _options(saved: Any, weight: container.Tensor, rule: Rule | None) -> Options:
    """Return the options; what an older version did not have has its default, what a newer one has is refused."""
    if not isinstance(saved, dict) or not saved.keys() <= {*Options._fields}:
        raise ValueError(f"its options are {str(saved)[:200]}, and this version has {[*Options._fields]}")
    infinite = {"norm_type": math.inf} if saved.get("norm_type") == "inf" else {}
    return Options(**saved | infinite).checked(weight.shape[0], rule, weight.dtype.newbyteorder("="))


def _seed(saved: Any) -> int:
    """Return the seed, which is text, since readers in other languages have no integers of 64 bits in JSON."""
    if not isinstance(saved, str) or not saved.isascii() or not saved.isdigit() or not int(saved) < SEEDS:
        raise ValueError(f"its seed must be an integer below 2**64 as text, and is {str(saved)[:200]!r}")
    return int(saved)


def _checksums(header: container.Header, rows: int, verify: bool) -> tuple[int, dict[str, str] | None]:
    """Return how many rows are summed at a time, and the sums, one behind the other, by tensor; None if not wanted."""
    if not verify:
        return rows, None
    saved = header.about.get("checksums")
    if not isinstance(saved, dict) or type(saved.get("rows")) is not int or not 0 < saved["rows"] < 2**63:
        raise ValueError("it has no checksums; pass verify=False to load it without")
    sums = saved.get("crc32")
    for name, tensor in header.tensors.items():
        text = sums.get(name) if isinstance(sums, dict) else None
        if not isinstance(text, str) or len(text) != 8 * -(-tensor.shape[0] // saved["rows"]):
            raise ValueError(f"it has no checksums of {name}; pass verify=False to load it without")
    return saved["rows"], sums


def _read(
    file: Any,
    path: str,
    tensors: dict[str, container.Tensor],
    arrays: dict[str, Array],
    rows: int,
    sums: dict[str, str] | None,
    progress: Callable[[int], Any],
) -> None:
    """Read tensors into arrays of their shapes, block by block of rows, and compare the checksums of the blocks."""
    num_rows = max(map(len, arrays.values()))
    for first in range(0, num_rows, rows):
        stop = min(first + rows, num_rows)
        for name, array in arrays.items():
            block, dtype = array[first:stop], tensors[name].dtype
            lies_so = block.flags.c_contiguous and block.dtype == dtype
            into = block if lies_so else np.empty(block.shape, dtype)
            view = bytes_of(into)
            _read_at(file, path, tensors[name].start + first * row_bytes(array), view)
            if sums is not None:
                k = first // rows
                if sums[name][8 * k : 8 * k + 8] != f"{zlib.crc32(view):08x}":
                    raise DamagedError(
                        f"{path} is damaged: the checksum of {name}, rows {first} to {stop - 1}, is wrong"
                    )
            if not lies_so:
                block[...] = into
        progress(stop - first)


def _read_at(file: Any, path: str, start: int, view: memoryview) -> None:
    with naming(path):
        file.seek(start)
        while len(view):
            if not (count := file.readinto(view)):
                raise DamagedError(f"{path} was cut off while it was read")
            view = view[count:]

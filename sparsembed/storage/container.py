"""The container of files: safetensors, written and read without that package.

A file is the length of its header (8 bytes, little endian), the header (JSON), and the tensors one behind the other,
without gaps; docs/saving.md describes it for other readers.  What is added within the format:

* Data of every tensor start at multiples of 64 bytes of the file.  The format has no gaps, so tensors of bytes, named
  ``__padding_<k>``, fill them; the header ends with spaces.
* Checksums are CRC-32, of the header and of blocks of rows: the standard library has it, it takes 2.2 GB/s on one
  core, and it is for damage, not for forgery, against which a sum in the same file is no help anyway.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from . import DamagedError

KEY = "sparsembed"  # of our text in the metadata
VERSION = 1  # of what this text says
ALIGNMENT = 64
LONGEST = 100_000_000  # bytes of a header; other readers have the same limit
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
}
CODES = {dtype: code for code, dtype in DTYPES.items() if code != "BF16"}
_SUM = re.compile(rb'\\"header_crc32\\":\\"([0-9a-f]{8})\\"')  # where the header's own checksum stands
_ZEROS = "0" * 8


class Tensor(NamedTuple):
    """Where a tensor lies: `start` counts from the beginning of the file."""

    code: str
    shape: tuple[int, ...]
    start: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the bytes."""
        return np.dtype(DTYPES[self.code])

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * self.dtype.itemsize


class Header(NamedTuple):
    """What a file says about itself, and its tensors without those of padding, in the order of the file."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]


def laid_out(parts: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> dict[str, dict[str, Any]]:
    """Return the entries of a header, those of padding among them; places count from the end of the header."""
    entries: dict[str, dict[str, Any]] = {}
    end = 0
    for name, (dtype, shape) in parts.items():
        if pad := -end % ALIGNMENT:
            entries[f"__padding_{len(entries)}"] = _entry("U8", (pad,), end, end + pad)
        begin = end + pad
        end = begin + math.prod(shape) * dtype.itemsize
        entries[name] = _entry(CODES[dtype.newbyteorder("<").str], shape, begin, end)
    return entries


def encoded(about: Mapping[str, Any], entries: Mapping[str, Any]) -> bytes:
    """Return the length and the header of a file; the first tensor follows, and the last one ends the file."""
    text = json.dumps({"header_crc32": _ZEROS, **about}, separators=(",", ":"), allow_nan=False)
    header = json.dumps({"__metadata__": {KEY: text}, **entries}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    if len(header) > LONGEST:
        raise ValueError(f"the header would have {len(header)} bytes, and no reader takes more than {LONGEST}")
    whole = len(header).to_bytes(8, "little") + header
    return _with_sum(whole, f"{zlib.crc32(whole):08x}".encode())


def _entry(code: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}


def _with_sum(whole: bytes, digits: bytes) -> bytes:
    """Return the header with these digits as its checksum."""
    found = _SUM.search(whole)
    if found is None:
        raise ValueError("a header has a checksum")
    return whole[: found.start(1)] + digits + whole[found.end(1) :]


def read_header(file: Any, path: str) -> Header:
    """Read and check the header of an open file; no more is allocated than the file has bytes.

    Raises
    ------
    DamagedError
        If it is cut off, or its checksum or a place of a tensor is wrong.
    ValueError
        If the file is not of this package, or of a newer version of it.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, LONGEST):
        found = f"{size} bytes" if len(first) < 8 else f"{size} bytes and a header of {length}"
        raise DamagedError(f"{path} is cut off, or no safetensors file: it has {found}")
    raw = file.read(length)
    whole = first + raw
    entries = _decoded(raw, f"{path}: the header", dict)
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(KEY), str):
        raise ValueError(
            f"{path} was not saved by sparsembed: its metadata have no {KEY!r}; read its arrays with the package "
            "safetensors, and make a table with EmbeddingTable.from_array"
        )
    about: dict[str, Any] = _decoded(metadata[KEY].encode("utf-8", "replace"), f"{path}: metadata[{KEY!r}]", dict)
    version = about.get("format")
    if type(version) is int and version > VERSION:
        raise ValueError(
            f"{path} has format {version}, and this version of sparsembed reads up to {VERSION}; update it"
        )
    sums = _SUM.findall(whole)
    if version != VERSION or len(sums) != 1 or sums[0] != f"{_crc_of(whole):08x}".encode():
        raise DamagedError(f"{path} is damaged: the checksum of its header is wrong")
    return Header(about, _tensors(entries, 8 + length, size, path))


def _crc_of(whole: bytes) -> int:
    return zlib.crc32(_with_sum(whole, _ZEROS.encode()))


def _decoded(text: bytes, name: str, kind: type) -> Any:
    """Return JSON that says each thing once, and no NaN."""
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refused)
    except (ValueError, RecursionError) as error:  # among them UnicodeDecodeError, JSONDecodeError
        raise DamagedError(f"{name} is damaged, or the file is no safetensors file: {error}") from None
    if not isinstance(found, kind):
        raise DamagedError(f"{name} is damaged, or the file is no safetensors file: it is no {kind.__name__}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _tensors(entries: dict[str, Any], data: int, size: int, path: str) -> dict[str, Tensor]:
    """Return the tensors; refuse any that overlap, leave a gap, or do not end with the file."""
    found = sorted((_placed(name, entry, data, path) for name, entry in entries.items()), key=lambda each: each[1:])
    end = data
    for name, begin, stop, _ in found:
        if begin != end:
            raise DamagedError(f"{path} is damaged: tensor {name!r} starts at {begin}, not at {end}")
        end = stop
    if end != size:
        raise DamagedError(f"{path} is cut off or damaged: it has {size} bytes, and its tensors end at {end}")
    return {name: tensor for name, _, _, tensor in found if not name.startswith("__")}


def _placed(name: str, entry: Any, data: int, path: str) -> tuple[str, int, int, Tensor]:
    wrong = DamagedError(f"{path} is damaged: the entry of tensor {name!r} is {str(entry)[:200]}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES or not _are_counts(shape) or not _are_counts(offsets):
        raise wrong
    if len(offsets) != 2 or len(shape) > 32 or any(each >= 2**63 for each in (*shape, *offsets)):
        raise wrong
    begin, stop = offsets
    tensor = Tensor(code, tuple(shape), data + begin)
    if tensor.nbytes != stop - begin:
        raise wrong
    return name, data + begin, data + stop, tensor


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)

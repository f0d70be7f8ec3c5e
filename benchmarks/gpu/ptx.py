"""What PTX reads and writes: the argument of the kernel that each access goes to, and how many bytes."""

import inspect
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_ACCESS = re.compile(r"^\s*(?:@!?%p\d+\s+)?(ld|st)((?:\.[\w:]+)+)\s+([^;]*);", re.MULTILINE)
_SET = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(%rd?\d+),\s*([^;]*);", re.MULTILINE)
_REGISTER = re.compile(r"%rd?\d+")


class Access(NamedTuple):
    """An instruction that reads or writes memory of the device."""

    operation: str  # "ld" or "st"
    name: str  # of the argument; of several, joined, where an address is made of several
    size: int  # bytes


def parameters(kernel: Any, kinds: Sequence[Any]) -> list[str]:
    """The argument that each parameter of the compiled kernel is of, "" if it is no pointer."""
    found = []
    for name, kind in zip(inspect.signature(kernel).parameters, kinds, strict=True):
        found += [name if str(kind).endswith("*") else ""] * getattr(kind, "count", 1)
    return found


def accesses(ptx: str, names: Sequence[str]) -> list[Access]:
    """Every access, but those to memory that a block shares; `names` says what each parameter is."""
    sources: dict[str, set[str]] = {}  # register -> registers, or numbers of parameters, that it is made of
    for operation, register, operands in _SET.findall(ptx):
        made_of = sources.setdefault(register, set())
        if operation.startswith("ld.param"):
            made_of.update(re.findall(r"_param_(\d+)\]", operands))
        elif not operation.startswith(("ld.", "atom.", "shfl.")):  # what memory holds is no address
            made_of.update(_REGISTER.findall(operands))
    found = []
    for operation, kinds, operands in _ACCESS.findall(ptx):
        parts = kinds.split(".")
        if {"param", "shared", "local", "const"} & set(parts):
            continue
        count = next((int(each[1:]) for each in parts if re.fullmatch(r"v\d", each)), 1)
        (address,) = re.findall(r"\[(%rd?\d+)", operands)
        pointers = {names[int(each)] for each in _origins(address, sources)} - {""}
        found.append(Access(operation, "+".join(sorted(pointers)), count * int(parts[-1][1:]) // 8))
    return found


def _origins(register: str, sources: dict[str, set[str]]) -> set[str]:
    """The parameters that a register is made of."""
    seen, left, found = set(), [register], set()
    while left:
        each = left.pop()
        if each.isdigit():
            found.add(each)
        elif each not in seen:
            seen.add(each)
            left += sources.get(each, ())
    return found

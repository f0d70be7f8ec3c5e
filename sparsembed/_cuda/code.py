"""From a kernel to machine code: Numba makes PTX, nvJitLink a cubin, and a file keeps the cubin for later processes."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba.core import config

from .._cache import STAMP, rules_in
from .._compiling import announced
from .array import DeviceArray

# No fused multiply-add, so that kernels compute the CPU's bits.  The compiler writes products with an explicit rounding
# (`mul.rn.f32`), which the assembler may not fuse either.  Kernels are bound by memory, not by arithmetic.
COMPILER = {"opt": 3, "fma": False}
ASSEMBLER = ("-fmad=false", "-v")
_TOOLS = ("numba-cuda", "cuda-core", "nvidia-nvvm", "nvidia-nvjitlink", "numba")


class Code(NamedTuple):
    """A kernel for one kind of device."""

    name: str  # of the entry point
    cubin: bytes
    log: str  # registers and memory of the kernel, as the assembler prints them


def types_of(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return Numba's types of the arguments of a kernel: pointers and numbers, alone or in tuples, or None."""
    return tuple(map(_type_of, arguments))


def _type_of(value: Any) -> Any:
    from numba import from_dtype, types

    if isinstance(value, DeviceArray):
        return types.CPointer(from_dtype(value.dtype))
    if value is None:
        return types.none
    if isinstance(value, tuple):
        kinds = {type(each) for each in value}
        if len(kinds) != 1:
            raise TypeError(f"a tuple of one kind of number is expected, got {value!r}")
        kind = _type_of(value[0])
        if hasattr(value, "_fields"):
            return types.NamedUniTuple(kind, len(value), type(value))
        return types.UniTuple(kind, len(value))
    if isinstance(value, np.generic):
        return from_dtype(value.dtype)
    return types.float64 if isinstance(value, float) else types.int64


def flatten(kernel: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Any]]:
    """Return the cache key of a kernel with the types of its arguments, and the parameters of a launch.

    The key is made from Python types, which takes 0.5 to 2 us a launch; `types_of` takes 5 to 40 us.  Both agree:
    cuda.core passes an int as int64 (or an address), a float as float64, and a NumPy scalar in its dtype.
    """
    key: list[Any] = [kernel]
    flat: list[Any] = []
    for value in arguments:
        kind = type(value)
        if kind is DeviceArray:
            key.append(value.dtype.num)
            flat.append(value.pointer)
        elif value is None:
            key.append(None)
            flat.append(0)  # Numba passes None as eight bytes
        elif isinstance(value, tuple):
            key += (kind, type(value[0]), len(value))
            flat += value
        else:
            key.append(kind)
            flat.append(value)
    return tuple(key), flat


def ptx_of(kernel: Callable[..., Any], kinds: tuple[Any, ...], capability: tuple[int, int], threads: int) -> str:
    """Return the PTX of a kernel.  This replaces ``cuda.compile``, which has no option against fused operations."""
    from numba.cuda import compiler, types
    from numba.cuda.core.compiler_lock import global_compiler_lock
    from numba.cuda.cudadrv import nvvm

    with global_compiler_lock:
        made = compiler.compile_cuda(kernel, types.void, kinds, nvvm_options=COMPILER, cc=capability)
        entry = made.library.get_function(made.fndesc.llvm_func_name)
        compiler.kernel_fixup(entry, False)
        nvvm.set_launch_bounds(entry, threads)
        ptx: str = made.library.get_asm_str(cc=capability)
    return ptx


def link(ptx: str, capability: tuple[int, int]) -> Code:
    """Return the code that the assembler makes of PTX."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(arch=f"sm_{capability[0]}{capability[1]}", ptxas_options=list(ASSEMBLER))
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    cubin = linker.link("cubin").code
    (name,) = re.findall(r"\.visible \.entry (\w+)\(", ptx)
    return Code(name, bytes(cubin), linker.get_info_log() or "")


def build(kernel: Callable[..., Any], kinds: tuple[Any, ...], capability: tuple[int, int], threads: int) -> Code:
    """Return the code of a kernel, from the disk cache if the cache has it."""
    what = (kernel.__module__, kernel.__qualname__, str(kinds), capability, threads, COMPILER, ASSEMBLER, _versions())
    rules = [hyper.fingerprint() for hyper in rules_in(kinds) if hasattr(hyper, "fingerprint")]
    path = _folder() / (hashlib.sha256(repr((what, rules, STAMP)).encode()).hexdigest()[:40] + ".cubin")
    if (found := _read(path)) is not None:
        return found
    code: Code = _compiled(kernel, kinds, capability, threads)
    with contextlib.suppress(OSError):  # without a folder for the cache, each process compiles again
        _write(path, code)
    return code


def _compile(kernel: Callable[..., Any], kinds: tuple[Any, ...], capability: tuple[int, int], threads: int) -> Code:
    return link(ptx_of(kernel, kinds, capability, threads), capability)


_compiled = announced(_compile, lambda: str(_folder()))


def _folder() -> Path:
    home = config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sparsembed"


def _versions() -> list[str | None]:
    found: list[str | None] = []
    for name in _TOOLS:
        try:
            found.append(version(name))
        except PackageNotFoundError:  # the toolkit is not installed as a Python package
            found.append(None)
    return found


def _read(path: Path) -> Code | None:
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:32], stored[32:]
    if hashlib.sha256(content).digest() != digest:
        return None  # the file is damaged, or was cut short by a full disk
    head, _, cubin = content.partition(b"\n")
    name, log = json.loads(head)
    return Code(name, cubin, log)


def _write(path: Path, code: Code) -> None:
    content = json.dumps([code.name, code.log]).encode() + b"\n" + code.cubin
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(hashlib.sha256(content).digest() + content)
    unfinished.replace(path)

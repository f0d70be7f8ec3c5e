"""What the CUDA kernels become, without a GPU: ``python -m benchmarks.gpu.code`` prints a table of registers.

The kernels of `cases` are compiled for each architecture, assembled and disassembled.  None may spill, use local
memory, compute in float64 where the table is float32, fuse a product and a sum, or divide and take roots but as IEEE
754 says; rows whose length allows it must be read and written 16 bytes at a time, all of them; registers must stay
within a budget.
"""

import argparse
import contextlib
import multiprocessing
import os
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu import cases as gpu_cases
from benchmarks.gpu import ptx
from benchmarks.gpu.cases import Case
from sparsembed._cuda.code import link, ptx_of

ARCHITECTURES = ((8, 0), (9, 0), (10, 0))
THREADS = 256
AT_ONCE = 25  # cases that a process is given: the disassembler takes 0.4 s to start, and 10 ms a kernel
# Registers a thread: two blocks of 256 threads, 16 warps, on a multiprocessor have room for 128.  A few kernels in
# float64, with maxima or weights, take more, so that one block fits.
BUDGET = {"float32": 104, "float64": 144}
MORE = 1.4  # times that where a block sums one row (few rows, many loads), and where rows catch up first
# The history of steps, norms of rows, and sums of losses: float64 on the CPU, too.
IN_FLOAT64 = {"find_gaps", "clip_rows", "loss_bags", "sum_losses"}
LIBRARY = (
    "clip_rows",
    "find_gaps Adam",
    "find_gaps RMSprop",
    "loss_bags",
)  # take a power, an exponential or a logarithm: code of NVIDIA's, with fused products
MOVED = {"weight", "state", "grad", "x", "out", "values", "partials", "winners"}  # arguments that hold rows
MUST = {  # what a kernel must do 16 bytes at a time; kernels on slots must do so once a slot, and with all of them
    "gather_rows": "ld weight, st out",
    "pool_rows": "ld weight, st out",
    "pool_max": "ld weight, st out, st winners",
    "weights_gradient": "ld weight, ld grad",
    "dot_rows": "ld weight, ld x",
    "sum_hot": "ld grad, st partials",
    "segment_sum": "ld grad, st values",
    "segment_sum_hot": "ld grad, ld partials, st values",
    "update_rows": "ld grad, ld weight, st weight",
    "update_hot_rows": "ld grad, ld partials, ld weight, st weight",
    "flush_rows": "",
}
WRITE_SLOTS = {"update_rows", "update_hot_rows", "flush_rows"}
INEXACT = r"\b(?:div\.(?:full|approx)|sqrt\.approx|rsqrt|rcp\.approx|ex2|lg2)\b|\.ftz\b"


class Found(NamedTuple):
    """What a case became on one architecture."""

    registers: int
    shared: int
    faults: list[str]


@contextlib.contextmanager
def device_of(capability: tuple[int, int]) -> Iterator[None]:
    """Let numba-cuda, which asks for the current device when a kernel calls a function, find one."""
    from numba.cuda import codegen, dispatcher

    class Device:
        name, id, compute_capability = b"none", 0, capability

    asked, chosen = dispatcher.get_current_device, codegen.CUDACodeLibrary._ensure_cc
    dispatcher.get_current_device = Device
    codegen.CUDACodeLibrary._ensure_cc = lambda self, cc: capability if cc is None else cc
    try:
        yield
    finally:
        dispatcher.get_current_device, codegen.CUDACodeLibrary._ensure_cc = asked, chosen


def look_at(cases: list[Case], capability: tuple[int, int]) -> list[Found]:
    """Compile and assemble cases, and say what is wrong with each."""
    texts, codes = [], []
    for case in cases:
        with device_of(capability):
            texts.append(ptx_of(case.kernel, case.kinds, capability, THREADS))
        codes.append(link(texts[-1], capability))
    found = []
    listings = disassemble([code.cubin for code in codes], capability)
    for case, text, code, sass in zip(cases, texts, codes, listings, strict=True):
        registers = int(re.findall(r"Used (\d+) registers", code.log)[0])
        rooms = re.findall(r"\.shared .*\.b8 \w+\[(\d+)\];", text)
        faults = [*_memory(case, text, sass, code.log), *_arithmetic(case, text)]
        if registers > budget(case):
            faults.append(f"{registers} registers")
        found.append(Found(registers, sum(map(int, rooms)), faults))
    return found


def budget(case: Case) -> float:
    """Registers that a case may use."""
    wide = case.name in IN_FLOAT64 or "float64" in str(case.kinds)
    more = MORE if "hot" in case.name or "Gap" in str(case.kinds) else 1
    return BUDGET["float64" if wide else "float32"] * more


def _memory(case: Case, text: str, sass: str, log: str) -> Iterator[str]:
    """What is wrong with how a case reads and writes."""
    if set(re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log)) != {"0"}:
        yield "spills"
    if re.search(r"\b(LDL|STL)\b", sass):
        yield "local memory"
    if case.lanes < 2 or case.name not in MUST:
        return
    moved = (
        MOVED - {"out"} if case.name in ("weights_gradient", "dot_rows") else MOVED
    )  # whose `out` is a number an occurrence
    wide: Counter[str] = Counter()
    for operation, name, size in ptx.accesses(text, ptx.parameters(case.kernel, case.kinds)):
        if size == 16:
            wide[f"{operation} {name}"] += 1
        elif moved & set(name.split("+")):
            yield f"{operation} {name} of {size} bytes"
    must = Counter(filter(None, MUST[case.name].split(", ")))
    if case.name in WRITE_SLOTS:
        must += Counter({"st state": len(case.rule.slots), "ld state": len(case.rule.slots)})
    if case.has("winners") and case.name != "pool_max":
        must["ld winners"] = 1
    for each in must - wide:
        yield f"no {each} of 16 bytes"
    # What is read once (`load_once`) is marked; the compiler may read it on paths where it is not used, which the
    # assembler leaves out.
    once = text.count("L1::no_allocate")
    marked = re.findall(r"\bLDG\.E\.NA\b[\w.]*", sass)
    if (once and not marked) or not all(".128" in each for each in marked):
        yield "LDG.NA.128 taken apart"
    for operation, kind, others in (("ld", "LDG", once), ("st", "STG", 0)):
        expected = sum(count for each, count in wide.items() if each.startswith(operation)) - others
        if len(re.findall(rf"\b{kind}\.E\.(?!NA)(?:\w+\.)*128", sass)) < expected:
            yield f"{kind}.128 taken apart"


def _arithmetic(case: Case, text: str) -> Iterator[str]:
    """What is wrong with how a case computes."""
    library = str(case).startswith(LIBRARY)
    if not library and re.search(r"\bcall\b", text):
        yield "calls"
    if case.name not in IN_FLOAT64 and "float64" not in str(case.kinds) and re.search(r"\.f64\b", text):
        yield "float64"
    if not library and re.search(INEXACT, text):
        yield "inexact"
    if not library and re.search(r"\bfma\.|\b(?:mul|add|sub)\.f\d", text):  # the assembler may fuse without ".rn"
        yield "fused"


def disassemble(cubins: list[bytes], capability: tuple[int, int]) -> list[str]:
    """Return the SASS of kernels, each in a cubin of its own."""
    from cuda.pathfinder import find_nvidia_binary_utility

    codes = [instructions(each) for each in cubins]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels")
        path.write_bytes(b"".join(codes))
        kind = f"SM{capability[0]}{capability[1]}"
        command = [str(find_nvidia_binary_utility("nvdisasm")), "-ndf", "-b", kind, str(path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    texts, ends, k = [""] * len(codes), [sum(map(len, codes[: k + 1])) for k in range(len(codes))], 0
    for line in listing.splitlines():
        if at := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s", line):
            while int(at[1], 16) >= ends[k]:
                k += 1
            texts[k] += line + "\n"
    return texts


def instructions(cubin: bytes) -> bytes:
    """Return the machine code in an ELF file: of a kernel, and of what it calls."""
    (start,), (size, count, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, start + k * size) for k in range(count)]
    code = [each for each in sections if cubin.startswith(b".text.", sections[names][4] + each[0])]
    return b"".join(cubin[offset : offset + length] for *_, offset, length in code)


def _look(cases: list[Case]) -> list[list[Found]]:
    """Look at cases on each architecture."""
    return [list(each) for each in zip(*(look_at(cases, each) for each in ARCHITECTURES), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="kernels whose description has this in it")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that compile at once")
    given = parser.parse_args()
    cases = sorted((case for case in gpu_cases.cases() if given.only in str(case)), key=str)
    shares, wrong = [cases[k : k + AT_ONCE] for k in range(0, len(cases), AT_ONCE)], 0
    names = [f"sm_{major}{minor}" for major, minor in ARCHITECTURES]
    print(f"| kernel | {' | '.join(names)} | shared bytes |\n|---|{'--:|' * (len(names) + 1)}")
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        for share, several in zip(shares, pool.map(_look, shares), strict=True):
            for case, found in zip(share, several, strict=True):
                faults = sorted({fault for each in found for fault in each.faults})
                wrong += bool(faults)
                cells = " | ".join(str(each.registers) for each in found)
                print(f"| {case} | {cells} | {max(each.shared for each in found)} |", *faults, flush=True)
    raise SystemExit(f"{wrong} kernels are not as they should be" if wrong else 0)


if __name__ == "__main__":
    main()

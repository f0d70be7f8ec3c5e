"""The GPU engine checked and measured, as one command: ``python -m benchmarks.gpu``; ``--only check``, ``--quick``.

First it checks results against the float64 reference on fresh random inputs, that bits repeat, and that they are the
CPU's; then it prints GB/s, the share of the bandwidth of a copy, how many times as long torch and CuPy take where they
are installed, and whether the aims are met.  ``benchmarks/results/gpu-<device>.json`` keeps all of it.  It ends with 1
if a check failed or nothing could be measured, and with 2 if there is no GPU.  An aim that is missed is no error.


This folder has no __init__: asv imports every package that it finds among the benchmarks, and has no CUDA.
"""

import argparse
import contextlib
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import bits, checks, frameworks, overhead, peers, report, steps, works
from .device import Device, Effort, compare
from .inputs import Size

RESULTS = Path(__file__).parents[1] / "results"


def every_check(size: Size) -> dict[str, Callable[[Any, Any, Size], None]]:
    """All checks, by name."""
    return checks.ALL | steps.of_rules(size) | steps.ALL | bits.ALL | frameworks.ALL


def run_checks(device: Any, seed: int, size: Size) -> list[dict[str, Any]]:
    """Run every check, whatever the others say; print and return what came of them."""
    found = []
    for number, (name, check) in enumerate(every_check(size).items()):
        start, error = time.perf_counter(), None
        try:
            check(device, np.random.default_rng([seed, number]), size)
            device.wait()
        except Exception as raised:  # the next check may say more
            error = f"{type(raised).__name__}: {raised}"
            traceback.print_exc()
            with contextlib.suppress(Exception):  # what it left behind is not the next one's
                device.wait()
        print(f"{'FAILED' if error else 'passed'}  {name}  ({time.perf_counter() - start:.1f} s)", flush=True)
        found.append({"check": name, "error": error})
    return found


def copy_bandwidth(device: Any, effort: Effort, count: int) -> float:
    """Bytes a second that a copy within the device moves, read and written."""
    source, target = device.noise((count,)), device.noise((count,))
    return 8 * count / compare(device, lambda _: device.copy(target, source), None, effort).ours


def lines(device: Any, size: works.Size, effort: Effort, copy: float) -> Iterator[dict[str, Any]]:
    """Measure every work, beside each of its peers."""
    for make, line in works.works(device, size):
        work = None
        try:
            work = make()
            line["moved"] = work.moved
            times = compare(device, work.step, None, effort)
            speed = work.moved / times.ours
            line.update({"us": 1e6 * times.ours, "spread": times.spread, "GB/s": speed / 1e9, "share": speed / copy})
            line.update(against(device, work, effort))
        except Exception as error:  # out of memory, say; what follows may fit
            line["failed"] = first_line(error)
        del work, make  # a table of gigabytes
        device.trim()
        yield line


def against(device: Any, work: works.Work, effort: Effort) -> dict[str, Any]:
    """A work beside each of its peers: how many times as long they take, or why that is not known."""
    ratios, left_out = {}, {}
    for name, make in work.peers.items():
        try:
            times = compare(device, work.step, make(work.given), effort)
            ratios[name] = {"times_as_long": times.ratio, "us": 1e6 * (times.peer or 0.0)}
        except Exception as error:  # not installed, or out of memory: no reason to stop
            left_out[name] = first_line(error)
        device.trim()
    return {"peers": ratios, "left_out": left_out}


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def measure(device: Any, size: works.Size, effort: Effort, small: dict[str, int], result: dict[str, Any]) -> None:
    """Measure everything into `result`; prints as it goes."""
    print("\npeers:", ", ".join(peers.installed()) or "none is installed")
    copy = copy_bandwidth(device, effort, max(1, min(1 << 28, device.free() // 32)))
    print(f"a copy moves {copy / 1e9:.0f} GB/s, read and written\n\n{report.HEAD}")
    result |= {"size": size._asdict(), "copy_bytes_per_second": copy, "lines": [], "calls": []}
    for line in lines(device, size, effort, copy):
        report.print_line(line)
        result["lines"].append(line)
    print("\n| small calls | µs |\n|---|--:|")
    for name, value in overhead.measure(device, **small):
        print(f"| {name} | {value if isinstance(value, str) else f'{value:.1f}'} |", flush=True)
        result["calls"].append({"work": name, "failed" if isinstance(value, str) else "us": value})


def main(arguments: list[str] | None = None, make: Callable[[], Any] = Device) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", choices=("check", "measure"), help="half of the work")
    parser.add_argument("--quick", action="store_true", help="smaller, and shorter")
    parser.add_argument("--rows", type=int, help="rows of tables, at most; else 10,000,000, and more up to 4 GiB")
    parser.add_argument("--ids", type=int, help="ids of a batch")
    parser.add_argument("--dims", type=int, nargs="+")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="of the inputs of the checks")
    parser.add_argument("--json", type=Path, help="where to write; benchmarks/results/gpu-<device>.json by default")
    given = parser.parse_args(arguments)
    if given.ids is not None and given.ids < works.HOTNESS:
        parser.error(f"--ids must be at least {works.HOTNESS}, the ids of a bag")
    try:
        device = make()
        machine = device.machine()
    except (ImportError, RuntimeError) as error:
        print(f"nothing measured: {error}", file=sys.stderr)
        return 2
    print(f"{machine['device']}, driver {machine['driver']}, CUDA {machine['cuda']}; inputs of seed {given.seed}\n")
    result: dict[str, Any] = {"machine": machine, "seed": given.seed, "quick": given.quick}
    failed = []
    if given.only != "measure":
        size = Size(500, 3_000) if given.quick else Size()
        result["checks"] = run_checks(device, given.seed, size)
        failed = [each["check"] for each in result["checks"] if each["error"]]
    if given.only != "check":
        shapes = works.Size(1_000_000, 1 << 16, (32, 128), 0) if given.quick else works.Size()
        chosen = {"rows": given.rows, "ids": given.ids, "dims": given.dims and tuple(given.dims)}
        shapes = shapes._replace(**{name: value for name, value in chosen.items() if value})
        if given.rows:
            shapes = shapes._replace(table=0)
        effort = Effort(5, 0.01) if given.quick else Effort()
        try:
            measure(device, shapes, effort, {"bursts": 5} if given.quick else {}, result)
        except Exception as error:  # what was found before is worth keeping
            traceback.print_exc()
            failed.append(f"measuring ({first_line(error)})")
        result["aims"] = report.judge([*result.get("lines", []), *result.get("calls", [])], machine["device"])
        report.print_verdicts(result["aims"])
    parts = (machine["device"], given.only, "quick" if given.quick else None)  # a part does not replace the whole
    name = re.sub(r"[^a-z0-9]+", "-", " ".join(filter(None, parts)).lower()).strip("-")
    file = given.json or RESULTS / f"gpu-{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{file} written" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The benchmarks over the last commits, as web pages: ``python -m benchmarks.dashboard [--commits 10] [--full]``

Runs asv, each commit in an environment of its own kind, and writes docs/_build/html/benchmarks; then
``python -m benchmarks.dashboard --serve`` shows them.  Results are kept in benchmarks/results, and a commit
that has some is not run again.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# What people look at most; --full runs everything, which takes several times as long.
CHOSEN = (
    r"bench_(kernels|training)\..*\('1,000,000 x 64', '(uniform|production)'(\)|, 'SparseAdam'|, 'Adam'|, 'SGD')",
    r"Bandwidth\.track_share.*'(gather|pool|update)', '(uniform|production)'",
    r"Peers\..*(torch_training|fbgemm_pooled|torch_pool)', 'production'",
    r"bench_memory\.(Table\.track_state.*'(SparseAdam|RowwiseAdagrad)'|Workspace.*'SparseAdam', 'uniform'|Peak)",
    r"bench_first_call",
    r"bench_grid",
    r"track_threads",
)


def asv(*arguments: str, failing: int = 0) -> None:
    """Run asv in this folder; `cases.THREADS` says with how many threads the suite measures."""
    print("$ asv", *arguments, flush=True)
    code = subprocess.run([sys.executable, "-m", "asv", *arguments], cwd=HERE, check=False).returncode
    if code not in (0, failing):
        raise SystemExit(f"asv {arguments[0]} ended with code {code}")


def commits(number: int) -> list[str]:
    """The last commits, oldest first, so that a run that is stopped leaves a history without gaps."""
    command = ["git", "rev-list", "--first-parent", f"--max-count={number}", "HEAD"]
    return subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True).stdout.split()[::-1]


def measure(number: int, machine: str, options: list[str]) -> None:
    """Run the suite for the last commits."""
    asv("machine", "--yes", "--machine", machine)
    with tempfile.TemporaryDirectory() as folder:
        hashes = Path(folder, "commits")
        hashes.write_text("\n".join(commits(number)) + "\n")
        asv("run", f"HASHFILE:{hashes}", "--machine", machine, *options, failing=2)  # 2: a benchmark failed somewhere


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__.split("\n\n")[0])
    parser.add_argument("--commits", type=int, default=10, metavar="N", help="how many (10); 0 only makes the pages")
    parser.add_argument("--full", action="store_true", help="all shapes and streams")
    parser.add_argument("--machine", default=f"{os.cpu_count()}-cores", help="name that results are kept under")
    parser.add_argument("--serve", action="store_true", help="show the pages at an address of this machine")
    options = parser.parse_args(arguments)
    if options.commits < 0:
        parser.error(f"--commits must be 0 or more, got {options.commits}")
    if options.serve:
        asv("preview")
        return
    if options.commits:
        chosen = [] if options.full else [part for each in CHOSEN for part in ("--bench", each)]
        fast = ["--attribute", "rounds=1", "--attribute", "repeat=5"]
        new = [] if options.full else ["--skip-existing-commits"]
        measure(options.commits, options.machine, [*chosen, *fast, *new])
    asv("publish")


if __name__ == "__main__":
    main()

"""First use, in fresh processes: importing, and the first updated row with an empty and with a full disk cache."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import sparsembed as se

PROGRAMS = {
    "python": "",
    "numba": "import numba",
    "sparsembed": "import sparsembed",
    "first updated row": """
import numpy as np
import sparsembed as se

table = se.EmbeddingTable(1_000, 8, se.SparseAdam(lr=1e-3), rng=0)
table.lookup([1, 2])
table.update([1, 2], np.ones((2, 8), np.float32))
""",
}


def run(program: str, cache: str) -> None:
    """Run a program with the sparsembed that this process has."""
    path = os.pathsep.join([str(Path(se.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"NUMBA_CACHE_DIR": cache, "PYTHONPATH": path}
    # Without a timeout, which would look every 50 ms whether the process has ended; asv has its own.
    subprocess.run([sys.executable, "-c", PROGRAMS[program]], check=True, env=environment)


class WarmCache:
    """A second process: compiled code comes from disk."""

    params = [list(PROGRAMS)]
    param_names = ["program"]
    number, rounds, repeat, warmup_time = 1, 1, 5, 0

    def setup(self, program: str) -> None:
        if not hasattr(self, "folder"):
            self.folder = tempfile.TemporaryDirectory()
            run(program, self.folder.name)

    def time_process(self, program: str) -> None:
        run(program, self.folder.name)


class ColdCache:
    """The first process ever: everything is compiled."""

    number, rounds, repeat, warmup_time = 1, 1, 1, 0

    def setup(self) -> None:
        self.folder = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        self.folder.cleanup()

    def time_first_updated_row(self) -> None:
        run("first updated row", self.folder.name)

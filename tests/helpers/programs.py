"""Programs of their own, which import what is tested anew."""

import os
import subprocess
import sys
from pathlib import Path

from patience import HANGS

import sparsembed as se

PACKAGE = Path(se.__file__).parent


def python(script, **env):
    paths = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    given = os.environ | {"PYTHONPATH": paths} | env
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout

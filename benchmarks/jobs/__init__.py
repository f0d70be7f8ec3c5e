"""Whole jobs beside the tools that people use for them: ``python -m benchmarks.jobs``.

Libraries read these settings when they are imported, so they stand before every import: threads of OpenMP that wait
for work by spinning take the cores of whoever has the turn (a step of DistMult was seen to take four times as long),
and NumPy's matrix products here are too small to be shared out.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

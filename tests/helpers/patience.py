"""How long tests wait for what must come: the only bounds on time there are.

They are for what hangs, not for what is slow: beside other programs, or on a machine that is stopped for a while, the
tests take ten times as long and more.  No test says how fast something is.
"""

import time

HANGS = 3600.0  # seconds that a program may take
WITHIN = HANGS / 2  # that a program waits for a part of its own, so that it says which before it is ended


def until(met, what):
    """Wait until a condition is met."""
    end = time.monotonic() + WITHIN
    while not met():
        assert time.monotonic() < end, f"{what} has not come in {WITHIN:.0f} s"
        time.sleep(0.01)

"""Whether tests take every combination of rules, dtypes and options, rather than a set that has each pair of them.

A combination is a kernel of its own, and takes seconds to compile.  ``SPARSEMBED_EVERY=1`` takes them all.
"""

import os

EVERY = os.environ.get("SPARSEMBED_EVERY", "0") != "0"

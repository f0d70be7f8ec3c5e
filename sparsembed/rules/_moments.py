"""The moments of missed steps of Adam, updated by each step; see the notes of `Adam`."""

from math import inf, sqrt

from .._jit import kernel

MOMENTS = 4  # terms of the series; the next term bounds the truncation error
CENTER, LIMIT, PRODUCT, UNTIL = 5, 6, 7, 8  # columns of the history after the moments


@kernel
def add_step(entries, exact, ages, t, far, root2, tolerance, newest):
    """Update `entries` for step t of the history, and write t to ``newest[0]``; do nothing if that is done.

    In one call, so that an interrupt cannot separate the two.  424 rows with the usual betas.  Columns of `ages`: decay
    of the first moment, decay of the second, and the root of the decay of the second; `root2` is the root of beta2.
    """
    if newest[0] >= t:
        return
    step_size, root, keep = exact[t, 0], exact[t, 1], exact[t, exact.shape[1] - 1]
    product = entries[t - 1, PRODUCT] * keep
    entries[t - 1, CENTER] = root2 * root
    for r in range(max(0, t - far), t):
        age = t - r
        x = entries[r, CENTER] / (ages[age, 2] * root)
        term = step_size * ages[age, 0] * x if ages[age, 0] > 0 else 0.0
        for q in range(MOMENTS + 1):
            entries[r, q] = entries[r, q] * keep + term
            term = term * (x - 1)
        rest = entries[r, MOMENTS]  # a moment may overflow: `gap` does not use it then
        entries[r, LIMIT] = sqrt(sqrt(tolerance * (abs(entries[r, 0] / rest) if rest != 0 else inf)))
        entries[r, UNTIL] = product
    for c in range(entries.shape[1]):
        entries[t, c] = 0.0
    entries[t, PRODUCT], entries[t, UNTIL], entries[t, LIMIT] = product, product, inf
    newest[0] = t

"""Dense optimizers in float64, and the traces of steps that tables are compared with them on."""

import math

import numpy as np
import pytest
from hypothesis import strategies as st

import sparsembed as se

ROWS, DIM = 9, 3
SCHEDULES = {
    "constant": lambda step: 1e-2,
    "cosine": lambda step: 1e-2 * (1 + math.cos(step / 40)),
    "warm-up": lambda step: 1e-4 * min(step, 100),
    "tenfold jump": lambda step: 1e-3 if step < 60 else 1e-2,
    "nothing at first": lambda step: 0.0 if step < 30 else 1e-2,
}
DENSE = [
    *(getattr(se, name)() for name in se.rules.__all__ if getattr(se.rules, name).catch_up is not None),
    se.Adam(betas=(0.0, 0.9)),
    se.Adam(betas=(0.7, 0.95), eps=1e-10),
    se.Adam(eps=1e-3),
    se.Adam(betas=(0.0, 0.0)),
    se.Adam(betas=(0.5, 0.3), eps=1e-12),
    se.AdamW(weight_decay=0.1),
    se.AdamW(weight_decay=200.0),  # weights change sign, or vanish
    se.RMSprop(alpha=0.0),
    se.SGD(1e-2, weight_decay=0.1),
    se.SGD(1e-2, weight_decay=100.0),
    se.SGD(1e-2, momentum=0.9),
    se.SGD(1e-2, momentum=0.9, nesterov=True),
    se.SGD(1e-2, momentum=0.5, dampening=0.3),
    se.SGD(1e-2, momentum=0.9, weight_decay=1e-3),
    se.SGD(1e-2, momentum=0.9, weight_decay=1.0),  # rows swing around zero
    se.SGD(1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    se.SGD(1e-2, momentum=0.9, touched_weight_decay=0.1),
    se.SGD(1e-2, momentum=0.9, nesterov=True, touched_weight_decay=1.0),  # would swing, if rows at rest did decay
]
each_rule = pytest.mark.parametrize("rule", DENSE, ids=str)


class Dense:
    """The dense optimizer in float64, with padding rows left alone."""

    def __init__(self, rule, weight, padding_idx=None):
        self.rule, self.weight, self.padding, self.step = rule, np.array(weight, np.float64), padding_idx, 0
        self.state = {name: np.zeros(weight.shape) for name in rule.slots}
        self.start, self.moved = self.weight.copy(), 0.0
        self.largest = dict.fromkeys(rule.slots, 0.0)  # of each slot, ever

    def update(self, ids, grad, rule=None):
        self.step += 1
        arguments = (self.weight, self.state, ids, grad, self.step, self.padding)
        self.weight, self.state = se.reference.update(rule or self.rule, *arguments)
        for name, slot in self.state.items():
            self.largest[name] = max(self.largest[name], float(np.abs(slot).max()))
        self.moved = max(self.moved, float(np.abs(self.weight - self.start).max()))

    def rounding(self, dtype):
        """Four roundings of a weight a step: of the factor, the product, the change and their sum."""
        return self.step * 4 * np.finfo(dtype).eps / 2 * max(np.abs(self.weight).max(), np.abs(self.start).max())


def agree(table, dense):
    now = table.lookup(np.arange(table.num_rows))
    dtype = now.dtype
    tolerance = {4: 1e-5, 8: 1e-12}[dtype.itemsize]
    error = np.abs(now - dense.weight).max()
    assert error <= tolerance * dense.moved + dense.rounding(dtype), f"step {dense.step}: off by {error:.1e}"


@st.composite
def traces(draw, rows=ROWS):
    """Steps with few ids, and pauses."""
    seed, steps = draw(st.integers(0, 2**32)), draw(st.integers(1, 250))
    rng, trace, pause = np.random.default_rng(seed), [], 0
    size = 10.0 ** draw(st.integers(-6, 1))
    for _ in range(steps):
        if pause == 0 and rng.random() < 0.1:
            pause = int(rng.integers(1, 120))
        n = 0 if pause else int(rng.integers(0, 5))
        pause = max(pause - 1, 0)
        trace.append((rng.integers(0, rows, n), size * rng.standard_normal((n, DIM))))
    return trace

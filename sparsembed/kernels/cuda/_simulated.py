"""What `_intrinsics` and `_block` do, in plain Python: for running kernels where there is no GPU.

A pointer is a flat array.  The simulator sets `running`, which knows the thread that runs and switches to another
thread when this one waits; see tests/helpers/simulator.py.
"""

import operator
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...rules._rule import RULES

running: Any = SimpleNamespace()  # thread, block, threads, blocks, shared; wait(kind, mask, value) -> values by lane
_BLOCK, _WARP = "block", "warp"


def inline(function):
    """Return a helper unchanged."""
    return function


def thread():
    return running.thread


def block():
    return running.block


def threads():
    return running.threads


def blocks():
    return running.blocks


def sync_block():
    running.wait(_BLOCK, None, None)


def sync_warp(mask):
    running.wait(_WARP, ("sync", mask), None)


def shuffle_xor(mask, value, distance):
    lane = running.thread & 31
    return running.wait(_WARP, ("xor", mask), value)[lane ^ distance]


def shuffle_up(mask, value, distance):
    lane = running.thread & 31
    values = running.wait(_WARP, ("up", mask), value)
    return values[lane - distance] if lane >= distance else value


def any_of(mask, value):
    return any(running.wait(_WARP, ("any", mask), bool(value)).values())


def matching(mask, value):
    values = running.wait(_WARP, ("match", mask), value)
    return sum(1 << lane for lane, each in values.items() if each == value)


def popcount(bits):
    return int(bits).bit_count()


def load(p, i, like):
    i, values = int(i), p[int(i) : int(i) + len(like)]
    assert len(values) == len(like), "read outside"  # an index below zero gives too few, too
    return tuple(np.float32(values.view(np.float16)) if p.dtype == np.uint16 else values)


load_once = load


def save(p, i, value):
    assert 0 <= i <= len(p) - len(value), "write outside"
    p[int(i) : int(i) + len(value)] = value


save_once = save


def add(a, b):
    return tuple(map(operator.add, a, b))


def multiply(a, number):
    return tuple(each * number for each in a)


def divide(a, number):
    return tuple(each / number for each in a)


def lanes_sum(a):
    a = list(a)
    while len(a) > 1:
        half = len(a) // 2
        a = [a[k] + a[k + half] for k in range(half)]
    return a[0]


def any_lane(a):
    return any(a)


def lanewise(function, laned):
    """Return a function that calls `function` for each lane of the first `laned` arguments."""

    def each_lane(*given):
        return tuple(
            function(*(value[k] if j < laned else value for j, value in enumerate(given))) for k in range(len(given[0]))
        )

    return each_lane


def first(results):
    return tuple(each[0] for each in results)


def second(results):
    return tuple(each[1] for each in results)


def load_slots(p, i, stride, like, hp):
    count = len(RULES[type(hp)].slots)
    return (
        tuple(zip(*(load(p, i + k * stride, like) for k in range(count)), strict=True)) if count else ((),) * len(like)
    )


def save_slots(p, i, stride, slots, hp):
    for k in range(len(slots[0])):
        save(p, i + k * stride, [lane[k] for lane in slots])


def load_row_slots(p, i, hp):
    return tuple(p[int(i) : int(i) + len(RULES[type(hp)].row_slots)])


def save_row_slots(p, i, slots, hp):
    assert 0 <= i <= len(p) - len(slots), "write outside"
    p[int(i) : int(i) + len(slots)] = slots


def tuple_at(p, i, like):
    return type(like)(*p[int(i) : int(i) + len(like)])


def cast(number, like):
    return type(like)(number)


def pointer_at(p, i):
    return p[int(i) :]


def matrix(p, rows, columns):
    return p[: int(rows) * int(columns)].reshape(int(rows), int(columns))


def atomic_add(p, i, value):
    before = p[i]
    p[i] = before + value
    return before


def atomic_min(p, i, value):
    before = p[i]
    p[i] = min(before, p.dtype.type(value))
    return before


def atomic_exchange(p, i, value):
    before = p[i]
    p[i] = value
    return before


def atomic_replace(p, i, old, value):
    if p[i] == old:
        p[i] = value


def shared(count, name):
    """Return a function that returns shared memory of the block, filled with values that no kernel wrote."""

    def room(like):
        lanes, item = (len(like), like[0]) if isinstance(like, tuple) else (1, like)
        if name not in running.shared:
            running.shared[name] = np.full(lanes * count, 77, np.asarray(item).dtype)
        return running.shared[name]

    return room

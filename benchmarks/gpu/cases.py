"""Every launch that the public functions can make on a GPU, without one: which kernels, with arguments of which types.

The functions run on arrays that are nothing but an address and a shape, and on a queue that only takes notes.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

import sparsembed as se
from sparsembed._cache import rules_in
from sparsembed._cuda import errors, queues
from sparsembed._cuda.array import DeviceArray
from sparsembed._cuda.code import types_of
from sparsembed.losses._loss import LOSSES
from sparsembed.rules._rule import RULES as BY_HYPER

from ..rules import every

LOOKUPS, BAGS, ROWS = 5000, 9, 100  # enough for segments of all lengths, and for chunks
RULES = [*{rule.Hyper: rule for rule in every(0.1).values()}.values()]  # one of each that kernels tell apart
_GRADIENTS = ("bags", "coefs", "winners", "by_count")
_LOOKUPS = ("gathered", "weights", "labels", "marked", "shares", "bag_offsets")


class Case(NamedTuple):
    """One kernel with arguments of some types."""

    kernel: Any
    kinds: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The kernel's."""
        return str(self.kernel.__name__)

    @property
    def rule(self) -> Any:
        """The class of the rule that runs in it, or None."""
        return next((BY_HYPER[each] for each in rules_in(self.kinds) if each in BY_HYPER), None)

    @property
    def lanes(self) -> int:
        """How many numbers of a row a thread moves at once; 0 for kernels that move no rows."""
        tuples = [kind for kind in self.kinds if hasattr(kind, "count") and not hasattr(kind, "instance_class")]
        return max((int(kind.count) for kind in tuples), default=0)

    def __str__(self) -> str:
        names = {"float32*": "float32", "float64*": "float64", "uint16*": "float16"}
        dtype = next((names[kind] for kind in map(str, (self.kind("hyper"), *self.kinds)) if kind in names), "")
        both = {**BY_HYPER, **LOSSES}
        rule = next((both[each].__name__ for each in rules_in(self.kinds) if each in both), "")
        integers = next((self.kind(name)[:-1] for name in ("rows", "ids", "keys") if self.has(name)), "")
        told = _GRADIENTS if self.has("order") else _LOOKUPS
        given = [name for name in told if self.has(name)]
        parts = (self.name, rule, dtype, integers, *given, "16 bytes" if self.lanes > 1 else "")
        return " ".join(filter(None, parts))

    def kind(self, name: str) -> str:
        """The type of an argument, as text; "none" where the kernel has none of this name."""
        code = self.kernel.__code__
        names = code.co_varnames[: code.co_argcount]
        return str(self.kinds[names.index(name)]) if name in names else "none"

    def has(self, name: str) -> bool:
        """Whether there is an argument of this name, and it is not None."""
        return self.kind(name) != "none"


class Recorder:
    """A queue that notes which kernels would be started, with arguments of which types."""

    def __init__(self) -> None:
        self.cases: dict[Case, None] = {}
        self.record = self.empty((2,), np.uint64)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        return array(*shape, dtype=dtype)

    def filled(self, shape: tuple[int, ...], dtype: Any, byte: int) -> DeviceArray:
        return self.empty(shape, dtype)

    def several(self, *wanted: Any) -> list[DeviceArray]:
        return [self.empty(*each) for each in wanted]

    def upload(self, host: Any) -> DeviceArray:
        return self.empty(np.shape(host), np.asarray(host).dtype)

    def write(self, array: DeviceArray, values: Any) -> None:
        pass

    copy = write

    def download(self, array: DeviceArray) -> Any:
        return np.zeros(array.shape, array.dtype)

    def blocks(self, items: int, items_each: int) -> int:
        return 1

    def launch(self, kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
        self.cases[Case(kernel, types_of(arguments))] = None

    def ready(self, *arguments: Any) -> tuple[Any, ...]:
        return self.launch, *arguments


def array(*shape: int, dtype: Any) -> DeviceArray:
    """An array on no device, aligned."""
    return DeviceArray(1 << 20, shape, dtype, None)


@functools.cache
def everything() -> tuple[Case, ...]:
    """All launches, by built-in rules."""
    queue = Recorder()
    with mock.patch.multiple(queues, open_queue=lambda *_: queue, device_of=lambda _: 0):
        for dtype, ids, dim in itertools.product((np.float32, np.float64), (np.int32, np.int64), (128, 3)):
            for offsets in (np.int32, np.int64):
                _read(dtype, ids, dim, offsets)
                _read(np.float16, ids, dim, offsets)
                _sum(dtype, ids, dim, offsets)
            for rule, by_count in itertools.product(RULES, (False, True)):
                _train(rule, dtype, ids, dim, by_count)
        _raise(queue)
    return tuple(queue.cases)


def _bags(ids: Any, offsets: Any, weights: Any) -> Iterable[tuple[Any, str]]:
    """Bags, and a mode to pool them in."""
    flat, ends = array(LOOKUPS, dtype=ids), array(BAGS + 1, dtype=offsets)
    for mode in ("sum", "mean", "sqrtn", "max"):
        yield se.Bags(flat, ends), mode
        if mode != "max":
            yield se.Bags(flat, ends, array(LOOKUPS, dtype=weights)), mode


def _read(dtype: Any, ids: Any, dim: int, offsets: Any) -> None:
    weight, kind = array(ROWS, dim, dtype=dtype), np.result_type(dtype, np.float32)
    se.gather(weight, array(LOOKUPS, dtype=ids))
    table: Any = se.EmbeddingTable.from_array(weight)
    plain = se.Bags(array(LOOKUPS, dtype=ids), array(BAGS + 1, dtype=offsets))
    x, labels = array(BAGS, dim, dtype=kind), array(LOOKUPS, dtype=kind)
    se.dot(weight, plain, x)
    for loss, shares in itertools.product(LOSSES.values(), (None, array(BAGS, dtype=kind))):
        if loss.__module__.startswith("sparsembed."):
            for marks in (None, labels):
                if marks is None if loss.pair else marks is not None or not loss.term:
                    table.dot_loss(plain, x, marks, loss(), weights=shares)
    for bags, mode in _bags(ids, offsets, kind):
        se.pool(weight, bags, mode)
        table.pool(bags, mode)
        if mode != "max":
            se.per_sample_weights_gradient(weight, bags, array(BAGS, dim, dtype=kind), mode)


def _sum(dtype: Any, ids: Any, dim: int, offsets: Any) -> None:
    weight, flat = array(ROWS, dim, dtype=dtype), array(LOOKUPS, dtype=ids)
    grad, pooled = array(LOOKUPS, dim, dtype=dtype), array(BAGS, dim, dtype=dtype)
    se.scatter_add(weight, flat, grad)
    se.plan(flat, 2**33)
    for by_count in (False, True):
        se.coalesce(flat, grad, ROWS, scale_grad_by_freq=by_count)
        for bags, mode in _bags(ids, offsets, dtype):
            compared = {"weight": weight} if mode == "max" else {}
            se.pool_gradient(bags, pooled, ROWS, mode, scale_grad_by_freq=by_count, **compared)
            if mode != "max":
                se.pool_gradient(bags, pooled, 2**33, mode)


def _train(rule: Any, dtype: Any, ids: Any, dim: int, by_count: bool) -> None:
    weight, flat = array(ROWS, dim, dtype=dtype), array(LOOKUPS, dtype=ids)
    grad, pooled = array(LOOKUPS, dim, dtype=dtype), array(BAGS, dim, dtype=dtype)
    largest = None if rule.catch_up else 1.0
    table: Any = se.EmbeddingTable.from_array(weight, rule, max_norm=largest, scale_grad_by_freq=by_count)
    table.update(flat, grad)
    table.apply(table.gradient(flat, grad))
    table.lookup(flat)
    table.dot(se.Bags(flat, array(BAGS + 1, dtype=ids)), pooled)
    for offsets in (np.int32, np.int64):
        for bags, mode in _bags(ids, offsets, dtype):
            table.update_pooled(bags, pooled, mode)
            table.update_pooled([bags, se.Bags(bags.ids, bags.offsets)], [pooled, pooled], mode)
            table.pool(bags, mode)
    table.flush()


def _raise(queue: Recorder) -> None:
    """What is started for ids out of range; all that is read here is 0, as if the first one were."""
    queues.taken(queue, queue.record)
    with contextlib.suppress(IndexError):
        errors.raise_for(queue, array(1, dtype=np.uint64), errors.note(("ids",), ((1,),), 1), array(1, dtype=np.int32))


def cases() -> list[Case]:
    """As few launches as hold what `everything` does two by two: each two types that any two arguments have at once.

    So every rule is compiled in either dtype for either width of rows and for ids of either size, with every way in
    which a gradient can be given; a rule and a way with all others at once are not.
    """
    by_kernel: dict[Any, list[Case]] = {}
    for case in everything():
        by_kernel.setdefault(case.kernel, []).append(case)
    return [case for each in by_kernel.values() for case in covering(each)]


def covering(every: list[Case]) -> list[Case]:
    """Choose among cases of one kernel, those first that bring most pairs which have not been seen."""
    columns = [[kinds.index(kind) for kind in kinds] for kinds in zip(*(case.kinds for case in every), strict=True)]
    columns = [list(each) for each in {tuple(column): None for column in columns} if any(each)]
    rows = list(zip(*columns, strict=True)) or [()] * len(every)
    left = [set(itertools.combinations(enumerate(row), 2)) or set(enumerate(row)) for row in rows]
    wanted, chosen = set().union(*left), [] if len(every) > 1 else every[:1]
    while wanted:
        best = max(range(len(every)), key=lambda k: len(left[k] & wanted))
        chosen.append(every[best])
        wanted -= left[best]
    return chosen

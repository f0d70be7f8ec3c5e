"""What `benchmarks.gpu` checks besides results: the same bits again, the CPU's bits, bad ids, graphs."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

import sparsembed as se
import sparsembed.cuda

from . import graph as graphs
from .device import OnStream
from .inputs import EPS, MODES, Inputs, Size, inputs, same

RUNS = 3
# Units in the last place that a row may be off by which missed steps, for each step.  RMSprop, and Adam from some 400
# missed steps on, take the factor of a gap from exp: NVIDIA's and the CPU's are within 1 of float64's each, so 2
# between them.  The product with it, and the next step's product and sum, can each round 1 apart: a slot is off by 5
# a step.  Half of that, and 4 roundings, come into the change of a weight, which is at most twice as large as the
# largest that the weight has been, in at most every second step.
ULPS = 8


def works_on_elements(rule: Any) -> bool:
    """Whether a rule sums nothing over a row, so that its bits do not depend on the order of a sum."""
    return rule.reduce is None and rule.reduce_pair is None


def _results(device: Any, each: Inputs, rules: Any, wrap: Callable[[Any], Any] = lambda array: array) -> dict[str, Any]:
    """Everything that is computed from some inputs, on arrays as `wrap` makes them; nothing is downloaded."""
    table, ids, grad, pooled = (wrap(device.up(a)) for a in (each.weight, each.ids, each.grad, each.pooled))
    bags = se.Bags(*(wrap(device.up(a)) for a in (each.ids, each.offsets, each.shares)))
    found = {"gather": se.gather(table, ids), "coalesce": se.coalesce(ids, grad, each.num_rows)}
    found["dot"] = se.dot(table, bags.with_weights(None), pooled)
    for mode in MODES[:3]:
        found[f"pool, {mode}"] = se.pool(table, bags, mode)
        found[f"pool_gradient, {mode}"] = se.pool_gradient(bags, pooled, each.num_rows, mode)
        found[f"gradient of weights, {mode}"] = se.per_sample_weights_gradient(table, bags, pooled, mode)
    for rule in rules:
        trained = se.EmbeddingTable.from_array(wrap(device.up(each.weight)), rule)
        for _ in range(2):
            trained.update(ids, grad)
            trained.update_pooled(bags, pooled, "mean")
        found[f"update, {rule}"] = trained
    added = device.up(each.weight)
    se.scatter_add(wrap(added), ids, grad, -0.5)
    found["scatter_add"] = added
    return found


def _hosted(device: Any, found: dict[str, Any]) -> dict[str, Any]:
    """The same in host memory."""
    hosted: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, se.EmbeddingTable):
            hosted |= {f"{name}, {slot}": array for slot, array in value.state_dict().items()}
        else:
            hosted[name] = device.down(value.values if name.startswith(("coalesce", "pool_gradient")) else value)
    return hosted


def again(device: Any, rng: Any, size: Size) -> None:
    """Several runs, with rows that half of a batch hits: all tiers of the sum."""
    for each in inputs(rng, size):
        first = _hosted(device, _results(device, each, size.rules))
        for _ in range(RUNS - 1):
            for name, value in _hosted(device, _results(device, each, size.rules)).items():
                same(value, first[name], name)


def two_streams(device: Any, rng: Any, size: Size) -> None:
    """Two streams at once give the bits of one."""
    for each in inputs(rng, size):
        want = _hosted(device, _results(device, each, size.rules))
        streams = [device.new_stream() for _ in range(2)]
        found = []
        for stream in streams:

            def wrap(array: Any, stream: int = stream) -> OnStream:
                return OnStream(array, stream)

            device.wait()  # what was uploaded on the default stream has arrived: `up` runs before its next wrap
            found.append(_results(_Waiting(device), each, size.rules, wrap))
        for stream in streams:
            device.wait(stream)
        for results in found:
            for name, value in _hosted(device, results).items():
                same(value, want[name], name)


class _Waiting:
    """A device whose uploads have arrived."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def up(self, host: Any) -> Any:
        array = self._device.up(host)
        self._device.wait()
        return array


def as_cpu(device: Any, rng: Any, size: Size) -> None:
    """Rules that work on elements, on unique rows: the CPU's bits; rows that missed steps to a few units."""
    for each in inputs(rng, size):
        for rule in filter(works_on_elements, size.rules):
            there = se.EmbeddingTable.from_array(device.up(each.weight), rule, padding_idx=each.padding)
            here = se.EmbeddingTable.from_array(each.weight, rule, copy=True, padding_idx=each.padding)
            every = np.arange(each.num_rows, dtype=each.id_dtype)
            missed, largest = np.zeros(each.num_rows, bool), np.abs(each.weight)
            unit = ULPS * size.steps * EPS[each.dtype]
            for turn in range(size.steps):
                ids = rng.permutation(every)[: each.num_rows // (turn + 2)]
                grad = rng.standard_normal((len(ids), each.dim)).astype(each.dtype)
                there.update(device.up(ids), device.up(grad))
                here.update(ids, grad)
                if rule.catch_up is not None:
                    missed |= ~np.isin(every, ids)
                got, want = device.down(there.lookup(device.up(every))), here.lookup(every)
                largest = np.maximum(largest, np.abs(want))
                _near(got, want, missed, unit * largest, f"{rule}: lookup, step {turn + 1}")
            saved = here.state_dict()
            for name, value in there.state_dict().items():
                if name == "weight" or name in rule.slots:
                    size_of = largest if name == "weight" else np.abs(saved[name])
                    _near(value, saved[name], missed, unit * size_of, f"{rule}: {name}")
                else:
                    same(value, saved[name], f"{rule}: {name}")


def _near(got: Any, want: Any, missed: Any, bound: Any, what: str) -> None:
    """Bit for bit, but for rows that missed steps, whose numbers are within a bound."""
    assert got.shape == want.shape, f"{what}: shape {got.shape} instead of {want.shape}"
    same(got[~missed], want[~missed], what)
    error = np.abs(got[missed] - want[missed])
    bad = ~(error <= bound[missed])  # NaN is bad, too
    assert not bad.any(), f"{what}: rows that missed steps are off by up to {error[bad].max():.3g}"


def bad_ids(device: Any, rng: Any, size: Size) -> None:
    """An id or an offset out of range raises, nothing is written, and the device goes on."""
    each = next(inputs(rng, size))
    table, grad, weight = device.up(each.weight), device.up(each.grad), each.weight
    wrong = each.ids.copy()
    place = int(rng.integers(each.n))
    wrong[place] = (-1, each.num_rows, np.iinfo(each.id_dtype).max)[rng.integers(3)]
    wrong, good = device.up(wrong), device.up(each.ids)
    ends = each.offsets.copy()
    ends[1], ends[-1] = ends[-1], ends[-1] - 1
    out, seven = device.up(np.full_like(each.grad, 7)), np.full_like(each.grad, 7)
    trained = se.EmbeddingTable.from_array(device.up(weight), se.SparseAdam(0.1))
    calls: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
        "gather": (IndexError, lambda: se.gather(table, wrong, out)),
        "scatter_add": (IndexError, lambda: se.scatter_add(table, wrong, grad)),
        "update": (IndexError, lambda: trained.update(wrong, grad)),
        "pool": (IndexError, lambda: se.pool(table, se.Bags(wrong, device.up(each.offsets)))),
        "offsets": (ValueError, lambda: se.pool(table, se.Bags(good, device.up(ends)))),
    }
    device.wait()
    for when in ("late", "now"):
        before = sparsembed.cuda.checks(when)
        try:
            for name, (error, call) in calls.items():
                _raises(error, call, device.wait, f"{name}, {when}")
                device.wait()  # is silent: it has been said
        finally:
            sparsembed.cuda.checks(before)
    same(device.down(out), seven, "gather wrote")
    same(device.down(table), weight, "scatter_add wrote")
    same(trained.state_dict()["weight"], weight, "update wrote")
    se.gather(table, good, out)
    device.wait()
    same(device.down(out), weight[each.ids], "afterwards")


def _raises(error: type[Exception], call: Callable[[], Any], wait: Callable[[], None], what: str) -> None:
    try:
        call()
        if what.endswith("late"):
            wait()
    except error as raised:
        if re.search("out of range|expected 0 <= id|does not fit", str(raised)):
            return
        raise
    raise AssertionError(f"{what}: something out of range went through")


def graph(device: Any, rng: Any, size: Size) -> None:
    """A captured lookup and update, launched with other inputs, do what the same calls do."""
    each = next(inputs(rng, size))
    batches = [(each.hot_ids(), each.eighths((each.n, each.dim))) for _ in range(3)]
    for by in graphs.ways():
        mine, other = (
            se.EmbeddingTable.from_array(device.up(each.weight), se.SparseAdam(lr=lambda step: 0.1 / step))
            for _ in "ab"
        )
        captured = graphs.Captured(device, mine, *batches[0], by=by)
        for ids, grad in batches:
            captured.put(device.up(ids), device.up(grad))
            captured.step()
            seen = device.down(other.lookup(device.up(ids)))
            same(device.down(captured.seen), seen, f"lookup in a graph of {by}")
            other.update(device.up(ids), device.up(grad))
        captured.close()
        for name, value in other.state_dict().items():
            same(mine.state_dict()[name], value, f"{name}, in a graph of {by}")


ALL = {
    "the same bits again": again,
    "the same bits on two streams": two_streams,
    "the CPU's bits": as_cpu,
    "bad ids": bad_ids,
    "a CUDA graph": graph,
}

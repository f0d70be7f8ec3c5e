"""Whole steps, lookup and update: ours, torch's with sparse gradients, FBGEMM's, and what users of NumPy write."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import sparsembed as se

from .. import timing
from . import fbgemm
from .data import Array, Data
from .plain import numpy_sums
from .way import SORTING, Seen, Way, Work

RATE = 1e-3
RULES: dict[str, se.rules.Rule] = {
    "sgd": se.SGD(lr=RATE),
    "adagrad": se.Adagrad(lr=RATE),
    "rowwise_adagrad": fbgemm.RULE,
    "sparse_adam": se.SparseAdam(lr=RATE),
    "adam": se.Adam(lr=RATE),
}
_TORCH = {"sgd": "SGD", "adagrad": "Adagrad", "sparse_adam": "SparseAdam", "adam": "Adam"}


def step(data: Data, op: str) -> Work:
    """Return the ways of a step; everybody works on the same weights, and all peers on the same state."""
    rule = RULES[op]
    dense = rule.catch_up is not None
    ways = [_ours(data, rule, copy=dense)]
    slots = {name: _touched(data.weight) for name in rule.slots}
    count = [0]
    if not dense and op in _NUMPY:
        for name, update in _NUMPY[op].items():
            both = _numpy(data.weight, slots, count, update)
            ways.append(Way(name, both, lambda: _state(data, slots, count[0]), SORTING))
    if op in _TORCH and timing.installed("torch"):
        ways.append(_torch(data, op, slots, dense))
    if op == "rowwise_adagrad" and (found := fbgemm.step(data)):
        both, sums = found
        ways.append(Way("FBGEMM, bags of one", both, lambda: ({"weight": data.weight, "sum": sums}, 0)))

    def compare(seen: Seen) -> Iterator[tuple[Any, Any]]:
        sample, before = seen.sample, dict(seen.before)
        vectors = np.asarray(seen.result.detach() if hasattr(seen.result, "detach") else seen.result)
        weight = before.pop("weight")
        yield vectors[sample.positions], weight[sample.local]
        before |= {name: np.zeros(len(weight)) for name in rule.row_slots if name not in before}
        new, state = se.reference.update(rule, weight, before, sample.local, sample.grads, seen.steps + 1)
        yield seen.after["weight"], new
        for name in rule.slots:
            yield seen.after[name], state[name]

    return Work(ways, compare, fresh=dense)


def _touched(like: Array) -> Array:
    """Return zeros whose memory is there: the first write of a page would be timed else."""
    zeros = np.empty_like(like)
    zeros.fill(0)
    return zeros


def _state(data: Data, slots: dict[str, Array], steps: int) -> tuple[dict[str, Array], int]:
    return {"weight": data.weight, **slots}, steps


def _ours(data: Data, rule: se.rules.Rule, copy: bool) -> Way:
    table = se.EmbeddingTable.from_array(data.weight, optimizer=rule, copy=copy)
    for slot in table.state.values():
        slot.fill(0)

    def both(b: Any) -> Any:
        vectors = table.lookup(b.ids)
        table.update(b.ids, b.grads)
        return vectors

    return Way("sparsembed", both, lambda: ({"weight": table.weight, **table.state}, table.step))


def _torch(data: Data, op: str, slots: dict[str, Array], dense: bool) -> Way:
    import torch

    tensor = torch.from_numpy(data.weight)
    embedding = torch.nn.Embedding(*tensor.shape, sparse=not dense, _weight=tensor.clone() if dense else tensor)
    weight = embedding.weight
    optimizer = getattr(torch.optim, _TORCH[op])(embedding.parameters(), lr=RATE, **({"fused": True} if dense else {}))
    if slots:
        state = optimizer.state[weight]
        state["step"] = 0 if op == "sparse_adam" else torch.tensor(0.0)
        state.update({name: torch.from_numpy(slot) for name, slot in slots.items()})

    def both(b: Any) -> Any:
        optimizer.zero_grad()
        vectors = embedding(b.torch.ids)
        vectors.backward(b.torch.grads)
        optimizer.step()
        return vectors

    def state_now() -> tuple[dict[str, Array], int]:
        return {"weight": weight.detach().numpy(), **slots}, int(optimizer.state[weight].get("step", 0))

    return Way(f"torch {_TORCH[op]}", both, state_now)


_Update = Callable[[Array, dict[str, Array], int, Array, Array], None]


def _numpy(weight: Array, slots: dict[str, Array], count: list[int], update: _Update) -> Callable[[Any], Any]:
    def both(b: Any) -> Any:
        vectors = weight.take(b.ids, axis=0)
        update(weight, slots, count[0] + 1, b.ids, b.grads)
        count[0] += 1
        return vectors

    return both


def _sgd_at(weight: Array, slots: dict[str, Array], step: int, ids: Array, grads: Array) -> None:
    np.subtract.at(weight, ids, np.float32(RATE) * grads)


def _sgd(weight: Array, slots: dict[str, Array], step: int, ids: Array, grads: Array) -> None:
    rows, sums = numpy_sums(ids, grads)
    weight[rows] -= np.float32(RATE) * sums


def _adagrad(weight: Array, slots: dict[str, Array], step: int, ids: Array, grads: Array) -> None:
    rows, sums = numpy_sums(ids, grads)
    total = slots["sum"][rows] + sums * sums
    slots["sum"][rows] = total
    weight[rows] -= np.float32(RATE) * sums / (np.sqrt(total) + np.float32(1e-10))


def _sparse_adam(weight: Array, slots: dict[str, Array], step: int, ids: Array, grads: Array) -> None:
    rows, sums = numpy_sums(ids, grads)
    m, v = slots["exp_avg"][rows], slots["exp_avg_sq"][rows]
    m += np.float32(0.1) * (sums - m)
    v += np.float32(0.001) * (sums * sums - v)
    slots["exp_avg"][rows], slots["exp_avg_sq"][rows] = m, v
    size = np.float32(RATE * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step))
    weight[rows] -= size * m / (np.sqrt(v) + np.float32(1e-8))


_NUMPY: dict[str, dict[str, _Update]] = {
    "sgd": {"numpy.subtract.at": _sgd_at, "numpy, sorted": _sgd},
    "adagrad": {"numpy, sorted": _adagrad},
    "sparse_adam": {"numpy, sorted": _sparse_adam},
}

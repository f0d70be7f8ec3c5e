"""Formulas of the built-in rules for `reference`, written independently of the kernels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import losses, rules
from ._typing import Array
from .losses import Loss
from .rules import Rule

Step = tuple[Array, Sequence[Array]]


def touched_decay(rule: Rule) -> float:
    """Return the L2 decay of the rows of a step: their gradient gets this share of the row before `take_step`."""
    match rule:
        case rules.SGD() | rules.Adagrad() | rules.SparseAdam():
            return rule.touched_weight_decay
        case rules.RowwiseAdagrad():
            return rule.weight_decay if rule.weight_decay_mode == "l2" else 0.0
    return 0.0


def take_step(rule: Rule, w: Array, s: Sequence[Array], g: Array, step: int) -> Step:
    """Return new weights (k, dim) and slots of rows with gradients `g`, in float64."""
    lr = rule.rate(step)
    with np.errstate(divide="ignore", invalid="ignore"):
        match rule:
            case rules.SGD():
                return _sgd(rule, lr, w, s, g, step)
            case rules.Adagrad():
                total = s[0] + g**2
                change = g / (np.sqrt(total + rule.initial_accumulator_value) + rule.eps)
                step_size = lr / (1 + (step - 1) * rule.lr_decay)
                return w - step_size * np.where(g == 0, 0, change), [total]
            case rules.RowwiseAdagrad():
                total = s[0] + np.mean(g**2, axis=1)
                rate = np.where(total > 0, lr / (np.sqrt(total) + rule.eps), 0)[:, None]
                keep = 1 - (lr * rule.weight_decay if rule.weight_decay_mode == "decoupled" else 0)
                return keep * w - rate * g, [total]
            case rules.SparseAdam():
                m, v = _moments(rule.betas, s, g)
                beta1, beta2 = rule.betas
                step_size = lr * np.sqrt(1 - beta2**step) / (1 - beta1**step)
                return w - step_size * np.where(m == 0, 0, m / (np.sqrt(v) + rule.eps)), [m, v]
            case rules.Adam():
                m, v = _moments(rule.betas, s, g)
                change = _corrected(rule, m, v, step)
                return (1 - lr * rule.weight_decay) * w - lr * change, [m, v]
            case rules.RMSprop():
                v = rule.alpha * s[0] + (1 - rule.alpha) * g**2
                return w - lr * np.where(g == 0, 0, g / (np.sqrt(v) + rule.eps)), [v]
            case rules.FTRL():
                return _ftrl(rule, lr, w, s, g)
            case rules.LAMB():
                m, v = _moments(rule.betas, s, g)
                u = _corrected(rule, m, v, step) + rule.weight_decay * w
                size, length = np.linalg.norm(w, axis=1), np.linalg.norm(u, axis=1)
                ratio = np.where((size > 0) & (length > 0), size / length, 1)
                return w - lr * ratio[:, None] * u, [m, v]
            case rules.PartialRowwiseAdam():
                beta1, beta2 = rule.betas
                m = beta1 * s[0] + (1 - beta1) * g
                v = beta2 * s[1] + (1 - beta2) * np.mean(g**2, axis=1)
                change = _corrected(rule, m, np.broadcast_to(v[:, None], m.shape), step)
                return w - lr * (change + rule.weight_decay * w), [m, v]
    return _by_element(rule, w, s, g, step)


def _moments(betas: tuple[float, float], s: Sequence[Array], g: Array) -> tuple[Array, Array]:
    return betas[0] * s[0] + (1 - betas[0]) * g, betas[1] * s[1] + (1 - betas[1]) * g**2


def _corrected(rule: Any, m: Array, v: Array, step: int) -> Array:
    """Return m / (sqrt(v) + eps) of Adam, with bias-corrected moments."""
    beta1, beta2 = rule.betas
    quotient = m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + rule.eps)
    return np.where((m == 0) | (v == 0), 0, quotient)


def _sgd(rule: rules.SGD, lr: float, w: Array, s: Sequence[Array], g: Array, step: int) -> Step:
    d = g + rule.weight_decay * w
    if rule.momentum == 0:
        return w - lr * d, s
    b = d if step == 1 else rule.momentum * s[0] + (1 - rule.dampening) * d
    return w - lr * (d + rule.momentum * b if rule.nesterov else b), [b]


def _ftrl(rule: rules.FTRL, lr: float, w: Array, s: Sequence[Array], g: Array) -> Step:
    z, n = s
    start = -w * (rule.beta / lr + rule.l2) - np.sign(w) * rule.l1
    z = np.where((n == 0) & (g != 0), start, z)
    total = n + g**2
    z = z + np.where(g == 0, 0, g - (np.sqrt(total) - np.sqrt(n)) / lr * w)
    new = -np.sign(z) * np.maximum(np.abs(z) - rule.l1, 0) / ((rule.beta + np.sqrt(total)) / lr + rule.l2)
    return np.where(g == 0, w, np.where(np.abs(z) <= rule.l1, 0, new)), [z, total]


def _by_element(rule: Rule, w: Array, s: Sequence[Array], g: Array, step: int) -> Step:
    """Return new weights and slots from the scalar functions of the rule, called for each element in float64."""
    kind, hp = type(rule), rule.scalars(step, np.dtype(np.float64))
    slots, row_slots = list(s[: len(kind.slots)]), list(s[len(kind.slots) :])
    new = w.copy()
    for i in range(len(w)):
        a: Any = np.float64(0)
        if kind.reduce is not None and kind.row is not None:
            mean = np.mean([kind.reduce(w[i, c], g[i, c], hp) for c in range(w.shape[1])])
            a, stored = kind.row(mean, tuple(slot[i] for slot in row_slots), hp)
        elif kind.reduce_pair is not None and kind.row_pair is not None:
            each = [kind.reduce_pair(w[i, c], g[i, c], _at(slots, i, c), hp) for c in range(w.shape[1])]
            a, stored = kind.row_pair(*np.mean(each, axis=0), tuple(slot[i] for slot in row_slots), hp)
        else:
            stored = ()
        for slot, value in zip(row_slots, stored, strict=False):
            slot[i] = value
        for c in range(w.shape[1]):
            new[i, c], kept = kind.step(w[i, c], g[i, c], _at(slots, i, c), a, hp)
            for slot, value in zip(slots, kept, strict=True):
                slot[i, c] = value
    return new, [*slots, *row_slots]


def _at(slots: Sequence[Array], i: int, c: int) -> tuple[Any, ...]:
    return tuple(slot[i, c] for slot in slots)


def bag_loss(loss: Loss, s: Array, y: Array | None) -> tuple[float, Array]:
    """Return the loss of the scores of a bag, without its padding, and the gradient, in float64."""
    kind: Any = type(loss)
    if kind.Hyper is losses.Logistic.Hyper:
        return float(np.sum(np.logaddexp(0, s) - y * s)), _sigmoid(s) - y
    if kind.Hyper is losses.Squared.Hyper:
        return float(np.sum((s - y) ** 2) / 2), s - y
    if kind.Hyper is losses.Softmax.Hyper:
        y = np.eye(1, len(s))[0] if y is None else y
        s = s - np.max(s)  # the loss is the same, and its parts are small
        chances = np.exp(s - np.logaddexp.reduce(s))
        return float(np.sum(y) * np.logaddexp.reduce(s) - np.sum(y * s)), np.sum(y) * chances - y
    if kind.Hyper is losses.Pairwise.Hyper:
        return float(np.sum(np.logaddexp(0, s[1:] - s[0]))), _of_pairs(_sigmoid(s[1:] - s[0]))
    # Its own function, in plain Python.
    hp = kind.Hyper(*loss.hyper())
    if y is not None:
        found = [kind.term(*map(float, each), hp) for each in zip(s, y, strict=True)]
        return float(sum(value for value, _ in found)), np.array([slope for _, slope in found], np.float64)
    found = [kind.pair(float(each - s[0]), hp) for each in s[1:]]
    return float(sum(value for value, _ in found)), _of_pairs(np.array([slope for _, slope in found], np.float64))


def _sigmoid(s: Array) -> Array:
    return np.exp(-np.logaddexp(0, -s))


def _of_pairs(slopes: Array) -> Array:
    """Return the gradients of all scores, given those of the others: the first one gets what they get, negative."""
    return np.concatenate([[-np.sum(slopes)], slopes])

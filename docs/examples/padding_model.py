"""
A classifier of padded posts
============================

The model of :doc:`plot_padding`: every token of a padded post is looked up, the vectors are laid end to end, and a
dense layer reads them.  It is trained in three ways, from the same initial values, with the same batches and the same
dropout:

- ``zero``: with ``padding_idx=0``, so that the padding's row is zero and stays zero;
- ``trained``: the padding's row is a row like any other;
- ``fixed``: it keeps its random initial value, and is neither zero nor trained.

The dense layers are NumPy.  Their weights are tables, too, of which every step updates all rows: that is what makes
an optimizer a dense one.
"""

import time
from dataclasses import dataclass

import numpy as np

import sparsembed as se

WAYS = ("trained", "zero", "fixed")


@dataclass(frozen=True)
class Settings:
    """Sizes of the model and of its training; those of the question, but for `batch`, which it does not give."""

    length: int = 1100
    words: int = 20_000  # the most frequent words of the training posts; others are left out
    dim: int = 300
    hidden: int = 25
    drop: float = 0.3
    batch: int = 128
    epochs: int = 30
    patience: int = 5  # epochs without a smaller validation loss, after which training stops
    lr: float = 1e-3
    look: int = 30  # steps from one measurement to the next


def by_length(ids):
    """Yield the posts of a batch in groups: which posts, and a position before which they hold padding only."""
    first, length = (ids != 0).argmax(axis=1), ids.shape[1]
    starts = [length - length // 2**halvings for halvings in range(5)]
    group = np.searchsorted(starts, first, side="right") - 1
    for each in np.unique(group):
        yield np.flatnonzero(group == each), starts[each]


def forward(look_up, ids, keep, w1, b1, w2, b2):
    """Return the hidden layer before and after its relu and dropout, log probabilities, and what `backward` needs.

    In exact arithmetic ``hidden = look_up(ids).reshape(len(ids), -1) @ w1 + b1``.  But most of that is the padding's
    vector times the weights of one position after another: short posts get that part as one product with a sum.
    """
    hidden, parts, padding = np.empty((len(ids), len(b1)), w1.dtype), [], look_up(np.zeros(1, ids.dtype))
    for rows, start in by_length(ids):
        x = look_up(ids[rows, start:]).reshape(len(rows), -1)
        cut = start * padding.shape[1]
        below = w1.reshape(ids.shape[1], -1)[:start].sum(axis=0).reshape(-1, len(b1))
        hidden[rows] = x @ w1[cut:] + padding @ below + b1
        parts.append((rows, start, x, below))
    active = np.maximum(hidden, 0) * keep
    scores = active @ w2 + b2
    scores -= scores.max(axis=1, keepdims=True)
    return hidden, active, scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)), (padding, parts)


def loss_and_gradients(look_up, ids, labels, keep, w1, b1, w2, b2):
    """Return the loss, the hits, what was looked up, its gradients, and those of the four weights."""
    hidden, active, odds, (padding, parts) = forward(look_up, ids, keep, w1, b1, w2, b2)
    each, slope = np.arange(len(ids)), np.exp(odds)
    slope[each, labels] -= 1
    slope /= len(ids)
    to_hidden = (slope @ w2.T) * keep * (hidden > 0)
    grad_w1, grad_padding = np.zeros_like(w1), np.zeros_like(padding)
    looked_up, grads = [np.zeros(1, ids.dtype)], [grad_padding]
    for rows, start, x, below in parts:
        cut, slopes = start * padding.shape[1], to_hidden[rows]
        grad_w1[cut:] += x.T @ slopes
        grad_w1.reshape(ids.shape[1], -1)[:start] += (padding.T @ slopes.sum(axis=0, keepdims=True)).ravel()
        grad_padding += slopes.sum(axis=0) @ below.T
        looked_up.append(ids[rows, start:])
        grads.append((slopes @ w1[cut:].T).reshape(len(rows), -1, padding.shape[1]))
    dense = grad_w1, to_hidden.sum(axis=0), active.T @ slope, slope.sum(axis=0)
    return -odds[each, labels].mean(), odds.argmax(axis=1) == labels, looked_up, grads, dense


class Classifier:
    """Lookup, dense and relu, dropout, dense and softmax; Adam for all of it."""

    def __init__(self, settings, topics, way, seed):
        if way not in WAYS:
            raise ValueError(f"way must be one of {WAYS}, got {way!r}")
        self.settings, self.way = settings, way
        rng, rule = np.random.default_rng(seed), se.Adam(lr=settings.lr, eps=1e-7)  # 1e-7: Keras' default
        words = se.initializers.uniform((settings.words + 1, settings.dim), rng=rng)
        self.words = se.EmbeddingTable.from_array(words, rule, padding_idx=0 if way == "zero" else None)
        sizes = (settings.length * settings.dim, settings.hidden), (settings.hidden, topics)
        w1, w2 = (se.initializers.glorot_uniform(size, rng=rng) for size in sizes)
        b1, b2 = (np.zeros((1, size), np.float32) for size in (settings.hidden, topics))
        # One long row for each position: the fewer rows, the less there is to sort.
        parts = w1.reshape(settings.length, -1), b1, w2, b2
        self.dense = [se.EmbeddingTable.from_array(part, rule) for part in parts]

    def weights(self):
        """Return w1, b1, w2, b2 in the shapes of the model."""
        w1, b1, w2, b2 = (table.weight for table in self.dense)
        return w1.reshape(-1, self.settings.hidden), b1[0], w2, b2[0]

    def step(self, ids, labels, keep):
        """Take one step; return the loss, the hits, what was looked up, and its gradients."""
        look_up = self.words.lookup
        loss, hits, looked_up, grads, dense = loss_and_gradients(look_up, ids, labels, keep, *self.weights())
        if self.way == "fixed":
            for some, grad in zip(looked_up, grads, strict=True):
                grad[some == 0] = 0
        self.words.update(looked_up, grads)
        for table, grad in zip(self.dense, dense, strict=True):
            table.update(np.arange(table.num_rows), grad.reshape(table.num_rows, -1))
        return loss, hits, looked_up, grads

    def score(self, ids, labels):
        """Return the loss and the accuracy without dropout."""
        total, hits = 0.0, 0
        for at in range(0, len(ids), self.settings.batch):
            some, topics = ids[at : at + self.settings.batch], labels[at : at + self.settings.batch]
            odds = forward(self.words.lookup, some, np.float32(1), *self.weights())[2]
            total -= float(odds[np.arange(len(some)), topics].sum())
            hits += int((odds.argmax(axis=1) == topics).sum())
        return total / len(ids), hits / len(ids)


def hidden_parts(model, ids, w1):
    """Return what the padding and what the words put into the hidden layer, (posts, hidden) each."""
    x = model.words.lookup(ids).reshape(len(ids), -1)
    every = x @ w1
    x.reshape(*ids.shape, -1)[ids != 0] = 0
    padding = x @ w1
    return padding, every - padding


def rms(values):
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def ratio(part, whole):
    """Return a quotient, None where it is not defined: units that are off pass no gradient on."""
    return float(part / whole) if whole > 0 else None


class Probe:
    """Measures one step: made before it, `finish`\\ ed after it."""

    def __init__(self, model, ids):
        self.model, self.ids, self.rows = model, ids, np.unique(ids)
        self.before, self.w1 = model.words.lookup(self.rows), model.weights()[0].copy()
        self.parts = hidden_parts(model, ids, self.w1)

    def finish(self, looked_up, grads):
        """Return what the step did, and to what."""
        model, ids = self.model, self.ids
        found = se.coalesce(looked_up, grads, model.words.num_rows)
        norm = np.linalg.norm(found.values.astype(np.float64), axis=1)
        moved = np.linalg.norm(model.words.lookup(self.rows) - self.before, axis=1)
        x = model.words.lookup(ids).reshape(len(ids), -1)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        alike = (float(np.square(x.sum(axis=0, dtype=np.float64)).sum()) - len(x)) / (len(x) * (len(x) - 1))
        w1, b1, *_ = model.weights()
        (padding, words), (padding_was, words_was) = hidden_parts(model, ids, w1), self.parts
        by_row = hidden_parts(model, ids, self.w1)[0] - padding_was
        hidden = padding + words + b1
        is_padding = found.rows == 0
        others = norm[~is_padding]
        return {
            "padding_share": float((ids == 0).mean()),  # of positions
            "gradient_share": ratio(np.square(norm[is_padding]).sum(), np.square(norm).sum()),  # of the squared norm
            "gradient_ratio": ratio(norm[is_padding].sum(), np.median(others)),  # to the median row of a word
            "gradient_to_largest": ratio(norm[is_padding].sum(), others.max()),
            "moved_padding": float(moved[self.rows == 0].sum()),
            "moved_word": float(np.median(moved[self.rows != 0])),
            "size_padding": float(np.linalg.norm(model.words.lookup(np.array([0])))),
            "alike": alike,  # mean cosine of the inputs of two posts
            "shift_padding": rms((padding - padding_was).mean(axis=0)),  # of all posts alike, by one step
            "shift_padding_row": rms(by_row.mean(axis=0)),  # had the step moved the table only
            "shift_words": rms((words - words_was).mean(axis=0)),
            "spread_words": rms(words.std(axis=0)),  # what tells one post from another
            "spread_padding": rms(padding.std(axis=0)),
            "level": rms(hidden.mean(axis=0)),  # what all posts have in common
            "dead": float((hidden <= 0).all(axis=0).mean()),  # units that are off for the whole batch
        }


def train(data, settings, way, seed=0, log=print):
    """Return the epochs, the measurements, and the processor time of one training."""
    start = time.process_time()
    model = Classifier(settings, len(data.topics), way, seed)
    rng = np.random.default_rng([seed, 1])  # the same order and the same dropout for each way
    epochs, measured, step = [], [], 0
    for epoch in range(1, settings.epochs + 1):
        order, losses, hits = rng.permutation(len(data.ids)), [], []
        for at in range(0, len(order), settings.batch):
            some = order[at : at + settings.batch]
            ids, labels = data.ids[some], data.labels[some]
            keep = (rng.random((len(some), settings.hidden)) >= settings.drop) / np.float32(1 - settings.drop)
            probe = None
            if step < 5 or step % settings.look == 0:
                probe = Probe(model, ids)
            loss, hit, *gradient = model.step(ids, labels, keep.astype(np.float32))
            step += 1
            if probe:
                measured.append({"step": step} | probe.finish(*gradient))
            losses.append(loss * len(some))
            hits.append(hit.sum())
        held_loss, held = model.score(data.held_ids, data.held_labels)
        loss, accuracy = float(sum(losses)) / len(order), float(sum(hits)) / len(order)
        epochs.append({"loss": loss, "accuracy": accuracy, "held_loss": held_loss, "held_accuracy": held})
        log(f"{way}, seed {seed}, epoch {epoch}: " + ", ".join(f"{k} {v:.4f}" for k, v in epochs[-1].items()))
        best = min(range(epoch), key=lambda i: epochs[i]["held_loss"])
        if epoch - 1 - best >= settings.patience:
            break
    seconds = round(time.process_time() - start, 1)
    return {"way": way, "seed": seed, "epochs": epochs, "measured": measured, "cpu_seconds": seconds}

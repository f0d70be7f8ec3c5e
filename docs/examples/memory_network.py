"""
A memory network that reads the last hundred words
==================================================

The model of :doc:`plot_positions`: the end-to-end memory network for language modelling of Sukhbaatar, Szlam, Weston
and Fergus (https://arxiv.org/abs/1503.08895).  To predict a word it attends to the words before it, several times, with
four tables: A and C hold a vector for each word, T_A and T_C one for each position, counted back from the word that is
to be predicted. ::

    m_i = A[x_i] + T_A[i]         what a word is found by
    c_i = C[x_i] + T_C[i]         what it then says
    u   = (0.1, 0.1, ...)         the state
    u   = H u + sum_i softmax(u . m)_i c_i,  relu on half of it         at each hop
    P   = softmax(W u)

The tables are sparsembed's; H and W are torch's.  Both meet in ``MemoryNetwork.step``: rows out, row gradients back.

Words are predicted in blocks of consecutive ones.  Neighbours share all but one word of their memories, so the rows of
a word are looked up once for a block, and its scores are a band of a matrix product.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

import sparsembed as se

SLICE = 128  # predictions whose scores of all words are in the caches at once


@dataclass(frozen=True)
class Settings:
    """Sizes, training, and what the question's program does otherwise."""

    words: int = 10_000
    dim: int = 150
    memory: int = 100
    hops: int = 2
    positions: bool = True
    output: str = "softmax"  # or "relu": rectified scores over their sum, as Keras' cross-entropy takes them
    mapped: str = "state"  # or "scores": H u becomes H (scores of the memories)
    rectified: bool = True  # relu on half of the state
    averaged: bool = False  # the gradient is that of the mean over the batch, not of the sum
    optimizer: str = "sgd"  # or "adam"
    lr: float = 0.01
    max_norm: float = 50.0  # of all gradients together
    drop: float = 0.0  # of looked-up rows and of the state
    blocks: int = 8  # blocks of a batch
    block: int = 16  # words to predict in a block
    bfloat16: bool = False  # the large product with W in training


def batches(tokens, settings, rng=None):
    """Yield ids (blocks, memory + block - 1) and targets (blocks, block); with `rng` in random order and cut anew.

    Row b predicts ``targets[b, t]`` from ``ids[b, t : t + memory]``.  A target of -1 stands for none.
    """
    if rng is not None:
        tokens = np.roll(tokens, rng.integers(settings.block))
    starts = np.arange(0, len(tokens), settings.block)
    before = np.zeros(settings.memory, np.int64)  # word 0 ends a sentence
    text = np.concatenate([before, tokens, np.full(settings.block, -1)])
    starts = starts if rng is None else rng.permutation(starts)
    width = np.arange(settings.memory + settings.block)
    for at in range(0, len(starts), settings.blocks):
        window = text[starts[at : at + settings.blocks, None] + width]
        yield np.maximum(window[:, :-1], 0), window[:, settings.memory :]


def band(product, memory):
    """Return what each row of (..., block, memory + block - 1) has from its diagonal on: (..., block, memory)."""
    *lead, block, width = product.shape
    flat = functional.pad(product.reshape(*lead, block * width), (0, block))
    return flat.reshape(*lead, block, width + 1)[..., :memory]


def spread(weights):
    """Put (..., block, memory) back along the diagonal of (..., block, memory + block - 1), zeros elsewhere."""
    *lead, block, memory = weights.shape
    width = memory + block - 1
    flat = functional.pad(weights, (0, block)).reshape(*lead, block * (width + 1))
    return flat[..., : block * width].reshape(*lead, block, width)


class SoftmaxLoss(torch.autograd.Function):
    """Cross-entropy, summed, of ``softmax(state @ weight.T)``; gradients on the way forward, a slice at a time."""

    @staticmethod
    def forward(ctx, state, weight, targets, bfloat16):
        """Return the loss; keep the gradients."""
        kind = torch.bfloat16 if bfloat16 else state.dtype
        low, total = weight.to(kind), 0.0
        to_state, to_weight = torch.empty_like(state), torch.zeros_like(weight)
        for at in range(0, len(state), SLICE):
            part, target = state[at : at + SLICE].to(kind), targets[at : at + SLICE, None]
            scores = (part @ low.T).to(state.dtype)
            scores -= scores.amax(1, keepdim=True)
            total -= scores.gather(1, target).sum(dtype=torch.float64)
            whole = scores.exp_().sum(1, keepdim=True)
            total += whole.log().sum(dtype=torch.float64)
            slope = scores.div_(whole).scatter_add_(1, target, -torch.ones_like(whole)).to(kind)
            to_state[at : at + SLICE] = slope @ low
            to_weight += slope.T @ part
        ctx.save_for_backward(to_state, to_weight)
        return total.to(state.dtype)

    @staticmethod
    def backward(ctx, slope):
        """Return the gradients."""
        to_state, to_weight = ctx.saved_tensors
        return slope * to_state, slope * to_weight, None, None


def relu_loss(state, weight, bias, targets):
    """Cross-entropy, summed, of rectified scores over their sum, clipped as Keras clips."""
    scores = torch.relu(state @ weight.T + bias)
    odds = scores / scores.sum(1, keepdim=True)
    return -odds.clamp(1e-7, 1 - 1e-7).gather(1, targets[:, None]).log().sum()


class MemoryNetwork:
    """Four tables, the maps H and W, and a step that trains all of them."""

    def __init__(self, settings, seed=0):
        self.settings, rng = settings, np.random.default_rng(seed)
        torch.manual_seed(seed)
        sizes = {"A": settings.words, "C": settings.words, "T_A": settings.memory, "T_C": settings.memory}
        rule = se.SGD if settings.optimizer == "sgd" else se.SparseAdam
        self.tables = {
            name: se.EmbeddingTable.from_array(self.draw(rng, rows, settings.dim), rule(lr=settings.lr))
            for name, rows in sizes.items()
        }
        if not settings.positions:
            self.tables["T_A"].weight[:] = self.tables["T_C"].weight[:] = 0
        source = settings.dim if settings.mapped == "state" else settings.memory
        self.W = self.draw(rng, settings.words, settings.dim, wrap=True)
        self.H = self.draw(rng, settings.dim, source, wrap=True)
        self.bias = torch.zeros(settings.words, requires_grad=settings.output == "relu")
        self.dense = [each for each in (self.H, self.W, self.bias) if each.requires_grad]
        kind = torch.optim.SGD if settings.optimizer == "sgd" else torch.optim.Adam
        self.optimizer = kind(self.dense, lr=settings.lr)

    @staticmethod
    def draw(rng, *shape, wrap=False):
        """Return normal numbers of deviation 0.05, as an array or as a weight of torch."""
        numbers = rng.normal(0, 0.05, shape).astype(np.float32)
        return torch.from_numpy(numbers).requires_grad_() if wrap else numbers

    def set_lr(self, lr):
        """Go on with another learning rate."""
        for table in self.tables.values():
            table.optimizer = replace(table.optimizer, lr=lr)
        self.optimizer.param_groups[0]["lr"] = lr

    def lookup(self, ids):
        """Return the ids of each table, and the rows."""
        where = np.arange(self.settings.memory)
        words = se.plan(ids, self.settings.words)
        asked = {"A": words, "C": words}
        if self.settings.positions:
            asked |= {"T_A": where, "T_C": where}
        return asked, {name: torch.from_numpy(self.tables[name].lookup(at)) for name, at in asked.items()}

    def state(self, rows, block, drop=0.0):
        """Return the state after the last hop, (blocks, block, dim)."""
        a, c = functional.dropout(rows["A"], drop, drop > 0), functional.dropout(rows["C"], drop, drop > 0)
        u = torch.full((len(a), block, a.shape[-1]), 0.1)
        half = u.shape[-1] // 2
        for _ in range(self.settings.hops):
            scores = band(u @ a.mT, self.settings.memory)
            if self.settings.positions:
                scores = scores + u @ rows["T_A"].T
            weights = torch.softmax(scores, -1)
            said = spread(weights) @ c
            if self.settings.positions:
                said = said + weights @ rows["T_C"]
            u = said + (u if self.settings.mapped == "state" else scores) @ self.H.T
            if self.settings.rectified:
                u = torch.cat([u[..., :half], torch.relu(u[..., half:])], -1)
            u = functional.dropout(u, drop, drop > 0)
        return u

    def step(self, ids, targets):
        """Train on one batch; return the summed loss, and the norm of the gradient before it is clipped."""
        settings, known = self.settings, torch.from_numpy(targets >= 0)
        asked, rows = self.lookup(ids)
        for each in rows.values():
            each.requires_grad_()
        state, target = self.state(rows, targets.shape[1], settings.drop)[known], torch.from_numpy(targets)[known]
        if settings.output == "softmax":
            loss = SoftmaxLoss.apply(state, self.W, target, settings.bfloat16)
        else:
            loss = relu_loss(state, self.W, self.bias, target)
        self.optimizer.zero_grad()
        (loss / len(target) if settings.averaged else loss).backward()
        gradients = {name: self.tables[name].gradient(at, rows[name].grad) for name, at in asked.items()}
        dense = [each.grad for each in self.dense]
        norm = se.clip_by_global_norm(list(gradients.values()), settings.max_norm, dense=dense)
        for name, gradient in gradients.items():
            self.tables[name].apply(gradient)
        self.optimizer.step()
        return loss.item(), float(norm)

    @torch.no_grad()
    def score(self, tokens):
        """Return the perplexity of a text and the share of words that were the likeliest, without dropout."""
        total, hits = 0.0, 0
        for ids, targets in batches(tokens, replace(self.settings, blocks=32)):
            known = torch.from_numpy(targets >= 0)
            _, rows = self.lookup(ids)
            state, target = self.state(rows, targets.shape[1])[known], torch.from_numpy(targets)[known]
            scores = state @ self.W.T + self.bias
            hits += int((scores.argmax(1) == target).sum())
            if self.settings.output == "softmax":
                total += functional.cross_entropy(scores, target, reduction="sum").item()
            else:
                total += relu_loss(state, self.W, self.bias, target).item()
        return float(np.exp(total / len(tokens))), hits / len(tokens)

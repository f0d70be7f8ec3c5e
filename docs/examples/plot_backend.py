"""
Kernels without a table
=======================

The stateless layer does the work of an embedding table for code that has tables and optimizers of its own: arrays
in, arrays out. This program trains a classifier of bags of words, on the weighted sum of their vectors, with
:func:`sparsembed.pool`, its two gradients, and an optimizer written in NumPy on the rows that a batch touched.
"""

# %%
# Made-up data: every sample is a bag of words, and its label says whether its good words outweigh its bad ones.
# The ids repeat, within bags and over the batch.

import matplotlib.pyplot as plt
import numpy as np

import sparsembed as se

rng = np.random.default_rng(0)
WORDS, DIM, STEPS, BATCH = 2000, 8, 300, 256
truth = rng.standard_normal(WORDS)
common = 1 / np.arange(1, WORDS + 1)


def batch():
    lengths = rng.integers(1, 20, BATCH)
    ids = rng.choice(WORDS, lengths.sum(), p=common / common.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return ids, offsets, np.add.reduceat(truth[ids], offsets[:-1]) > 0


# %%
# The parameters are plain arrays. ``attention`` gives each word the weight that it has in its bag, so that it gets a
# gradient through :func:`sparsembed.per_sample_weights_gradient`.

vectors = se.initializers.normal((WORDS, DIM), std=0.1, rng=1)
attention = np.ones((WORDS, 1), np.float32)
dense = np.full(DIM, 0.1, np.float32)
squares = {"vectors": np.zeros((WORDS, DIM), np.float32), "attention": np.zeros((WORDS, 1), np.float32)}


def adagrad(name, array, gradient, lr=0.1):
    """Step the rows of a gradient; they are unique, so NumPy's indexing is right."""
    square = squares[name]
    square[gradient.rows] += gradient.values**2
    array[gradient.rows] -= lr * gradient.values / (np.sqrt(square[gradient.rows]) + 1e-8)


# %%
# A step sorts its ids once, in :func:`sparsembed.plan`, which stands in for the ids in every call.

losses = []
for _ in range(STEPS):
    ids, offsets, label = batch()
    plan = se.plan(ids, WORDS)
    weights = se.gather(attention, plan)[:, 0]
    bags = se.Bags(plan, offsets, weights)
    pooled = se.pool(vectors, bags, mode="sum")

    score = pooled @ dense
    sign = np.where(label, 1, -1).astype(np.float32)
    losses.append(np.logaddexp(0, -sign * score).mean())
    slope = -sign / (1 + np.exp(sign * score)) / BATCH

    grad_pooled = slope[:, None] * dense
    grad_weights = se.per_sample_weights_gradient(vectors, bags, grad_pooled, mode="sum")
    adagrad("vectors", vectors, se.pool_gradient(bags, grad_pooled, WORDS, mode="sum"))
    adagrad("attention", attention, se.coalesce(plan, grad_weights[:, None], WORDS))
    dense -= slope @ pooled

print(f"loss of the first batch {losses[0]:.3f}, of the last {losses[-1]:.3f}")

# %%
# A guess has a loss of log 2.

figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot(losses, linewidth=0.8)
axes.axhline(np.log(2), color="grey", linestyle=":")
axes.set(xlabel="step", ylabel="logistic loss of the batch", ylim=(0, None))
plt.show()

# %%
# The reference has the same operations as products with one-hot matrices in float64. So we can ask how far the last
# gradient is from it, relative to the largest number in it.

ours = se.pool_gradient(bags, grad_pooled, WORDS, mode="sum")
exact = se.reference.pool_gradient(bags, grad_pooled, WORDS, mode="sum")
print(f"largest deviation {abs(exact[ours.rows] - ours.values).max() / abs(exact).max():.1e}")

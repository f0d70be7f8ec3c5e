"""
How are batch gradients computed on embedding layers?
=====================================================

**By adding up.** An embedding layer is a dense layer without bias on one-hot input.  The gradient of a row is the
sum of the gradients of all the places in the batch that looked it up, so rows learn apart from each other at any
batch size.

Somebody asked in public because it did not look like that.  A table of ten rows of twelve zeros was to learn two of
its rows: row 0 the mean of vectors around 0, row 1 the mean of vectors around 2, by gradient descent on the mean
squared error.  With one example a batch it did.  With more, both rows went to 1, the mean of everything, while a
dense layer on one-hot input learnt what it should.

The gradient was not at fault, the *loss* was: ids of shape (B, 1) instead of (B,) give vectors of shape (B, 1, 12),
and minus targets of shape (B, 12) that is a difference of shape (B, B, 12), every prediction against every target.
All of it is shown below, and why the rows then end at 1 - 1/B and 1 + 1/B.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse

import sparsembed as se

ROWS, DIM, EXAMPLES = 10, 12, 10_000  # examples of each id
LEARNING_RATE = 0.01


def make_data(examples, rng):
    """Return ids (2 * examples,), of which each stands for vectors around 0 or 2, and these, shuffled."""
    ids = rng.permutation(np.repeat([0, 1], examples))
    return ids, rng.normal(2.0 * ids[:, None], 1.0, (len(ids), DIM))


ids, targets = make_data(EXAMPLES, np.random.default_rng(0))

# %%
# Right at any batch size
# -----------------------
# The loss is the mean over all numbers, as frameworks define it.  Where shapes differ, NumPy broadcasts, and so does
# every framework; what was broadcast on the way forward is summed on the way back.  For shapes that agree that does
# nothing.
#
# The learning rate grows with the batch, so that an example counts as much in a large batch as in a small one.


def gradient_of_loss(predictions, targets):
    """Return the derivative of mean((predictions - targets) ** 2) with respect to the predictions."""
    difference = predictions - targets
    factor = 2 / difference.size
    return factor * (difference if difference.shape == predictions.shape else difference.sum(axis=1, keepdims=True))


def batches(ids, targets, batch, epochs=1):
    """Yield the batches of some passes over the examples, each in an order of its own."""
    rng = np.random.default_rng(1)
    for _ in range(epochs):
        order = rng.permutation(len(ids))
        for start in range(0, len(ids), batch):
            at = order[start : start + batch]
            yield ids[at], targets[at]


def train(ids, targets, batch, lr, epochs=1):
    """Return the table's weights (ROWS, DIM), and the means of its rows 0 and 1 after each step (steps, 2)."""
    table, path = se.EmbeddingTable.from_array(np.zeros((ROWS, DIM)), se.SGD(lr=lr)), []
    for some_ids, some_targets in batches(ids, targets, batch, epochs):
        vectors = table.lookup(some_ids)  # some_ids.shape + (DIM,)
        table.update(some_ids, gradient_of_loss(vectors, some_targets))
        path.append(table.weight[:2].mean(axis=1))
    return table.weight, np.array(path)


def train_dense(ids, targets, batch, lr, epochs=1):
    """Do the same with a dense layer without bias on one-hot input, in NumPy."""
    weight, path = np.zeros((ROWS, DIM)), []
    for some_ids, some_targets in batches(ids, targets, batch, epochs):
        onehot = np.eye(ROWS)[some_ids]  # (batch, ROWS)
        weight -= lr * onehot.T @ gradient_of_loss(onehot @ weight, some_targets)
        path.append(weight[:2].mean(axis=1))
    return weight, np.array(path)


right = {}
print("batch  row 0  row 1  dense layer: largest difference")
for batch in (1, 128):
    weight, right[batch] = train(ids, targets, batch, LEARNING_RATE * batch)
    dense, _ = train_dense(ids, targets, batch, LEARNING_RATE * batch)
    print(f"{batch:5}  {weight[0].mean():z5.2f}  {weight[1].mean():z5.2f}  {np.abs(weight - dense).max():.0e}")
    assert np.abs(weight[:2] - [[0], [2]]).max() < 0.2, "each number of both rows is near its mean"
    assert not weight[2:].any(), "rows that nobody looks up stay as they are"
    np.testing.assert_allclose(weight, dense, atol=1e-12)

# %%
# The trap: ids of shape (B, 1)
# -----------------------------
# The same program, given ids with a second axis.  Nothing fails.  Each prediction is pulled to all targets of its
# batch, its own among them, that is, to their mean.  Row 0's own target, around 0, is one of B;
# the other B - 1 are around 0 or 2 with equal odds, around 1 on average.  Row 0 comes to rest at (B - 1) / B, row 1
# at 2 / B + (B - 1) / B: one is 1 - 1/B and the other 1 + 1/B.  With B = 1 that is right; at 128 both look like 1.

column = ids[:, None]  # (n, 1)
collapsed = {}
print("batch  row 0  row 1  expected")
for batch in (1, 2, 4, 8, 32, 128):
    _, collapsed[batch] = train(column, targets, batch, LEARNING_RATE * batch)
    rest = collapsed[batch][-len(collapsed[batch]) // 4 :].mean(axis=0)  # a row at rest still trembles
    print(f"{batch:5}  {rest[0]:z5.2f}  {rest[1]:z5.2f}  {1 - 1 / batch:.2f} and {1 + 1 / batch:.2f}")
    assert np.abs(rest - [1 - 1 / batch, 1 + 1 / batch]).max() < 0.05

# %%
# In the question's program the ids were given as an array of shape (n,).  Keras then gave inputs of one dimension a
# second one inside ``fit``, which `TensorFlow 2.7 ended <https://github.com/keras-team/keras/issues/16396>`_.  That
# old ``fit`` lives on inside TensorFlow 2.21 (``tensorflow.python.keras``); run there, the question's program takes the
# rows to about 0.87 and 0.88 in 16 passes at Keras's own learning rate.  So does Keras 3.15.1 with torch or JAX, and
# says nothing, but only if the ids come as (n, 1); as (n,) each row goes to its own mean.  (These were run by hand; no
# program here repeats them.)  The same passes with sparsembed:

print("16 passes, batches of 128, learning rate 0.01:")
for name, given in (("(n,)", ids), ("(n, 1)", column)):
    weight, _ = train(given, targets, 128, lr=0.01, epochs=16)
    print(f"  ids of shape {name:7} row 0 at {weight[0].mean():z5.2f}, row 1 at {weight[1].mean():z5.2f}")

# %%
# An error instead
# ----------------
# Whoever writes the gradient by hand has one of the broadcast shape, and hears about it.  (A framework sums it to
# (B, 1, 12), which is the shape of the vectors.  Nothing can tell that from a gradient that is meant.)

table = se.EmbeddingTable.from_array(np.zeros((ROWS, DIM)), se.SGD(lr=0.01))
vectors = table.lookup(column[:128])
difference = vectors - targets[:128]
print("vectors", vectors.shape, "minus targets", targets[:128].shape, "is", difference.shape)
try:
    table.update(column[:128], 2 / difference.size * difference)
except ValueError as error:
    message = str(error)
    print("ValueError:", message)
assert "Use ids of shape (B,)" in message
assert table.step == 0
assert not table.weight.any(), "the update has not happened"

# %%
fig, axes = plt.subplots(1, 3, figsize=(12.5, 4.6), sharey=True, layout="constrained")
colours = dict(zip(collapsed, plt.cm.viridis(np.linspace(0, 0.9, len(collapsed))), strict=True))
for axis, paths in zip(axes[:2], (right, collapsed), strict=True):
    for batch, path in paths.items():
        seen = np.arange(1, len(path) + 1) * batch / 1000
        axis.plot(seen, path[:, 1], color=colours[batch], label=f"{batch} a batch")
        axis.plot(seen, path[:, 0], "--", color=colours[batch])
    axis.set_xlabel("examples seen (thousands)")
sizes = np.array([*collapsed])
for row, style, expected in ((1, "-", 1 + 1 / sizes), (0, "--", 1 - 1 / sizes)):
    axes[2].plot(sizes, expected, style, color="0.6", label=f"row {row}: 1 {'-+'[row]} 1/B")
    axes[2].scatter(sizes, [path[-len(path) // 4 :, row].mean() for path in collapsed.values()], c=colours.values())
axes[0].set(title="ids of shape (B,)", ylabel="mean of a row's 12 numbers")
axes[1].set(title="ids of shape (B, 1)")
axes[2].set(title="ids of shape (B, 1): mean of the last quarter", xlabel="examples a batch, B", xscale="log")
axes[2].set_xticks(sizes, sizes)
axes[2].minorticks_off()
axes[2].legend()
fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6)
fig.suptitle("Row 1 (solid) should learn 2, row 0 (dashed) should learn 0")
plt.show()

# %%
# Adding up is the one-hot product
# --------------------------------
# With a 1 in row i and column ``ids[i]`` of a matrix X, the lookup is ``X @ weight`` and the gradient of the weights is
# ``X.T @ gradient``.  sparsembed adds rows instead.  Where both add in the same order, they agree in every bit: so it
# is here up to 512 occurrences of a row.  A longer sum is cut into pieces of 512, for all cores to share, and then
# equals the sum of the pieces' products.


def onehot(ids):
    """Return the one-hot matrix of ids, sparse."""
    return sparse.csr_array((np.ones(len(ids)), (np.arange(len(ids)), ids)), shape=(len(ids), ROWS))


def in_pieces(ids, gradient):
    """Add up the one-hot products of each row's first 512 occurrences, its next 512, and so on."""
    occurrence = (np.cumsum(np.eye(ROWS, dtype=int)[ids], axis=0) - 1)[np.arange(len(ids)), ids]
    pieces = [occurrence // 512 == piece for piece in range(occurrence.max() // 512 + 1)]
    return sum(onehot(ids[piece]).T @ gradient[piece] for piece in pieces)


print("Largest difference of a gradient from X.T @ gradient in float64, its numbers being up to 1")
print("  batch   sparsembed   the same from products of pieces   sparsembed, float32")
for batch in (1, 2, 8, 128, 512, 4096, 20_000):
    gradient = targets[:batch] / np.abs(onehot(ids[:batch]).T @ targets[:batch]).max()
    product = onehot(ids[:batch]).T @ gradient
    added = se.coalesce(ids[:batch], gradient, ROWS).to_scipy().toarray()
    single = se.coalesce(ids[:batch], gradient.astype(np.float32), ROWS).to_scipy().toarray()
    errors = [np.abs(added - product).max(), np.abs(added - in_pieces(ids[:batch], gradient)).max()]
    print(f"{batch:7}   {errors[0]:10.1g}   {errors[1]:32.1g}   {np.abs(single - product).max():19.1g}")
    assert errors[1] == 0
    assert errors[0] == 0 or (np.bincount(ids[:batch]).max() > 512 and errors[0] < 1e-14)
    assert np.abs(single - product).max() < 1e-6

# %%
# Sum or mean: a matter of step size
# ----------------------------------
# A loss that is a sum over the batch has B times the gradient of one that is a mean.  With B times the learning rate
# the mean takes the same steps: in every bit if B is a power of two, which scales without rounding.


def train_summed(ids, targets, batch, lr):
    """Return the weights (ROWS, DIM) after a pass with the loss summed over the batch, not averaged."""
    weight = np.zeros((ROWS, DIM))
    for some_ids, some_targets in batches(ids, targets, batch):
        gradient = 2 / DIM * (se.gather(weight, some_ids) - some_targets)
        se.scatter_add(weight, some_ids, gradient, alpha=-lr)
    return weight


print("batch  summed, at 0.01, from averaged, at 0.01 * batch")
for batch in (100, 128):
    examples = slice(len(ids) // batch * batch)  # whole batches
    averaged, _ = train(ids[examples], targets[examples], batch, 0.01 * batch)
    difference = np.abs(train_summed(ids[examples], targets[examples], batch, 0.01) - averaged).max()
    print(f"{batch:5}  {difference:.1g}")
    assert difference < 1e-13
assert difference == 0, "128 is a power of two"

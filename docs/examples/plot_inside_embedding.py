"""
What is the network structure inside an embedding layer?
========================================================

**One matrix, read by row number.** An embedding layer computes what a dense layer without bias and without activation
computes on one-hot input.  Nobody builds the input: its product with the matrix *is* the row, and the gradient of the
matrix is the incoming gradient, added to the rows that were read.

**It is not word2vec.**  word2vec is a pair of models, CBOW and skip-gram, *made of* two such layers and a loss.  An
embedding layer takes on whatever meaning the loss above it asks for.

Below: the layer and the one-hot product side by side, to the last bit; what each costs as the vocabulary grows; then
CBOW and skip-gram, in a few lines each, on the same text.
"""

import time
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse
from scipy.special import expit
from word_vectors import SIDES, number, read_texts, tokenise  # the example beside this one

import sparsembed as se

# %%
# A lookup is a product, its gradient the transposed product
# ----------------------------------------------------------
# Five ids, of which one repeats, and a table of six rows.  ``se.reference`` holds each operation of sparsembed as the
# product it stands for, by scipy's sparse matrices.

ids = np.array([4, 0, 4, 5, 2])
weight = np.round(np.random.default_rng(0).normal(size=(6, 3)), 1)
onehot = se.reference.onehot(ids, num_rows=6)  # (5, 6)
print("onehot(ids) =", onehot.toarray().astype(int), sep="\n")
print("onehot(ids) @ weight =", onehot @ weight, "= se.gather(weight, ids) =", se.gather(weight, ids), sep="\n")

gradient = np.arange(1.0, 16.0).reshape(5, 3)  # of the five vectors
print("onehot(ids).T @ gradient =", onehot.T @ gradient, sep="\n")
summed = se.coalesce(ids, gradient, num_rows=6)
print("se.coalesce(ids, gradient), which has rows", summed.rows, "only =", summed.values, sep="\n")

# %%
# Now with 4,096 ids of 1,000 rows of 64 numbers in float64.  A sparse product adds up each row's gradients in the order
# of the batch, as sparsembed does (up to 512 of them, then it adds in pieces), so no bit differs.  A dense product adds
# in an order of its own.


def largest_differences(num_rows, dim, num_ids):
    """Return the largest differences of lookup and backward between the engine and products with one-hot matrices."""
    rng = np.random.default_rng(1)
    ids, weight = rng.integers(num_rows, size=num_ids), rng.normal(size=(num_rows, dim))
    gradient = rng.normal(size=(num_ids, dim))
    onehot = sparse.csr_array((np.ones(num_ids), ids, np.arange(num_ids + 1)), shape=(num_ids, num_rows))
    result, reference = {}, se.reference.onehot(ids, num_rows)
    for name, matrix in (("scipy", onehot), ("reference", reference), ("NumPy", onehot.toarray())):
        lookup = se.gather(weight, ids) - matrix @ weight
        backward = se.coalesce(ids, gradient, num_rows).to_scipy().toarray() - matrix.T @ gradient
        result[name] = float(np.abs(lookup).max()), float(np.abs(backward).max())
    return result


print("largest difference    lookup   backward")
for name, (lookup, backward) in largest_differences(num_rows=1000, dim=64, num_ids=4096).items():
    print(f"{name:19}   {lookup:6.1g}   {backward:8.1g}")
    assert lookup == 0, "one times a row plus zeros is the row"
    assert backward < 1e-13 if name == "NumPy" else backward == 0

# %%
# What each costs
# ---------------
# A lookup of 1,024 ids and a step of gradient descent, for vocabularies of different sizes: with a dense one-hot matrix
# as long as it takes at most 128 MiB, with a sparse one, and with sparsembed.  Building the matrix counts, as each
# batch needs its own.  Memory is the most that a step takes beside the table, as Python's ``tracemalloc`` sees it; what
# sparsembed keeps from step to step, 24 bytes an id, was there before and is not in it.
#
# The dense way costs one-hot matrices of batch x vocabulary.  The sparse one saves these, but its gradient still has a
# row for each word.  sparsembed touches what the batch names, so its lines stay flat, but for caches that rows fall out
# of.  Up to a few thousand rows the sparse product may be the quicker one: there, what a call costs by itself decides.

DIM, BATCH, LIMIT = 32, 1024, 128 * 2**20
SIZES = [2**power for power in range(8, 19, 2)]


def dense_step(table, ids, gradient):
    matrix = np.zeros((len(ids), len(table)), np.float32)
    matrix[np.arange(len(ids)), ids] = 1
    matrix @ table  # the vectors
    table -= np.float32(0.01) * (matrix.T @ gradient)


def sparse_step(table, ids, gradient):
    values = np.ones(len(ids), np.float32)
    matrix = sparse.csr_array((values, ids, np.arange(len(ids) + 1)), shape=(len(ids), len(table)))
    matrix @ table
    table -= np.float32(0.01) * (matrix.T @ gradient)


def engine_step(table, ids, gradient):
    table.lookup(ids)
    table.update(ids, gradient)


def measure(step, table, num_rows, repeats=7):
    """Return the median time of a step in seconds, and the largest memory it takes in bytes."""
    rng = np.random.default_rng(2)
    seconds = []
    gradient = rng.normal(size=(BATCH, DIM)).astype(np.float32)
    for _ in range(repeats + 1):
        ids = rng.integers(num_rows, size=BATCH)
        start = time.perf_counter()
        step(table, ids, gradient)
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    step(table, ids, gradient)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return np.median(seconds[1:]), memory  # the first may have compiled something


costs = {"dense one-hot (NumPy)": {}, "sparse one-hot (scipy)": {}, "sparsembed": {}}
for size in SIZES:
    table = se.EmbeddingTable(size, DIM, se.SGD(lr=0.01), rng=0)
    if BATCH * size * 4 <= LIMIT:
        costs["dense one-hot (NumPy)"][size] = measure(dense_step, table.weight.copy(), size)
    costs["sparse one-hot (scipy)"][size] = measure(sparse_step, table.weight.copy(), size)
    costs["sparsembed"][size] = measure(engine_step, table, size)
print("rows     " + "".join(f"{name:>28}" for name in costs))
for size in SIZES:
    cells = [each.get(size) for each in costs.values()]
    shown = [f"{cell[0] * 1e3:9.2f} ms {cell[1] / 2**20:9.2f} MiB" if cell else "over the limit" for cell in cells]
    print(f"{size:<9,}" + "".join(f"{text:>28}" for text in shown))

fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for (name, points), marker in zip(costs.items(), "so^", strict=True):
    for axis, values in zip(axes, np.transpose([*points.values()]) * [[1e3], [2**-20]], strict=True):
        axis.loglog([*points], values, marker=marker, label=name)
axes[0].set(title="Lookup and SGD step, median of 7", xlabel="vocabulary (rows)", ylabel="time (ms)")
axes[1].set(title="Memory beside the table", xlabel="vocabulary (rows)", ylabel="most memory of a step (MiB)")
axes[1].axhline(LIMIT / 2**20, color="0.6", linestyle=":", label="limit of the dense matrix")
for axis in axes:
    axis.grid(alpha=0.3)
axes[1].legend(fontsize="small")
fig.suptitle(f"{BATCH:,} ids, {DIM} float32 a row")
plt.show()

# %%
# Is it word2vec?  Is it CBOW?
# ----------------------------
# Both are made of it.  Each has two tables: one is read for the words that are given, the other for the words to be
# told from words drawn at random.  They differ in what is given.
#
# * Skip-gram gives a word and asks for those around it: a ``lookup``.
# * CBOW gives the words around and asks for the one in the middle: a ``pool`` of bags, by their mean.
#
# The text is the beginning of the Python standard library's sources, read by the longer example on word vectors,
# ``docs/examples/word_vectors.py``.  Id 0 stands between paragraphs and is the padding.

DRAWN, WEIGHT_DRAWN, WORDS, PASSES = 64, 5, 200_000, 4


def loss_and_gradients(x, near, far, weight):
    """Return the loss of vectors x (n, dim) that should score high with near (n, m, dim) and low with far (k, dim)."""
    high, low = np.einsum("nmd,nd->nm", near, x), x @ far.T
    share = weight.sum(axis=1, keepdims=True) * np.float32(WEIGHT_DRAWN / len(far))
    loss = np.vdot(weight, np.logaddexp(0, -high)) + np.sum(share * np.logaddexp(0, low))
    to_near, to_far = -weight * expit(-high), share * expit(low)
    grad_x = np.einsum("nm,nmd->nd", to_near, near) + to_far @ far
    return loss / weight.sum(), grad_x, to_near[:, :, None] * x[:, None], to_far.T @ x


def train(model, corpus, num_words, dim=48, passes=PASSES):
    """Return the vectors of words (num_words, dim), and the loss of each step."""
    rng, optimizer = np.random.default_rng(0), se.Adagrad(lr=0.2)
    source = se.EmbeddingTable(num_words + 1, dim, optimizer, padding_idx=0, rng=0)
    target = se.EmbeddingTable(num_words + 1, dim, optimizer, padding_idx=0, initializer=se.initializers.zeros)
    counts = np.bincount(corpus, minlength=num_words + 1) * (np.arange(num_words + 1) > 0)
    keep = np.minimum(1, np.sqrt(1e-3 * counts.sum() / np.maximum(counts, 1)))  # thin out the most frequent words
    odds, losses = np.cumsum(counts**0.75) / np.sum(counts**0.75), []
    for _ in range(passes):
        places = rng.permutation(np.flatnonzero((corpus > 0) & (rng.random(len(corpus)) < keep[corpus])))
        for at in np.split(places, range(BATCH, len(places), BATCH)):
            word, around = corpus[at], corpus[at[:, None] + SIDES]  # (n,) and (n, 6)
            drawn = np.searchsorted(odds, rng.random(DRAWN), side="right").astype(np.int32)
            if model == "skip-gram":
                asked, x = around, source.lookup(word)
            else:
                bags = se.Bags.from_padded(around, padding_idx=0)
                asked, x = word[:, None], source.pool(bags, mode="mean")
            near, far = target.lookup([asked, drawn])
            loss, grad_x, grad_near, grad_far = loss_and_gradients(x, near, far, np.float32(asked > 0))
            if model == "skip-gram":
                source.update(word, grad_x)
            else:
                source.update_pooled(bags, grad_x, mode="mean")
            target.update([asked, drawn], [grad_near, grad_far])
            losses.append(loss)
    return source.weight[1:], np.array(losses)


def neighbours(vectors, word, words, count=6):
    """Return the words whose vectors point most nearly the same way."""
    unit = vectors[: len(words)] / np.linalg.norm(vectors[: len(words)], axis=1, keepdims=True)
    return [words[i] for i in np.argsort(-unit @ unit[words.index(word)]) if words[i] != word][:count]


words, corpus = number(tokenise(read_texts(None), WORDS))
frequent = words[: max(int((np.bincount(corpus)[1:] >= 50).sum()), 10)]
chance = (1 + WEIGHT_DRAWN) * np.log(2)  # nats, when all scores are zero
print(f"{np.count_nonzero(corpus):,} words, {len(words):,} of them distinct; loss of zero scores {chance:.2f}")
fig, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for model in ("skip-gram", "CBOW"):
    vectors, losses = train(model, corpus, len(words))
    assert losses[-50:].mean() < 0.75 * chance
    smooth = np.convolve(losses, np.ones(20) / 20, mode="valid")
    axis.plot(np.arange(20, len(losses) + 1), smooth, label=model)
    print(f"{model}: loss {losses[-50:].mean():.2f} in the last 50 steps; nearest neighbours:")
    for word in ("socket", "thread", "encode", "dict", "error"):
        if word in frequent:
            print(f"{word:>8}  {'  '.join(neighbours(vectors, word, frequent))}")
axis.axhline(chance, color="0.6", linestyle=":", label="all scores zero")
axis.set(title="Both learn the same text", xlabel="step", ylabel="loss (nats a word asked for, mean of 20 steps)")
axis.legend()
plt.show()

# %%
# The two losses are of different questions, so their heights do not compare: six words around tell more about the one
# in the middle than that one tells about any of them.

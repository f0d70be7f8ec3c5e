"""
word2vec's loop, compiled
=========================

Skip-gram with negative sampling as word2vec trains it: word pair by word pair, each of which reads what the pair
before has written.  Batches cannot do that, so the loop is compiled with Numba, and ``sparsembed.jit`` has the rows:
the negatives of the next pair are drawn, and their rows prefetched, while this pair is worked on. ::

    python skip_gram.py                         # the sources of Python's standard library
    python skip_gram.py --corpus novel.txt      # one sentence a line
    python skip_gram.py --compare               # beside gensim, in turn

It trains on one thread and on two.  Two threads write to the same rows without locks: now and then one overwrites a
step of the other, which hurts little as steps are small, and no two runs are the same.  gensim does so, too.  All
printed numbers are of the run.  The loss is that of sentences held out: nats for each pair with its negatives.
"""

import argparse
import functools
import os
import re
import sys
import sysconfig
import threading
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # gensim's and NumPy's products are small

import numba
import numpy as np

import sparsembed as se
from sparsembed.jit import add_row, dot_row, prefetch_row, read_row

DIM, WINDOW, NEGATIVES, MIN_COUNT = 100, 5, 5, 5
FREQUENT = 1e-3  # words with a larger share of the corpus are thinned out
RATES = 0.025, 1e-4  # the first and the last learning rate
LONGEST = 1000  # words of a sentence; longer ones are cut
LIMIT = 6  # scores beyond are rounded to it
HELD_OUT = 50  # one of so many sentences
QUICK = 60_000  # words that --quick reads
PROBES = ["open", "list", "socket", "thread", "error", "path", "market", "president", "company", "million"]


@numba.njit(forceinline=True)
def following(r):
    """The next random number, of 64 bits (Marsaglia, "Xorshift RNGs", 2003)."""
    r ^= r << np.uint64(13)
    r ^= r >> np.uint64(7)
    return r ^ (r << np.uint64(17))


@numba.njit(forceinline=True)
def draw(rows, pair, lots, source, target, r):
    """Set `rows` to the input word, the right word and negatives; prefetch them, for they are read a pair later."""
    rows[0], rows[1] = pair[0], pair[1]
    prefetch_row(source, rows[0])
    prefetch_row(target, rows[1])
    for k in range(2, len(rows)):
        r = following(r)
        rows[k] = lots[r >> np.uint64(44)]  # 20 bits
        prefetch_row(target, rows[k])
    return r


@numba.njit(forceinline=True)
def learn(rows, rate, sigmoid, source, target, x, change):
    """A step of one pair: the score of the right word rises, those of the negatives fall."""
    read_row(source, rows[0], x)
    change[:] = 0
    for k in range(1, len(rows)):
        if k == 1 or rows[k] != rows[1]:
            score = min(max(dot_row(target, rows[k], x), -LIMIT), LIMIT)
            s = sigmoid[int((score + LIMIT) * ((len(sigmoid) - 1) / (2 * LIMIT)))]
            slope, row = np.float32(rate * (1 - s if k == 1 else -s)), np.uint64(rows[k])
            for c in range(DIM):  # two sums in one loop, which takes less time than two calls of `add_row`
                y = target[row, c]
                change[c] += slope * y
                target[row, c] = y + slope * x[c]
    add_row(source, rows[0], 1, change)


@numba.njit(nogil=True)
def train(ids, keep, lots, sigmoid, source, target, first_rate, last_rate, r):
    """One pass over ids, in which -1 ends a sentence."""
    words, pairs = np.empty(LONGEST, np.int64), np.empty((2 * WINDOW * LONGEST, 2), np.int64)
    now, ahead = np.empty(2 + NEGATIVES, np.int64), np.empty(2 + NEGATIVES, np.int64)
    x, change = np.empty(DIM, np.float32), np.empty(DIM, np.float32)
    m = 0
    for at in range(len(ids)):
        if ids[at] >= 0:
            r = following(r)
            if np.float64(r >> np.uint64(40)) < keep[ids[at]] * 2**24:
                words[m] = ids[at]
                m += 1
            if m < LONGEST:
                continue
        count, rate = 0, first_rate + (last_rate - first_rate) * at / len(ids)
        for i in range(m):
            r = following(r)
            reach = 1 + np.int64(r >> np.uint64(40)) % WINDOW
            for j in range(max(i - reach, 0), min(i + reach + 1, m)):
                if j != i:
                    pairs[count, 0], pairs[count, 1] = words[j], words[i]
                    count += 1
        m = 0
        if count > 0:
            r = draw(ahead, pairs[0], lots, source, target, r)
        for p in range(count):
            now, ahead = ahead, now
            r = draw(ahead, pairs[min(p + 1, count - 1)], lots, source, target, r)
            learn(now, rate, sigmoid, source, target, x, change)


def read(corpus, most):
    """Return sentences, as lists of words: lines of a file, or paragraphs of the standard library's modules."""
    library, sentences, left = Path(sysconfig.get_paths()["stdlib"]), [], most
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
    for path in [Path(corpus)] if corpus else sorted(library.rglob("*.py")):
        if corpus or not skip & set(path.relative_to(library).parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            for part in text.splitlines() if corpus else re.split(r"\n\s*\n", text.lower()):
                words = part.split() if corpus else re.findall(r"[^\W\d_]{2,}", part)
                sentences.append(words[:left])
                left -= len(sentences[-1])
            if not left:
                break
    return [words for words in sentences if words]


class Model:
    """Two tables, and what the loop needs of the counts of words."""

    def __init__(self, words, counts):
        total, share = counts.sum(), counts / counts.sum()
        self.words, self.total, self.index = words, int(total), {word: i for i, word in enumerate(words)}
        self.keep = np.minimum(np.sqrt(FREQUENT / share) + FREQUENT / share, 1)
        odds = np.cumsum(counts**0.75) / np.sum(counts**0.75)
        self.lots = np.searchsorted(odds, (np.arange(2**20) + 0.5) / 2**20)
        self.sigmoid = 1 / (1 + np.exp(-np.linspace(-LIMIT, LIMIT, 1025))).astype(np.float32)

    def number(self, sentences):
        """Return sentences as one array, in which -1 ends each of them."""
        return np.array([i for s in sentences for i in [*(self.index[w] for w in s if w in self.index), -1]])

    def fit(self, ids, epochs, threads, seed=1):
        """Train new tables; return the words a second."""
        start = functools.partial(se.initializers.uniform, low=-0.5 / DIM, high=0.5 / DIM)
        source = se.EmbeddingTable(len(self.words), DIM, initializer=start, rng=seed)
        target = se.EmbeddingTable(len(self.words), DIM, initializer=se.initializers.zeros)
        self.tables = source.weight, target.weight
        parts = [np.append(part, -1) for part in np.array_split(ids, threads)]
        falling = np.linspace(*RATES, epochs + 1)
        random = np.random.default_rng(seed).integers(1, 2**63, (epochs + 1, threads), np.uint64)
        self.run([ids[:0]], *falling[:2], random[-1])  # compiles
        begun = time.perf_counter()
        for epoch in range(epochs):
            self.run(parts, falling[epoch], falling[epoch + 1], random[epoch])
        return epochs * self.total / (time.perf_counter() - begun)

    def run(self, parts, first_rate, last_rate, random):
        """One pass: each part on a thread of its own, which needs no lock of Python's (nogil)."""
        known = self.keep, self.lots, self.sigmoid, *self.tables, first_rate, last_rate
        jobs = [threading.Thread(target=train, args=(part, *known, r)) for part, r in zip(parts, random, strict=False)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    def loss(self, ids, source, target):
        """Return the mean loss of the pairs of some ids and the same negatives every time, in NumPy."""
        rng, losses = np.random.default_rng(0), []
        for side in range(1, WINDOW + 1):
            near = np.flatnonzero((ids[:-side] >= 0) & (ids[side:] >= 0))
            ends = np.cumsum(ids < 0)
            near = near[ends[near] == ends[near + side]]  # in the same sentence
            x, right = source[ids[near]], target[ids[near + side]]
            wrong = target[self.lots[rng.integers(2**20, size=(len(near), NEGATIVES))]]
            losses.append(np.logaddexp(0, -np.einsum("nd,nd->n", x, right)))
            losses[-1] += np.logaddexp(0, np.einsum("nd,nkd->nk", x, wrong)).sum(axis=1)
        return np.concatenate(losses).mean()

    def neighbours(self, word, most=6):
        """Return the words whose vectors point the same way."""
        unit = self.tables[0] / np.linalg.norm(self.tables[0], axis=1, keepdims=True)
        order = np.argsort(-unit[: max(len(unit) // 4, 10)] @ unit[self.index[word]])
        return [self.words[i] for i in order if self.words[i] != word][:most]


def of_gensim(model, sentences, epochs, workers):
    """Train the same with gensim; return the words a second and both tables, in the order of `model`."""
    from gensim.models import Word2Vec

    options = {"vector_size": DIM, "window": WINDOW, "negative": NEGATIVES, "min_count": 1, "sample": FREQUENT}
    other = Word2Vec(sg=1, workers=workers, seed=1, alpha=RATES[0], min_alpha=RATES[1], epochs=epochs, **options)
    other.build_vocab(sentences)
    begun = time.perf_counter()
    other.train(sentences, total_examples=len(sentences), epochs=epochs)
    speed = epochs * model.total / (time.perf_counter() - begun)
    order = [other.wv.key_to_index[word] for word in model.words]
    return speed, other.wv.vectors[order], other.syn1neg[order]


def main(argv=None):
    """Read, train on one thread and on two, show."""
    parser = argparse.ArgumentParser(description="Train word vectors in a compiled loop.")
    parser.add_argument("--corpus", metavar="FILE", help="one sentence a line; default: the standard library's sources")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the corpus (5)")
    parser.add_argument("--compare", action="store_true", help="train with gensim, too")
    parser.add_argument("--quick", action="store_true", help=f"read {QUICK:,} words only: a few seconds")
    args = parser.parse_args(argv)
    sentences = read(args.corpus, QUICK if args.quick else sys.maxsize)
    held, sentences = sentences[::HELD_OUT], [s for i, s in enumerate(sentences) if i % HELD_OUT]
    counts = Counter(word for words in sentences for word in words)
    words = [word for word, count in counts.most_common() if count >= MIN_COUNT]
    if args.epochs < 1 or len(words) < 10:
        sys.exit(f"--epochs must be at least 1, and 10 words occur {MIN_COUNT} times or more; there are {len(words)}.")
    known = set(words)
    sentences = [[word for word in each if word in known] for each in sentences]
    model = Model(words, np.array([counts[word] for word in words]))
    ids, held = model.number(sentences), model.number(held)
    print(f"{model.total:,} words, {len(words):,} of them distinct; {(held >= 0).sum():,} more are held out")
    for threads in (1, 2):
        speed = model.fit(ids, args.epochs, threads)
        print(f"{threads} threads: {speed:9,.0f} words/s, loss {model.loss(held, *model.tables):.4f}", flush=True)
        if args.compare:
            try:
                other, *tables = of_gensim(model, sentences, args.epochs, threads)
            except ImportError:
                sys.exit("--compare needs gensim: pip install gensim")
            print(f"   gensim: {other:9,.0f} words/s, loss {model.loss(held, *tables):.4f}: {speed / other:.2f} times")
    for word in [word for word in PROBES if word in known] or words[:5]:
        print(f"{word:>12}  {'  '.join(model.neighbours(word))}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(str(error))

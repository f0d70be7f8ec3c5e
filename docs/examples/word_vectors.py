"""
Word vectors of the Python standard library
===========================================

Skip-gram with negative sampling (word2vec) in NumPy, with sparsembed for its two tables, on the
sources of Python's standard library: 1.1 million identifiers and words.  Each word owns a row of
both tables.  A row of the first learns to score high with the second table's rows of the words found
near its word, and low with those of words drawn at random.  A step is made of scores: ``dot`` reads the
rows where they lie, ``pool`` with the slopes of the loss as weights is the gradient of the word, and
``update_dot`` changes a few thousand rows.  Row 0 stands between paragraphs: as the padding it scores
nothing and stays zero, so that windows need no special case at their edges. ::

    pip install sparsembed[examples]
    python word_vectors.py                              # a minute or less on two cores
    python word_vectors.py --corpus novel.txt --words king sea love

It prints the nearest neighbours of some words and writes ``vectors.txt`` (word2vec's text format)
and ``word_vectors.png``.  Ctrl-C ends the training early and keeps what was learnt.
"""

import argparse
import os
import re
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

# The matrix products are too small to share out, and waiting BLAS threads would spin on the tables' cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import sparsembed as se

WINDOW = 3  # words to each side that count as near
MIN_COUNT = 5  # rarer identifiers are read as their parts, rarer parts are left out
BATCH = 4096  # words of one step
FAR = 6  # random words of each word, drawn anew
NEGATIVES = 5  # for each near word, random words count as much as so many would
FREQUENT = 1e-3  # words with a larger share of the corpus are thinned out
LEARNING_RATE = 0.4
QUICK = 60_000  # words that --quick reads
SHOWN = 50  # words that occur less often are not shown as neighbours: noise would win
MAPPED = 150  # words on the map, the most frequent ones
PROBES = ["open", "list", "socket", "thread", "int", "error", "path", "encode", "dict", "lock", "server", "date"]
SKIP = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}  # the last: character tables
WORD = re.compile(r"[^\W\d]\w+")
PART = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])")  # of snake_case, CamelCase, HTTPServer
SIDES = np.array([side for side in range(-WINDOW, WINDOW + 1) if side])
CLOSENESS = ((WINDOW + 1 - abs(SIDES)) / WINDOW).astype(np.float32)  # nearer words count more


def read_texts(corpus):
    """Yield the text of a file, or of each module of the standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in [Path(corpus)] if corpus else sorted(library.rglob("*.py")):
        if corpus or not SKIP & set(path.relative_to(library).parts):
            yield path.read_text(encoding="utf-8", errors="replace")


def tokenise(texts, most):
    """Return the words of each paragraph, in lower case; stop after `most` of them."""
    paragraphs = []
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            paragraphs.append(WORD.findall(paragraph)[:most])
            most -= len(paragraphs[-1])
        if not most:
            break
    whole = {name: name.strip("_").lower() for found in paragraphs for name in found}
    counts = Counter(whole[name] for found in paragraphs for name in found)
    parts = {name: [part.lower() for part in PART.findall(name) if len(part) > 1] for name in whole}
    pieces = {name: [word] if word and counts[word] >= MIN_COUNT else parts[name] for name, word in whole.items()}
    return [[piece for name in found for piece in pieces[name]] for found in paragraphs]


def number(paragraphs):
    """Return the words, most frequent first, and the corpus as their numbers from 1; 0 stands between paragraphs."""
    counts = Counter(word for found in paragraphs for word in found)
    words = [word for word, count in counts.most_common() if count >= MIN_COUNT]
    index = {word: i for i, word in enumerate(words, 1)}
    ids = [0] * WINDOW
    for found in paragraphs:
        ids += [index[word] for word in found if word in index] + [0] * WINDOW
    return words, np.array(ids, np.int32)


def batches(ids, keep, rng):
    """Yield a pass over the corpus in random order: words (n,) and what stands near them (n, 2 * WINDOW)."""
    kept = ids[rng.random(len(ids)) < keep[ids]]
    places = rng.permutation(np.flatnonzero(kept))
    for start in range(0, len(places), BATCH):
        at = places[start : start + BATCH]
        yield kept[at], kept[at[:, None] + SIDES]


def loss_and_slope(score, weight):
    """Return the loss and its derivatives by the scores (n, 2 * WINDOW + FAR): near words first, then random ones."""
    sign = np.where(np.arange(score.shape[1]) < 2 * WINDOW, -1, 1).astype(score.dtype)
    low = sign * score  # near words want a high score, far ones a low score: with this sign, all want a low one
    small = np.exp(-np.abs(low))  # at most 1, so that nothing overflows
    loss = np.vdot(weight, np.maximum(low, 0) + np.log1p(small))
    return loss, sign * weight * np.where(low > 0, 1, small) / (1 + small)


def train(corpus, num_words, dim, epochs, seed):
    """Return the vectors, and after each step how many words were read and the loss of the step."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(corpus, minlength=num_words + 1) * (np.arange(num_words + 1) > 0)
    rarity = max(FREQUENT * counts.sum(), 200) / np.maximum(counts, 1)  # 200: spare small corpora
    keep = np.minimum(np.sqrt(rarity) + rarity, 1)
    sampler = se.NegativeSampler(counts, power=0.75, seed=seed)
    expected = float(counts @ keep)  # words of a pass
    steps = epochs * np.ceil(expected / BATCH)
    optimizer = se.Adagrad(lr=lambda step: LEARNING_RATE * max(1 - step / steps, 0.01))
    source = se.EmbeddingTable(num_words + 1, dim, optimizer, padding_idx=0, rng=rng)
    target = se.EmbeddingTable(num_words + 1, dim, optimizer, padding_idx=0, initializer=se.initializers.zeros)
    progress, read, history = Progress(epochs * expected), 0, []
    try:
        for _ in range(epochs):
            for words, near in batches(corpus, keep, rng):
                weight = CLOSENESS * (near > 0)
                of_far = weight.sum(axis=1, keepdims=True) * np.float32(NEGATIVES / FAR)
                weight = np.concatenate([weight, np.repeat(of_far, FAR, axis=1)], axis=1)
                ids = np.concatenate([near, sampler.draw(len(words), FAR)], axis=1)
                bags = se.Bags.from_padded(ids, padding_idx=None)  # a bag for each word
                x = source.lookup(words)
                loss, slope = loss_and_slope(target.dot(bags, x).reshape(ids.shape), weight)
                slope = slope.ravel()
                grad_x = target.pool(bags.with_weights(slope))
                target.update_dot(bags, x, slope)
                source.update(words, grad_x)
                history.append((read := read + len(words), loss / max(weight[:, : 2 * WINDOW].sum(), 1)))
                progress.show(history)
    except KeyboardInterrupt:
        if not history:
            raise
        print("\nStopped; what was learnt is kept.", file=sys.stderr)
    progress.show(history, last=True)
    return source.weight[1:], np.array(history)


class Progress:
    """A line on stderr: redrawn on a terminal, else written anew every five seconds."""

    def __init__(self, expected):
        self.expected, self.start, self.due, self.tty = expected, 0, 0, sys.stderr.isatty()

    def show(self, history, last=False):
        now, (first, _), (read, _) = time.perf_counter(), history[0], history[-1]
        if read == first:  # this step may have compiled the engine, so time starts after it
            self.start = now
        elif now > self.due or last:
            self.due = now + (0.1 if self.tty else 5)
            speed, done = (read - first) / (now - self.start), min(read / self.expected, 1)
            loss, left = np.mean([loss for _, loss in history[-100:]]), self.expected * (1 - done) / speed
            line = f"{'#' * int(20 * done):-<20} {done:4.0%}  loss {loss:.3f}  {speed:9,.0f} words/s  ETA {left:4.0f} s"
            print(line, end="\r" if self.tty and not last else "\n", file=sys.stderr, flush=True)


def layout(vectors):
    """Place vectors on a plane, like ones close together: t-SNE (van der Maaten and Hinton, 2008)."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    place = np.random.default_rng(0).normal(scale=0.01, size=(len(unit), 2))
    others = 1 - np.eye(len(unit))
    attract = np.exp(12 * unit @ unit.T) * others
    attract /= attract.sum(axis=1, keepdims=True)
    for step in range(500):
        away = place[:, None] - place
        near = others / (1 + (away**2).sum(axis=2))
        pull = (attract + attract.T) / (2 * len(unit)) * (4 if step < 100 else 1)
        place -= 20 * np.einsum("ij,ijk->ik", near * (pull - near / near.sum()), away)
    return place


def spread(place, size, label):
    """Stretch a map to a size, and push its labels apart."""
    place = label / 2 + (place - place.min(axis=0)) / np.ptp(place, axis=0) * (size - label)
    reach = (label[:, None] + label) / 2 * (1 - np.eye(len(label)))[:, :, None]
    for _ in range(300):
        away = place[:, None] - place
        overlap = np.where((np.abs(away) < reach).all(axis=2, keepdims=True), reach - np.abs(away), 0)
        overlap[overlap > overlap.min(axis=2, keepdims=True)] = 0  # the short way out
        place = np.clip(place + 0.3 * (overlap * np.sign(away)).sum(axis=1), label / 2, size - label / 2)
    return place


def draw(path, history, words, vectors):
    """Write the picture: the loss while training, and a map of words."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("The plot is skipped, for want of matplotlib: pip install sparsembed[examples]")
        return
    figure, (curve, plane) = plt.subplots(1, 2, figsize=(15, 8), width_ratios=[1, 2.4], layout="constrained")
    parts = np.array_split(history, min(len(history), 200))
    curve.plot(*np.array([part.mean(axis=0) / [1e6, 1] for part in parts]).T)
    curve.set(title="Loss while training", xlabel="words read (millions)", ylabel="loss (nats per near word)")
    size, label = np.array([680, 540]), np.array([(6.8 * len(word) + 6, 15) for word in words])  # in points
    for word, (x, y) in zip(words, spread(layout(vectors), size, label), strict=True):
        plane.text(x, y, word, ha="center", va="center", fontsize=11)
    plane.set(title=f"The {len(words)} most frequent words", xticks=[], yticks=[], xlim=(0, size[0]), ylim=(0, size[1]))
    figure.savefig(path, dpi=110)


def arguments(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train word vectors and show them.")
    parser.add_argument("--corpus", metavar="FILE", help="a text file; default: the standard library's sources")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where results go (out)")
    parser.add_argument("--words", nargs="+", type=str.lower, metavar="WORD", help="whose neighbours to print")
    parser.add_argument("--dim", type=int, default=100, help="numbers in a vector (100)")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the corpus (12)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same vectors (0)")
    parser.add_argument("--quick", action="store_true", help=f"read {QUICK:,} words only: a few seconds")
    args = parser.parse_args(argv)
    if not (1 <= args.dim <= 10_000 and 1 <= args.epochs <= 10_000 and args.seed >= 0):
        parser.error("--dim and --epochs must be from 1 to 10000, --seed at least 0")
    return args


def main(argv=None):
    """Read, train, save, show."""
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    words, ids = number(tokenise(read_texts(args.corpus), QUICK if args.quick else sys.maxsize))
    if len(words) < 10:
        sys.exit(f"The corpus is too small: {len(words)} words occur {MIN_COUNT} times or more, 10 are needed.")
    counts = np.bincount(ids)[1:]
    print(f"{counts.sum():,} words, {len(words):,} of them distinct", flush=True)
    vectors, history = train(ids, len(words), args.dim, args.epochs, args.seed)
    lines = [f"{word} {' '.join(f'{x:.5f}' for x in row)}\n" for word, row in zip(words, vectors.tolist(), strict=True)]
    (args.out / "vectors.txt").write_text(f"{len(words)} {args.dim}\n{''.join(lines)}", encoding="utf-8", newline="\n")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shown = max(int((counts >= SHOWN).sum()), 10)
    for word in args.words or [word for word in PROBES if word in words] or words[:10]:
        order = np.argsort(-unit[:shown] @ unit[words.index(word)]) if word in words else []
        nearest = [words[i] for i in order if words[i] != word][:7]
        print(f"{word:>12}  {'  '.join(nearest) or '(not in the corpus, or too rare)'}")
    draw(args.out / "word_vectors.png", history, words[:MAPPED], vectors[:MAPPED])
    print(f"Results are in {args.out}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, KeyboardInterrupt) as error:
        sys.exit(str(error) or "Stopped before anything was learnt.")

"""Word vectors: skip-gram with negative sampling, beside gensim.

Each tool reads the same text, thins out frequent words by the same rule, draws a window and five negatives for each
pair, and is judged by the loss of pairs of a text held out, with the same five negatives for all.
"""

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import sparsembed as se

from . import data
from .job import Job, Line, Tool, parts

Array = Any
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "skip_gram.py"
GENSIM, COMPILED = "gensim", "compiled loop (docs/examples/skip_gram.py)"
LOOPS = {  # words of a batch, random words of each of them
    "NumPy loop, Adagrad, 8,192 words, 10 negatives a word": (8192, 10),
    "NumPy loop, Adagrad, 8,192 words, 5 negatives a pair": (8192, 0),
}
NUMPY = next(iter(LOOPS))


class Corpus(NamedTuple):
    """A text in numbers, in parts of as many sentences; `example` is the module of the compiled loop."""

    name: str
    example: Any
    model: Any
    sentences: list[list[list[str]]]
    ids: list[Array]  # -1 ends a sentence
    held: Array
    pieces: int  # of the whole run

    def seed_of(self, piece: int) -> int:
        return 1 + piece


def corpus(tokens: int, held: int, epochs: int, parts_of_epoch: int) -> Corpus:
    """Read the text; a word of one occurrence counts, as the Penn Treebank has `<unk>` for what is rarer."""
    spec = importlib.util.spec_from_file_location("skip_gram", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = data.text(tokens=tokens, held=held)
    counts = Counter(word for words in found.train for word in words)
    words = [word for word, _ in counts.most_common()]
    model = example.Model(words, np.array([counts[word] for word in words]))
    sentences = [found.train[part] for part in parts(len(found.train), parts_of_epoch)]
    ids = [model.number(each) for each in sentences]
    name = f"{found.name}, {model.total:,} words, {len(words):,} of them distinct"
    return Corpus(name, example, model, sentences, ids, model.number(found.held), epochs * parts_of_epoch)


class Judged:
    """What all trainings share: two arrays of vectors, judged on the text held out."""

    def __init__(self, text: Corpus, rate: float, threads: int) -> None:
        self.text, self.rate, self.threads = text, rate, threads

    def share(self, i: int) -> tuple[float, float]:
        """Return the learning rates of the begin and the end of a piece: they fall in a line, as word2vec's do."""
        least = self.rate / 250
        first, last = (self.rate + (least - self.rate) * each / self.text.pieces for each in (i, i + 1))
        return first, last

    def vectors(self) -> tuple[Array, Array]:
        raise NotImplementedError

    def quality(self) -> float:
        return float(self.text.model.loss(self.text.held, *self.vectors()))


class Gensim(Judged):
    """gensim's compiled loop, with as many workers as there are threads."""

    def __init__(self, text: Corpus, rate: float, threads: int) -> None:
        super().__init__(text, rate, threads)
        from gensim.models import Word2Vec

        its = text.example
        sizes = {"vector_size": its.DIM, "window": its.WINDOW, "negative": its.NEGATIVES, "sample": its.FREQUENT}
        self.model = Word2Vec(sg=1, hs=0, min_count=1, workers=threads, seed=1, alpha=rate, **sizes)
        self.model.build_vocab([words for part in text.sentences for words in part])
        self.order = [self.model.wv.key_to_index[word] for word in text.model.words]

    def piece(self, i: int) -> None:
        part = self.text.sentences[i % len(self.text.sentences)]
        first, last = self.share(i)
        self.model.train(part, total_examples=len(part), epochs=1, start_alpha=first, end_alpha=last)

    def vectors(self) -> tuple[Array, Array]:
        return self.model.wv.vectors[self.order], self.model.syn1neg[self.order]


class Compiled(Judged):
    """The loop of the example, pair by pair."""

    def __init__(self, text: Corpus, rate: float, threads: int) -> None:
        super().__init__(text, rate, threads)
        self.tables = [each.weight for each in new_tables(text, se.SGD(lr=rate))]

    def piece(self, i: int) -> None:
        ids = self.text.ids[i % len(self.text.ids)]
        halves = [np.append(part, -1) for part in np.array_split(ids, self.threads)]
        random = np.random.default_rng(self.text.seed_of(i)).integers(1, 2**63, self.threads, np.uint64)
        model = self.text.model
        model.tables = self.tables
        model.run(halves, *self.share(i), random)

    def vectors(self) -> tuple[Array, Array]:
        return self.tables[0], self.tables[1]


def new_tables(text: Corpus, rule: Any) -> tuple[se.EmbeddingTable, se.EmbeddingTable]:
    """Return the tables of the words and of what stands near them, as word2vec starts them."""
    dim, count = text.example.DIM, len(text.model.words)
    start = np.random.default_rng(1).uniform(-0.5 / dim, 0.5 / dim, (count, dim)).astype(np.float32)
    source = se.EmbeddingTable.from_array(start, rule)
    return source, se.EmbeddingTable.from_array(np.zeros((count, dim), np.float32), rule)


class Loop(Judged):
    """Batches in NumPy: a bag for each word, of the words near it and of random words.

    `far` random words of a bag weigh as much as five for each of its near words would: what is expected of the
    gradient is the same, so that fewer of them cost less, and add noise.  0 draws five for each near word.
    """

    def __init__(self, text: Corpus, rate: float, threads: int, batch: int, far: int) -> None:
        super().__init__(text, rate, threads)
        self.batch, self.far = batch, far
        self.source, self.target = new_tables(text, se.Adagrad(lr=rate))
        counts = np.bincount(np.concatenate([ids[ids >= 0] for ids in text.ids]))
        self.sampler = se.NegativeSampler(counts, power=0.75, seed=1)

    def piece(self, i: int) -> None:
        rng = np.random.default_rng(self.text.seed_of(i))
        self.source.optimizer = self.target.optimizer = se.Adagrad(lr=self.share(i)[0])
        words, near, counts = pairs(self.text, self.text.ids[i % len(self.text.ids)], rng)
        ends = np.concatenate([[0], np.cumsum(counts)])
        for first in range(0, len(words), self.batch):
            last = min(first + self.batch, len(words))
            self.step(words[first:last], near[ends[first] : ends[last]], counts[first:last])

    def step(self, words: Array, near: Array, counts: Array) -> None:
        """One step of each table; `counts` words are near each of the words."""
        negatives = self.text.example.NEGATIVES
        sizes = counts + self.far if self.far else (1 + negatives) * counts
        ends = np.concatenate([[0], np.cumsum(sizes)])
        if self.far:
            far = ends[1:, None] + np.arange(-self.far, 0)  # where they stand
            drawn = self.sampler.draw(len(words), self.far)
            weight = (np.float32(negatives / self.far) * counts.astype(np.float32))[:, None]
        else:
            far = np.arange(ends[-1]).reshape(-1, 1 + negatives)[:, 1:]
            drawn, weight = self.sampler.draw(len(far), negatives), 1
        is_near = np.ones(ends[-1], bool)
        is_near[far] = False
        ids = np.empty(ends[-1], np.int64)
        ids[is_near], ids[far] = near, drawn
        bags = se.Bags(ids, ends)
        x = self.source.lookup(words)
        slope = 1 / (1 + np.exp(-self.target.dot(bags, x)))
        slope[is_near] -= 1  # near words are to score high
        slope[far] *= weight
        grad_x = self.target.pool(bags.with_weights(slope))
        self.target.update_dot(bags, x, slope)
        self.source.update(words, grad_x)

    def vectors(self) -> tuple[Array, Array]:
        return self.source.weight, self.target.weight


def pairs(text: Corpus, ids: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return words, the words near each of them in one array, and how many these are."""
    window = text.example.WINDOW
    ends = np.full(window, -1)  # so that no window leaves the array
    kept = np.concatenate([ends, ids[(ids < 0) | (rng.random(len(ids)) < text.model.keep[ids])], ends])
    sentence = np.cumsum(kept < 0)
    at = rng.permutation(np.flatnonzero(kept >= 0))  # text comes in bursts of a word, and batches sum their gradients
    reach = rng.integers(1, window + 1, len(at))
    sides = np.array([side for side in range(-window, window + 1) if side])
    places = at[:, None] + sides
    near = kept[places]
    wanted = (np.abs(sides) <= reach[:, None]) & (near >= 0) & (sentence[places] == sentence[at][:, None])
    return kept[at], near[wanted], wanted.sum(axis=1)


def job(size: str) -> Job:
    """Make the job; `size` is "full", "quick" or "tiny"."""
    tokens, held, epochs, pieces = {
        "full": (887_521, 12_000, 2, 8),
        "quick": (200_000, 6_000, 1, 8),
        "tiny": (3_000, 300, 1, 2),
    }[size]
    text = corpus(tokens, held, epochs, pieces)

    def loop(batch: int, far: int) -> Any:
        return lambda rate, threads: Loop(text, rate, threads, batch, far)

    def made(kind: Any) -> Any:
        return lambda rate, threads: kind(text, rate, threads)

    sgd, adagrad = ((0.025, 0.05, 0.1), (0.1, 0.15)) if size == "full" else ((0.05,), (0.1,))
    tools = [
        *(Tool(name, "NumPy + sparsembed", loop(*how), adagrad) for name, how in LOOPS.items()),
        Tool(COMPILED, "Numba + sparsembed.jit", made(Compiled), sgd),
        Tool(GENSIM, "gensim", made(Gensim), sgd, ("gensim",)),
    ]
    lines = [Line(NUMPY, GENSIM, 1.5), Line(COMPILED, GENSIM, 2.2)]
    measure = "loss held out (nats a pair)"
    return Job("word vectors", text.name, measure, False, 0.01, tools, lines, text.pieces, pieces // 2, (1, 2))

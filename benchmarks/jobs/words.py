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
LOOPS = {"NumPy loop, Adagrad, 8,192 words": 8192, "NumPy loop, Adagrad, 2,048 words": 2048}
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
    """Batches in NumPy: a bag for each word, of the words near it and five negatives for each of these."""

    def __init__(self, text: Corpus, rate: float, threads: int, batch: int) -> None:
        super().__init__(text, rate, threads)
        self.batch = batch
        self.source, self.target = new_tables(text, se.Adagrad(lr=rate))
        counts = np.bincount(np.concatenate([ids[ids >= 0] for ids in text.ids]))
        self.sampler = se.NegativeSampler(counts, power=0.75, seed=1)

    def piece(self, i: int) -> None:
        rng = np.random.default_rng(self.text.seed_of(i))
        words, near, counts = pairs(self.text, self.text.ids[i % len(self.text.ids)], rng)
        ends = np.concatenate([[0], np.cumsum(counts)])
        for first in range(0, len(words), self.batch):
            last = min(first + self.batch, len(words))
            self.step(words[first:last], near[ends[first] : ends[last]], ends[first : last + 1] - ends[first])

    def step(self, words: Array, near: Array, ends: Array) -> None:
        """One step of each table."""
        ids = np.empty((len(near), 1 + self.text.example.NEGATIVES), np.int64)
        ids[:, 0], ids[:, 1:] = near, self.sampler.draw(len(near), ids.shape[1] - 1)
        bags = se.Bags(ids.ravel(), ids.shape[1] * ends)
        x = self.source.lookup(words)
        scores = self.target.dot(bags, x)
        slope = 1 / (1 + np.exp(-scores))
        slope[:: ids.shape[1]] -= 1  # near words are to score high
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
    at = np.flatnonzero(kept >= 0)
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

    def loop(batch: int) -> Any:
        return lambda rate, threads: Loop(text, rate, threads, batch)

    def made(kind: Any) -> Any:
        return lambda rate, threads: kind(text, rate, threads)

    sgd, adagrad = ((0.025, 0.05, 0.1), (0.1, 0.2)) if size == "full" else ((0.05,), (0.1,))
    tools = [
        *(Tool(name, "NumPy + sparsembed", loop(batch), adagrad) for name, batch in LOOPS.items()),
        Tool(COMPILED, "Numba + sparsembed.jit", made(Compiled), sgd),
        Tool(GENSIM, "gensim", made(Gensim), sgd, ("gensim",)),
    ]
    lines = [Line(NUMPY, GENSIM, 1.5), Line(COMPILED, GENSIM, 2.2)]
    measure = "loss held out (nats a pair)"
    return Job("word vectors", text.name, measure, False, 0.01, tools, lines, text.pieces, pieces // 2, (1, 2))

"""Texts, triples and positives: real ones from the folder SPARSEMBED_DATA, or made up in the same sizes.

The files that it looks for there: ``ptb.zip`` (Penn Treebank, Mikolov's split), ``WN18RR.tar.gz`` (train.txt,
valid.txt and test.txt of Dettmers et al. 2018), ``ml-latest-small-ratings.csv`` (MovieLens' ratings.csv, "small").
"""

import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import ids as streams

Array = Any


def file(name: str) -> Path | None:
    """Return a file of the folder, if it is there."""
    folder = os.environ.get("SPARSEMBED_DATA")
    path = Path(folder or ".", name)
    return path if folder and path.exists() else None


class Text(NamedTuple):
    """Sentences of words, as strings: training and held out."""

    name: str
    train: list[list[str]]
    held: list[list[str]]


def text(tokens: int = 887_521, words: int = 10_000, held: int = 12_000) -> Text:
    """Return the Penn Treebank, or sentences that each have one of 200 topics; `tokens` and `held` bound both."""
    if path := file("ptb.zip"):
        with zipfile.ZipFile(path) as archive:
            lines = {part: archive.read(f"ptb.{part}.txt").decode().splitlines() for part in ("train", "valid")}
        both = [
            _first([line.split() for line in lines[part]], most)
            for part, most in zip(lines, (tokens, held), strict=True)
        ]
        return Text("Penn Treebank", *both)
    rng, length = np.random.default_rng(2021), 20
    count = (tokens + held) // length
    often = streams.zipf(words, count * length, rng, exponent=1.0).reshape(count, length)
    topic = rng.integers(0, 200, (count, 1))
    of_topic = (topic * 7919 + streams.zipf(words // 20, often.size, rng).reshape(often.shape)) % words
    drawn = np.where(rng.random(often.shape) < 0.5, of_topic, often)
    sentences = [[f"w{i}" for i in line] for line in drawn.tolist()]
    return Text("made-up text", sentences[: tokens // length], sentences[tokens // length :])


def _first(sentences: list[list[str]], most: int) -> list[list[str]]:
    lengths = np.cumsum([len(words) for words in sentences])
    return sentences[: int(np.searchsorted(lengths, most, side="right"))]


class Triples(NamedTuple):
    """Heads, relations, tails: (n, 3) to train and to test; `known` has all of them, for the filter."""

    name: str
    entities: int
    relations: int
    train: Array
    test: Array
    known: Array


def triples(entities: int = 40_943, relations: int = 11, count: int = 86_835, test: int = 3_134) -> Triples:
    """Return WN18RR, or triples whose relation leads from one group of 200 entities to another; `test` bounds both."""
    if path := file("WN18RR.tar.gz"):
        with tarfile.open(path) as archive:
            parts = {}
            for part in ("train", "valid", "test"):
                member = archive.extractfile(f"{part}.txt")
                assert member is not None
                parts[part] = [line.split("\t") for line in member.read().decode().splitlines()]
        every = [line for lines in parts.values() for line in lines]
        names, kinds = ({name: i for i, name in enumerate(sorted(found))} for found in (
            {name for head, _, tail in every for name in (head, tail)}, {kind for _, kind, _ in every}
        ))  # fmt: skip
        numbered = [np.array([(names[h], kinds[r], names[t]) for h, r, t in lines]) for lines in parts.values()]
        known = np.concatenate(numbered)
        return Triples("WN18RR", len(names), len(kinds), numbered[0], numbered[2][:test], known)
    rng, size = np.random.default_rng(2021), min(200, max(entities // 20, 2))
    groups = entities // size
    heads, kinds = rng.integers(0, entities, count + test), rng.integers(0, relations, count + test)
    leads = rng.permutation(groups)
    group = leads[(heads // size + 17 * kinds) % groups]
    tails = group * size + streams.zipf(size, count + test, rng)
    every = np.stack([heads, kinds, tails], axis=1)
    return Triples("made-up triples", entities, relations, every[:count], every[count:], every)


class Positives(NamedTuple):
    """Pairs of a user and an item that the user took: (n, 2) to train and to test."""

    name: str
    users: int
    items: int
    train: Array
    test: Array


def ratings(users: int = 671, items: int = 6_170, count: int = 51_568) -> Positives:
    """Return MovieLens' ratings of 4 or more, a fifth of them to test, or made-up positives of the same size."""
    if path := file("ml-latest-small-ratings.csv"):
        found = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(0, 1, 2))
        found = found[found[:, 2] >= 4]
        pairs = np.stack([np.unique(found[:, k], return_inverse=True)[1] for k in (0, 1)], axis=1)
        return _split("MovieLens small, ratings of 4 and more", pairs)
    return _split("made-up positives", _made_up(users, items, count, 20))


def many(users: int = 300_000, items: int = 300_000, count: int = 2_000_000) -> Positives:
    """Return positives of more users and items than caches hold."""
    return _split("made-up positives", _made_up(users, items, count, 1000))


def _made_up(users: int, items: int, count: int, groups: int) -> Array:
    """Return pairs of users with the items of their group, the popular ones more often."""
    rng = np.random.default_rng(2021)
    of_user = rng.integers(0, groups, users)
    who = rng.integers(0, users, count)
    size = max(items // groups, 1)
    what = (of_user[who] * size + streams.zipf(size, count, rng, 1.0)) % items
    anything = rng.random(count) < 0.3
    what[anything] = streams.zipf(items, int(anything.sum()), rng, 1.0)
    return np.unique(np.stack([who, what], axis=1), axis=0)


def _split(name: str, pairs: Array) -> Positives:
    rng = np.random.default_rng(7)
    order = rng.permutation(len(pairs))
    held, kept = order[: len(pairs) // 5], order[len(pairs) // 5 :]
    users, items = (int(pairs[:, k].max()) + 1 for k in (0, 1))
    return Positives(name, users, items, pairs[kept], pairs[held])

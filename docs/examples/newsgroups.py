"""
Newsgroup posts, padded
=======================

The data of :doc:`plot_padding`: posts of 20 topics as rows of word numbers, padded in front to one length.  As a
program it trains the model of ``padding_model.py`` on them in each of its ways, and saves what it measured. ::

    pip install sparsembed[examples]
    SPARSEMBED_DATA=folder python newsgroups.py --out results    # folder/20news-bydate.tar.xz
    python newsgroups.py --sklearn                               # scikit-learn fetches the same posts
    python newsgroups.py --quick                                 # a small model, some of the posts

The archive is linked from http://qwone.com/~jason/20Newsgroups/.  Without it the posts are made up.
"""

import argparse
import json
import os
import platform
import re
import shlex
import sys
import tarfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import padding_figures
from padding_model import WAYS, Settings, train

import sparsembed as se

FILE = "20news-bydate.tar.xz"
COMMITTED = Path(__file__).parents[1] / "results" / "padding.json"  # of the command that it holds
TOKEN = re.compile(r"[a-z]{2,}")  # of the lower-case text, headers and all: no numbers, no punctuation
COMMON = """
the to of and in is that it for you from on this be not are have with as or was if but they can at by an what my
there all would we one will do he about so no your has any me some who out which just were their up how other
only them had than been his also does then these should could may am us because now even why very into those
much many most such here where did our after its over being same too him since off still her she when more
before between both each few through under until again further once own nor while don re ve ll
"""
STOP = frozenset(COMMON.split())


class Posts(NamedTuple):
    """Texts as lists of words, the number of the topic of each, and the topics' names."""

    name: str
    words: list
    labels: np.ndarray
    topics: list


class Split(NamedTuple):
    """Padded ids (posts, length) and labels, a fifth of the posts held out at random."""

    name: str
    ids: np.ndarray
    labels: np.ndarray
    held_ids: np.ndarray
    held_labels: np.ndarray
    topics: list


def tokens(text):
    """Return the words of a text: runs of letters in lower case, without the most common words of the language."""
    return [word for word in TOKEN.findall(text.lower()) if word not in STOP]


def read_archive(path):
    """Return the posts of 20news-bydate.tar.xz, of both of its parts, ordered by topic and number."""
    found = []
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                _, topic, number = Path(member.name).parts
                text = archive.extractfile(member).read().decode("latin-1")
                found.append((topic, int(number), tokens(text)))
    found.sort()
    topics = sorted({topic for topic, _, _ in found})
    labels = np.array([topics.index(topic) for topic, _, _ in found], np.int64)
    return Posts("20 Newsgroups", [words for _, _, words in found], labels, topics)


def read_sklearn():
    """Return the posts of scikit-learn's fetch_20newsgroups, which keeps them in its own cache."""
    from sklearn.datasets import fetch_20newsgroups

    found = fetch_20newsgroups(subset="all", shuffle=False)
    words = [tokens(text) for text in found.data]
    return Posts("20 Newsgroups", words, np.asarray(found.target, np.int64), list(found.target_names))


def make_up(posts=3000, topics=20, seed=0):
    """Return posts of lengths as ragged as those of newsgroups: words of their topic's own list among those of all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, topics, posts)
    words = []
    for label, length in zip(labels, np.clip(rng.lognormal(3.9, 0.8, posts), 8, 2000).astype(int), strict=True):
        rank = np.minimum(rng.zipf(1.3, length), 3000)
        own = rng.random(length) < 0.3
        words.append([f"topic{label}word{r % 150}" if mine else f"word{r}" for r, mine in zip(rank, own, strict=True)])
    return Posts("made-up posts", words, labels, [f"topic {i}" for i in range(topics)])


def read_posts(folder):
    """Return the posts of the archive in a folder, made-up ones where there is no folder."""
    if not folder:
        return make_up()
    path = Path(folder) / FILE
    if path.exists():
        return read_archive(path)
    print(f"{path} is not there (see the top of this file); the posts are made up", file=sys.stderr)
    return make_up()


def split_and_pad(posts, settings, seed=0, most=None):
    """Hold a random fifth out, number the words of the rest, pad in front; of long posts the last words stay."""
    order = np.random.default_rng(seed).permutation(len(posts.words))[:most]
    held, kept = np.split(order, [len(order) // 5])
    counts = Counter(word for i in kept for word in posts.words[i])
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: settings.words]
    index = {word: number for number, word in enumerate(ranked, 1)}
    ids = np.zeros((len(order), settings.length), np.int32)
    for row, i in zip(ids, order, strict=True):
        numbers = [index[word] for word in posts.words[i] if word in index][-settings.length :]
        row[len(row) - len(numbers) :] = numbers
    labels = posts.labels[order]
    cut = len(held)
    return Split(posts.name, ids[cut:], labels[cut:], ids[:cut], labels[:cut], posts.topics)


QUICK = Settings(length=400, words=3000, dim=100, batch=64, epochs=6, look=10)
SOME = 3000  # posts that --quick reads
SHORT = 2  # epochs for seeds after the first: enough to see who starts to learn
FIXED = 4  # epochs with a row that is not trained: enough to see that it does not start sooner


def compare(data, settings, seeds=(0,), save=lambda result: None, done=None):
    """Train in every way with the first seed, in the two of the question with others; `save` what there is so far.

    Runs of `done`, an earlier result of the same data and settings, are kept.
    """
    pairs = [(seed, way) for seed in seeds for way in WAYS if seed == seeds[0] or way != "fixed"]
    result = {
        "data": data.name,
        "posts": len(data.labels),
        "posts_held_out": len(data.held_labels),
        "padding_share": round(float((data.ids == 0).mean()), 4),
        "settings": asdict(settings),
        "threads": numba.get_num_threads(),
        "versions": {"sparsembed": se.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "runs": [],
    }
    if done and all(done[key] == result[key] for key in ("data", "posts", "posts_held_out", "settings")):
        result["runs"] = [run for run in done["runs"] if (run["seed"], run["way"]) in pairs]
    here = {(run["seed"], run["way"]) for run in result["runs"]}
    for seed, way in pairs:
        if (seed, way) in here:
            continue
        most = FIXED if way == "fixed" else settings.epochs if seed == seeds[0] else SHORT
        epochs = min(most, settings.epochs)
        run = train(data, replace(settings, epochs=epochs), way, seed, log=lambda line: print(line, flush=True))
        result["runs"].append(run)
        save(result)
    return result


def main(argv=None):
    """Read, train, save, show."""
    parser = argparse.ArgumentParser(description="Train a classifier of posts with and without padding_idx.")
    parser.add_argument("--quick", action="store_true", help=f"a small model, {SOME} posts")
    parser.add_argument("--sklearn", action="store_true", help="let scikit-learn fetch the posts")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the posts, at most")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help=f"seeds; {SHORT} epochs after the first (1)")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the results already hold")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where results go (out)")
    args = parser.parse_args(argv)
    settings = QUICK if args.quick else Settings()
    settings = replace(settings, epochs=settings.epochs if args.epochs is None else args.epochs)
    if not 1 <= settings.epochs <= 1000 or not 1 <= args.seeds <= 100:
        parser.error("--epochs must be from 1 to 1000, --seeds from 1 to 100")
    folder = os.environ.get("SPARSEMBED_DATA")
    posts = read_sklearn() if args.sklearn else read_posts(folder)
    data = split_and_pad(posts, settings, most=SOME if args.quick else None)
    where = "SPARSEMBED_DATA=folder " if folder and not args.sklearn else ""
    given = shlex.join(each for each in (sys.argv[1:] if argv is None else argv) if each != "--resume")
    command = f"{where}python docs/examples/newsgroups.py {given}".rstrip()
    args.out.mkdir(parents=True, exist_ok=True)

    def save(result):
        (args.out / "padding.json").write_text(json.dumps({"command": command} | result, allow_nan=False) + "\n")

    before = args.out / "padding.json"
    done = json.loads(before.read_text()) if args.resume and before.exists() else None
    result = compare(data, settings, range(args.seeds), save, done)
    try:
        padding_figures.everything(result, asked=not args.quick).savefig(args.out / "padding.png", dpi=110)
    except ImportError:
        print("The plot is skipped, for want of matplotlib: pip install sparsembed[examples]")
    for text in (
        padding_figures.accuracies,
        padding_figures.seeds,
        padding_figures.first_steps,
        padding_figures.in_words,
    ):
        print("", text(result), sep="\n")


if __name__ == "__main__":
    main()

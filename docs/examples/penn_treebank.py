"""
Penn Treebank, read by a memory network
=======================================

The text of :doc:`plot_positions`, and the program that trains the model of ``memory_network.py`` on all of it. ::

    pip install sparsembed[examples,torch]
    SPARSEMBED_DATA=folder python penn_treebank.py --out results            # folder/ptb.zip
    python penn_treebank.py --resume --minutes 30 --out results             # go on, for half an hour
    python penn_treebank.py --no-positions                                  # without T_A and T_C

``ptb.zip`` holds ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt``, as language models have read them since
Mikolov's: a sentence a line, 10,000 words.  They are the Linguistic Data Consortium's, for research only.  Without them
the text is the beginning of the Python standard library's sources.

Adam in place of the paper's gradient descent, dropout, and an output layer that multiplies in bfloat16 while it learns
(``--float32`` for one that does not) make it two and a half minutes of a core's time for a pass.  The rate is halved
when an epoch brings little, and the epoch with the lowest perplexity on the validation text is the one whose test
perplexity counts.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
import zipfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from memory_network import MemoryNetwork, Settings, batches
from word_vectors import read_texts, tokenise

import sparsembed as se

FILE = "ptb.zip"
RESULTS = Path(__file__).parents[1] / "results"  # those that are committed
END = "<eos>"
STAND_IN = 60_000  # words of the standard library's sources
LITTLE = 0.01  # an epoch that lowers the perplexity by less is followed by smaller steps


class Text(NamedTuple):
    """Word numbers of three texts, and the words, of which number 0 ends a sentence."""

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    words: list


def number(name, train, valid, test, most=None):
    """Number the `most` frequent words of the training text from 1; others are ``<unk>``."""
    counts = Counter(train)
    counts.pop(END, None)
    counts.pop("<unk>", None)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = [END, "<unk>", *ranked[: None if most is None else most - 2]]
    index = {word: i for i, word in enumerate(words)}
    texts = (np.array([index.get(word, 1) for word in text], np.int64) for text in (train, valid, test))
    return Text(name, *texts, words)


def read_treebank(path, most=None):
    """Return the three texts of ptb.zip, each of its lines ended by ``<eos>``."""
    with zipfile.ZipFile(path) as archive:
        texts = [
            [word for line in archive.read(f"ptb.{part}.txt").decode().splitlines() for word in [*line.split(), END]]
            for part in ("train", "valid", "test")
        ]
    return number("Penn Treebank", *texts, most)


def stand_in(most=1000):
    """Return the beginning of the Python standard library's sources, a tenth each for validation and test."""
    paragraphs = tokenise(read_texts(None), STAND_IN)
    words = [word for paragraph in paragraphs if paragraph for word in [*paragraph, END]]
    tenth = len(words) // 10
    return number("Python's sources", words[: -2 * tenth], words[-2 * tenth : -tenth], words[-tenth:], most)


def read(folder, most=None):
    """Return the treebank of a folder, the stand-in where there is none; with the `most` frequent words only."""
    path = Path(folder or "") / FILE
    if folder and path.exists():
        return read_treebank(path, most)
    if folder:
        print(f"{path} is not there (see the top of this file); the text is Python's sources", file=sys.stderr)
    return stand_in(most or 1000)


def epoch(model, tokens, rng, quiet=False):
    """Train on all of a text once, in batches of an order of its own; return the training perplexity."""
    total, seen, start = 0.0, 0, time.monotonic()
    for count, (ids, targets) in enumerate(batches(tokens, model.settings, rng), 1):
        loss, _ = model.step(ids, targets)
        total += loss
        seen += int((targets >= 0).sum())
        if count % 200 == 0 and not quiet:
            speed = (time.monotonic() - start) / seen * 1e6
            print(f"  {seen:,} words, perplexity {np.exp(total / seen):.1f}, {speed:.0f} us a word", flush=True)
    return float(np.exp(total / len(tokens)))


def save(path, model, result, rng):
    """Write all that training needs to go on."""
    tables = {name: table.state_dict() for name, table in model.tables.items()}
    dense = [each.detach() for each in model.dense]
    state = {"tables": tables, "dense": dense, "optimizer": model.optimizer.state_dict(), "result": result}
    state |= {"random": rng.bit_generator.state, "dropout": torch.get_rng_state()}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def load(path, model, rng):
    """Read what `save` wrote; return the result so far."""
    state = torch.load(path, weights_only=False)
    for name, table in model.tables.items():
        table.load_state_dict(state["tables"][name])
    with torch.no_grad():
        for each, saved in zip(model.dense, state["dense"], strict=True):
            each.copy_(saved)
    model.optimizer.load_state_dict(state["optimizer"])
    rng.bit_generator.state = state["random"]
    torch.set_rng_state(state["dropout"])
    return state["result"]


def train(text, settings, args, result, report):
    """Train until the epochs or the minutes are over, or the steps are too small to matter; `report` each epoch."""
    start, model, rng = time.monotonic(), MemoryNetwork(settings), np.random.default_rng(1)
    if args.resume:
        result |= {"epochs": load(args.checkpoint, model, rng)["epochs"]}
    done = result["epochs"]
    lr = done[-1]["next_lr"] if done else settings.lr
    while len(done) < args.epochs and (time.monotonic() - start) / 60 < args.minutes and lr >= settings.lr / 100:
        model.set_lr(lr)
        clock = time.process_time()
        found = {"epoch": len(done) + 1, "lr": lr, "train": epoch(model, text.train, rng)}
        found["valid"], _ = model.score(text.valid)
        best = min((each["valid"] for each in done), default=float("inf"))
        if found["valid"] < best:
            found["test"], _ = model.score(text.test)
        if found["valid"] > best * (1 - LITTLE):
            lr /= 2
        found |= {"next_lr": lr, "cpu_seconds": round(time.process_time() - clock)}
        done.append(found)
        print(", ".join(f"{key} {value:.5g}" for key, value in found.items()), flush=True)
        if args.checkpoint:
            save(args.checkpoint, model, result, rng)
        report(result)


def arguments(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a memory network on the Penn Treebank.")
    parser.add_argument("--hops", type=int, default=2, metavar="N", help="hops (2)")
    parser.add_argument("--dim", type=int, default=150, metavar="N", help="numbers a word (150)")
    parser.add_argument("--memory", type=int, default=100, metavar="N", help="words to look back (100)")
    parser.add_argument("--lr", type=float, default=0.004, metavar="X", help="Adam's rate at first (0.004)")
    parser.add_argument("--drop", type=float, default=0.2, metavar="X", help="dropout (0.2)")
    parser.add_argument("--no-positions", action="store_true", help="without T_A and T_C")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the output layer")
    parser.add_argument("--epochs", type=int, default=100, metavar="N", help="passes over the text, at most (100)")
    parser.add_argument("--minutes", type=float, default=1e6, metavar="X", help="start no epoch after so many minutes")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="keep there what it takes to go on")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where results go (out)")
    args = parser.parse_args(argv)
    if args.resume and not args.checkpoint:
        parser.error("--resume needs --checkpoint")
    return args


def main(argv=None):
    """Read, train, save."""
    args, folder = arguments(argv), os.environ.get("SPARSEMBED_DATA")
    text = read(folder)
    settings = Settings(len(text.words), args.dim, args.memory, args.hops, not args.no_positions, drop=args.drop)
    rest = {"optimizer": "adam", "lr": args.lr, "averaged": True, "blocks": 16, "block": 32}
    settings = replace(settings, **rest, bfloat16=not args.float32)
    given = shlex.join(each for each in (sys.argv[1:] if argv is None else argv) if each != "--resume")
    command = f"{'SPARSEMBED_DATA=folder ' if folder else ''}python docs/examples/penn_treebank.py {given}"
    result = {
        "command": command.rstrip(),
        "data": text.name,
        "tokens": {part: len(getattr(text, part)) for part in ("train", "valid", "test")},
        "settings": asdict(settings),
        "threads": torch.get_num_threads(),
        "versions": {"sparsembed": se.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "epochs": [],
    }
    args.out.mkdir(parents=True, exist_ok=True)

    def report(result):
        (args.out / "position_full.json").write_text(json.dumps(result, indent=1) + "\n")

    train(text, settings, args, result, report)


if __name__ == "__main__":
    main()

"""
What a memory network loses to each of five errors
==================================================

The runs of :doc:`plot_positions`: the model of ``memory_network.py`` as the paper has it and as the question's program
has it, and the errors of the latter one by one: each alone put into the paper's model, and each alone mended in the
question's.  All with positions and without, from the same initial values and with the same batches. ::

    SPARSEMBED_DATA=folder python position_causes.py --out results          # folder/ptb.zip
    python position_causes.py --quick                                       # half of the runs, small, made to be short
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import position_figures
import torch
from memory_network import MemoryNetwork, Settings
from penn_treebank import epoch, read

import sparsembed as se

ERRORS = {  # what the question's program does otherwise -> as settings
    "scores rectified, not exponentiated": {"output": "relu"},
    "attention scores mapped, not the state": {"mapped": "scores"},
    "one hop too few": {"hops": 1},
    "gradient of the mean, not of the sum": {"averaged": True},
    "no relu between hops": {"rectified": False},
}
POSTED = {key: value for error in ERRORS.values() for key, value in error.items()}
KINDS = {  # kind of run -> its errors, by name
    "the paper's": {"none": {}},
    "the question's": {"all": POSTED},
    "the paper's, by Adam": {"none": {"optimizer": "adam", "lr": 0.005, "averaged": True}},
    "one error": ERRORS,
    "one mended": {name: {k: v for k, v in POSTED.items() if k not in error} for name, error in ERRORS.items()},
}
FULL = Settings(words=1000, dim=50, memory=30, hops=2)
QUICK = Settings(words=500, dim=40, memory=20, hops=2)
EXAMPLES, HELD = 35_000, 5_000  # words to learn from, as many as the question had; words held out
SOME = 12_000  # words that --quick learns from


def compare(text, settings, epochs, kinds=tuple(KINDS), most=EXAMPLES, save=lambda result: None, log=print):
    """Train all kinds of runs on `most` words; `save` what there is so far."""
    train, held = text.train[:most], text.valid[:HELD]
    share = np.unique(train, return_counts=True)[1] / len(train)
    result = {
        "data": text.name,
        "tokens": len(train),
        "tokens_held_out": len(held),
        "by_frequency": float(np.exp(-(share * np.log(share)).sum())),
        "commonest": float(share.max()),
        "settings": asdict(settings),
        "threads": torch.get_num_threads(),
        "versions": {"sparsembed": se.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "runs": [],
    }
    for kind in kinds:
        for name, changes in KINDS[kind].items():
            for positions in (True, False):
                start, rng = time.process_time(), np.random.default_rng(1)
                model = MemoryNetwork(replace(settings, positions=positions, **changes))
                run = {"kind": kind, "error": name, "positions": positions, "train": [], "held": []}
                for _ in range(epochs):
                    found = {"train": epoch(model, train, rng, quiet=True), "held": model.score(held)[0]}
                    for what, value in found.items():
                        run[what].append(value if np.isfinite(value) else None)
                run["accuracy"] = model.score(train)[1]
                run["cpu_seconds"] = round(time.process_time() - start, 1)
                result["runs"].append(run)
                log(position_figures.line(run))
                save(result)
    return result


def main(argv=None):
    """Train, save, show."""
    parser = argparse.ArgumentParser(description="Train a memory network with errors, one by one.")
    parser.add_argument("--quick", action="store_true", help="small models, errors put in only")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the words (8; quick: 6)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where results go (out)")
    args, folder = parser.parse_args(argv), os.environ.get("SPARSEMBED_DATA")
    settings, epochs, kinds, most = (QUICK, 6, [*KINDS][:4], SOME) if args.quick else (FULL, 8, [*KINDS], EXAMPLES)
    text = read(folder, settings.words)
    given = shlex.join(sys.argv[1:] if argv is None else argv)
    command = f"{'SPARSEMBED_DATA=folder ' if folder else ''}python docs/examples/position_causes.py {given}".rstrip()
    args.out.mkdir(parents=True, exist_ok=True)

    def save(result):
        (args.out / "position_causes.json").write_text(
            json.dumps({"command": command} | result, allow_nan=False) + "\n"
        )

    settings = replace(settings, words=len(text.words))
    result = compare(text, settings, args.epochs or epochs, kinds, most, save, lambda text: print(text, flush=True))
    print(position_figures.table(result))
    try:
        position_figures.curves(result).savefig(args.out / "position_causes.png", dpi=110)
    except ImportError:
        print("The plot is skipped, for want of matplotlib: pip install sparsembed[examples]")


if __name__ == "__main__":
    main()

"""
Recommend items, by the order of scores
=======================================

Bayesian personalised ranking (https://arxiv.org/abs/1205.2618): a user's row shall score higher with an item that the
user took than with one drawn at random.  `sparsembed.NegativeSampler` draws the other items as often as they are taken,
and never one that the user took.  The steps depend on one another, so they are one loop compiled with Numba, on the
rows of `sparsembed.jit`; ``--batches`` does them batch by batch in NumPy, with `dot_loss` and `update_dot`. ::

    python ranking.py                                       # on ratings that it makes up
    SPARSEMBED_DATA=folder python ranking.py                # folder/ml-latest-small-ratings.csv, if it is there
    python ranking.py --batches

It prints the recall of items held out: the share of them among the 20 that a user's scores put first, without those
that the user took before.  Two threads write to the same rows without locks, as word2vec's do.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numba
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from which_adam import read_ratings

import sparsembed as se
from sparsembed.jit import dot_row, prefetch_row, read_row

DIM, GOOD, HELD_OUT, SHOWN = 64, 4, 0.2, 20  # the last of the DIM numbers of an item is its bias
RATE, DECAY, EPOCHS = 0.05, 0.01, 20
BATCH, BATCH_RATE = 4096, 0.02  # Adagrad: the gradients of popular items add up by hundreds in a batch
AHEAD = 4  # steps from asking for rows to using them


@numba.njit(nogil=True)
def learn(who, taken, other, users, items, rate, decay):
    """One step for each user, item that the user took, and other item."""
    last, x = users.shape[1] - 1, np.empty(users.shape[1], np.float32)
    rate, decay = np.float32(rate), np.float32(rate * decay)
    for i in range(len(who)):
        ahead = min(i + AHEAD, len(who) - 1)
        prefetch_row(users, who[ahead])
        prefetch_row(items, taken[ahead])
        prefetch_row(items, other[ahead])
        u, p, n = np.uint64(who[i]), np.uint64(taken[i]), np.uint64(other[i])
        read_row(users, u, x)
        slope = rate / (np.float32(1) + np.exp(dot_row(items, p, x) - dot_row(items, n, x)))
        for c in range(last + 1):
            y, z = items[p, c], items[n, c]
            users[u, c] = x[c] + slope * (y - z) - decay * x[c]
            items[p, c] = y + slope * x[c] - decay * y
            items[n, c] = z - slope * x[c] - decay * z
        users[u, last] = 1  # what the bias is multiplied by


class Ranking:
    """Two tables, and a sampler that knows what each user took."""

    def __init__(self, pairs, num_users, num_items, rate=RATE, seed=0):
        self.columns = np.ascontiguousarray(pairs.T)
        self.pairs, self.rate, self.rng = pairs, rate, np.random.default_rng(seed)
        order = np.argsort(pairs[:, 0], kind="stable")
        ends = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=num_users))])
        self.history = se.Bags(pairs[order, 1], ends)
        counts = np.bincount(pairs[:, 1], minlength=num_items)
        self.sampler = se.NegativeSampler(counts, power=1, seed=seed, exclude=self.history)
        weights = [self.rng.uniform(-0.5 / DIM, 0.5 / DIM, (n, DIM)).astype(np.float32) for n in (num_users, num_items)]
        weights[0][:, -1], weights[1][:, -1] = 1, 0
        self.users, self.items = (se.EmbeddingTable.from_array(w, se.Adagrad(lr=rate)) for w in weights)

    def draw(self):
        """Return as many users, items that they took, and other items as there are pairs."""
        drawn = self.rng.integers(0, len(self.pairs), len(self.pairs))
        who, taken = (each[drawn] for each in self.columns)
        return who, taken, self.sampler.draw(len(who), 1, keys=who)[:, 0]

    def compiled_pass(self, threads=2):
        """As many steps of plain SGD as there are pairs, on some threads."""
        parts = zip(*(np.array_split(each, threads) for each in self.draw()), strict=True)
        known = self.users.weight, self.items.weight, self.rate, DECAY
        jobs = [threading.Thread(target=learn, args=(*part, *known)) for part in parts]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    def pass_of_batches(self, batch=BATCH):
        """The same in batches, with Adagrad: a bag for each user, of the item that the user took and the other one."""
        who, taken, other = self.draw()
        both = np.stack([taken, other], axis=1)
        for first in range(0, len(who), batch):
            users, ids = who[first : first + batch], both[first : first + batch]
            x = self.users.lookup(users)
            _, grad_x, slopes = self.items.dot_loss(ids, x, loss=se.losses.Pairwise())
            grad_x[:, -1] = 0  # that number stays 1
            self.items.update_dot(ids, x, slopes)
            self.users.update(users, grad_x)


def split(ratings):
    """Return pairs of users and items to train, pairs held out, and the numbers of users and items."""
    _, users, items, stars = ratings
    pairs = np.stack([users, items], axis=1)[stars >= GOOD]
    pairs = np.stack([np.unique(each, return_inverse=True)[1] for each in np.unique(pairs, axis=0).T], axis=1)
    order = np.random.default_rng(7).permutation(len(pairs))
    held, kept = np.split(order, [int(HELD_OUT * len(pairs))])
    return pairs[kept], pairs[held], *(pairs.max(axis=0) + 1).tolist()


def recall(users, items, trained, held):
    """Return the mean, over users with items held out, of the share of these among the first 20."""
    scores = users @ items.T
    scores[trained[:, 0], trained[:, 1]] = -np.inf
    first = np.argpartition(-scores, SHOWN, axis=1)[:, :SHOWN]
    wanted = np.zeros(scores.shape, bool)
    wanted[held[:, 0], held[:, 1]] = True
    hits, total = np.take_along_axis(wanted, first, axis=1).sum(axis=1), wanted.sum(axis=1)
    return float((hits[total > 0] / total[total > 0]).mean())


def main(argv=None):
    """Train and print the recall after each few passes."""
    parser = argparse.ArgumentParser(description="Train a recommender that ranks items.")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes over the pairs ({EPOCHS})")
    parser.add_argument("--batches", action="store_true", help="batches in NumPy instead of the compiled loop")
    args = parser.parse_args(argv)
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    ratings = read_ratings(os.environ.get("SPARSEMBED_DATA"))
    trained, held, *sizes = split(ratings)
    model = Ranking(trained, *sizes, rate=BATCH_RATE if args.batches else RATE)
    print(f"{ratings[0]}: {sizes[0]:,} users, {sizes[1]:,} items, {len(trained):,} pairs; {len(held):,} are held out")
    one = model.pass_of_batches if args.batches else model.compiled_pass
    seconds = 0.0
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        one()
        seconds += time.perf_counter() - start if epoch > 1 else 0  # the first one compiles
        if epoch % 5 == 0 or epoch == args.epochs:
            found = recall(model.users.weight, model.items.weight, trained, held)
            each = 1e3 * seconds / max(epoch - 1, 1)
            print(f"pass {epoch:3}: recall of the first {SHOWN} {found:.4f}, {each:.1f} ms a pass")


if __name__ == "__main__":
    main()

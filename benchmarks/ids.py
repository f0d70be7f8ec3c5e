"""Streams of ids: uniform, zipf, hot, and one that repeats rows as often as production does.

``make(name, num_rows, count, rng)`` returns `count` shuffled int64 ids below `num_rows`.
"""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

# Share of the lookups of one batch, by how often their row is looked up in that batch: bin b
# holds counts in (EDGES[b], EDGES[b + 1]].  Source: public data set facebookresearch/dlrm_datasets
# (MIT licence), embedding_bag/2021, locality statistics of fbgemm_t856_bs65536.pt, "ratio of index
# distribution at different column sizes": 856 tables, a batch of 65,536 samples, 887,017,990 lookups
# of 128,435,723 rows.  The source prints three decimals, which add up to 1.001.
EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
SHARES = (
    0.069, 0.044, 0.068, 0.101, 0.121, 0.104, 0.073, 0.058, 0.052,
    0.050, 0.049, 0.048, 0.048, 0.043, 0.031, 0.023, 0.019,
)  # fmt: skip  # the last bin is open in the source (32768+); here it ends at twice its start


def make(name: str, num_rows: int, count: int, rng: np.random.Generator) -> Ids:
    """Return `count` ids of the stream `name`, one of `STREAMS`, or of "each k": every row of the batch k times."""
    if name.startswith("each "):
        times = int(name.removeprefix("each "))
        ids = np.repeat(distinct(num_rows, -(-count // times), rng), times)[:count]
    else:
        ids = STREAMS[name](num_rows, count, rng)
    rng.shuffle(ids)
    return ids


def uniform(num_rows: int, count: int, rng: np.random.Generator) -> Ids:
    """Return ids of rows that are all equally likely."""
    return rng.integers(0, num_rows, count)


def distinct(num_rows: int, count: int, rng: np.random.Generator) -> Ids:
    """Return ids without repeats."""
    return rng.choice(num_rows, count, replace=False).astype(np.int64)


def zipf(num_rows: int, count: int, rng: np.random.Generator, exponent: float = 1.15) -> Ids:
    """Row of rank r with probability proportional to ``r ** -exponent`` (1.15 is what cuEmbed measures with)."""
    total = np.cumsum(np.arange(1, num_rows + 1) ** -exponent)
    rank = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    return rng.permutation(num_rows)[np.minimum(rank, num_rows - 1)]


def hot(num_rows: int, count: int, rng: np.random.Generator) -> Ids:
    """One row takes half of the lookups, the others are uniform."""
    ids = uniform(num_rows, count, rng)
    ids[: count // 2] = rng.integers(num_rows)
    return ids


def production(num_rows: int, count: int, rng: np.random.Generator) -> Ids:
    """Rows repeat as in the histogram above, whose shares of lookups are met to within one row.

    A bin whose smallest count is more than its share of a batch gives one row, which takes the
    bin's share; those lookups then fall into a lower bin.  With 1,000,000 lookups that is the last
    bin alone (19,000 lookups, of a row that would need 32,769); with 100,000 it is the last three.
    """
    counts = np.concatenate([_bin(b, m, rng) for b, m in enumerate(budgets(count))])
    if len(counts) > num_rows:
        raise ValueError(f"{count} lookups of this stream need {len(counts)} rows, the table has {num_rows}")
    return np.repeat(distinct(num_rows, len(counts), rng), counts)


def budgets(count: int) -> list[int]:
    """Lookups of each bin, which add up to `count`."""
    ends = np.rint(np.cumsum(SHARES) / sum(SHARES) * count).astype(int)
    return np.diff(ends, prepend=0).tolist()


def _bin(b: int, lookups: int, rng: np.random.Generator) -> Ids:
    """Counts of the rows of bin b, which add up to `lookups`: log-uniform within the bin."""
    low, high = EDGES[b], EDGES[b + 1]
    if lookups <= low + 1:
        return np.full(min(lookups, 1), lookups)
    # ceil(low * 2**u) is c with probability log2(c / (c - 1)): equal steps on a logarithmic scale.
    size = lookups // (low + 1)
    counts = np.ceil(low * 2.0 ** rng.random(size)).astype(np.int64).clip(low + 1, high)
    ends = np.cumsum(counts)
    counts = counts[: np.searchsorted(ends, lookups) + 1]
    excess = int(counts.sum()) - lookups
    if excess >= counts[-1] - low:  # what is left is too little for another row of this bin
        excess -= int(counts[-1])
        counts = counts[:-1]
    # Take the excess from rows that stay in the bin, or give what is left to those with room.
    room = counts - (low + 1) if excess > 0 else high - counts
    before = np.cumsum(room) - room
    counts = counts - np.sign(excess) * np.clip(abs(excess) - before, 0, room)
    rest = lookups - int(counts.sum())  # not zero only where no set of counts of this bin adds up
    return counts if rest == 0 else np.append(counts, rest) if rest > 0 else np.append(counts[:-1], counts[-1] + rest)


STREAMS = {"uniform": uniform, "production": production, "zipf": zipf, "hot": hot, "distinct": distinct}

"""Negative samples: exact probabilities, draws that depend on seed, number and place alone, and excluded ids."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from patience import HANGS

import sparsembed as se
from sparsembed import sampler as module
from sparsembed._cpu import threads
from sparsembed._cpu.blocks import blocks_of

WORD = 1 << 64
COUNTS = np.array([8, 0, 1, 1])


def probabilities(sampler):
    """The exact probability of each id: how many of the 2**64 numbers give it."""
    n, found = len(sampler._table), {}
    for slot, entry in enumerate(sampler._table.tolist()):
        ends = [(slot << 32), (slot << 32) + (entry >> 32), (slot + 1) << 32]
        for i, (low, high) in zip((slot, entry & (2**32 - 1)), pairwise(ends), strict=True):
            # number * n >> 32 lies in [low, high)
            found[i] = found.get(i, 0) + -(-(high << 32) // n) + (-(low << 32) // n)
    assert not [i for i in found if i >= sampler._num_ids and found[i]]
    return [Fraction(found.get(i, 0), WORD) for i in range(sampler._num_ids)]


def exact(counts, power):
    weights = [Fraction(each) ** power for each in np.asarray(counts).tolist()]
    if power == 0:
        weights = [Fraction(each > 0) for each in np.asarray(counts).tolist()]
    total = sum(weights)
    return [each / total for each in weights]


def assert_exact(counts, power):
    found, wanted = probabilities(se.NegativeSampler(counts, power)), exact(counts, power)
    assert sum(found) == 1
    for i, (mine, its) in enumerate(zip(found, wanted, strict=True)):
        assert abs(mine - its) <= Fraction(1, 2**32), i
        assert (mine == 0) == (counts[i] == 0)


def some(numbers):
    return st.lists(numbers, min_size=1, max_size=50).filter(any).map(np.array)


WHOLE = some(st.integers(0, 9) | st.integers(0, 2**53))
REAL = some(st.just(0.0) | st.floats(0, 10) | st.floats(0, 1.7e308))


@given(counts=WHOLE | REAL, power=st.integers(0, 4))
def test_probabilities_are_exact_for_whole_powers(counts, power):
    assert_exact(counts, power)


@given(roots=some(st.integers(0, 2**13)))
def test_probabilities_are_exact_for_the_power_of_three_quarters(roots):
    """Counts are fourth powers here, so that their powers are fractions."""
    found, cubes = probabilities(se.NegativeSampler(roots.astype(np.int64) ** 4)), [int(each) ** 3 for each in roots]
    assert max(abs(p - Fraction(cube, sum(cubes))) for p, cube in zip(found, cubes, strict=True)) <= Fraction(1, 2**32)


@pytest.mark.parametrize(
    "counts",
    [
        [5],
        [0, 3, 0],
        [1] * 1000,
        [1e-300, 1e300],
        [0.0, 1e-170],
        [5e-324, 5e-324],
        [1.7e308] * 3,
        [2**62, 1, 0],
        [1e9] + [1e-9] * 999,
        list(range(300)),
    ],
    ids=lambda counts: f"{len(counts)} of {counts[0]}",
)
@pytest.mark.parametrize("power", [0, 1, 2])
def test_probabilities_are_exact_where_counts_are_far_apart(counts, power):
    assert_exact(np.array(counts), power)


@pytest.mark.parametrize("power", [0.75, 1e-3, 300.5, 1e17])
def test_powers_are_those_of_a_float_with_more_digits(power):
    counts = np.array([2.0**53, 2.0**53 - 1, 1e10, 3.0, 1.0, 1e-300, 0.0])
    found = module._powers(counts, counts[0], power)
    logarithms = np.log1p((counts[:2] - counts[0]) / counts[0])
    np.testing.assert_allclose(found[:2], np.exp(power * logarithms), rtol=2.0**-40)
    with np.errstate(under="ignore"):
        np.testing.assert_allclose(found[2:], (counts[2:] / counts[0]) ** power, rtol=1e-9, atol=2.0**-60)


def test_an_id_whose_probability_rounds_to_nothing_can_still_be_drawn():
    found = probabilities(se.NegativeSampler([1e-200, 1e200, 0.0]))
    assert 0 < found[0] <= Fraction(2, 3 * 2**32)
    assert found[2] == 0


def test_an_id_with_nearly_all_of_the_probability_pays_for_all_others():
    sampler = se.NegativeSampler([1e-300] * 70_000 + [1.0], 1.0)
    assert 1 - Fraction(1, 2**32) <= probabilities(sampler)[-1] < 1


def test_frequencies_are_those_of_the_probabilities():
    counts = np.arange(100)
    ids = se.NegativeSampler(counts, 1.0, seed=1).draw(1000, 1000)
    found = np.bincount(ids.ravel(), minlength=100) / 1e6
    assert np.abs(found - counts / counts.sum()).max() < 6e-4  # three standard deviations
    assert np.abs(found[1:] / counts[1:] * counts.sum() - 1).max() < 0.3


def philox(counter, key):
    """Philox4x32-10 by the paper, in Python's integers."""
    low = 2**32 - 1
    a, b, c, d = counter
    for r in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        keys = [(k + r * w) & low for k, w in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
        a, b, c, d = (second >> 32) ^ b ^ keys[0], second & low, (first >> 32) ^ d ^ keys[1], first & low
    return a, b, c, d


def test_philox_is_that_of_random123():
    """Known answers of the file kat_vectors of Random123."""
    assert philox((0,) * 4, (0,) * 2) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((2**32 - 1,) * 4, (2**32 - 1,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox(*pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def number_of(seed, draw, position, attempt=0):
    low = 2**32 - 1
    pair = position // 2
    words = philox((pair & low, pair >> 32 | attempt << 16, draw & low, draw >> 32), (seed & low, seed >> 32))
    first = 2 * (position % 2)
    return words[first] | words[first + 1] << 32


def id_of(table, number):
    place = number * len(table) >> 32
    slot, entry = place >> 32, int(table[place >> 32])
    return slot if (place & (2**32 - 1)) < entry >> 32 else entry & (2**32 - 1)


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("draw", [0, 2**40 + 3])
def test_draws_are_a_function_of_seed_number_and_position(seed, draw):
    sampler = se.NegativeSampler(np.arange(1, 31), seed=seed)
    sampler.draws = draw
    found = sampler.draw(97, 7).ravel()
    assert found.tolist() == [id_of(sampler._table, number_of(seed, draw, i)) for i in range(97 * 7)]
    assert sampler.draws == draw + 1


def test_redraws_are_a_function_of_the_attempt():
    history = [0, 1, 2, 5, 5]
    sampler = se.NegativeSampler(np.ones(8), seed=3, exclude=se.Bags.from_lists([[], history]))
    keys = np.array([1, 0, 1, 1, 0])
    for i, found in enumerate(sampler.draw(5, 3, keys=keys).ravel()):
        tries = (id_of(sampler._table, number_of(3, 0, i, attempt)) for attempt in range(100))
        assert found == next(each for each in tries if not keys[i // 3] or each not in history)


def test_draws_stay_what_they_are():
    sampler = se.NegativeSampler(np.arange(1000), seed=2026)
    assert sampler.draw(2, 4).tolist() == [[530, 949, 354, 830], [730, 916, 935, 912]]
    assert sampler.draw(2, 4).tolist() == [[816, 980, 508, 615], [483, 504, 762, 954]]


def test_the_first_rows_of_a_larger_draw_are_a_smaller_draw():
    small, large, flat = (se.NegativeSampler(np.arange(1000), seed=1) for _ in range(3))
    rows = large.draw(50_000, 5)
    np.testing.assert_array_equal(small.draw(1001, 5), rows[:1001])
    np.testing.assert_array_equal(flat.draw(250_000, 1).ravel(), rows.ravel())


def histories(num_keys=50, num_ids=200, seed=0):
    rng = np.random.default_rng(seed)
    return se.Bags.from_lists([rng.integers(0, num_ids, n) for n in rng.integers(0, 400, num_keys)])


@pytest.mark.parametrize("exclude", [None, histories()], ids=["all", "excluding"])
def test_draws_are_the_same_on_any_number_of_threads(monkeypatch, exclude):
    keys = None if exclude is None else np.random.default_rng(1).integers(0, 50, 4001)
    found = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "num_threads", lambda count=count: count)
        assert (blocks_of(4001 * 7 // 2, 64)[0] > 1) == (count > 1)
        found.append(se.NegativeSampler(np.arange(200), seed=5, exclude=exclude).draw(4001, 7, keys=keys))
    assert all((each == found[0]).all() for each in found)


def test_draws_follow_each_other_and_seeds_differ():
    sampler, other = se.NegativeSampler(np.arange(1000)), se.NegativeSampler(np.arange(1000), seed=1)
    rows = [sampler.draw(10, 10).tolist(), sampler.draw(10, 10).tolist(), other.draw(10, 10).tolist()]
    assert rows[0] != rows[1]
    assert rows[0] != rows[2]
    sampler.draws = 0
    assert sampler.draw(10, 10).tolist() == rows[0]


def test_results_are_int64_of_the_shape():
    sampler = se.NegativeSampler(COUNTS)
    for n, k in ((0, 3), (3, 0), (1, 1), (3, 5), (np.int32(2), np.uint8(2))):
        found = sampler.draw(n, k)
        assert (found.dtype, found.shape) == (np.int64, (n, k))
        assert found.flags.writeable
    assert sampler.draws == 5


@pytest.mark.parametrize(
    "rng",
    [2**64, np.random.SeedSequence(3), np.random.default_rng(4), None],
    ids=["int", "sequence", "generator", "none"],
)
def test_seeds_are_what_they_are_elsewhere(rng):
    first, again = (se.NegativeSampler(COUNTS, seed=copy.deepcopy(rng)).seed for _ in range(2))
    assert 0 <= first < WORD
    assert (first == again) == (rng is not None)
    assert se.NegativeSampler(COUNTS, seed=np.int32(7)).seed == 7


def test_copies_and_pickles_go_on_after_the_same_draw():
    sampler = se.NegativeSampler(np.arange(200), seed=5, exclude=histories())
    keys = np.arange(50)
    sampler.draw(50, 3, keys=keys)
    copies = [copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler)), copy.copy(sampler)]
    wanted = sampler.draw(50, 3, keys=keys)
    for each in copies:
        assert (each.seed, each.draws) == (5, 1)
        np.testing.assert_array_equal(each.draw(50, 3, keys=keys), wanted)
    assert sampler.draws == 2


def test_draws_of_several_threads_are_all_different():
    sampler = se.NegativeSampler(np.arange(1000), seed=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: sampler.draw(10, 10).tobytes(), range(200)))
    again = se.NegativeSampler(np.arange(1000), seed=1)
    assert sampler.draws == 200
    assert sorted(found) == sorted(again.draw(10, 10).tobytes() for _ in range(200))


@given(data=st.data(), seed=st.integers(0, 2**64 - 1))
def test_no_excluded_id_is_drawn(data, seed):
    num_ids = data.draw(st.integers(1, 30))
    ids = st.integers(0, num_ids - 1)
    lists = data.draw(st.lists(st.lists(ids, max_size=60), min_size=1, max_size=5))
    counts = data.draw(st.lists(st.integers(0, 3) | st.just(10**9), min_size=num_ids, max_size=num_ids).filter(any))
    free = [{i for i in range(num_ids) if counts[i]} - {*each} for each in lists]
    keys = [key for key in data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=20)) if free[key]]
    sampler = se.NegativeSampler(counts, seed=seed, exclude=se.Bags.from_lists(lists))
    for key, row in zip(keys, sampler.draw(len(keys), 9, keys=np.array(keys, int)).tolist(), strict=True):
        assert {*row} <= free[key]


def test_the_distribution_is_the_conditional_one():
    counts, history = np.array([50, 1, 2, 3, 4, 0, 40]), [0, 5, 3, 3]
    sampler = se.NegativeSampler(counts, 1.0, exclude=se.Bags.from_lists([history]))
    found = np.bincount(sampler.draw(100_000, 4, keys=np.zeros(100_000, int)).ravel(), minlength=7) / 400_000
    wanted = np.where(np.isin(np.arange(7), history), 0, counts)
    assert np.abs(found - wanted / wanted.sum()).max() < 2e-3
    assert (found[history] == 0).all()


def test_what_all_attempts_leave_is_drawn_by_the_inverse_of_the_sums(monkeypatch):
    """The history covers all but 1e-9: every draw goes that way, and its quanta are those of the ids that are left."""
    counts = np.array([1, 10**12, 2, 0, 10**12, 3, 10**12])
    sampler = se.NegativeSampler(counts, 1.0, exclude=se.Bags.from_lists([[4, 1, 6, 1, 2]]))
    quanta = np.diff(sampler._excluded.below)
    assert quanta.sum() == 7 << 32
    ids = sampler.draw(1000, 20, keys=np.zeros(1000, int))
    left = [0] * int(quanta[0]) + [5] * int(quanta[5])
    for position in (0, 1, 7, 19_999):
        number = number_of(0, 0, position, attempt=128)
        assert ids.flat[position] == left[number * len(left) >> 64]
    found = np.bincount(ids.ravel(), minlength=7) / 20_000
    assert set(np.flatnonzero(found)) == {0, 5}
    assert abs(found[0] - quanta[0] / len(left)) < 0.01


def test_some_draws_of_a_row_are_left_and_others_not():
    counts = np.array([10**4, 10**4, 100, 50])
    sampler = se.NegativeSampler(counts, 1.0, exclude=se.Bags.from_lists([[0], [0, 1]]))
    keys = np.arange(2000) % 2
    ids = sampler.draw(2000, 3, keys=keys)
    assert set(ids[keys == 1].ravel()) == {2, 3}
    assert set(ids[keys == 0].ravel()) == {1, 2, 3}
    assert abs((ids[keys == 1] == 2).mean() - 2 / 3) < 0.03


def test_a_matrix_excludes_what_bags_do():
    bags = histories()
    ones = np.ones(len(bags.ids))
    matrix = scipy.sparse.csr_array((ones, bags.ids.astype(np.int32), bags.offsets), shape=(50, 200))
    keys = np.arange(50)
    wanted = se.NegativeSampler(np.arange(200), exclude=bags).draw(50, 3, keys=keys)
    for kind in (matrix, scipy.sparse.csr_matrix(matrix), matrix.astype(bool)):
        found = se.NegativeSampler(np.arange(200), exclude=kind).draw(50, 3, keys=keys.tolist())
        np.testing.assert_array_equal(found, wanted)


def test_what_is_excluded_is_copied():
    ids = np.array([1, 2])
    sampler = se.NegativeSampler(np.ones(4), exclude=se.Bags(ids, np.array([0, 2])))
    ids[:] = [0, 3]
    assert set(sampler.draw(100, 1, keys=np.zeros(100, int)).ravel()) == {0, 3}


def test_a_row_without_any_id_left_is_refused_and_takes_no_number():
    sampler = se.NegativeSampler(COUNTS, exclude=se.Bags.from_lists([[1], [0, 2, 3]]))
    with pytest.raises(ValueError, match=r"^keys\[2\] is 1, whose row of exclude holds every id .* row 2; leave out"):
        sampler.draw(4, 2, keys=np.array([0, 0, 1, 1]))
    assert sampler.draws == 0
    assert sampler.draw(2, 2, keys=np.array([0, 0])).shape == (2, 2)


ERRORS = {
    "a string": (lambda: se.NegativeSampler("abc"), TypeError, "counts must be integers or floats, got a str"),
    "None": (lambda: se.NegativeSampler(None), TypeError, "counts must be integers or floats, got None"),
    "bools": (lambda: se.NegativeSampler([True]), TypeError, "counts must be integers or floats, got bool"),
    "a matrix": (lambda: se.NegativeSampler([[1]]), ValueError, r"counts must have shape \(num_ids,\), got \(1, 1\)"),
    "nothing": (lambda: se.NegativeSampler([]), ValueError, "counts must be of at least one id .*, got 0"),
    "below zero": (lambda: se.NegativeSampler([1, -2]), ValueError, r"counts\[1\] is -2, expected a finite number"),
    "nan": (lambda: se.NegativeSampler([np.nan]), ValueError, r"counts\[0\] is nan, expected a finite number"),
    "infinity": (lambda: se.NegativeSampler([1, np.inf]), ValueError, r"counts\[1\] is inf"),
    "zeros": (lambda: se.NegativeSampler([0, 0]), ValueError, "counts must have a number above zero, got 2 zeros"),
    "a power": (lambda: se.NegativeSampler([1], "1"), TypeError, "power must be a number, got str '1'"),
    "a negative power": (lambda: se.NegativeSampler([1], -1), ValueError, "power must be finite and at least 0.0"),
    "an infinite power": (lambda: se.NegativeSampler([1], np.inf), ValueError, "power must be finite"),
    "a seed": (lambda: se.NegativeSampler([1], seed="x"), TypeError, "seed must be None, an integer .*, got str 'x'"),
    "a negative seed": (lambda: se.NegativeSampler([1], seed=-1), ValueError, "seed must be None, an integer"),
    "a list": (lambda: se.NegativeSampler([1], exclude=[[0]]), TypeError, "exclude must be .*, got a list; make one"),
    "another format": (
        lambda: se.NegativeSampler([1], exclude=scipy.sparse.coo_array(np.eye(1))),
        TypeError,
        r"exclude must be a scipy CSR array or sparsembed.Bags, got a coo_array; convert with .tocsr\(\)",
    ),
    "an excluded id": (
        lambda: se.NegativeSampler([1, 1], exclude=se.Bags.from_lists([[0], [1, 2]])),
        IndexError,
        r"exclude has id 2 at position 2, expected 0 <= id < 2 \(len\(counts\)\)",
    ),
    "a negative id": (
        lambda: se.NegativeSampler([1, 1], exclude=se.Bags.from_lists([[-1]])),
        IndexError,
        "exclude has id -1 at position 0",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_what_does_not_fit_is_refused(what):
    make, error, message = ERRORS[what]
    with pytest.raises(error, match=f"^{message}"):
        make()


DRAWS = {
    "a float": ({"n": 1.5, "k": 1}, TypeError, "n must be an integer, got float 1.5"),
    "a bool": ({"n": 1, "k": True}, TypeError, "k must be an integer, got a bool"),
    "below zero": ({"n": -1, "k": 1}, ValueError, "n must be at least 0"),
    "no keys": ({"n": 1, "k": 1}, TypeError, "keys must be given: .*, got None"),
    "float keys": ({"n": 1, "k": 1, "keys": [0.5]}, TypeError, "keys must be integers"),
    "another shape": ({"n": 2, "k": 1, "keys": [0]}, ValueError, r"keys must have shape \(n,\) = \(2,\).*, got \(1,\)"),
    "a matrix": ({"n": 1, "k": 1, "keys": [[0]]}, ValueError, r"keys must have shape \(n,\) = \(1,\)"),
    "a large key": ({"n": 2, "k": 1, "keys": [0, 2]}, IndexError, r"keys\[1\] is 2, expected 0 <= key < 2 \(rows of"),
    "a negative key": ({"n": 1, "k": 1, "keys": [-1]}, IndexError, r"keys\[0\] is -1, expected 0 <= key < 2"),
}


@pytest.mark.parametrize("what", DRAWS)
def test_a_draw_of_what_does_not_fit_takes_no_number(what):
    arguments, error, message = DRAWS[what]
    sampler = se.NegativeSampler(COUNTS, exclude=se.Bags.from_lists([[0], []]))
    with pytest.raises(error, match=f"^{message}"):
        sampler.draw(**arguments)
    assert sampler.draws == 0


def test_keys_without_exclude_are_refused():
    sampler = se.NegativeSampler(COUNTS)
    with pytest.raises(
        ValueError, match=r"^keys must be left out, as the sampler excludes nothing, got a list; make it"
    ):
        sampler.draw(1, 1, keys=[0])
    assert sampler.draws == 0


def test_draws_can_be_set_and_the_seed_cannot():
    sampler = se.NegativeSampler(COUNTS)
    for wrong, error in ((-1, ValueError), ("1", TypeError)):
        with pytest.raises(error, match=r"^draws must be"):
            sampler.draws = wrong
    with pytest.raises(AttributeError):
        sampler.seed = 1


def test_it_says_what_it_is():
    sampler = se.NegativeSampler(COUNTS, 1, seed=3, exclude=histories(num_ids=4))
    assert repr(sampler) == "NegativeSampler(4 ids, power=1, seed=3, draws=0, excluding for 50 keys)"


PROGRAM = """
import sys
import numpy as np
import sparsembed as se

exclude = se.Bags.from_lists([[], [0, 3], [0, 1, 2, 3, 4]])
sampler = se.NegativeSampler([10**9, 3, 2, 1, 5, 1e-3, 0], seed=9, exclude=exclude)
drawn = sampler.draw(60, 5, keys=np.arange(60) % 3)
np.savez(sys.argv[1], sampler._table, drawn, se.NegativeSampler(np.arange(9)).draw(3, 3))
"""


def test_plain_python_draws_the_same(tmp_path):
    found = []
    for name, disabled in (("compiled", "0"), ("plain", "1")):
        path = str(tmp_path / f"{name}.npz")
        environment = os.environ | {"NUMBA_DISABLE_JIT": disabled}
        command = [sys.executable, "-W", "error", "-c", PROGRAM, path]
        subprocess.run(command, check=True, env=environment, timeout=HANGS)
        with np.load(path) as saved:
            found.append([saved[each] for each in saved.files])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)

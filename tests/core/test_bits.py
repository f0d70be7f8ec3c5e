"""The engine computes the same bits as it did when they were recorded, with any number of threads.

``PYTHONPATH=tests/helpers python tests/core/test_bits.py`` records: the sums for this processor, Numba and
NumPy, beside those of others; and, where there are none yet, numbers for machines whose sums nobody has recorded, which
must agree to rounding.  To accept other bits, delete both files in ``tests/data`` first.
"""

import hashlib
import json
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import pytest
from bit_cases import RULES, covering, groups
from general import take_the_general_way
from numba.core import config

import sparsembed as se

DATA = Path(__file__).parents[1] / "data"
SUMS, NUMBERS = DATA / "bits.json", DATA / "bits.npz"
GROUPS = groups()
WAYS = {way: covering(way) for way in ("few ids in one call", "general")}
KEPT = 5  # numbers of an array that are kept for other machines
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


def machine():
    """What the bits may depend on."""
    processor = config.CPU_NAME or llvmlite.binding.get_host_cpu_name()
    return f"{processor} | numba {numba.__version__} | numpy {np.__version__}"


def digest(arrays):
    total = hashlib.sha256()
    for name, array in arrays:
        total.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def results(case):
    """Return the arrays of a case, as they were when it yielded them."""
    return [(name, np.array(array)) for name, array in case()]


def sample(array):
    """Return some numbers of an array, from all over it, and its largest."""
    flat = np.asarray(array).reshape(-1)
    some = flat[[(2 * i + 1) * flat.size // (2 * KEPT) for i in range(KEPT)]] if flat.size else flat
    largest = np.abs(flat).max(keepdims=True, initial=0)
    return np.concatenate([some, largest]).astype(flat.dtype)


def stored():
    """Return {case: its samples, one after the other} by dtype."""
    with np.load(NUMBERS) as file:
        names = json.loads(SUMS.read_text())["cases"]
        found = {name: {} for name in names}
        for kind in ("f4", "f8", "i8"):
            for name, part in zip(names, np.split(file[kind], np.cumsum(file[f"{kind} counts"])[:-1]), strict=True):
                found[name][kind] = part
    return found


def by_kind(arrays):
    """Return the samples of a case by dtype; whole numbers of any width are "i8"."""
    found = {"f4": [], "f8": [], "i8": []}
    for _, array in arrays:
        kind = array.dtype.str[1:] if array.dtype.kind == "f" else "i8"
        found[kind].append(sample(array))
    return {kind: np.concatenate([np.zeros(0, kind), *parts]).astype(kind) for kind, parts in found.items()}


def check_numbers(arrays, wanted, name):
    """Compare with what another machine recorded, to rounding."""
    found = by_kind(arrays)
    np.testing.assert_array_equal(found["i8"], wanted["i8"], err_msg=name)
    for kind in ("f4", "f8"):
        each, want = (values[kind].reshape(-1, KEPT + 1) for values in (found, wanted))
        assert each.shape == want.shape, name
        bound = TOLERANCE[np.dtype(kind)] * np.maximum(np.abs(want), want[:, -1:])  # of an array's largest, too
        far = ~(np.abs(each - want) <= bound)
        assert not far.any(), f"{name}: {each[far]} rather than {want[far]}"


@pytest.fixture
def threads():
    """Set the number of threads; a machine with one processor has no second."""
    before = numba.get_num_threads()
    most = config.NUMBA_NUM_THREADS
    yield lambda number: numba.set_num_threads(min(number, most))
    numba.set_num_threads(before)


@pytest.fixture(scope="module")
def recorded():
    return json.loads(SUMS.read_text()), stored()


@pytest.mark.parametrize(("group", "way"), [(group, way) for group in GROUPS for way in WAYS if group in WAYS[way]])
def test_bits_are_those_that_were_recorded(group, way, recorded, threads, monkeypatch):
    if way == "general":
        take_the_general_way(monkeypatch)
    sums, values = recorded
    wanted = sums["sums"].get(machine())
    for name, case in WAYS[way][group].items():
        threads(1)
        arrays = results(case)
        threads(2)
        found = digest(arrays)
        assert digest(results(case)) == found, f"{name}: another number of threads gives other bits"
        if wanted is None:
            check_numbers(arrays, values[name], name)
        elif found != wanted[name]:
            check_numbers(arrays, values[name], name)
            pytest.fail(f"{name}: the same to rounding, but not the same bits; {__doc__}")


def test_every_case_is_recorded(recorded):
    sums, values = recorded
    names = [name for cases in GROUPS.values() for name in cases]
    assert list(values) == names
    for machine_, found in sums["sums"].items():
        assert sorted(found) == sorted(names), machine_


def test_every_rule_is_trained():
    rules = {getattr(se.rules, name) for name in se.rules.__all__} - {se.rules.Rule}
    assert {rule for rule in rules if any(isinstance(each, rule) for each in RULES.values())} == rules
    assert {type(each) for each in RULES.values()} >= rules


def test_numbers_that_differ_are_found():
    """The comparison for other machines lets rounding pass, and nothing else."""
    array = np.linspace(-1, 1, 50).astype(np.float32).reshape(10, 5)
    wanted = by_kind([("weight", array), ("step", np.array([3]))])
    check_numbers([("weight", array * np.float32(1 + 1e-6)), ("step", np.array([3]))], wanted, "")
    for wrong in (array + np.float32(1e-4), array * np.float32(np.nan), array[:, ::-1]):
        with pytest.raises(AssertionError):
            check_numbers([("weight", wrong), ("step", np.array([3]))], wanted, "")
    with pytest.raises(AssertionError):
        check_numbers([("weight", array), ("step", np.array([4]))], wanted, "")


def record():
    """Write the sums of this machine, and the numbers if there are none."""
    arrays = {name: results(case) for cases in GROUPS.values() for name, case in cases.items()}
    sums = json.loads(SUMS.read_text())["sums"] if SUMS.exists() else {}
    sums[machine()] = {name: digest(found) for name, found in arrays.items()}
    SUMS.write_text(json.dumps({"cases": list(arrays), "sums": sums}, indent=0) + "\n")
    if not NUMBERS.exists():
        kinds = [by_kind(found) for found in arrays.values()]
        parts = {kind: [each[kind] for each in kinds] for kind in ("f4", "f8", "i8")}
        counts = {f"{kind} counts": np.array([len(part) for part in each]) for kind, each in parts.items()}
        np.savez_compressed(NUMBERS, **{kind: np.concatenate(each) for kind, each in parts.items()}, **counts)


if __name__ == "__main__":
    record()

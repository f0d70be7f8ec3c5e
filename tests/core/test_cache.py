"""The disk cache of kernels: used by the next process, never stale, never confused, never fatal."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from patience import HANGS

import sparsembed as se
from sparsembed._cache import rules_in

# A rule as a user writes it, outside the package; {body} is what `step` moves an element by.
RULE = '''
"""Momentum that forgets."""
from dataclasses import dataclass
from typing import NamedTuple
import numpy as np
import sparsembed as se
{imports}

class MineHyper(NamedTuple):
    {fields}

@dataclass(frozen=True)
class Mine(se.rules.Rule):
    """w -= move(g), with the gradients so far in a slot."""
    lr: float = 1.0
    keep: float = 0.5
    Hyper = MineHyper
    slots = ("past",)

    def hyper(self, step):
        return {values}

    @staticmethod
    def step(w, g, s, a, hp):
        past = hp.keep * s[0] + g
        return w - {move}, (past,)

    {more}
'''
PLAIN = {
    "imports": "",
    "fields": "lr: float; keep: float",
    "values": "self.rate(step), self.keep",
    "move": "hp.lr * past",
    "more": "",
}
RUN = """
import sys
import numpy as np, sparsembed as se
from sparsembed.kernels.cpu.update import update_rows

def one(module):
    # The first step of a gradient of 2 moves row 1 by the rule's factor times 2; also: cache misses and hits.
    before = [sum(each.values()) for each in update_rows.stats[1:]]
    t = se.EmbeddingTable.from_array(np.zeros((3, 1)), optimizer=module.Mine())
    t.update([1, 1], np.ones((2, 1)))
    hits, misses = (sum(each.values()) - old for each, old in zip(update_rows.stats[1:], before, strict=True))
    print(-t.weight[1, 0] / 2, misses, hits)
"""
IMPORTER = """
import importlib, sys
import numpy as np, sparsembed as se
from small_kernel import step_element

# The same of a kernel that runs a rule's step on one element, so that it compiles in a tenth of the time.
for name in sys.argv[1:]:
    before = [sum(each.values()) for each in step_element.stats[1:]]
    weight, hp = np.zeros(1), importlib.import_module(name).Mine().scalars(1, np.dtype(np.float64))
    step_element(weight, 2.0, np.zeros(1), hp)
    hits, misses = (sum(each.values()) - old for each, old in zip(step_element.stats[1:], before, strict=True))
    print(-weight[0] / 2, misses, hits)
"""
SMALL_KERNEL = """
from sparsembed._jit import kernel
from sparsembed.rules._dispatch import step

@kernel
def step_element(weight, grad, past, hp):
    weight[0], (past[0],) = step(weight[0], grad, (past[0],), 0.0, hp)
"""
SCRIPT = RUN + "one(sys.modules['__main__'])\n" * 2
PLAN = """
import numpy as np, sparsembed as se
from sparsembed.kernels.cpu.few_steps import sort_few
print(*se.plan(np.array([2, 1, 2]), 3).rows, sum(sort_few.stats.cache_misses.values()))
"""


def start(argv, cache, folder="", **env):
    home = str(Path(se.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [str(folder), home, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, argv)],
        env=os.environ | {"PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(cache)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Wait, and return the lines a process printed, each as a list of numbers."""
    try:
        out, err = process.communicate(timeout=HANGS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        raise
    assert process.returncode == 0, f"exit status {process.returncode}\n{out}\n{err}"
    return [[float(word) for word in line.split()] for line in out.splitlines()]


def python(argv, cache, folder="", **env):
    return finish(start(argv, cache, folder, **env))


@pytest.fixture(scope="module")
def first_four(tmp_path_factory):
    """What 4 processes print that compile at the same time into one empty directory."""
    cache = tmp_path_factory.mktemp("cache")
    together = [start(["-c", PLAN], cache) for _ in range(4)]
    return cache, [finish(process) for process in together]


@pytest.fixture
def cache(first_four):
    return first_four[0]


@pytest.fixture
def folder(tmp_path):
    """A folder for modules of rules, with one of a kernel."""
    (tmp_path / "small_kernel.py").write_text(SMALL_KERNEL)
    return tmp_path


def test_processes_that_compile_together_are_right_and_leave_a_whole_cache(first_four):
    cache, found = first_four
    assert [rows for ((*rows, _),) in found] == [[1, 2]] * 4
    assert python(["-c", PLAN], cache) == [[1, 2, 0]]
    assert not list(cache.rglob("*.tmp.*"))


# What changes -> the parts of the rule, other files (name -> before, after), what a step moves before and after.
HELPER = "from numba import njit\n{}\n@njit\ndef weigh(x):\n    return {} * x\n"
CHANGES = {
    "the_rule_itself": ({}, {"": ("hp.lr * past", "hp.lr * past * 3")}, 1, 3),
    "a_constant": ({"imports": "RATE = 2", "move": "RATE * past"}, {"": ("RATE = 2", "RATE = 3")}, 2, 3),
    "an_inherited_helper": (
        {"imports": "from {0}_helper import weigh", "move": "weigh(past)"},
        {"_helper": (HELPER.format("", 2), HELPER.format("", 3))},
        2,
        3,
    ),
    "a_helper_of_a_module": (
        {"imports": "import {0}_helper as helper", "move": "helper.weigh(past)"},
        {"_helper": (HELPER.format("", 2), HELPER.format("", 3))},
        2,
        3,
    ),
    "a_helper_of_a_helper": (
        {"imports": "from {0}_helper import weigh", "move": "weigh(past)"},
        {
            "_helper": (HELPER.format("from {0}_deep import weigh as deep", "deep(1)"),) * 2,
            "_deep": (HELPER.format("", 2), HELPER.format("", 3)),
        },
        2,
        3,
    ),
    "a_constant_of_a_helper_of_a_module": (
        {"imports": "import {0}_helper as helper", "move": "helper.weigh(past)"},
        {
            "_helper": (HELPER.format("from {0}_deep import RATE", "RATE"),) * 2,
            "_deep": ("RATE = 2", "RATE = 3"),
        },
        2,
        3,
    ),
    "a_closure": (
        {
            "imports": "def make(rate):\n def step(w, g, s, a, hp):\n  return w - rate * g, s\n return step",
            "more": "step = staticmethod(make(2))",
        },
        {"": ("make(2)", "make(3)")},
        2,
        3,
    ),
    "the_order_of_the_hyperparameters": (
        {"fields": "keep: float; lr: float", "values": "0.5, 4.0", "move": "hp.lr * g"},
        {"": ("keep: float; lr: float", "lr: float; keep: float")},
        4,
        0.5,
    ),
    "the_last_digit_of_an_array": (
        {"imports": "RATES = np.array([0.5, 2.0])", "move": "RATES[0] * past"},
        {"": ("[0.5, ", "[0.5000000000001, ")},
        0.5,
        0.5000000000001,
    ),
    "the_middle_of_an_array": (
        {"imports": "RATES = np.ones(3000)\nRATES[1500] = 2", "move": "RATES[1500] * past"},
        {"": ("[1500] = 2", "[1500] = 3")},
        2,
        3,
    ),
}


def test_rules_from_outside_are_cached_and_never_stale(cache, folder):
    """Run all rules three times: from source, from the cache, and after each one changed."""
    names = [f"rule_{name}" for name in CHANGES]

    def write(after):
        for name, (parts, files, *_) in zip(names, CHANGES.values(), strict=True):
            source = RULE.format(**PLAIN | parts).replace("{0}", name)
            for suffix, versions in files.items():
                if suffix:
                    (folder / f"{name}{suffix}.py").write_text(versions[after].replace("{0}", name) + "\n")
                elif after:
                    assert versions[0] in source
                    source = source.replace(*versions)
            (folder / f"{name}.py").write_text(source)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)  # sources of equal size and second

    def run():
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        together = [start(["-c", IMPORTER, *half], cache, folder) for half in halves]
        lines = [line for process in together for line in finish(process)]
        return dict(zip(CHANGES, lines, strict=True))

    write(after=0)
    assert run() == {name: [before, 1, 0] for name, (*_, before, _) in CHANGES.items()}
    assert run() == {name: [before, 0, 1] for name, (*_, before, _) in CHANGES.items()}, "compiled again"
    write(after=1)
    stale = {name: line[0] for name, line in run().items() if line[0] != CHANGES[name][-1]}
    assert stale == {}


def test_two_modules_with_the_same_class_names(cache, folder):
    for number in (1, 2):
        (folder / f"rule{number}.py").write_text(RULE.format(**PLAIN | {"move": f"{number} * hp.lr * g"}))
    for number in (1, 2):
        assert python(["-c", IMPORTER, f"rule{number}"], cache, folder)[0][:2] == [number, 1]
    assert python(["-c", IMPORTER, "rule2", "rule1"], cache, folder) == [[2, 0, 1], [1, 0, 1]]


def test_rules_in_the_main_modules_of_scripts(cache, tmp_path):
    """Scripts do not see each other's rule, and a second run is as fast as one with a module."""
    for number in (1, 2):
        rule = RULE.format(**PLAIN | {"move": f"{number} * hp.lr * g"})
        (tmp_path / f"script{number}.py").write_text(rule + SCRIPT)
    for number in (1, 2, 1, 2):
        found = python([tmp_path / f"script{number}.py"], cache)
        assert [line[0] for line in found] == [number, number]
        assert found[1][1:] == [0, 0], "the second call in a process compiled or loaded again"


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "all_but_a_byte": lambda data: data[:-1],
    "text": lambda data: b"not a kernel\n",
    "another_pickle": lambda data: b"\x80\x04]\x94.",
    "another_class": lambda data: b"cno_such_module\nName\n.",
    "bytes_in_the_front": lambda data: spoil(data, len(data) // 5),
    "bytes_in_the_back": lambda data: spoil(data, len(data) * 4 // 5),
}


def spoil(data, at):
    return data[:at] + bytes(byte ^ 0x55 for byte in data[at : at + 16]) + data[at + 16 :]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_costs_a_compilation(cache, tmp_path, damage):
    shutil.copytree(cache, tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("*sort_few*.nbc")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert python(["-c", PLAN], tmp_path / "cache") == [[1, 2, 1]]
    assert path.stat().st_size > 1000, "the compiled kernel takes the place of the damaged one"


PLACES = {
    "below_a_file": ("", "file/cache"),
    "lost_after_import": (
        "import shutil, sparsembed\nshutil.rmtree({cache!r})\nopen({cache!r}, 'w').close()\n",
        "lost",
    ),
    "none_at_all": (
        "import numba.core.caching as c\nc.CompileResultCacheImpl._locator_classes = []\n",
        "unused",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_costs_a_compilation(tmp_path, place):
    before, name = PLACES[place]
    (tmp_path / "file").write_text("")
    cache = tmp_path / name
    assert python(["-c", before.format(cache=str(cache)) + PLAN], cache)[0][:2] == [1, 2]


def test_rules_are_found_inside_of_tuples():
    """Kernels that read rows which catch up are given the rule's scalars there."""
    hyper = se.Adam().scalars(1, np.dtype("f4"))
    kinds = (numba.typeof(np.zeros(2)), numba.typeof((np.zeros(2), hyper, (1, None))))
    assert [*rules_in(kinds)] == [se.Adam.Hyper]

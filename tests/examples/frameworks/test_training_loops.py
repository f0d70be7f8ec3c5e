"""docs/training-loops.md: its loops give one loss curve in every framework, and what it says is so."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import HANGS

import sparsembed as se
from sparsembed import _frameworks
from sparsembed._cpu import memory, views

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "training-loops.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the docs are not part of an installation")


def sections():
    """Return the code blocks under each heading."""
    pieces = re.split(r"^##+ (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {
        heading: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for heading, text in zip(pieces[1::2], pieces[2::2], strict=True)
    }
    return {heading: blocks for heading, blocks in found.items() if blocks}


SETUP = "The same loop everywhere"
LOOPS = {  # heading -> modules it needs, backend of Keras
    "NumPy": ((), ""),
    "PyTorch": (("torch",), ""),
    "JAX": (("jax",), ""),
    "Keras on PyTorch": (("keras", "torch"), "torch"),
    "Keras on JAX": (("keras", "jax"), "jax"),
    "TensorFlow": (("tensorflow",), ""),
}
OTHERS = {  # heading -> modules it needs
    "More than one lookup": (),
    "Clipping and accumulation": (),
    "Memory": ("jax",),
}


def need(modules):
    for name in modules:
        if not importlib.util.find_spec(name):
            pytest.skip(f"needs {name}")


def python(code, backend=""):
    """Run code in a fresh process; return what it prints."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths} | ({"KERAS_BACKEND": backend} if backend else {})
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_of_the_page_is_run_here():
    assert set(sections()) == {SETUP, *LOOPS, *OTHERS}


@pytest.fixture(scope="module")
def by_hand():
    scope = {}
    exec(sections()[SETUP][0] + sections()["NumPy"][0], scope)
    return scope["losses"]


@pytest.mark.parametrize("heading", LOOPS)
def test_each_loop_gives_the_losses_of_the_one_by_hand(heading, by_hand):
    modules, backend = LOOPS[heading]
    need(modules)
    (setup,), (block,) = sections()[SETUP], sections()[heading]
    printed = python(f"{setup}\n{block}\nprint(*map(float, losses))", backend)
    losses = np.array(printed.split()[-50:], float)
    assert losses[-5:].mean() < 0.7 * losses[:5].mean()
    # Float32 rounding of 50 steps and 16 products, all of one sign, twice as the loss is a square.
    np.testing.assert_allclose(losses, by_hand, rtol=66 * 2.0**-23)


@pytest.mark.parametrize("heading", OTHERS)
def test_other_blocks_run_and_their_assertions_hold(heading):
    need(OTHERS[heading])
    scope = {}
    for block in sections()[SETUP] + sections()[heading]:
        exec(block, scope)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def marked(name):
    """Return the lines between two markers of the page."""
    (text,) = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return text.splitlines()


def test_callbacks_inside_jit_never_update_without_a_differentiated_argument(capsys, tmp_path):
    need(("jax",))
    trap = load(ROOT / "docs" / "examples" / "jax_callback_trap.py")
    trap.main(["--steps", "40", "--rounds", "1", "--out", str(tmp_path)])
    saved = json.loads((tmp_path / "jax_callback_trap.json").read_text())["results"]
    assert capsys.readouterr().out.splitlines() == trap.table(saved)
    for result in saved:
        right, token, nothing = (result["ways"][way] for way in trap.WAYS)
        assert (right["updates"], token["updates"], nothing["updates"]) == (40, 40, 0)
        assert nothing["moved"] == 0 < right["moved"]
        assert token["last_loss"] == pytest.approx(right["last_loss"], rel=1e-4)
        assert right["last_loss"] < nothing["last_loss"] < nothing["first_loss"]
    committed = json.loads((ROOT / "docs" / "results" / "jax_callback_trap.json").read_text())
    assert marked("trap") == trap.table(committed["results"])


def test_a_torch_function_of_integers_has_no_backward_pass():
    torch = pytest.importorskip("torch")
    table, ran = se.EmbeddingTable(5, 2, se.SGD(0.1), rng=0), []

    class Lookup(torch.autograd.Function):
        @staticmethod
        def forward(context, ids, token):
            return table.lookup(ids)

        @staticmethod
        def backward(context, grad):
            ran.append(True)
            return None, None

    weight = torch.ones(2, requires_grad=True)
    for token, times in ((None, 0), (torch.zeros(0, requires_grad=True), 1)):
        (Lookup.apply(torch.tensor([1, 2]), token) @ weight).sum().backward()
        assert len(ran) == times


SHAPES = [(1, 1), (7, 3), (33, 16), (1000, 17)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "dim"), SHAPES)
def test_arrays_that_leave_the_engine_start_on_64_bytes(count, dim, dtype, rng):
    table = se.EmbeddingTable(count, dim, dtype=dtype, rng=0)
    ids, many = rng.integers(0, count, (3, 5)), memory.LARGE // table.weight[:1].nbytes + 1
    gradient = table.gradient(ids, table.lookup(ids))
    made = [table.weight, gradient.scale(2.0).values, (gradient + gradient).values]
    made += [table.lookup(np.zeros(many, np.int64)), table.pool(se.Bags.from_lists([[0]] * many))]
    assert [array.ctypes.data % 64 for array in made] == [0] * len(made)


@pytest.mark.parametrize(("count", "dim"), SHAPES)
def test_jax_adopts_rows_without_a_copy(count, dim, rng, monkeypatch):
    jax = pytest.importorskip("jax")
    table = se.EmbeddingTable(count, dim, se.SGD(0.1), rng=0)
    ids = rng.integers(0, count, (3, 5)).astype(np.int32)
    rows = table.lookup(ids)
    assert jax.dlpack.from_dlpack(table.weight).unsafe_buffer_pointer() == table.weight.ctypes.data
    made, empty = [], memory.empty

    def note(*args):
        made.append(empty(*args))
        return made[-1]

    monkeypatch.setattr(memory, "empty", note)
    found = table.lookup(jax.numpy.asarray(ids))
    assert isinstance(found, jax.Array)
    assert found.unsafe_buffer_pointer() in [array.ctypes.data for array in made]
    np.testing.assert_array_equal(found, rows)


def test_arrays_of_jax_are_read_where_they_lie(rng):
    jax = pytest.importorskip("jax")
    grad = jax.numpy.asarray(rng.standard_normal((6, 5)), jax.numpy.float32)
    view = _frameworks.as_array(grad, "grad_out")
    assert view.ctypes.data == grad.unsafe_buffer_pointer()
    assert views.read_only(view).ctypes.data == grad.unsafe_buffer_pointer()
    table = se.EmbeddingTable.from_array(grad)  # to be read only
    assert table.weight.ctypes.data == grad.unsafe_buffer_pointer()


def test_dense_gradients_are_clipped_where_they_lie(rng):
    torch = pytest.importorskip("torch")
    weight = torch.ones(4, requires_grad=True)
    (3 * weight).sum().backward()
    gradient = se.coalesce(np.array([1, 1]), np.ones((2, 4), np.float32), 3)
    assert se.clip_by_global_norm([gradient], 1.0, dense=[weight.grad]) == pytest.approx((16 + 36) ** 0.5)
    np.testing.assert_allclose(weight.grad, np.full(4, 3 / 52**0.5), rtol=1e-6)


def test_gradients_of_jax_need_a_copy_to_be_clipped():
    jax = pytest.importorskip("jax")
    grad = jax.numpy.full(4, 3.0)
    with pytest.raises(ValueError, match=r"dense\[0\] is read-only"):
        se.clip_by_global_norm([], 1.0, dense=[grad])
    copies = [np.array(grad)]
    assert se.clip_by_global_norm([], 1.0, dense=copies) == pytest.approx(6)
    np.testing.assert_allclose(copies[0], np.full(4, 0.5), rtol=1e-6)

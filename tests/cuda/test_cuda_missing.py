"""Without numba-cuda, or without a GPU, a device array or device="cuda" says what is missing."""

import contextlib
import importlib.util
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core import config
from patience import HANGS

import sparsembed as se
from sparsembed._engine import on_device

if config.ENABLE_CUDASIM:
    pytest.skip("a simulator is no GPU", allow_module_level=True)

BLOCKED = """
import sys
import numpy as np

class Blocked:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in ("numba_cuda", "cuda"):
            raise ModuleNotFoundError(name)

class Held:
    __cuda_array_interface__ = {"shape": (2, 2), "typestr": "<f4", "data": (4096, False), "version": 3}

import sparsembed as se
from sparsembed._engine import on_device
import importlib.util
import inspect
importlib.util.find_spec = lambda name, package=None: None if name in ("numba_cuda", "cuda") else 1 / 0
for call in (lambda: se.gather(Held(), Held()), lambda: se.EmbeddingTable(3, 2, device="cuda"),
             lambda: se.EmbeddingTable.from_array(Held()), lambda: se.Bags(Held(), Held()), lambda: se.plan(Held(), 3)):
    try:
        call()
    except ImportError as error:
        print(error)
print([name for name in ("numba.cuda", "cuda", "sparsembed._cuda") if name in sys.modules])
"""


def test_without_numba_cuda_the_message_names_the_extra():
    paths = os.pathsep.join(filter(None, [str(Path(se.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "error", "-c", BLOCKED]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    *messages, loaded = done.stdout.splitlines()
    assert len(messages) == 5
    assert all("pip install 'sparsembed[cuda]'" in each for each in messages)
    assert loaded == "[]"


def test_without_a_gpu_the_message_says_so():
    if not (importlib.util.find_spec("numba_cuda") and importlib.util.find_spec("cuda")):
        pytest.skip("numba-cuda is not installed")

    from sparsembed._cuda import queues

    with contextlib.suppress(RuntimeError):
        queues.open_queue(0, 0)
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="no NVIDIA GPU 0 can be used"):
        se.EmbeddingTable(3, 2, se.SGD(0.1), device="cuda")


def test_a_table_elsewhere_is_refused():
    with pytest.raises(ValueError, match="device must be"):
        se.EmbeddingTable(3, 2, device="tpu")
    assert np.asarray(se.EmbeddingTable(3, 2, device="cpu").weight).shape == (3, 2)


def test_subclasses_have_arguments_of_their_own():
    """The choice of a form by the device is EmbeddingTable's and Bags' own."""

    class Mine(se.EmbeddingTable):
        def __init__(self, n, device, *, extra=None):
            super().__init__(n, 2)
            self.device, self.extra = device, extra

    class Named(se.Bags):
        def __init__(self, ids, offsets, name):
            super().__init__(ids, offsets)
            assert name == "x"

    for made in (Mine(3, "x", extra=1), Mine(3, device="x", extra=1)):
        assert (made.device, made.extra, made.num_rows) == ("x", 1, 3)
    for bags in (Named([1], [0, 1], "x"), Named([1], [0, 1], name="x")):
        assert len(bags) == 1
    assert list(inspect.signature(Mine).parameters) == ["n", "device", "extra"]
    assert list(inspect.signature(Named).parameters) == ["ids", "offsets", "name"]
    assert list(inspect.signature(se.Bags).parameters) == ["ids", "offsets", "per_sample_weights", "mode"]
    assert list(inspect.signature(se.EmbeddingTable).parameters)[:3] == ["num_rows", "dim", "optimizer"]
    assert "device" in inspect.signature(type("Plain", (se.EmbeddingTable,), {})).parameters
    again = pickle.loads(pickle.dumps(se.EmbeddingTable(3, 2, se.Adam(), rng=0)))
    assert type(again) is se.EmbeddingTable


def test_what_lies_in_host_memory_is_known_without_asking_it():
    class Costly:
        def __getattr__(self, name):
            raise AssertionError(f"asked for {name}")

    assert not on_device(np.zeros(3), 1, 2.0, None, "cpu", np.float32(1))
    with pytest.raises(AssertionError, match="asked for"):
        on_device(Costly())


def test_tensors_and_jax_arrays_of_the_host_are_known():
    torch = pytest.importorskip("torch")
    assert not on_device(torch.zeros(3), [torch.zeros(3)], [[1, 2], [3]])
    jax = pytest.importorskip("jax")
    assert not on_device(jax.numpy.zeros(3))
    jax.jit(lambda x: pytest.fail("a tracer is nowhere") if on_device(x) else x)(jax.numpy.zeros(3))

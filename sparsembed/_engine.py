"""Engines: the functions of every engine, and the choice of the engine for some arrays.

An engine is a module, `_cpu.engine` or `_cuda.engine`, with the functions of `Engine`.  Operations are written once
for both engines, in the modules above this one.  The modules below do not import tables, plans, bags or gradients.
CUDA modules are imported only for a device array or ``device="cuda"``.
"""

import importlib
import importlib.util
import re
from collections.abc import Mapping
from typing import Any, Protocol

from numba.core import config

from ._cpu import engine as _cpu
from ._frameworks import HOST, NUMPY, Framework, framework_of
from ._options import Options
from .rules import Rule

__all__ = ["CPU", "Engine", "cuda", "device_name", "engine_for", "engine_of", "on_device"]


class Engine(Protocol):
    """The functions of an engine.

    Arguments: a *table* (`Table`) describes a checked weight; a *call* holds the data of one call; *missed* holds the
    missed steps and scratch space to apply them (None if no row has missed one).  Arrays of an engine are NumPy arrays
    on the CPU and device arrays on a GPU.  Functions that check raise errors that name the argument; functions that
    start kernels expect checked arguments.  Ids out of range raise at once on the CPU; a GPU records them, and that
    call writes nothing.
    """

    # Facts.
    name: str
    on_host: str  # words that messages add to functions that only the CPU engine has
    locks_free: bool  # whether lookups of rows that miss no steps need no lock
    sums_max_apart: bool  # whether gradients of several max-pooled lookups are summed lookup by lookup
    checks_plans: bool  # whether the ids of a plan have been checked
    rows_catch_up_alone: bool  # whether `taken` rows have missed the steps that they had missed
    checks_while_reading: bool  # whether `gather` and `pool` check ids, so that a new result needs no check before
    Place: Any  # NamedTuple of where bags lie: ids, offsets, weights, caller

    # Input arrays: checked, and viewed without a copy where that is possible.
    def weight(self, value: Any, name: str = "weight", writeable: bool = False) -> Any:
        """Return the `Table` of a (num_rows, dim) array; `writeable`: it must allow updates in place."""

    def check_writeable(self, table: Any) -> None:
        """Refuse a table whose weight has become read-only."""

    def check_trainable(self, table: Any) -> None:
        """Refuse a table whose weight cannot be updated in place."""

    def hands_out_copies(self, value: Any) -> bool:
        """Whether a given array would not see what is written to the array that was made of it."""

    def ids(self, value: Any, name: str = "ids") -> Any:
        """Return flat int32 or int64 ids, and their shape; the range is not checked."""

    def offsets(self, value: Any, n: int) -> Any:
        """Return the offsets of bags of n ids."""

    def sample_weights(self, value: Any, dtype: Any = None, name: str = "per_sample_weights") -> Any:
        """Return per-sample weights, in `dtype` if it is not None."""

    def gradient(self, value: Any, leading: Any, dim: int | None, dtype: Any, name: str = "grad_out") -> Any:
        """Return a gradient of shape ``leading + (dim,)`` as (n, dim)."""

    def caller_of(self, **arrays: Any) -> Any:
        """Return the framework of the arrays, for results that are made later."""

    # Calls, and their results.
    def begin(
        self, contents: Any = None, rows: Any = None, places: Any = (), like: Framework = NUMPY, **arrays: Any
    ) -> Any:
        """Return a new call, given the caller's arrays, a table's contents, the rows of a plan and the places of bags.

        Results are arrays of the framework of the first array that has a framework; otherwise of `like`.
        """

    def end(self, call: Any) -> None:
        """End a call, also after an exception."""

    def result(self, call: Any, out: Any, shape: Any, dtype: Any, **sources: Any) -> Any:
        """Return the array to write to, and the object to return: `out`, which must not overlap `sources`, or new."""

    def finish(self, call: Any, given: Any, out: Any = None) -> Any:
        """Return a result as an array of the caller's framework."""

    def place_name(self, where: Any) -> Any:
        """Return the words of a repr that say where arrays lie."""

    def synchronize(self, contents: Any) -> None:
        """Wait for a GPU, and raise for ids that were out of range."""

    # Sorting, and the range of ids.
    def sort(
        self, lookups: Any, names: Any, num_rows: int, *, given: Any = (), kept: bool = False, bag_offsets: Any = None
    ) -> Any:
        """Return the `Sorted` rows of several lookups; `kept`: for a plan, whose buffers are not reused."""

    def check_ids(self, call: Any, flat: Any, num_rows: int, names: Any, shapes: Any) -> Any:
        """Check the range of ids."""

    def check_bags(self, call: Any, place: Any, num_rows: int) -> Any:
        """Check the range of the ids of bags, and on a GPU their offsets."""

    def fits(self, rows: Any, num_rows: int) -> None:
        """Refuse the rows of a plan that a table of `num_rows` rows does not have."""

    def part(self, rows: Any, name: str) -> Any:
        """Return `rows`, `order` or `offsets` of a plan for the caller."""

    def shown(self, rows: Any) -> Any:
        """Return the words of a plan's repr about its rows."""

    # Reading.
    def gather_few(self, weight: Any, ids: Any, table: Any = None, out: Any = None) -> Any:
        """Return the rows of a small batch of the caller's arrays, or None: then checks and `gather` have to do it.

        Raises nothing; an id out of range gives None, too.  Lookups of rows that miss no steps try this first.
        """

    def pool_few(self, weight: Any, place: Any, mode: int, padding: int, table: Any = None) -> Any:
        """Return the pooled rows of a small batch, or None, as `gather_few`; it may raise IndexError."""

    def gather(self, call: Any, table: Any, flat: Any, out: Any, missed: Any = None) -> Any:
        """``out[i] = weight[flat[i]]``; returns whether ids were out of range, on the CPU."""

    def pool(self, call: Any, table: Any, place: Any, mode: int, padding: int, out: Any, missed: Any = None) -> Any:
        """Pool the rows of each bag into `out`; returns the winner of each element in mode max."""

    def weights_gradient(self, call: Any, table: Any, place: Any, mode: int, padding: int, grad: Any, out: Any) -> None:
        """Write the gradient of the per-sample weights to out (n,)."""

    def even_offsets(self, ids: Any, n: int, k: int) -> Any:
        """Return the offsets of n bags of k ids each, on the device of the caller's `ids`."""

    def dot_few(self, table: Any, place: Any, x: Any, padding: int, given: Any = None) -> Any:
        """Return the scores of a small batch, or None, as `gather_few`; `given` is the caller's weight."""

    def dot(self, call: Any, table: Any, place: Any, x: Any, padding: int, out: Any, missed: Any = None) -> None:
        """``out[p] = weight[ids[p]] @ x[bag of p]``, 0 for padding; out (n,)."""

    def dot_loss(
        self,
        call: Any,
        table: Any,
        place: Any,
        x: Any,
        padding: int,
        loss: Any,
        labels: Any,
        shares: Any,
        scores: Any,
        grad_x: Any,
        missed: Any = None,
    ) -> Any:
        """Write the gradients of the scores (n,) and of x (num_bags, dim); return the loss."""

    # Gradients, and their rows.
    def of_lookups(self, call: Any, rows: Any, parts: Any, names: Any, table: Any, by_count: bool) -> Any:
        """Return the `Gradients` of lookups; a gradient that shares memory with the table is copied."""

    def of_bags(
        self, call: Any, pooled: Any, num_rows: int, padding: int, table: Any, by_count: bool, missed: Any = None
    ) -> Any:
        """Return `Sorted` rows and `Gradients` of pooled lookups; mode max compares rows of the table."""

    def of_gradient(self, contents: Any, gradient: Any) -> Any:
        """Return (call, rows, gradients, row to skip) of a `RowGradient`."""

    def allow_check(self) -> None:
        """Refuse ``check_finite=True`` if the check would have to wait for the GPU."""

    def refuse_infinite(self, grads: Any, name: str) -> None:
        """Refuse NaN and infinity in gradients."""

    def segment_sum(self, call: Any, rows: Any, grads: Any, padding: int = -1) -> Any:
        """Return rows and the sum of each row's gradients, without the padding row."""

    def add_rows(self, call: Any, table: Any, rows: Any, grads: Any, like: Any) -> None:
        """Run a rule without state on every row of a weight; `like` are its hyperparameters."""

    def update(
        self,
        call: Any,
        contents: Any,
        rows: Any,
        grads: Any,
        skip: int,
        like: Any,
        missed: Any,
        recording: bool = False,
    ) -> None:
        """Run the rule on every row except `skip` and count the step; an interrupt cannot separate the two."""

    # Calls with few ids, in one compiled call: they return None or False, with nothing written, for what they do not
    # take and for what they refuse; the functions above then raise the error.
    def lookup_few(self, contents: Any, ids: Any) -> Any:
        """Return the rows of a table, which may have missed steps, or None."""

    def update_few(self, contents: Any, ids: Any, grad_out: Any) -> bool:
        """Take a step from lookups; return whether it was taken."""

    def update_bags_few(self, contents: Any, bags: Any, grad_out: Any, mode: Any) -> bool:
        """Take a step from a pooled lookup; return whether it was taken."""

    def add_few(self, weight: Any, ids: Any, values: Any, alpha: float) -> bool:
        """Add rows to a weight; return whether it was done."""

    def sum_few(
        self, ids: Any, grad_out: Any, num_rows: int, dim: int | None, dtype: Any, padding: int, by_count: bool
    ) -> Any:
        """Return rows without the padding row, and the sum of each row's gradients."""

    # Tables.
    def place(self, device: str) -> Any:
        """Return the place of a new table on a device."""

    def place_saved(self, contents: Any) -> Any:
        """Return the items of a pickle that say where the table lies."""

    def fresh(self, where: Any, weight: Any, owned: bool) -> Any:
        """Return initial weights in the memory of a place; `owned`: no other object uses them, so no copy is needed."""

    def hold(self, where: Any, weight: Any, rule: Rule | None, options: Options) -> Any:
        """Return the parts of `Contents` of a weight at step 0."""

    def adopt(self, weight: Any, rule: Rule | None, options: Options, copy: bool) -> Any:
        """Return the parts of `Contents` of the caller's array."""

    def with_arrays(self, contents: Any, arrays: Mapping[str, Any]) -> Any:
        """Return parts of `Contents` that hold the given arrays, named "state", "row_state" or "last"."""

    def grown(self, contents: Any, rows: Any) -> Any:
        """Return the parts of the table with these rows appended."""

    def taken(self, contents: Any, rows: Any, options: Options) -> Any:
        """Return the parts of a table of these rows, with their state; a GPU lets every row catch up first."""

    def reset(self, contents: Any, rows: Any, weights: Any, state: Any = None, keep: bool = False) -> None:
        """Give rows new weights, and fresh state unless `keep`; on the CPU `state` then replaces their slots."""

    def clear(self, contents: Any) -> None:
        """Set state and step to zero; every row has caught up."""

    def own_ids(self, contents: Any, ids: Any) -> Any:
        """Return ids of the host as an array that lookups take."""

    def reading(self, contents: Any, call: Any) -> Any:
        """Return a context manager for a lookup, which is used within the lock."""

    def ready(self, contents: Any) -> None:
        """Let the caller's stream wait for what has been given to the table."""

    def missed(self, contents: Any, writing: bool = False) -> Any:
        """Return the missed steps up to the newest step, or None if the rows of this table never miss one.

        An engine may return None for readers if no row has missed a step; not if `writing`.
        """

    def flush(self, contents: Any) -> None:
        """Apply the missed steps to every row; a new history starts."""

    def columns(self, contents: Any) -> Any:
        """Return views of the state by name."""

    def saved(self, contents: Any) -> Any:
        """Return copies of weight, step and state as NumPy arrays."""

    def restore(self, contents: Any, state_dict: Mapping[str, Any]) -> None:
        """Restore a dict that `saved` returned; refuse one that does not fit."""

    def begin_step(self, contents: Any) -> None:
        """Count a step separately from its updates, for a CUDA graph."""

    def recording(self, contents: Any) -> Any:
        """Return a context manager in which a CUDA graph records updates; steps of other threads wait."""


CPU: Any = _cpu
_DEVICES = re.compile(r"cpu|cuda(:\d+)?")


def device_name(value: Any) -> str:
    """Check the device name of a table, and return it."""
    if not isinstance(value, str) or not _DEVICES.fullmatch(value):
        raise ValueError(f"device must be 'cpu', 'cuda', or a numbered GPU such as 'cuda:1', got {value!r}")
    return value


def on_device(*values: Any) -> bool:
    """Whether any of the values is in device memory."""
    # A loop, since every call comes here and a generator takes twice the time.
    for value in values:  # noqa: SIM110
        if type(value) not in HOST and framework_of(value).is_on_gpu(value):
            return True
    return False


def engine_of(*values: Any) -> Any:
    """Return the engine for some arrays: the CUDA engine if any array is in device memory."""
    return cuda("engine") if on_device(*values) else CPU


def engine_for(device: str) -> Any:
    """Return the engine of a device by name."""
    return CPU if device == "cpu" else cuda("engine")


def cuda(module: str) -> Any:
    """Import a module of the CUDA engine and return it; otherwise raise an error that says what is missing."""
    if not config.ENABLE_CUDASIM:
        missing = [name for name in ("numba_cuda", "cuda") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"arrays on a GPU need numba-cuda and cuda-core, and {' and '.join(missing)} cannot be imported; "
                "pip install 'sparsembed[cuda]', or 'sparsembed[cuda12]' for a driver of CUDA 12"
            )
    return importlib.import_module(f"sparsembed._cuda.{module}")

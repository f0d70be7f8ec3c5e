"""DeviceTable: an EmbeddingTable whose weights and state lie on a GPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import _validate as check
from .._backward import as_lists
from ..bags import Bags
from ..gradient import RowGradient
from ..plan import is_several, original
from ..rules import Rule
from . import functional, inputs, launch, pooling, reading
from .array import DeviceArray
from .functional import as_plan, lookup_gradients, sessions
from .storage import DeviceStorage
from .values import DevicePlan, DeviceRowGradient
from .views import ADVICE, hand_over, make


class DeviceTable(DeviceStorage):
    """What ``EmbeddingTable(..., device="cuda")`` and ``from_array`` of a device array make."""

    def lookup(self, ids: Any) -> Any:
        """Copy the rows of a batch of ids on the GPU."""
        ids = original(ids)
        if is_several(ids):
            return [self.lookup(each) for each in ids]
        session = inputs.opened(None, self._given, ids=ids)
        with self._lock:
            late = None
            if self._history is not None:
                self._late.sync(self._home, self._synced(self._history))
                late = self._read_late
            with self._running(session):
                return functional.lookup(session, self._weight, ids, late=late)

    def _read_late(self, session: inputs.Session, flat: DeviceArray, rows: DeviceArray) -> None:
        """Read rows as they are after the newest step."""
        queue, dtype = session.queue, self._weight.dtype
        assert self._history is not None
        like = self._current(self._history)
        hyper = queue.upload(np.array(like, dtype))
        where = (self._optimizer, self._weight, self._state, self._last)
        self._late.gather(queue, *where, flat, rows, hyper, like, session.status)

    def pool(self, bags: Bags, mode: str = "sum") -> Any:
        """Pool the rows of each bag on the GPU."""
        number, where = pooling.bags_of(bags, mode, functional.result_dtype(self._weight))
        session = pooling.opened_for(bags, self._given)
        padding = check.padding(self.padding_idx, self.num_rows)
        inputs.bags_in_range(session, [where], where.ids, self.num_rows, ["bags.ids"])
        dtype, queue = functional.result_dtype(self._weight), session.queue
        result, given = make(queue, session.caller, (where.num_bags, self.dim), dtype)
        with self._rows_of(session, where) as (source, gathered):
            if mode == "max":
                reading.pool_max(queue, source, where, padding, result, session.status, gathered)
            else:
                reading.pool(queue, source, where, number, padding, result, session.status, gathered)
        return hand_over(given, session.caller)

    @contextlib.contextmanager
    def _rows_of(self, session: inputs.Session, bags: reading.Bags) -> Iterator[tuple[DeviceArray, bool]]:
        """The table, or if rows may have missed steps a row for each id of bags; and whether it is the latter."""
        with self._lock:
            gathered = self._history is not None
            if self._history is not None:
                self._late.sync(self._home, self._synced(self._history))
            with self._running(session):
                source = self._weight
                if gathered:
                    source = session.queue.empty((len(bags.ids), self.dim), self._weight.dtype)
                    self._read_late(session, bags.ids, source)
                yield source, gathered

    def update(self, ids: Any, grad_out: Any, *, check_finite: bool = False) -> None:
        """Take one optimizer step on the rows of a batch, in place, on the GPU."""
        rule = self._ready(check_finite)
        plan = as_plan(ids, self.num_rows)
        session = sessions(plan, self._given, grad_out=grad_out)
        by_count, dtype = self.scale_grad_by_freq, self._weight.dtype
        grads = lookup_gradients(session, plan, grad_out, self.dim, dtype, "grad_out", by_count, self._weight)
        self._step(rule, session, plan, plan.batch, grads)

    def update_pooled(self, bags: Any, grad_out: Any, mode: str = "sum", *, check_finite: bool = False) -> None:
        """Take one optimizer step from the gradient of a pooled lookup, in place, on the GPU."""
        rule = self._ready(check_finite)
        parts, grads = as_lists(bags, grad_out)
        padding = check.padding(self.padding_idx, self.num_rows)
        where = (self.num_rows, padding, self._weight, self._weight.dtype, self.scale_grad_by_freq, self._rows_of)
        session, plan, gradients = pooling.pooled_gradients(parts, grads, mode, *where, table=self._given)
        self._step(rule, session, plan, plan.batch, gradients)

    def begin_step(self) -> None:
        """Count a step, and put its scalars where the updates that `recording` records read them."""
        rule, dtype = self._ready(False), self._weight.dtype
        with self._at_home() as home:
            like = rule.cast(rule.hyper(self.step + 1), self.step + 1, dtype)
            home.write(self._hyper, np.array(like, dtype))
            self._steps[0] += 1
            self._begun = (rule, self.step)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Within it, `update` and `update_pooled` are part of a step that `begin_step` began, as in a CUDA graph.

        They read the learning rate, and whatever else depends on the step, from the device: a graph that was
        captured here is launched again after each `begin_step`.  Not for optimizers that equal dense ones, which
        the host has to follow.  Other threads wait.
        """
        if self._history is not None:
            raise ValueError(f"{self._optimizer} keeps a history on the host, which a graph cannot read")
        if self._begun != (self._optimizer, self.step):
            raise ValueError("recording() is for a step that has begun; call begin_step() first")
        with self._lock:
            before, self._recording = self._recording, True
            try:
                yield
            finally:
                self._recording = before

    def gradient(self, ids: Any, grad_out: Any) -> Any:
        """Return the coalesced gradient of a batch as a value."""
        plan, padding = as_plan(ids, self.num_rows), check.padding(self.padding_idx, self.num_rows)
        session = sessions(plan, self._given, grad_out=grad_out)
        where = (self.dim, functional.result_dtype(self._weight), "grad_out", self.scale_grad_by_freq)
        grads = lookup_gradients(session, plan, grad_out, *where)
        return functional.row_gradient(session, plan, grads, self.num_rows, padding)

    def apply(self, gradient: Any, *, check_finite: bool = False) -> None:
        """Take one optimizer step with a gradient of the GPU, or with a `RowGradient`, which is copied there."""
        rule = self._ready(check_finite)
        if not isinstance(gradient, DeviceRowGradient | RowGradient):
            raise TypeError(f"gradient must be a gradient, got {type(gradient).__name__}; use update(ids, grad_out)")
        if (got := (gradient.num_rows, gradient.dim)) != self._weight.shape:
            raise ValueError(f"gradient must be of a table of shape {self._weight.shape}, got {got}")
        padding = check.padding(self.padding_idx, self.num_rows)
        if isinstance(gradient, DeviceRowGradient) and padding >= 0 and gradient.padding not in (-1, padding):
            gradient = gradient.to_host()  # kernels leave out one row, not two
        if isinstance(gradient, RowGradient):
            values = gradient._values.astype(self._weight.dtype, copy=False)
            rows, values = map(self._home.upload, (gradient._rows, values))
            gradient = functional.coalesce(rows, values, self.num_rows)
        if (kind := gradient.sums.dtype) != self._weight.dtype:
            raise TypeError(f"gradient must be {self._weight.dtype}, got {kind}; pass its to_host() to convert it")
        plan, caller = gradient.plan, inputs.here(gradient.session.caller)
        if caller.device != self._caller.device:
            raise TypeError(f"gradient is on cuda:{caller.device}, the table on cuda:{self._caller.device}; {ADVICE}")
        session = inputs.Session(caller, inputs.queue_of(caller), plan.status)
        with gradient.lent(session.queue):
            batch = launch.one_each(session.queue, plan.batch)
            self._step(rule, session, plan, batch, launch.Gradients(gradient.sums), max(padding, gradient.padding))

    def _ready(self, check_finite: Any) -> Rule:
        if self._optimizer is None:
            raise ValueError("the table has no optimizer, so it cannot be updated; pass optimizer= when making it")
        if check.flag(check_finite, "check_finite"):
            raise ValueError(
                "check_finite=True would wait for the GPU; look for NaN before, where the gradient is made"
            )
        return self._optimizer

    def _step(
        self,
        rule: Rule,
        session: inputs.Session,
        plan: DevicePlan,
        batch: launch.Plan,
        grads: launch.Gradients,
        skip: int | None = None,
    ) -> None:
        """Step: nothing was written before, and nothing is refused after, the kernels start."""
        queue, dtype = session.queue, self._weight.dtype
        if skip is None:
            skip = check.padding(self.padding_idx, self.num_rows)
        with self._lock:
            exact = rule.hyper(self.step + 1)
            like = rule.cast(exact, self.step + 1, dtype)
            lag = None
            if self._history is not None:
                self._before_step(exact)
                self._late.sync(self._home, self._history)
            with self._running(session), inputs.lent(queue, plan.queue):
                if not self._recording:
                    queue.write(self._hyper, np.array(like, dtype))
                if self._history is not None:
                    found = (self._hyper, like, session.status, batch.rows, batch.found)
                    lag = self._late.find(queue, rule, self._last, batch.n, *found)
                table = launch.Table(self._weight, self._state, self._row_state)
                launch.update_rows(queue, table, batch, grads, skip, self._hyper, like, session.status, lag)
                if self._limit is not None:
                    launch.clip_rows(queue, self._weight, self._limit, session.status, batch, skip)
            if not self._recording:
                self._steps[0] += 1

"""DeviceTable: an EmbeddingTable whose weights and state lie on a GPU."""

from collections.abc import Callable
from contextlib import AbstractContextManager
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
from .together import Together
from .values import DevicePlan, DeviceRowGradient
from .views import ADVICE, hand_over, make

_ONE_STEP = np.array([1, 0, 0])


class DeviceTable(DeviceStorage):
    """What ``EmbeddingTable(..., device="cuda")`` and ``from_array`` of a device array make."""

    def lookup(self, ids: Any) -> Any:
        """Copy the rows of a batch of ids on the GPU."""
        ids = original(ids)
        if is_several(ids):
            return [self.lookup(each) for each in ids]
        flat = inputs.ids(ids)
        with inputs.opened(None, self._given, ids=ids) as session, self._lock:
            late = None
            if self._history is not None:
                self._late.sync(self._home, self._synced(self._history))
                late = self._read_late
            with self._running(session):
                return functional.lookup(session, self._weight, *flat, late=late)

    def __getitem__(self, ids: Any) -> Any:
        return self.lookup(ids)

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
        padding, dtype = check.padding(self.padding_idx, self.num_rows), functional.result_dtype(self._weight)
        with pooling.opened_for(bags, self._given) as session:
            inputs.bags_in_range(session, [where], where.ids, self.num_rows, ["bags.ids"])
            queue, status = session.queue, session.status
            result, given = make(queue, session.caller, (where.num_bags, self.dim), dtype)

            def read(rows: DeviceArray, gathered: bool) -> None:
                if mode == "max":
                    reading.pool_max(queue, rows, where, padding, result, status, gathered)
                else:
                    reading.pool(queue, rows, where, number, padding, result, status, gathered)

            self._with_rows(session, where, read)
            return hand_over(given, session.caller)

    def _with_rows(self, session: inputs.Session, bags: reading.Bags, work: Callable[[DeviceArray, bool], Any]) -> Any:
        """Call ``work(rows, gathered)``: with the table, or if rows may have missed steps a row for each id of bags."""
        with self._lock:
            gathered = self._history is not None
            if self._history is not None:
                self._late.sync(self._home, self._synced(self._history))
            with self._running(session):
                source = self._weight
                if gathered:
                    source = session.queue.empty((len(bags.ids), self.dim), self._weight.dtype)
                    self._read_late(session, bags.ids, source)
                return work(source, gathered)

    def update(self, ids: Any, grad_out: Any, *, check_finite: bool = False) -> None:
        """Take one optimizer step on the rows of a batch, in place, on the GPU."""
        rule = self._ready(check_finite)
        plan = as_plan(ids, self.num_rows)
        parts = lookup_gradients(plan, grad_out, self.dim, self._weight.dtype, "grad_out")
        with sessions(plan, self._given, grad_out=grad_out) as session:
            grads = parts.joined(session.queue, self.scale_grad_by_freq, self._weight)
            self._step(rule, session, plan, plan.batch, grads)

    def update_pooled(self, bags: Any, grad_out: Any, mode: str = "sum", *, check_finite: bool = False) -> None:
        """Take one optimizer step from the gradient of a pooled lookup, in place, on the GPU."""
        rule = self._ready(check_finite)
        parts, grads = as_lists(bags, grad_out)
        padding = check.padding(self.padding_idx, self.num_rows)
        lookups = pooling.checked(parts, grads, mode, self._weight, self._weight.dtype)
        where = (self.num_rows, padding, self._weight, self.scale_grad_by_freq, self._with_rows)
        with lookups.opened(self._given) as session:
            plan, gradients = pooling.pooled_gradients(session, lookups, *where)
            self._step(rule, session, plan, plan.batch, gradients)

    def begin_step(self) -> None:
        """Count a step, and put its scalars where the updates that `recording` records read them."""
        rule, dtype = self._ready(False), self._weight.dtype
        with self._gate, self._lock, self._at_home() as home:
            step = self.step + 1
            home.write(self._hyper, np.array(rule.cast(rule.hyper(step), step, dtype), dtype))
            begun = (rule, step)
            self._steps[0] = step
            self._begun = begun

    def recording(self) -> AbstractContextManager[Any]:
        """Within it, `update` and `update_pooled` are part of a step that `begin_step` began, as in a CUDA graph.

        They read the learning rate, and whatever else depends on the step, from the device: a graph that was
        captured here is launched again after each `begin_step`.  Not for optimizers that equal dense ones, which
        the host has to follow.  Steps of other threads wait.
        """
        if self._history is not None:
            raise ValueError(f"{self._optimizer} keeps a history on the host, which a graph cannot read")
        self._has_begun(self._optimizer)
        return self._gate  # type: ignore[no-any-return]

    def _has_begun(self, rule: Any) -> None:
        if self._begun != (rule, self.step):
            raise ValueError("recording() is for a step that has begun; call begin_step() first")

    @property
    def _recording(self) -> bool:
        """Whether this thread is within `recording`: it holds the lock that `recording` lends."""
        return bool(self._gate._is_owned())

    def gradient(self, ids: Any, grad_out: Any) -> Any:
        """Return the coalesced gradient of a batch as a value."""
        plan, padding = as_plan(ids, self.num_rows), check.padding(self.padding_idx, self.num_rows)
        parts = lookup_gradients(plan, grad_out, self.dim, functional.result_dtype(self._weight), "grad_out")
        with sessions(plan, self._given, grad_out=grad_out) as session:
            grads = parts.joined(session.queue, self.scale_grad_by_freq)
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
        """Step: nothing was written before, and nothing is refused after, the kernels start.

        All kernels that write are started together, and the step is counted with them.
        """
        queue, dtype, recording, status = session.queue, self._weight.dtype, self._recording, session.status
        together = Together(queue)
        if skip is None:
            skip = check.padding(self.padding_idx, self.num_rows)
        with self._gate, self._lock:
            if recording:
                self._has_begun(rule)
            exact = rule.hyper(self.step + 1)
            like = rule.cast(exact, self.step + 1, dtype)
            lag = None
            if self._history is not None:
                self._before_step(exact)
                self._late.sync(self._home, self._history)
            with self._running(session), inputs.lent(queue, plan.queue):
                if not recording:
                    queue.write(self._hyper, np.array(like, dtype))
                if self._history is not None:
                    found = (self._hyper, like, status, batch.rows, batch.found)
                    lag = self._late.find(queue, rule, self._last, batch.n, *found)
                table = launch.Table(self._weight, self._state, self._row_state)
                launch.update_rows(together, table, batch, grads, skip, self._hyper, like, status, lag)
                if self._limit is not None:
                    launch.clip_rows(together, self._weight, self._limit, status, batch, skip)
                count = () if recording else ((self._steps.__iadd__, _ONE_STEP),)
                together.start(*count)

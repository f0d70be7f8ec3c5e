"""Kernels that read rows: gather, pool, the gradient of per-sample weights; and the bag of each occurrence."""

from typing import Any, NamedTuple

import numpy as np

from .. import _check as check
from .._jit import PRESENT
from ..kernels.cuda import gather as gather_kernels
from ..kernels.cuda import pool as pool_kernels
from . import blocks as cut
from .array import DeviceArray
from .call import Call
from .inputs import Table
from .views import Caller

_ROWS_AT_ONCE = 4  # rows that a group of lanes has in flight


class Place(NamedTuple):
    """The arrays of bags: ids (n,), offsets (num_bags + 1,), and weights (n,)."""

    ids: DeviceArray
    offsets: DeviceArray
    weights: DeviceArray | None  # in the dtype of the arithmetic
    caller: Caller | None = None

    @property
    def num_bags(self) -> int:
        """Number of bags."""
        return len(self.offsets) - 1

    @property
    def where(self) -> tuple[Any, ...]:
        """The arguments of kernels."""
        return self.ids, self.offsets, self.num_bags


def gather_few(weight: Any, ids: Any, table: Any = None, out: Any = None) -> Any:
    """Return None: a batch of any size takes the same launch."""


def pool_few(weight: Any, place: Place, mode: int, padding: int, table: Any = None) -> Any:
    """Return None, as `gather_few`."""


def gather(call: Call, table: Table, flat: DeviceArray, out: DeviceArray, missed: Any = None) -> None:
    """``out[i] = weight[flat[i]]``; out (n, dim)."""
    if missed is None:
        gather_rows(call.queue, table.array, flat, out, call.status)
    else:
        missed.gather(call, flat, out)


def pool(
    call: Call, table: Table, place: Place, mode: int, padding: int, out: DeviceArray, missed: Any = None
) -> DeviceArray | None:
    """Pool into out (num_bags, dim); returns the occurrence that won each element in mode max."""
    queue, rows = call.queue, table.array
    if missed is not None:  # an up-to-date copy of the row of each id
        rows = queue.empty((len(place.ids), table.dim), table.dtype)
        missed.gather(call, place.ids, rows)
    if mode == check.MODES["max"]:
        return pool_max(queue, rows, place, padding, out, call.status, missed is not None)
    pool_rows(queue, rows, place, mode, padding, out, call.status, missed is not None)
    return None


def weights_gradient(
    call: Call, table: Table, place: Place, mode: int, padding: int, grad: DeviceArray, out: DeviceArray
) -> None:
    """Write the gradient of the per-sample weights to out (n,)."""
    sample_gradient(call.queue, table.array, place, grad, mode, padding, out, call.status)


def gather_rows(queue: Any, weight: DeviceArray, ids: DeviceArray, out: DeviceArray, status: DeviceArray) -> None:
    """``out[i] = weight[ids[i]]``; out (n, dim)."""
    n, dim = len(ids), weight.shape[1]
    if n:
        lanes = cut.lanes_of(dim, out.dtype, weight, out)
        blocks = queue.blocks(-(-n // _ROWS_AT_ONCE), lanes.groups)
        arguments = (bits_of(weight), weight.stride, ids, n, dim, out, *lanes, status)
        queue.launch(gather_kernels.gather_rows, blocks, cut.THREADS, *arguments)


def bits_of(weight: DeviceArray) -> DeviceArray:
    """View float16 as the uint16 that kernels take."""
    return weight.view(np.uint16) if weight.dtype == np.float16 else weight


def pool_rows(
    queue: Any,
    weight: DeviceArray,
    bags: Place,
    mode: int,
    padding: int,
    out: DeviceArray,
    status: DeviceArray,
    gathered: bool = False,
) -> None:
    """Pool with SUM, MEAN or SQRTN into out (num_bags, dim); `gathered`: `weight` has one row for each occurrence."""
    dim = weight.shape[1]
    if bags.num_bags:
        lanes = cut.lanes_of(dim, out.dtype, weight, out)
        blocks = queue.blocks(bags.num_bags, lanes.groups)
        where = (bits_of(weight), weight.stride, PRESENT if gathered else None, *bags.where)
        arguments = (*where, bags.weights, mode, padding, dim, out, *lanes, status)
        queue.launch(pool_kernels.pool_rows, blocks, cut.THREADS, *arguments)


def pool_max(
    queue: Any,
    weight: DeviceArray,
    bags: Place,
    padding: int,
    out: DeviceArray,
    status: DeviceArray,
    gathered: bool = False,
) -> DeviceArray:
    """Pool with MAX into `out`; returns the occurrence that won each element, (num_bags, dim)."""
    dim = weight.shape[1]
    winners: DeviceArray = queue.empty((bags.num_bags, dim), np.int32)
    if bags.num_bags:
        zero, shift = lanes = cut.lanes_of(dim, out.dtype, weight, out, winners)
        nobody = (np.int32(-1),) * len(zero)
        blocks = queue.blocks(bags.num_bags, lanes.groups)
        where = (bits_of(weight), weight.stride, PRESENT if gathered else None, *bags.where)
        arguments = (*where, padding, dim, out, winners, zero, nobody, shift, status)
        queue.launch(pool_kernels.pool_max, blocks, cut.THREADS, *arguments)
    return winners


def shift(queue: Any, offsets: DeviceArray, base: int, out: DeviceArray, status: DeviceArray) -> None:
    """``out = offsets + base``, for bags that follow `base` ids of other bags."""
    n = len(offsets)
    queue.launch(pool_kernels.shift_offsets, queue.blocks(n, cut.THREADS), cut.THREADS, offsets, n, base, out, status)


def fill(queue: Any, out: DeviceArray, number: float) -> None:
    """``out[:] = number``."""
    if n := out.size:
        value = out.dtype.type(number)
        queue.launch(pool_kernels.fill, queue.blocks(n, cut.THREADS), cut.THREADS, out, n, value)


def expand(
    queue: Any, bags: Place, mode: int, padding: int, dtype: Any, plain: bool, status: DeviceArray
) -> tuple[DeviceArray, DeviceArray | None]:
    """Return the bag and, unless `plain`, the factor of each occurrence."""
    n = len(bags.ids)
    bag_of, coefs = queue.empty((n,), np.int32), None if plain else queue.empty((n,), dtype)
    if bags.num_bags:
        blocks = queue.blocks(bags.num_bags, cut.THREADS >> 3)
        arguments = (*bags.where, bags.weights, mode, padding, bag_of, coefs, np.dtype(dtype).type(0), np.int32(3))
        queue.launch(pool_kernels.expand_bags, blocks, cut.THREADS, *arguments, status)
    return bag_of, coefs


def share(queue: Any, bags: Place, mode: int, padding: int, dtype: Any, status: DeviceArray) -> DeviceArray:
    """Return the factor of the rows of each bag."""
    shares: DeviceArray = queue.empty((bags.num_bags,), dtype)
    if bags.num_bags:
        blocks = queue.blocks(bags.num_bags, cut.THREADS)
        arguments = (*bags.where, mode, padding, shares, np.dtype(dtype).type(0), status)
        queue.launch(pool_kernels.share_bags, blocks, cut.THREADS, *arguments)
    return shares


def sample_gradient(
    queue: Any,
    weight: DeviceArray,
    bags: Place,
    grad: DeviceArray,
    mode: int,
    padding: int,
    out: DeviceArray,
    status: DeviceArray,
) -> None:
    """Write the gradient of the per-sample weights to out (n,)."""
    dim = weight.shape[1]
    if bags.num_bags:
        lanes = cut.lanes_of(dim, out.dtype, weight, grad)
        blocks = queue.blocks(bags.num_bags, lanes.groups)
        arguments = (bits_of(weight), weight.stride, *bags.where, bags.weights, mode, padding, grad, dim, out)
        queue.launch(pool_kernels.weights_gradient, blocks, cut.THREADS, *arguments, *lanes, status)

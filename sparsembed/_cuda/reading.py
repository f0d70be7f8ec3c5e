"""How kernels are started that read rows, and that carry gradients back to occurrences: gather and pool."""

from typing import Any, NamedTuple

import numpy as np

from .._jit import PRESENT
from ..kernels.cuda import gather as gather_kernels
from ..kernels.cuda import pool as pool_kernels
from . import launch
from .array import DeviceArray

_ROWS_AT_ONCE = 4  # that a group of lanes has in flight


def gather(queue: Any, weight: DeviceArray, ids: DeviceArray, out: DeviceArray, status: DeviceArray) -> None:
    """``out[i] = weight[ids[i]]``; out (n, dim)."""
    n, dim = len(ids), weight.shape[1]
    if n:
        lanes = launch.lanes_of(dim, out.dtype, weight, out)
        blocks = queue.blocks(-(-n // _ROWS_AT_ONCE), lanes.groups)
        arguments = (bits_of(weight), weight.stride, ids, n, dim, out, *lanes, status)
        queue.launch(gather_kernels.gather_rows, blocks, launch.THREADS, *arguments)


def bits_of(weight: DeviceArray) -> DeviceArray:
    """View float16 as the uint16 that kernels take."""
    return weight.view(np.uint16) if weight.dtype == np.float16 else weight


class Bags(NamedTuple):
    """Ids of many samples on the device."""

    ids: DeviceArray
    offsets: DeviceArray
    weights: DeviceArray | None  # in the dtype of the arithmetic

    @property
    def num_bags(self) -> int:
        """Number of bags."""
        return len(self.offsets) - 1

    @property
    def where(self) -> tuple[Any, ...]:
        """What kernels take."""
        return self.ids, self.offsets, self.num_bags


def pool(
    queue: Any,
    weight: DeviceArray,
    bags: Bags,
    mode: int,
    padding: int,
    out: DeviceArray,
    status: DeviceArray,
    gathered: bool = False,
) -> None:
    """Pool with SUM, MEAN or SQRTN into out (num_bags, dim); `gathered`: weight has a row for each occurrence."""
    dim = weight.shape[1]
    if bags.num_bags:
        lanes = launch.lanes_of(dim, out.dtype, weight, out)
        blocks = queue.blocks(bags.num_bags, lanes.groups)
        where = (bits_of(weight), weight.stride, PRESENT if gathered else None, *bags.where)
        arguments = (*where, bags.weights, mode, padding, dim, out, *lanes, status)
        queue.launch(pool_kernels.pool_rows, blocks, launch.THREADS, *arguments)


def pool_max(
    queue: Any,
    weight: DeviceArray,
    bags: Bags,
    padding: int,
    out: DeviceArray,
    status: DeviceArray,
    gathered: bool = False,
) -> DeviceArray:
    """Pool with MAX into `out`; returns the occurrence that won each element, (num_bags, dim)."""
    dim = weight.shape[1]
    winners: DeviceArray = queue.empty((bags.num_bags, dim), np.int32)
    if bags.num_bags:
        zero, shift = lanes = launch.lanes_of(dim, out.dtype, weight, out, winners)
        nobody = (np.int32(-1),) * len(zero)
        blocks = queue.blocks(bags.num_bags, lanes.groups)
        where = (bits_of(weight), weight.stride, PRESENT if gathered else None, *bags.where)
        arguments = (*where, padding, dim, out, winners, zero, nobody, shift, status)
        queue.launch(pool_kernels.pool_max, blocks, launch.THREADS, *arguments)
    return winners


def shift(queue: Any, offsets: DeviceArray, base: int, out: DeviceArray, status: DeviceArray) -> None:
    """``out = offsets + base``, for bags that stand behind `base` ids of others."""
    n = len(offsets)
    queue.launch(
        pool_kernels.shift_offsets, queue.blocks(n, launch.THREADS), launch.THREADS, offsets, n, base, out, status
    )


def fill(queue: Any, out: DeviceArray, number: float) -> None:
    """``out[:] = number``."""
    if n := out.size:
        value = out.dtype.type(number)
        queue.launch(pool_kernels.fill, queue.blocks(n, launch.THREADS), launch.THREADS, out, n, value)


def expand(
    queue: Any, bags: Bags, mode: int, padding: int, dtype: Any, plain: bool, status: DeviceArray
) -> tuple[DeviceArray, DeviceArray | None]:
    """Return the bag and, unless `plain`, the factor of each occurrence."""
    n = len(bags.ids)
    bag_of, coefs = queue.empty((n,), np.int32), None if plain else queue.empty((n,), dtype)
    if bags.num_bags:
        blocks = queue.blocks(bags.num_bags, launch.THREADS >> 3)
        arguments = (*bags.where, bags.weights, mode, padding, bag_of, coefs, np.dtype(dtype).type(0), np.int32(3))
        queue.launch(pool_kernels.expand_bags, blocks, launch.THREADS, *arguments, status)
    return bag_of, coefs


def share(queue: Any, bags: Bags, mode: int, padding: int, dtype: Any, status: DeviceArray) -> DeviceArray:
    """Return the factor of the rows of each bag."""
    shares: DeviceArray = queue.empty((bags.num_bags,), dtype)
    if bags.num_bags:
        blocks = queue.blocks(bags.num_bags, launch.THREADS)
        arguments = (*bags.where, mode, padding, shares, np.dtype(dtype).type(0), status)
        queue.launch(pool_kernels.share_bags, blocks, launch.THREADS, *arguments)
    return shares


def weights_gradient(
    queue: Any,
    weight: DeviceArray,
    bags: Bags,
    grad: DeviceArray,
    mode: int,
    padding: int,
    out: DeviceArray,
    status: DeviceArray,
) -> None:
    """Gradient of the per-sample weights into out (n,)."""
    dim = weight.shape[1]
    if bags.num_bags:
        lanes = launch.lanes_of(dim, out.dtype, weight, grad)
        blocks = queue.blocks(bags.num_bags, lanes.groups)
        arguments = (bits_of(weight), weight.stride, *bags.where, bags.weights, mode, padding, grad, dim, out)
        queue.launch(pool_kernels.weights_gradient, blocks, launch.THREADS, *arguments, *lanes, status)

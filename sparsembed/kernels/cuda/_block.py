"""Numbers of threads and blocks, barriers, and exchange within a warp."""

from numba import cuda

from ..._jit import device as inline


@inline
def thread():
    """The number of the thread in its block."""
    return cuda.threadIdx.x


@inline
def block():
    """The number of the block."""
    return cuda.blockIdx.x


@inline
def threads():
    """Threads in a block."""
    return cuda.blockDim.x


@inline
def blocks():
    """Blocks in the grid."""
    return cuda.gridDim.x


@inline
def sync_block():
    """Wait for all threads of the block."""
    cuda.syncthreads()


@inline
def sync_warp(mask):
    """Wait for the threads of the warp in `mask`; what they wrote before is visible after it."""
    cuda.syncwarp(mask)


@inline
def shuffle_xor(mask, value, distance):
    """Return `value` of the lane whose number differs in the bits of `distance`."""
    return cuda.shfl_xor_sync(mask, value, distance)


@inline
def shuffle_up(mask, value, distance):
    """Return `value` of the lane `distance` below, or the lane's own `value` where there is none."""
    return cuda.shfl_up_sync(mask, value, distance)


@inline
def any_of(mask, value):
    """Return whether `value` is true in any lane."""
    return cuda.any_sync(mask, value)


@inline
def matching(mask, value):
    """Return the lanes with the same int32 `value`, as bits."""
    return cuda.match_any_sync(mask, value)


@inline
def popcount(bits):
    """Return the number of bits that are set."""
    return cuda.popc(bits)

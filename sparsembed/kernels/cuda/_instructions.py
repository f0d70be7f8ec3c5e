"""The instructions of kernels: LLVM for a GPU, or plain Python under Numba's CUDA simulator."""

from numba.core import config

if config.ENABLE_CUDASIM:
    from ._simulated import *  # noqa: F403
else:
    from ._block import *  # noqa: F403
    from ._dispatch import *  # noqa: F403
    from ._intrinsics import *  # noqa: F403

"""What kernels are written in: the instructions of the GPU, or their twins in plain Python where none is at hand."""

from numba.core import config

if config.ENABLE_CUDASIM:
    from ._simulated import *  # noqa: F403
else:
    from ._block import *  # noqa: F403
    from ._dispatch import *  # noqa: F403
    from ._intrinsics import *  # noqa: F403

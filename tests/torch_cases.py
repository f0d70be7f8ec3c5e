"""What the tests of sparsembed.torch share: pairs of modules, how close is close, gradients as dense arrays."""

import numpy as np
import torch
from strategies import EPS

import sparsembed.torch as st

DTYPES = [torch.float32, torch.float64]
INTS = [torch.int32, torch.int64]


def close(actual, expected, terms=32):
    """To the rounding of a few dozen operations on numbers of order one."""
    actual, expected = actual.detach().numpy(), expected.detach().numpy()
    tolerance = terms * EPS[expected.dtype]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, strict=True)


def grad(module):
    """The gradient of a module's weight as a dense tensor."""
    value = module.weight.grad
    return value.to_dense() if value.is_sparse else value


def pair(kind, *arguments, sparse=False, seed=0, **options):
    """Our module and torch's, from the same random numbers; `sparse` is torch's."""
    modules = []
    for package, own in ((st, {}), (torch.nn, {"sparse": sparse})):
        torch.manual_seed(seed)
        modules.append(getattr(package, kind)(*arguments, **options, **own))
    return modules


def step_both(modules, lookup, seed=1):
    """Forward and backward with the same random gradient; returns both outputs."""
    outputs = [lookup(module) for module in modules]
    grad_out = torch.randn(outputs[1].shape, dtype=outputs[1].dtype, generator=torch.Generator().manual_seed(seed))
    for output in outputs:
        output.backward(grad_out)
    return outputs

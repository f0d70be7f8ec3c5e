"""What the tests of sparsembed.torch share: pairs of modules, how close is close, gradients as dense arrays."""

import numpy as np
import torch
from strategies import EPS

import sparsembed as se
import sparsembed.torch as st

DTYPES = [torch.float32, torch.float64]
INTS = [torch.int32, torch.int64]
ROWS, DIM = 30, 4  # of the tables that optimizers train
SPARSE = {
    "SparseAdam": (se.SparseAdam(lr=0.1, betas=(0.8, 0.9), eps=1e-4), torch.optim.SparseAdam),
    "Adagrad": (se.Adagrad(lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1, eps=1e-5), torch.optim.Adagrad),
    "SGD": (se.SGD(lr=0.1), torch.optim.SGD),
}
DENSE = {
    "Adam": (se.Adam(lr=0.1, betas=(0.8, 0.9), eps=1e-4), torch.optim.Adam),
    "AdamW": (se.AdamW(lr=0.1, weight_decay=0.1), torch.optim.AdamW),
    "SGD with momentum": (se.SGD(lr=0.1, momentum=0.9, weight_decay=0.01), torch.optim.SGD),
    "RMSprop": (se.RMSprop(lr=0.01), torch.optim.RMSprop),
}


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


def options_of(rule):
    return {name: value for name, value in vars(rule).items() if value != 0.0 or name == "lr"}


def lookups(kind, k):
    """Ids (and offsets, factors) of step k: repeats, rows that no step touches again, and one step without ids."""
    generator = torch.Generator().manual_seed(k)
    ids = torch.randint(0, 3 + k, (0 if k == 7 else 12,), generator=generator)
    if kind == "Embedding":
        return (ids,)
    offsets = torch.tensor([0, 0, min(5, len(ids)), len(ids)])
    return ids, offsets


def trained(rule=SPARSE["SparseAdam"][0], steps=3, **options):
    torch.manual_seed(0)
    module = st.Embedding(ROWS, DIM, **options)
    optimizer = st.Optimizer(module.parameters(), rule)
    train(module, optimizer, range(steps))
    return module, optimizer


def train(module, optimizer, steps):
    for k in steps:
        optimizer.zero_grad()
        module(*lookups("Embedding", k)).pow(2).sum().backward()
        optimizer.step()

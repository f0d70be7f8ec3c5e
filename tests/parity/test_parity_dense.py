"""Rules that equal a dense optimizer against torch's and optax' dense optimizers; run where those are installed."""

import math

import numpy as np
import pytest

import sparsembed as se

ROWS, DIM, STEPS = 30, 5, 600


def cosine(step):
    return 1e-2 * (1 + math.cos(step / 60))


def trace(dtype):
    """A few ids a step, each with its own scale of gradients, and rows that rest for hundreds of steps."""
    rng = np.random.default_rng(7)
    size = 10.0 ** rng.integers(-4, 1, ROWS)
    for step in range(STEPS):
        ids = rng.integers(0, 5 if step % 100 else ROWS, rng.integers(0, 6))
        yield ids, (size[ids, None] * rng.standard_normal((len(ids), DIM))).astype(dtype)


def start(dtype):
    return np.random.default_rng(8).standard_normal((ROWS, DIM)).astype(dtype)


def torch_run(make, dtype, exact=True):
    """Yield the weights after each step of a dense torch optimizer, in float64 or as `dtype` would have them."""
    torch = pytest.importorskip("torch")
    kind = torch.float64 if exact else torch.float32
    weight = torch.nn.Parameter(torch.tensor(start(dtype), dtype=kind))
    optimizer = make(torch, [weight])
    for step, (ids, grad) in enumerate(trace(dtype), 1):
        optimizer.param_groups[0]["lr"] = cosine(step)
        weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, torch.tensor(ids), torch.tensor(grad, dtype=kind))
        optimizer.step()
        yield weight.detach().numpy().copy()


def as_in_torch(name):
    """A rule with what it has by default, and torch's optimizer of the same name."""
    defaults = {name: value for name, value in vars(getattr(se, name)()).items() if name != "lr"}
    return getattr(se, name)(lr=cosine), lambda torch, p: getattr(torch.optim, name)(p, foreach=False, **defaults)


RULES = [
    *(as_in_torch(name) for name in se.rules.__all__ if getattr(se.rules, name).catch_up is not None),
    (se.Adam(lr=cosine, eps=1e-3), lambda torch, p: torch.optim.Adam(p, eps=1e-3, foreach=False)),
    (
        se.Adam(lr=cosine, betas=(0.7, 0.99)),
        lambda torch, p: torch.optim.Adam(p, betas=(0.7, 0.99), foreach=False),
    ),
    (
        se.AdamW(lr=cosine, weight_decay=0.5),
        lambda torch, p: torch.optim.AdamW(p, weight_decay=0.5, foreach=False),
    ),
    *(
        (se.SGD(cosine, **given), lambda torch, p, given=given: torch.optim.SGD(p, lr=0.1, **given, foreach=False))
        for given in (
            {"weight_decay": 0.1},
            {"momentum": 0.9},
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
            {"momentum": 0.8, "dampening": 0.2, "weight_decay": 0.01},
        )
    ),
]


NAMES = [f"{type(rule).__name__}-{i}" for i, (rule, _) in enumerate(RULES)]


@pytest.mark.parametrize(("rule", "make"), RULES, ids=NAMES)
def test_torch(rule, make, capsys):
    """float64: to 1e-12 of the movement at every step; float32: as near to it as torch's own float32 run."""
    table = se.EmbeddingTable.from_array(start(np.float64), rule)
    first, moved, worst = start(np.float64), 0.0, 0.0
    for (ids, grad), want in zip(trace(np.float64), torch_run(make, np.float64), strict=True):
        table.update(ids, grad)
        moved = max(moved, np.abs(want - first).max())
        worst = max(worst, np.abs(table.lookup(np.arange(ROWS)) - want).max() / moved)
    assert worst < 1e-12
    table = se.EmbeddingTable.from_array(start(np.float32), rule)
    runs = torch_run(make, np.float32), torch_run(make, np.float32, exact=False)
    errors = []
    for (ids, grad), want, theirs in zip(trace(np.float32), *runs, strict=True):
        table.update(ids, grad)
        errors.append([np.mean((each - want) ** 2) for each in (table.lookup(np.arange(ROWS)), theirs)])
    ours, theirs = np.sqrt(np.mean(errors, axis=0)) / moved
    with capsys.disabled():
        print(f"\n{rule}: float64 {worst:.1e} of the movement; float32 {ours:.2e}, torch's own {theirs:.2e}")  # noqa: T201
    # It rounds less often than the dense run, except RMSprop, whose rows do not move between touches.
    assert ours < (1.5 if isinstance(rule, se.RMSprop) else 1.0) * theirs


def test_optax():
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    weight, optimizer = jax.numpy.asarray(start(np.float32)), optax.adam(cosine_of_optax())
    state = optimizer.init(weight)
    table = se.EmbeddingTable.from_array(start(np.float32), se.Adam(lr=cosine), copy=True)

    @jax.jit
    def step(weight, state, dense):
        change, state = optimizer.update(dense, state, weight)
        return optax.apply_updates(weight, change), state

    for ids, grad in trace(np.float32):
        dense = np.zeros((ROWS, DIM), np.float32)
        np.add.at(dense, ids, grad)
        weight, state = step(weight, state, dense)
        table.update(ids, grad)
    moved = np.abs(np.asarray(weight) - start(np.float32)).max()
    assert np.abs(table.weight - np.asarray(weight)).max() < 1e-4 * moved


def cosine_of_optax():
    """optax counts steps from 0."""
    import jax.numpy as jnp

    return lambda count: 1e-2 * (1 + jnp.cos((count + 1) / 60))

"""sparsembed.torch.Optimizer beside torch's optimizers, and what drives an optimizer: closures, scalers, hooks."""

import numpy as np
import pytest
import torch
from torch_cases import (
    DENSE,
    DIM,
    DTYPES,
    ROWS,
    SPARSE,
    close,
    lookups,
    options_of,
    pair,
    train,
    trained,
)

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("name", [*SPARSE, *DENSE])
def test_twenty_steps(name, kind, padding_idx, dtype):
    """And a dense layer behind the table, that torch's Adam trains, and a scheduler."""
    rule, theirs = (SPARSE | DENSE)[name]
    options = {"mode": "sum"} if kind == "EmbeddingBag" else {}
    tables = pair(kind, ROWS, DIM, sparse=name in SPARSE, padding_idx=padding_idx, dtype=dtype, **options)
    layers = []
    for _ in tables:
        torch.manual_seed(1)
        layers.append(torch.nn.Linear(DIM, 2, dtype=dtype))
    optimizers = [st.Optimizer(tables[0].parameters(), rule), theirs(tables[1].parameters(), **options_of(rule))]
    dense = [torch.optim.Adam(layer.parameters(), lr=0.01) for layer in layers]
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.95) for each in optimizers]
    for k in range(20):
        losses = []
        for table, layer, *drivers in zip(tables, layers, optimizers, dense, schedulers, strict=True):
            loss = layer(table(*lookups(kind, k))).pow(2).sum()
            for each in drivers[:2]:
                each.zero_grad()
            loss.backward()
            for each in drivers:
                each.step()
            losses.append(loss)
        close(*losses, terms=20 * 60)
    # float32: the roundings of 20 steps that depend on each other, of sums of dozens of gradients
    close(tables[0].weight, tables[1].weight, terms=20 * 60)
    assert tables[0].table.step == 20


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_per_sample_weights_and_max_norm_over_twenty_steps(kind):
    """torch scales rows when they are looked up, we when they are updated: outputs are the same."""
    options = {"mode": "sum"} if kind == "EmbeddingBag" else {}
    tables = pair(kind, ROWS, DIM, sparse=True, max_norm=0.7, dtype=torch.float64, **options)
    factors = [torch.linspace(0.1, 1, 12, dtype=torch.float64).requires_grad_() for _ in tables]
    drivers = [st.Optimizer(tables[0].parameters(), se.SparseAdam(lr=0.1))]
    drivers += [torch.optim.SparseAdam(tables[1].parameters(), lr=0.1)]
    for k in [*range(7), *range(8, 20)]:
        outputs = []
        for table, given, optimizer in zip(tables, factors, drivers, strict=True):
            if kind == "Embedding":
                output = (table(*lookups(kind, k)) * given[:, None]).sum(0)
            else:
                output = table(*lookups(kind, k), per_sample_weights=given)
            optimizer.zero_grad()
            (output - 1).pow(2).sum().backward()
            optimizer.step()
            outputs.append(output)
        close(*outputs, terms=20 * 60)
        close(factors[0].grad, factors[1].grad, terms=2000 * 60)  # of magnitude 1,000: they are never reset
    everything = torch.arange(ROWS) if kind == "Embedding" else torch.arange(ROWS)[:, None]
    close(tables[0](everything), tables[1](everything), 1200)


def test_groups_have_their_own_rules_and_rates():
    modules = [st.Embedding(ROWS, DIM) for _ in range(3)]
    groups = [
        {"params": modules[0].weight},
        {"params": [modules[1].weight], "lr": 1.0},
        {"params": modules[2].parameters(), "rule": se.SparseAdam(eps=1e-3), "betas": [0.5, 0.6]},
    ]
    optimizer = st.Optimizer(groups, se.SGD(lr=0.1))
    assert [module.optimizer for module in modules] == [
        se.SGD(lr=0.1), se.SGD(lr=1.0), se.SparseAdam(eps=1e-3, betas=(0.5, 0.6))
    ]  # fmt: skip
    assert set(optimizer.param_groups[2]) == {"params", "lr", "betas", "eps"}
    assert optimizer.param_groups[2]["lr"] == 1e-3
    before = [module.weight.detach().clone() for module in modules]
    for module in modules:
        module(torch.tensor([1])).sum().backward()
    optimizer.step()
    changes = [float((b - m.weight.detach())[1, 0]) for b, m in zip(before, modules, strict=True)]
    np.testing.assert_allclose(changes[:2], [0.1, 1.0], rtol=1e-6)
    assert 0 < changes[2] < 2e-3
    optimizer.load_state_dict(optimizer.state_dict())
    late = st.Embedding(ROWS, DIM)
    optimizer.add_param_group({"params": late.parameters(), "lr": 0.5})
    assert late.optimizer == se.SGD(lr=0.5)


@pytest.mark.skipif(torch.__version__ < "2.6", reason="torch's optimizers take names from 2.6 on")
def test_parameters_with_names():
    named = st.Optimizer(st.Embedding(ROWS, DIM).named_parameters(), se.SGD(lr=0.1))
    assert named.state_dict()["param_groups"][0]["param_names"] == ["weight"]


def test_a_step_without_gradient_is_no_step_of_that_table():
    """As for torch's optimizers, sparse and dense."""
    for rule, theirs in ((SPARSE["SparseAdam"]), DENSE["Adam"]):
        modules = [st.Embedding(ROWS, DIM) for _ in range(2)]
        others = [torch.nn.Embedding(ROWS, DIM, sparse=theirs is torch.optim.SparseAdam) for _ in range(2)]
        for module, other in zip(modules, others, strict=True):
            other.load_state_dict(module.state_dict())
        optimizer = st.Optimizer([module.weight for module in modules], rule)
        reference = theirs([other.weight for other in others], **options_of(rule))
        for k in range(6):
            optimizer.zero_grad()
            reference.zero_grad()
            for tables in (modules, others):
                for table in tables[: 1 + k % 2]:
                    table(*lookups("Embedding", k)).pow(2).sum().backward()
            optimizer.step()
            reference.step()
        assert [module.table.step for module in modules] == [6, 3]
        for module, other in zip(modules, others, strict=True):
            close(module.weight, other.weight, terms=600)
    optimizer.zero_grad(set_to_none=False)  # a gradient of zero is one, of a dense optimizer and of ours
    optimizer.step()
    assert [module.table.step for module in modules] == [7, 4]


def test_closure():
    module, optimizer = trained(se.SGD(lr=0.1), steps=0)

    def closure():
        optimizer.zero_grad()
        loss = module(torch.tensor([5, 6])).pow(2).sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert module.table.step == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's compiler
@pytest.mark.parametrize("of", ["step", "loop"])
def test_a_compiled_step_breaks_the_graph(of):
    (one, first), (two, second) = trained(steps=0), trained(steps=0)

    def loop(k):
        first.zero_grad()
        one(*lookups("Embedding", k)).pow(2).sum().backward()
        first.step()

    torch._dynamo.reset()
    compiled = torch.compile(first.step if of == "step" else loop, backend="eager")
    for k in range(3):
        if of == "loop":
            compiled(k)
        else:
            first.zero_grad()
            one(*lookups("Embedding", k)).pow(2).sum().backward()
            compiled()
        train(two, second, [k])
    torch._dynamo.reset()
    assert one.table.step == 3
    assert torch.equal(one.weight, two.weight)


def test_accumulation():
    """Two half batches are a batch."""
    (one, first), (two, second) = trained(steps=0), trained(steps=0)
    for k in range(3):
        first.zero_grad()
        second.zero_grad()
        (ids,) = lookups("Embedding", k)
        one(ids).pow(2).sum().backward()
        for half in (ids[:5], ids[5:]):
            two(half).pow(2).sum().backward()
        first.step()
        second.step()
    close(one.weight, two.weight, terms=100)
    assert two.table.step == 3


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_grad_scaler(scale):
    """Unscales sparse gradients, and skips a step with an infinite one."""
    (one, first), (two, second) = trained(steps=0), trained(steps=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100)
    for k in range(4):
        first.zero_grad()
        second.zero_grad()
        (ids,) = lookups("Embedding", k)
        factor = float("inf") if k == 2 else 1.0
        scaler.scale(one(ids).pow(2).sum() * factor).backward()
        scaler.unscale_(first)
        st.clip_grad_norm_(one.parameters(), 1e6)
        scaler.step(first)
        scaler.update()
        if k != 2:
            two(ids).pow(2).sum().backward()
            second.step()
    assert one.table.step == 3
    assert scaler.get_scale() == scale / 2
    close(one.weight, two.weight, terms=100)


def test_hooks_see_and_change_the_gradient():
    module, optimizer = trained(se.SGD(lr=1.0), steps=0)
    seen = []
    module.weight.register_hook(lambda g: seen.append(g) or g * 2)
    before = module.weight.detach()[5].clone()
    module(torch.tensor([5])).sum().backward()
    optimizer.step()
    assert seen[0].is_sparse
    close(before - module.weight[5], torch.full((DIM,), 2.0))


def test_uncoalesced_gradients_from_elsewhere():
    module, optimizer = trained(se.SGD(lr=1.0), steps=0)
    before = module.weight.detach().clone()
    torch.nn.functional.embedding(torch.tensor([5, 4, 5]), module.weight, sparse=True).sum().backward()
    optimizer.step()
    change = (before - module.weight).detach()[:, 0]
    assert change[[4, 5]].tolist() == pytest.approx([1, 2])


def test_frozen_and_unfrozen():
    module, optimizer = trained(steps=1)
    module.requires_grad_(False)
    before = module.weight.detach().clone()
    optimizer.zero_grad()
    assert not module(torch.tensor([1])).requires_grad
    optimizer.step()
    assert torch.equal(module.weight, before)
    module.requires_grad_(True)
    for _ in range(2):
        module(torch.tensor([1])).sum().backward()
    assert module.weight.grad.is_coalesced()
    optimizer.step()
    assert module.table.step == 2


def test_flush_brings_parameters_up_to_date():
    module, optimizer = trained(se.Adam(lr=0.1))
    memory = next(module.parameters()).detach()  # which no later step brings up to date
    optimizer.zero_grad()
    module(torch.tensor([ROWS - 1])).sum().backward()
    optimizer.step()
    stale = memory.clone()
    optimizer.flush()
    assert not torch.equal(memory, stale)
    assert torch.equal(module.weight, memory)


@pytest.mark.parametrize("module", [st.Embedding, st.EmbeddingBag])
def test_a_batch_without_ids_adds_to_others(module):
    embedding = module(6, 3)
    st.Optimizer([embedding.weight], se.SGD(lr=1.0))
    none, some = torch.zeros((0, 2), dtype=torch.long), torch.tensor([[1, 2], [1, 4]])
    embedding(some).sum().backward()
    expected = embedding.weight.grad.to_dense()
    for batches in ((none, some), (some, none), (none, none, some)):
        embedding.weight.grad = None
        for ids in batches:
            embedding(ids).sum().backward()
        torch.testing.assert_close(embedding.weight.grad.to_dense(), expected)

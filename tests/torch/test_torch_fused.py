"""Fused modules step at the end of backward: once, with all that one backward pass brings."""

import gc
import threading
from dataclasses import replace

import pytest
import torch
from torch_cases import close

import sparsembed as se
import sparsembed.torch as st
from sparsembed.torch._autograd import PASSES

pytestmark = pytest.mark.usefixtures("strict_torch")
V, D = 20, 4
IDS, MORE = torch.tensor([3, 1, 3]), torch.tensor([[1, 7], [0, 1]])
RULE = se.SparseAdam(lr=0.1)
OLD = pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")  # of checkpoints in torch 2.4


def modules(kind, rule=RULE, **options):
    """A fused module, and an unfused one of the same rows with its optimizer."""
    fused = getattr(st, kind)(V, D, fused=True, optimizer=rule, **options)
    other = getattr(st, kind)(V, D, **options)
    other.load_state_dict(fused.state_dict())
    return fused, other, st.Optimizer(other.parameters(), rule)


def looked(module, ids):
    return module(ids) if isinstance(module, st.Embedding) else module(ids.reshape(-1, 1))


RULES = [RULE, se.Adam(lr=0.1), se.Adagrad(lr=0.1), se.SGD(lr=0.1, momentum=0.5)]
OPTIONS = [{}, {"padding_idx": 1}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}]


@pytest.mark.parametrize(
    ("options", "rule"), [(o, r) for o in OPTIONS for r in RULES if "max_norm" not in o or r.catch_up is None], ids=str
)
@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_several_lookups_of_one_backward_are_one_step(kind, options, rule):
    fused, other, optimizer = modules(kind, rule, **options)
    for k in range(4):
        for module in (fused, other):
            out = [looked(module, ids).pow(2).sum() for ids in (IDS, (MORE + 5 * k) % V, IDS)]
            (out[0] + 3 * out[1] - out[2].sqrt()).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert fused.table.step == k + 1
    close(fused.weight, other.weight, terms=200)
    assert fused.weight.grad is None


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_every_mode(mode):
    fused, other, optimizer = modules("EmbeddingBag", mode=mode, padding_idx=3)
    factors = [torch.linspace(0, 1, 4).view(2, 2).requires_grad_() for _ in range(2)] if mode == "sum" else [None] * 2
    for module, given in zip((fused, other), factors, strict=True):
        (module(MORE, per_sample_weights=given).pow(2).sum() + module(IDS, torch.tensor([0, 0])).sum()).backward()
    optimizer.step()
    close(fused.weight, other.weight)
    if mode == "sum":
        assert torch.equal(factors[0].grad, factors[1].grad)


@pytest.mark.parametrize("mode", ["sum", "max"])
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_rows_that_catch_up_before_backward_needs_them(name, mode):
    """Gradients of per-sample weights, and the winners of mode max, are those of rows that are up to date."""
    options = {"lr": 0.1} | ({"momentum": 0.9} if name == "SGD" else {})
    rule, reference = getattr(se, name)(**options), torch.nn.EmbeddingBag(V, D, mode=mode, padding_idx=7)
    optimizer = getattr(torch.optim, name)(reference.parameters(), **options)
    fused, unfused, ours = modules("EmbeddingBag", rule, mode=mode, padding_idx=7)
    reference.weight.data[7] = 1.0  # so that what its weights' gradient must not be is not zero
    for module in (fused, unfused):
        module.load_state_dict(reference.state_dict())
    for k in range(12):
        ids, gradients = (MORE + 3 * k) % 10, []  # each row is left out for a few steps, then needed
        for module in (reference, unfused, fused):
            factors = torch.ones(2, 2, requires_grad=True)
            out = module(ids, per_sample_weights=factors if mode == "sum" else None)
            (out - 1).pow(2).sum().backward()
            gradients.append(factors.grad)
        for each in (optimizer, ours):
            each.step()
            each.zero_grad()
        if mode == "sum":
            close(gradients[1], gradients[0], terms=2000)
            close(gradients[2], gradients[0], terms=2000)
    close(unfused.weight, reference.weight, terms=2000)
    close(fused.weight, reference.weight, terms=2000)


def test_modules_that_share_a_weight_take_one_step():
    fused, other, optimizer = modules("Embedding")
    bags = [st.EmbeddingBag(V, D, mode="sum", **extra) for extra in ({"fused": True, "optimizer": RULE}, {})]
    for bag, module in zip(bags, (fused, other), strict=True):
        bag.weight = module._parameters["weight"]
        (module(IDS).pow(2).sum() + bag(MORE).pow(2).sum()).backward()
    optimizer.step()
    assert fused.table.step == 1
    assert bags[0].table is fused.table
    close(fused.weight, other.weight)


class Raises(torch.autograd.Function):
    """Raises in backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad_out):
        raise ArithmeticError("half way")


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_a_backward_that_raises_leaves_nothing_behind(kind):
    fused, other, optimizer = modules(kind)
    before = fused.weight.detach().clone()
    # The engine runs what was recorded last first: the first lookup's gradient comes after the error.
    early = Raises.apply(looked(fused, IDS)).sum()
    loss = early + looked(fused, MORE).sum()
    with pytest.raises(ArithmeticError, match="half way"):
        loss.backward()
    del loss, early
    gc.collect()
    assert torch.equal(fused.weight, before)
    assert fused.table.step == 0
    assert not PASSES
    for module in (fused, other):
        looked(module, IDS).pow(2).sum().backward()
    optimizer.step()
    assert fused.table.step == 1
    assert torch.equal(fused.weight, other.weight)


def test_an_error_of_the_step_reaches_the_caller_and_changes_nothing():
    fused = st.Embedding(V, D, fused=True, optimizer=se.SGD(lr=lambda step: 0.1 if step > 1 else float("nan")))
    before = fused.weight.detach().clone()
    with pytest.raises(ValueError, match="lr"):
        fused(IDS).sum().backward()
    assert torch.equal(fused.weight, before)
    assert fused.table.step == 0


@pytest.mark.parametrize("kinds", [("Embedding", "Embedding"), ("Embedding", "EmbeddingBag")])
def test_all_tables_of_a_backward_pass_step_or_none(kinds):
    """Whichever of them cannot."""
    for bad in (0, 1):
        rules = [se.SGD(lr=0.1), se.SGD(lr=0.1)]
        rules[bad] = se.SGD(lr=lambda step: float("nan"))
        tables = [getattr(st, kind)(V, D, fused=True, optimizer=rule) for kind, rule in zip(kinds, rules, strict=True)]
        before = [table.weight.detach().clone() for table in tables]
        with pytest.raises(ValueError, match="lr"):
            sum(looked(table, IDS).sum() for table in tables).backward()
        assert [table.table.step for table in tables] == [0, 0]
        for table, weight in zip(tables, before, strict=True):
            assert torch.equal(table.weight, weight)
        assert not PASSES


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("of", ["module", "model", "parameters"])
def test_frozen_and_unfrozen(of, kind):
    """By requires_grad, as any module; the rest of the model trains on."""
    fused, other, optimizer = modules(kind)
    model = torch.nn.ModuleList([fused, torch.nn.Linear(D, 1)])
    before = fused.weight.detach().clone()

    def require(value):
        if of == "parameters":
            for each in fused.parameters():
                each.requires_grad_(value)
        else:
            {"module": fused, "model": model}[of].requires_grad_(value)

    assert fused.weight.requires_grad
    require(False)
    assert not looked(fused, IDS).requires_grad
    model[1].requires_grad_()
    model[1](looked(fused, IDS)).sum().backward()
    assert model[1].weight.grad is not None
    assert fused.table.step == 0
    assert torch.equal(fused.weight, before)
    require(True)
    for module in (fused, other):
        looked(module, IDS).pow(2).sum().backward()
    optimizer.step()
    assert fused.table.step == 1
    assert torch.equal(fused.weight, other.weight)
    assert fused.weight.grad is None


def test_weights_of_samples_are_trained_beside_a_frozen_table():
    fused = st.EmbeddingBag(V, D, mode="sum", fused=True, optimizer=RULE).requires_grad_(False)
    before, factors = fused.weight.detach().clone(), torch.ones(2, 2, requires_grad=True)
    fused(MORE, per_sample_weights=factors).sum().backward()
    close(factors.grad, before[MORE].sum(-1))
    assert fused.table.step == 0
    assert torch.equal(fused.weight, before)


def test_a_gradient_from_elsewhere_is_refused():
    """A tied layer: a fused step would leave its gradient out, and nobody would notice."""
    fused, linear = st.Embedding(V, D, fused=True, optimizer=RULE), torch.nn.Linear(D, V, bias=False)
    linear.weight = fused.weight
    before = fused.weight.detach().clone()
    with pytest.raises(RuntimeError, match="something other than its lookups"):
        linear(fused(IDS)).sum().backward()
    assert fused.table.step == 0
    assert fused.weight.grad is None
    assert torch.equal(fused.weight, before)
    (fused(IDS) @ linear.weight.detach().T).sum().backward()
    assert fused.table.step == 1


def test_backward_passes_of_two_threads_are_two_steps():
    fused = st.Embedding(V, D, fused=True, optimizer=se.SGD(lr=1.0))
    before, barrier = fused.weight.detach().clone(), threading.Barrier(2)

    def train(ids):
        output = fused(ids)
        barrier.wait()
        output.sum().backward()

    threads = [threading.Thread(target=train, args=(ids,)) for ids in (torch.tensor([2]), torch.tensor([2, 5]))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert fused.table.step == 2
    change = (before - fused.weight).detach()[:, 0]
    close(change, torch.zeros(V).index_put((torch.tensor([2, 5]),), torch.tensor([2.0, 1.0])))


@OLD
@pytest.mark.parametrize("times", [1, 2])
def test_checkpointed_parts_of_a_model(times):
    """Recomputed in backward, one step."""
    fused, other, optimizer = modules("Embedding")
    for module in (fused, other):
        x = torch.ones(3, D, requires_grad=True)
        for _ in range(times):
            x = torch.utils.checkpoint.checkpoint(lambda y: y * module(IDS), x, use_reentrant=False)  # noqa: B023
        x.sum().backward()
    optimizer.step()
    assert fused.table.step == 1
    close(fused.weight, other.weight)


@OLD
def test_a_reentrant_checkpoint_is_a_backward_pass_of_its_own():
    fused, x = st.Embedding(V, D, fused=True, optimizer=RULE), torch.ones(3, D, requires_grad=True)
    inner = torch.utils.checkpoint.checkpoint(lambda y: y * fused(IDS), x, use_reentrant=True)
    (inner.sum() + fused(MORE).sum()).backward()
    assert fused.table.step == 2  # documented
    assert not PASSES


def test_gradients_of_part_of_the_graph_do_not_step():
    fused, dense = st.Embedding(V, D, fused=True, optimizer=RULE), torch.ones(D, requires_grad=True)
    loss = (fused(IDS) * dense).sum()
    torch.autograd.grad(loss, dense, retain_graph=True)
    assert fused.table.step == 0
    loss.backward()
    assert fused.table.step == 1


def test_every_backward_is_a_step():
    """So a graph that is kept steps again; that is what accumulation would be."""
    fused = st.Embedding(V, D, fused=True, optimizer=se.SGD(lr=1.0))
    before, loss = fused.weight.detach().clone(), fused(torch.tensor([2])).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert fused.table.step == 2
    close(fused.weight[2], before[2] - 2)


def test_learning_rates_between_steps():
    fused, other, optimizer = modules("Embedding", se.SGD(lr=0.5))
    for lr in (0.5, 0.25, 1.0):
        fused.optimizer = replace(fused.optimizer, lr=lr)
        optimizer.param_groups[0]["lr"] = lr
        for module in (fused, other):
            module(IDS).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(fused.weight, other.weight)
    scheduled = st.Embedding(V, D, fused=True, optimizer=se.SGD(lr=float))
    before = scheduled.weight.detach().clone()
    for _ in range(3):
        scheduled(torch.tensor([2])).sum().backward()
    close(scheduled.weight[2], before[2] - 6)


def test_stale_graphs_are_noticed():
    """The engine writes behind torch's back, but tells it: a use of weight before the step cannot be stale."""
    fused = st.Embedding(V, D, fused=True, optimizer=RULE)
    layer = torch.randn(5, D, requires_grad=True)
    stale = (layer @ fused.weight.T).sum()
    fused(IDS).sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_what_is_refused():
    fused = st.Embedding(V, D, fused=True, optimizer=RULE)
    with pytest.raises(ValueError, match="fused table, which steps in backward"):
        st.Optimizer(fused.parameters(), RULE)
    with pytest.raises(ValueError, match="fused table, which has stepped in backward"):
        st.clip_grad_norm_(fused.parameters(), 1.0)
    (first,) = torch.autograd.grad(fused(IDS).pow(2).sum(), torch.zeros(1, requires_grad=True), allow_unused=True)
    assert first is None
    assert fused.table.step == 0
    fused(IDS).pow(2).sum().backward()
    with pytest.raises(ValueError, match="must keep the state"):
        fused.optimizer = se.SGD(lr=1.0)
    with pytest.raises(ValueError, match="only a fused module"):
        st.Embedding(V, D).optimizer = RULE


def test_an_optimizer_may_be_exchanged_before_the_first_step():
    """The padding stays what it is, and readers of the parameter get rows that have caught up."""
    options = {"padding_idx": 0, "freeze": False, "fused": True}
    fused = st.Embedding.from_pretrained(torch.ones(4, 2), optimizer=se.SGD(0.1), **options)
    same = st.Embedding.from_pretrained(torch.ones(4, 2), optimizer=se.Adam(0.1), **options)
    fused.optimizer = se.Adam(0.1)
    for module in (fused, same):
        for k in (1, 2, 3):
            module(torch.tensor([k])).sum().backward()
    (parameter,) = fused.parameters()
    assert (parameter[0] == 1).all()
    assert torch.equal(parameter.detach(), same.weight.detach())
    assert torch.equal(fused.table.lookup(torch.arange(4)), same.table.lookup(torch.arange(4)))


def test_a_derivative_of_a_derivative():
    """That of the dense part does not step; its own derivative is a first one of the rows, which does."""
    fused, x = st.Embedding(V, D, fused=True, optimizer=RULE), torch.ones(D, requires_grad=True)
    loss = ((fused(IDS) * x).sum()) ** 2
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    assert fused.table.step == 0
    first.sum().backward()
    assert fused.table.step == 1


def test_repr_names_the_rule():
    assert repr(st.Embedding(V, D, fused=True, optimizer=RULE)).endswith(f", fused=True, optimizer={RULE})")
    assert repr(st.EmbeddingBag(V, D, fused=True, optimizer=RULE)).endswith(f", fused=True, optimizer={RULE})")


# ---------------------------------------------------------------------- eval mode


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_no_steps_in_eval_mode(kind, rule):
    """Gradients of what is looked up in eval mode are dropped; training goes on afterwards as if they had not been."""
    fused, other, optimizer = modules(kind, rule)
    for module in (fused, other):
        looked(module, IDS).pow(2).sum().backward()
    optimizer.step()
    before = fused.weight.detach().clone()
    fused.eval()
    out = looked(fused, IDS)
    fused.train()  # the mode of the lookup counts, not that of backward
    assert out.requires_grad
    scale = torch.ones((), requires_grad=True)
    (scale * out).sum().backward()
    close(scale.grad, out.sum())
    assert fused.table.step == 1
    assert fused.weight.grad is None
    assert torch.equal(fused.weight, before)
    optimizer.zero_grad()
    for module in (fused, other):
        looked(module, MORE).pow(2).sum().backward()
    optimizer.step()
    close(fused.weight, other.weight)
    assert fused.table.step == 2


def test_eval_mode_counts_for_each_lookup():
    """Modules that share a table, of which one is in eval mode: the step has the gradients of the other alone."""
    fused, other, optimizer = modules("Embedding")
    twin = st.Embedding(V, D, fused=True, optimizer=RULE)
    twin.weight = fused.weight
    twin.eval()
    (twin(MORE).sum() + fused(IDS).pow(2).sum()).backward()
    other(IDS).pow(2).sum().backward()
    optimizer.step()
    close(fused.weight, other.weight)
    assert fused.table is twin.table
    assert fused.table.step == 1


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_gradients_of_weights_in_eval_mode(mode):
    """Mode max needs no winners then, so that rows may have changed since."""
    bag = st.EmbeddingBag(V, D, mode=mode, fused=True, optimizer=RULE).eval()
    factors = torch.ones(2, 2, requires_grad=True) if mode == "sum" else None
    out = bag(MORE, per_sample_weights=factors).sum()
    if mode == "max":
        bag.table.update(IDS, torch.ones(3, D))
    before = bag.weight.detach().clone()
    out.backward()
    assert torch.equal(bag.weight, before)
    if factors is not None:
        close(factors.grad, bag.weight.detach()[MORE].sum(-1))

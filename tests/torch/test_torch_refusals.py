"""What sparsembed.torch.Optimizer refuses, and that nothing has changed then."""

import gc

import pytest
import torch
from torch_cases import DIM, ROWS, grad, train, trained

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")
RULE = se.SparseAdam(lr=0.1)


def test_dense_gradients_are_refused():
    module = st.Embedding(ROWS, DIM)
    before = module.weight.detach().clone()
    first = st.Embedding(ROWS, DIM)
    optimizer = st.Optimizer([first.weight, module.weight], se.SGD(lr=0.1))
    (module.weight.sum() + module(torch.tensor([1])).sum() + first(torch.tensor([1])).sum()).backward()
    with pytest.raises(RuntimeError, match="dense gradient"):
        optimizer.step()
    assert torch.equal(module.weight, before)
    assert first.table.step == 0


def test_another_optimizer_takes_over():
    module, optimizer = trained()
    other = st.Optimizer(module.parameters(), se.SGD(lr=0.1))
    assert module.table.step == 0
    module(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="another Optimizer"):
        optimizer.step()
    other.step()
    assert module.table.step == 1
    del other
    gc.collect()
    train(module, st.Optimizer(module.parameters(), se.SGD(lr=0.1)), [1])


def test_what_is_refused():
    linear, module = torch.nn.Linear(2, 2), st.Embedding(ROWS, DIM)
    with pytest.raises(ValueError, match=r"params\[1\] is no weight of .*dense_parameters"):
        st.Optimizer([module.weight, linear.weight], se.SGD(lr=0.1))
    assert module.optimizer is None
    for rule in ("adam", None, torch.optim.SparseAdam):
        with pytest.raises(TypeError, match="rule must be a sparsembed rule"):
            st.Optimizer([module.weight], rule)
    with pytest.raises(TypeError, match=r"'maximize'.* no hyperparameters of SGD"):
        st.Optimizer([{"params": module.weight, "maximize": True}], se.SGD(lr=0.1))
    with pytest.raises(TypeError, match="rule of a group"):
        st.Optimizer([{"params": module.weight, "rule": 1}], se.SGD(lr=0.1))
    with pytest.raises(ValueError, match="max_norm does not go with"):
        st.Optimizer(st.Embedding(ROWS, DIM, max_norm=1.0).parameters(), se.Adam(lr=0.1))
    with pytest.raises(ValueError, match="empty parameter list"):
        st.Optimizer([], se.SGD(lr=0.1))
    optimizer = st.Optimizer([module.weight], se.SGD(lr=0.1))
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group([module.weight])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": module.weight})
    optimizer.param_groups[0]["lr"] = -1.0
    module(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    assert grad(module).sum() == DIM


def lost(module):
    return [{"params": [module.weight]}, {"params": [torch.nn.Linear(2, 2).weight]}]


FAILING = {
    "no table": lambda module: st.Optimizer([module.weight, torch.nn.Linear(2, 2).weight], RULE),
    "no table in another group": lambda module: st.Optimizer(lost(module), se.SGD(lr=0.1)),
    "a fused table": lambda module: st.Optimizer(
        [{"params": module.weight}, {"params": st.Embedding(3, 2, fused=True, optimizer=RULE).weight}], RULE
    ),
    "a rule that does not fit": lambda module: st.Optimizer(
        [module.weight, st.Embedding(3, 2, max_norm=1.0).weight], se.Adam(lr=0.1)
    ),
    "an unknown key": lambda module: st.Optimizer([*lost(module)[:1], {"params": [], "momentum": 0.5}], RULE),
    "twice": lambda module: st.Optimizer([*lost(module)[:1], *lost(module)[:1]], RULE),
}


@pytest.mark.parametrize("case", FAILING)
def test_an_optimizer_that_cannot_be_made_leaves_the_one_there_is(case):
    module, optimizer = trained()
    with pytest.raises((ValueError, TypeError)):
        FAILING[case](module)
    twin, other = trained()
    for each, driver in ((module, optimizer), (twin, other)):
        train(each, driver, [3])
        assert each.table.step == 4
    assert torch.equal(module.weight, twin.weight)


def test_a_group_that_cannot_be_added_leaves_what_there_is():
    module, optimizer = trained()
    other = st.Embedding(ROWS, DIM)
    kept = st.Optimizer(other.parameters(), se.SGD(lr=0.1))
    with pytest.raises(ValueError, match=r"params\[1\] is no weight"):
        optimizer.add_param_group({"params": [other.weight, torch.nn.Linear(2, 2).weight]})
    assert len(optimizer.param_groups) == 1
    train(module, optimizer, [3])
    train(other, kept, [3])


def stepped(modules, optimizer, error, message):
    """Steps of all tables after a step that raises and changes nothing."""
    optimizer.zero_grad()
    for module in modules:
        module(torch.tensor([1, 2])).sum().backward()
    before = [module.weight.detach().clone() for module in modules]
    with pytest.raises(error, match=message):
        optimizer.step()
    for module, weight in zip(modules, before, strict=True):
        assert torch.equal(module.weight, weight)
    return [module.table.step for module in modules]


BAD = {
    "a key that the rule does not have": ({"momentum": 0.9}, TypeError, r"\['momentum'\] of a group are no hyper"),
    "a misspelt key": ({"learning_rate": 0.9}, TypeError, r"\['learning_rate'\]"),
    "maximize": ({"maximize": True}, TypeError, r"\['maximize'\]"),
    "a number out of range": ({"lr": -1.0}, ValueError, "lr"),
    "no number": ({"lr": "big"}, TypeError, "lr"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_one_group_stops_all(case):
    """Keys that are set later, too: nothing is silently ignored."""
    values, error, message = BAD[case]
    modules = [st.Embedding(ROWS, DIM) for _ in range(2)]
    optimizer = st.Optimizer([{"params": [module.weight]} for module in modules], RULE)
    optimizer.param_groups[1].update(values)
    assert stepped(modules, optimizer, error, message) == [0, 0]
    for name in values:
        optimizer.param_groups[1].pop(name)
    optimizer.param_groups[1].update(lr=0.1, maximize=False, foreach=None, initial_lr=0.1)
    optimizer.step()
    assert [module.table.step for module in modules] == [1, 1]


def failing_rate():
    """Give a rate when the group is made, and none that can be used afterwards."""
    asked = []
    return lambda step: asked.append(step) or (0.1 if len(asked) < 3 else float("nan"))


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        (se.SGD(lr=failing_rate()), {}, "lr"),
        (se.SGD(lr=0.1), {"momentum": 0.9}, "must keep the state of"),  # which needs a slot
    ],
    ids=["rate", "slot"],
)
def test_what_the_rule_of_one_group_cannot_do_stops_all(rule, values, message):
    modules = [st.Embedding(ROWS, DIM) for _ in range(2)]
    groups = [{"params": modules[0].weight}, {"params": modules[1].weight, "rule": rule}]
    optimizer = st.Optimizer(groups, se.SGD(lr=0.1))
    optimizer.param_groups[1].update(values)
    assert stepped(modules, optimizer, ValueError, message) == [0, 0]


@pytest.mark.parametrize("how", ["load_state_dict(assign=True)", "module.weight ="])
def test_a_weight_that_its_module_left_is_not_silently_kept(how):
    module, optimizer = trained()
    weight = torch.randn(ROWS, DIM)
    if how == "module.weight =":
        module.weight = torch.nn.Parameter(weight)
    else:
        module.load_state_dict({"weight": weight}, assign=True)
    module(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"param_groups\[0\] is no longer that of its module"):
        optimizer.step()
    other = st.Optimizer(module.parameters(), RULE)
    other.step()
    assert module.table.step == 1


def test_a_weight_that_one_of_two_modules_left_trains_on():
    module, optimizer = trained()
    other = st.EmbeddingBag(ROWS, DIM)
    other.weight = module.weight
    train(module, optimizer, [3])
    other(torch.tensor([[1]]))
    other.weight = torch.nn.Parameter(torch.randn(ROWS, DIM))
    train(module, optimizer, [4])
    assert module.table.step == 5

"""The state of sparsembed.torch.Optimizer: saved, copied, loaded, or refused with nothing changed."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch_cases import DENSE, DIM, ROWS, SPARSE, close, lookups, options_of, pair, train, trained

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")


@pytest.mark.parametrize("rule", [SPARSE["SparseAdam"][0], DENSE["Adam"][0], se.RowwiseAdagrad(lr=0.1)], ids=str)
@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy", "pickle", "deepcopy, optimizer first"])
def test_training_goes_on_where_it_was_saved(how, rule):
    module, optimizer = trained(rule)
    if how in ("state_dict", "file"):
        saved = (module.state_dict(), optimizer.state_dict())
        if how == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        other = st.Embedding(ROWS, DIM)
        resumed = st.Optimizer(other.parameters(), type(rule)(lr=0.7))
        other.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
    elif how == "pickle":
        other, resumed = pickle.loads(pickle.dumps((module, optimizer)))
    elif how == "deepcopy":
        other, resumed = copy.deepcopy((module, optimizer))
    else:
        resumed, other = copy.deepcopy((optimizer, module))
    assert resumed.param_groups[0]["lr"] == rule.lr
    assert resumed.state_dict()["state"][0]["step"] == 3
    before = module.weight.detach().clone()
    train(other, resumed, range(3, 8))
    assert torch.equal(module.weight, before)
    train(module, optimizer, range(3, 8))
    assert torch.equal(module.weight, other.weight)
    assert module.table.step == other.table.step == 8
    for name, slot in module.table.state.items():
        np.testing.assert_array_equal(slot, other.table.state[name])


def test_state_dict_is_a_copy():
    module, optimizer = trained()
    saved = optimizer.state_dict()
    before = saved["state"][0]["exp_avg"].clone()
    train(module, optimizer, [3])
    assert torch.equal(saved["state"][0]["exp_avg"], before)
    assert saved["state"][0]["step"] == 3


TORCH = {
    "SparseAdam": se.SparseAdam(lr=0.1),
    "Adam": se.Adam(lr=0.1),
    "AdamW": se.AdamW(lr=0.1, weight_decay=0.1),
    "Adagrad": se.Adagrad(lr=0.1, lr_decay=0.1),
    "RMSprop": se.RMSprop(lr=0.01),
}


def torch_trained(name, **options):
    """Our module and its optimizer, and those of torch that have taken three steps."""
    ours, theirs = pair("Embedding", ROWS, DIM, sparse=name == "SparseAdam")
    drivers = [st.Optimizer(ours.parameters(), TORCH[name])]
    drivers += [getattr(torch.optim, name)(theirs.parameters(), **(options_of(TORCH[name]) | options))]
    train(theirs, drivers[1], range(3))
    return (ours, theirs), drivers


@pytest.mark.parametrize("name", TORCH)
def test_the_state_of_torch_can_be_loaded(name):
    """The same names and meaning; options of torch that ask for nothing are taken and left out."""
    (ours, theirs), drivers = torch_trained(name)
    ours.load_state_dict(theirs.state_dict())
    drivers[0].load_state_dict(drivers[1].state_dict())
    assert "maximize" not in drivers[0].param_groups[0]
    for module, driver in zip((ours, theirs), drivers, strict=True):
        train(module, driver, range(3, 6))
    assert ours.table.step == 6
    close(ours.weight, theirs.weight, terms=300)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("SparseAdam", {"maximize": True}, TypeError, r"\['maximize'\] of a group are no hyperparameters"),
        ("Adam", {"amsgrad": True}, TypeError, r"\['amsgrad'\]"),
        ("Adam", {"weight_decay": 0.1}, ValueError, "weight_decay"),
        ("RMSprop", {"momentum": 0.5, "centered": True}, TypeError, r"\['centered', 'momentum'\]"),
        ("Adagrad", {"initial_accumulator_value": 0.5}, ValueError, "subtract it"),
    ],
)
def test_states_of_torch_that_mean_something_else(name, options, error, message):
    (ours, _), drivers = torch_trained(name, **options)
    before = drivers[0].state_dict()
    with pytest.raises(error, match=message):
        drivers[0].load_state_dict(drivers[1].state_dict())
    assert drivers[0].state_dict()["param_groups"] == before["param_groups"]
    assert ours.table.step == 0


def test_decay_that_is_not_decoupled_is_not_that_of_adamw():
    theirs = torch.nn.Embedding(ROWS, DIM)
    saved = torch.optim.Adam(theirs.parameters(), weight_decay=0.1).state_dict()
    if "decoupled_weight_decay" not in saved["param_groups"][0]:
        pytest.skip("this torch does not say")
    with pytest.raises(TypeError, match="decoupled_weight_decay"):
        st.Optimizer(st.Embedding(ROWS, DIM).parameters(), TORCH["AdamW"]).load_state_dict(saved)


def of_second(**values):
    return lambda saved: saved["state"][1].update(values)


WRONG = [
    (of_second(step=2.5), TypeError, "step of a state must be an integer, got float 2.5"),
    (of_second(step=torch.tensor(2.5)), TypeError, "got float 2.5"),
    (of_second(step=torch.ones(2)), ValueError, "one integer, got shape"),
    (of_second(step=-1), ValueError, "at least 0"),
    (of_second(step="3"), TypeError, "must be an integer, got str"),
    (of_second(step=2**31), ValueError, "at most 2147483646 with Adam"),
    (of_second(step=2**63), ValueError, "below"),
    (of_second(exp_avg=torch.ones(ROWS, DIM + 1)), ValueError, "'exp_avg' must have shape"),
    (of_second(exp_avg=[[0.0] * DIM] * ROWS), TypeError, "'exp_avg' must be a tensor, got list"),
    (of_second(exp_avg=torch.ones(ROWS, DIM).to_sparse()), TypeError, "dense tensor"),
    (of_second(exp_avg=torch.ones(ROWS, DIM, device="meta")), (TypeError, NotImplementedError), "meta"),
    (of_second(more=1), KeyError, "must be 'step' and"),
    (lambda saved: saved["state"][1].pop("exp_avg"), KeyError, "must be 'step' and"),
    (lambda saved: saved["state"].update({1: [3]}), TypeError, "must be a dict, got list"),
    (lambda saved: saved["state"].update({7: saved["state"][1]}), KeyError, r"entries \[7\]"),
    (lambda saved: saved["param_groups"].append({}), ValueError, "number of parameter groups"),
    (lambda saved: saved["param_groups"][1].pop("betas"), KeyError, r"lack \['betas'\]"),
    (lambda saved: saved["param_groups"][1].update(momentum=0.9), TypeError, r"\['momentum'\]"),
    (lambda saved: saved["param_groups"][1].update(lr=-1.0), ValueError, "lr"),
]


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_what_load_state_dict_refuses_changes_no_table(change, error, message, hooked):
    """The second of two tables is wrong: the first one keeps what it has, too, and both train on."""
    (modules, optimizer), (twins, other) = two_tables(), two_tables()
    saved = copy.deepcopy(optimizer.state_dict())
    train_two(modules, optimizer, 3)
    train_two(twins, other, 3)
    if hooked:  # what a hook makes of it is what is checked
        optimizer.register_load_state_dict_pre_hook(lambda _, given: (change(given), None)[1])
    else:
        change(saved)
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    for k in (4, 5):
        for module, twin in zip(modules, twins, strict=True):
            assert_same(module.table, twin.table)
        assert optimizer.param_groups[1]["lr"] == 0.2
        train_two(modules, optimizer, k)
        train_two(twins, other, k)


def two_tables():
    """Two tables in groups of their own, which have taken steps."""
    torch.manual_seed(0)
    modules = [st.Embedding(ROWS, DIM) for _ in range(2)]
    groups = [{"params": [modules[0].weight]}, {"params": [modules[1].weight], "lr": 0.2}]
    optimizer = st.Optimizer(groups, se.Adam(lr=0.1))
    for k in range(3):
        train_two(modules, optimizer, k)
    return modules, optimizer


def train_two(modules, optimizer, k):
    optimizer.zero_grad()
    sum(module(*lookups("Embedding", k)).pow(2).sum() for module in modules).backward()
    optimizer.step()


def assert_same(table, other):
    one, two = table.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("empty", [{}, {0: {}}], ids=str)
def test_an_empty_state_starts_anew_as_in_torch(empty):
    """It is what an optimizer saves before its first step."""
    ours, theirs = pair("Embedding", ROWS, DIM, sparse=True)
    drivers = [st.Optimizer(ours.parameters(), se.SparseAdam(lr=0.1)), torch.optim.SparseAdam(theirs.parameters(), 0.1)]
    for module, driver in zip((ours, theirs), drivers, strict=True):
        train(module, driver, range(3))
        driver.load_state_dict({**driver.state_dict(), "state": empty})
        train(module, driver, range(3, 6))
    assert ours.table.step == 3
    close(ours.weight, theirs.weight, terms=300)

"""The state of tables as others see it: torch's checkpoint helpers and optimizers, hooks, and code that resets it."""

import copy
import io
import pickle

import pytest
import torch
from torch_cases import DENSE, DIM, ROWS, SPARSE, close, train, trained

import sparsembed as se
import sparsembed.torch as st

helpers = pytest.importorskip("torch.distributed.checkpoint.state_dict")

pytestmark = [
    pytest.mark.usefixtures("strict_torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]
RULES = {"SparseAdam": SPARSE["SparseAdam"][0], "SGD": se.SGD(lr=0.1), "Adam": DENSE["Adam"][0]}


def model_of(rule, steps=3):
    module, optimizer = trained(rule, steps)
    return torch.nn.Sequential(module), optimizer


def training_goes_on(one, other):
    """Both take the same steps from where they are."""
    for model, optimizer in (one, other):
        train(model[0], optimizer, range(3, 6))
    assert torch.equal(one[0][0].weight, other[0][0].weight)
    assert one[0][0].table.step == other[0][0].table.step


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_helpers_of_torch_save_and_restore(rule, steps, gradients, flat):
    """They take an optimizer that looks empty for a new one, and take a step with zero gradients and rates."""
    options = helpers.StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = model_of(rule, steps)
    twin = model_of(rule, steps)
    if not gradients:
        optimizer.zero_grad()
    before = model[0].weight.grad
    saved = helpers.get_optimizer_state_dict(model, optimizer, options=options)
    if flat:
        assert saved["state.0.weight.step"] == steps
    else:
        assert saved["state"]["0.weight"]["step"] == steps
        assert sorted(saved["state"]["0.weight"]) == sorted(["step", *rule.slots])
    assert optimizer.param_groups[0]["lr"] == rule.lr
    assert model[0].weight.grad is before
    assert model[0].table.step == steps
    saved = copy.deepcopy(saved)

    resumed, driver = model_of(rule, 0)
    resumed.load_state_dict(model.state_dict())
    helpers.set_optimizer_state_dict(resumed, driver, saved, options=options)
    assert resumed[0].weight.grad is None
    assert driver.param_groups[0]["lr"] == rule.lr
    training_goes_on((model, optimizer), twin)
    training_goes_on((resumed, driver), model_of(rule, steps))
    close(resumed[0].weight, model[0].weight)


def test_helpers_of_torch_with_two_optimizers():
    def made():
        torch.manual_seed(0)
        model = torch.nn.Sequential(st.Embedding(ROWS, DIM), torch.nn.Linear(DIM, 1))
        tables = st.Optimizer(st.table_parameters(model), se.SparseAdam(lr=0.1))
        return model, [tables, torch.optim.Adam(st.dense_parameters(model), lr=0.1)]

    def step(model, optimizers, ids):
        for each in optimizers:
            each.zero_grad()
        model(torch.tensor(ids)).pow(2).sum().backward()
        for each in optimizers:
            each.step()

    model, optimizers = made()
    step(model, optimizers, [1, 2, 1])
    weights, state = helpers.get_state_dict(model, optimizers)
    weights, state = copy.deepcopy((weights, state))
    other, drivers = made()
    helpers.set_state_dict(other, drivers, model_state_dict=weights, optim_state_dict=state)
    for each, its in ((model, optimizers), (other, drivers)):
        step(each, its, [2, 5])
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert other[0].table.step == 2


def test_numbers_of_parameters_may_be_strings():
    """`torch.distributed.checkpoint` makes strings of the keys of a dict, as JSON does."""
    module, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"] = {str(key): value for key, value in saved["state"].items()}
    other, resumed = trained(steps=0)
    other.load_state_dict(module.state_dict())
    resumed.load_state_dict(saved)
    training_goes_on(([module], optimizer), ([other], resumed))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_state_shows_what_the_tables_hold(rule):
    (module, optimizer), (twin, other) = trained(rule), trained(rule)
    state = optimizer.state
    assert state
    assert len(state) == 1
    assert [*state] == [module.weight]
    assert module.weight in state
    assert torch.zeros(3) not in state
    assert state[module.weight]["step"] == 3
    assert {*state[module.weight]} == {"step", *rule.slots}
    for name in rule.slots:
        assert torch.equal(state[module.weight][name], torch.from_numpy(module.table.state[name]))
    train(module, optimizer, [3])
    assert state[module.weight]["step"] == 4
    with pytest.raises(KeyError):
        state[torch.zeros(3)]
    with pytest.raises(KeyError):
        state[module.weight]["max_exp_avg_sq"]
    assert state.get(torch.zeros(3)) is None
    train(twin, other, [3])
    for values in state.values():  # as code does that moves a state to a device
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = value.to("cpu")
    train(module, optimizer, [4])
    train(twin, other, [4])
    assert torch.equal(module.weight, twin.weight)
    assert "step" in repr(state)


def test_state_takes_what_is_written_to_it():
    module, optimizer = trained(RULES["Adam"])
    state = optimizer.state[module.weight]
    state["exp_avg"] = torch.ones(ROWS, DIM)
    state["step"] = 7
    assert module.table.step == 7
    assert (module.table.state["exp_avg"] == 1).all()
    state["exp_avg"].zero_()
    assert (module.table.state["exp_avg"] == 0).all()
    for name, value, error in (
        ("exp_avg", torch.ones(2, 2), ValueError),
        ("exp_avg", 1.0, TypeError),
        ("step", -1, ValueError),
        ("momentum", torch.ones(ROWS, DIM), KeyError),
    ):
        with pytest.raises(error):
            state[name] = value
    with pytest.raises(TypeError, match="cannot be taken out"):
        del state["exp_avg"]
    assert module.table.step == 7


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_an_empty_state_starts_training_anew(rule):
    """The way of many recipes to reset an optimizer of torch."""
    module, optimizer = trained(rule)
    weight = module.weight.detach().clone()
    optimizer.state = {}
    assert module.table.step == 0
    assert torch.equal(module.weight, weight)
    other = st.Embedding(ROWS, DIM, _weight=weight)
    training_goes_on(([module], optimizer), ([other], st.Optimizer(other.parameters(), rule)))
    with pytest.raises(KeyError, match="no parameters of its groups"):
        optimizer.state = {0: {"step": 1}}
    with pytest.raises(KeyError, match="'step' and"):
        optimizer.state = {module.weight: {"sum": 1}}
    assert module.table.step == 3


def test_copies_show_their_state_before_they_step():
    module, optimizer = trained()
    for other, resumed in (copy.deepcopy((module, optimizer)), pickle.loads(pickle.dumps((module, optimizer)))):
        assert resumed.state[other.weight]["step"] == 3
        train(other, resumed, [3])
        assert resumed.state[other.weight]["step"] == 4
        assert optimizer.state[module.weight]["step"] == 3


TORCHS = {
    "SparseAdam": se.SparseAdam(lr=0.1, betas=(0.8, 0.9), eps=1e-4),
    "Adagrad": se.Adagrad(lr=0.1, lr_decay=0.1),
    "RMSprop": se.RMSprop(lr=0.01),
    "Adam": se.Adam(lr=0.1),
    "AdamW": se.AdamW(lr=0.1, weight_decay=0.1),
    "SGD": se.SGD(lr=0.1),
    "SGD with momentum": se.SGD(lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.01),
    "SGD with nesterov": se.SGD(lr=0.1, momentum=0.8, nesterov=True),
    "SGD with decay": se.SGD(lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", TORCHS)
def test_optimizers_of_torch_go_on_with_our_state(name, steps):
    """And ours with theirs."""
    module, optimizer = trained(TORCHS[name], steps)
    other = torch.nn.Embedding(ROWS, DIM, sparse=name in ("SparseAdam", "Adagrad", "SGD"))
    other.load_state_dict(module.state_dict())
    kind = getattr(torch.optim, name.split()[0])
    theirs = kind(other.parameters(), lr=0.5)  # the other hyperparameters are loaded, too
    theirs.load_state_dict(optimizer.state_dict())
    train(module, optimizer, range(3, 6))
    train(other, theirs, range(3, 6))
    close(module.weight, other.weight, terms=300)
    again, back = trained(TORCHS[name], 0)
    again.load_state_dict(other.state_dict())
    back.load_state_dict(theirs.state_dict())
    assert back.param_groups[0].keys() == optimizer.param_groups[0].keys()
    if not name.startswith("SGD"):  # which counts no steps
        assert again.table.step == steps + 3
    for model, driver in ((module, optimizer), (other, theirs), (again, back)):
        train(model, driver, range(6, 9))
    close(module.weight, other.weight, terms=600)
    close(again.weight, other.weight, terms=600)


def test_momentum_without_a_step_and_a_schedule_of_steps():
    """Torch's SGD does not count; what the learning rate would be is not known."""
    module, optimizer = trained(se.SGD(lr=lambda step: 0.1 / step, momentum=0.9))
    before = module.table.state_dict()
    saved = optimizer.state_dict()
    assert saved["state"][0].pop("step") == 3
    with pytest.raises(ValueError, match=r"has no 'step', as that of torch's SGD.*add 'step'"):
        optimizer.load_state_dict(saved)
    for name, value in module.table.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[name]))
    saved["state"][0]["step"] = 5
    optimizer.load_state_dict(saved)
    assert module.table.step == 5
    saved["state"][0] = {"momentum_buffer": None}  # of older versions of torch, before the first step
    optimizer.load_state_dict(saved)
    assert module.table.step == 0


@pytest.mark.parametrize("kind", [se.SGD, se.Adagrad, se.SparseAdam])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_decay_of_touched_rows_in_param_groups(kind, decay):
    """Neither torch nor former versions have it: it is off where it is missing, and torch refuses it where it can."""
    rule = kind(lr=0.1, touched_weight_decay=decay)
    module, optimizer = trained(rule)
    saved = copy.deepcopy(optimizer.state_dict())
    other, resumed = trained(kind(lr=0.5), 0)
    other.load_state_dict(module.state_dict())
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0] == {**optimizer.param_groups[0], "params": [other.weight]}
    training_goes_on(([module], optimizer), ([other], resumed))
    assert ("touched_weight_decay" in saved["param_groups"][0]) is bool(decay)
    saved["param_groups"][0].pop("touched_weight_decay", None)
    if decay and kind is se.SGD:
        saved["param_groups"][0]["weight_decay"] = 0.0
    resumed.load_state_dict(saved)
    assert "touched_weight_decay" not in resumed.param_groups[0]
    assert other.table.optimizer.touched_weight_decay == 0
    if kind is not se.SparseAdam:
        torchs = getattr(torch.optim, kind.__name__)(torch.nn.Embedding(ROWS, DIM, sparse=True).parameters(), lr=0.1)
        torchs.load_state_dict(optimizer.state_dict())
        assert ("weight_decay" in torchs.param_groups[0]) is (not decay)


def test_decay_of_touched_rows_set_in_a_group():
    """Groups show it where it is on; it counts if it is set later, or is refused."""
    module, optimizer = trained(se.SGD(lr=0.1, momentum=0.5))
    assert "touched_weight_decay" not in optimizer.param_groups[0]
    twin, other = trained(se.SGD(lr=0.1, momentum=0.5))
    for driver, value in ((optimizer, 0.1), (other, 0.0)):
        driver.param_groups[0]["touched_weight_decay"] = value
    train(module, optimizer, [3])
    train(twin, other, [3])
    assert module.table.optimizer == se.SGD(lr=0.1, momentum=0.5, touched_weight_decay=0.1)
    assert twin.table.optimizer == se.SGD(lr=0.1, momentum=0.5)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(ValueError, match="pass one of them"):
        optimizer.step()
    other.param_groups[0]["touched_weight_decay"] = -1.0
    with pytest.raises(ValueError, match=r"SGD\(touched_weight_decay=...\) must be finite, not negative"):
        other.step()
    assert (module.table.step, twin.table.step) == (4, 4)


def test_a_sum_without_its_initial_value_is_not_taken_for_torchs():
    module, optimizer = trained(se.Adagrad(lr=0.1, initial_accumulator_value=0.5))
    theirs = torch.optim.Adagrad(torch.nn.Embedding(ROWS, DIM, sparse=True).parameters())
    assert "weight_decay" not in optimizer.state_dict()["param_groups"][0]
    optimizer.load_state_dict(optimizer.state_dict())
    assert module.table.step == 3
    theirs.load_state_dict(optimizer.state_dict())
    parameter = theirs.param_groups[0]["params"][0]
    parameter.grad = torch.zeros(ROWS, DIM).to_sparse(1)
    with pytest.raises(KeyError):
        theirs.step()


@pytest.mark.parametrize("extra", [{"lr_scale": 0.5}, {"layer_decay": 1, "fix_lr": True}, {"note": "tables"}, {7: 7}])
@pytest.mark.parametrize("added", ["at once", "in a group of its own", "later"])
def test_notes_of_others_stay_in_a_group(extra, added):
    module = st.Embedding(ROWS, DIM)
    if added == "at once":
        optimizer = st.Optimizer([{"params": [module.weight], **extra}], se.SGD(lr=1.0))
    else:
        optimizer = st.Optimizer(module.parameters(), se.SGD(lr=1.0))
        if added == "later":
            optimizer.param_groups[0].update(extra)
        else:
            optimizer.add_param_group({"params": st.Embedding(ROWS, DIM).parameters(), **extra})
    train(module, optimizer, range(2))
    assert optimizer.param_groups[-1].items() >= extra.items()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.param_groups[-1].items() >= extra.items()
    assert module.table.step == 2


@pytest.mark.parametrize(
    "name", ["learning_rate", "momentum", "weight_decya", "beta1", "LR", "nesterov", "rho", "betas_", "Weight_Decay"]
)
def test_hyperparameters_that_a_rule_does_not_have_are_refused(name):
    module = st.Embedding(ROWS, DIM)
    with pytest.raises(TypeError, match="no hyperparameters of SparseAdam"):
        st.Optimizer([{"params": [module.weight], name: 0.5}], se.SparseAdam(lr=1.0))
    optimizer = st.Optimizer(module.parameters(), se.SparseAdam(lr=1.0))
    optimizer.param_groups[0][name] = 0.5
    module(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="no hyperparameters of SparseAdam"):
        optimizer.step()
    assert module.table.step == 0


def test_the_state_of_a_fused_table_is_read_with_weights_only():
    """And what earlier versions saved, NumPy arrays, can be loaded, too."""

    def made(seed):
        torch.manual_seed(seed)
        return st.Embedding(ROWS, DIM, fused=True, optimizer=se.Adam(lr=0.1))

    def step(module, *ids):
        module(torch.tensor(ids)).pow(2).sum().backward()

    module = made(0)
    step(module, 1, 2)
    step(module, 3)
    file = io.BytesIO()
    torch.save(module.table.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["step"] == 2
    assert all(isinstance(value, torch.Tensor) for name, value in saved.items() if name != "step")
    arrays = {name: value if name == "step" else value.numpy() for name, value in saved.items()}
    others = [made(1), made(1)]
    for other, state in zip(others, (saved, arrays), strict=True):
        other.table.load_state_dict(state)
    for each in (module, *others):
        step(each, 2)
    for other in others:
        assert torch.equal(other.weight, module.weight)
        assert other.table.step == 3


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_table_is_copied_without_its_module(how, fused, rule):
    ids, grad_out = torch.tensor([1, 2]), torch.ones(2, DIM)
    options = {"padding_idx": 0, "scale_grad_by_freq": True}
    if fused:
        module = st.Embedding(ROWS, DIM, fused=True, optimizer=rule, **options)
    else:
        module = st.Embedding(ROWS, DIM, **options)
        optimizer = st.Optimizer(module.parameters(), rule)
    module(ids).sum().backward()
    if not fused:
        optimizer.step()
    before = module.weight.detach().clone()
    table = how(module.table)
    assert type(table) is se.EmbeddingTable
    assert (table.step, table.optimizer, table.padding_idx, table.scale_grad_by_freq) == (1, rule, 0, True)
    assert torch.equal(torch.from_numpy(table.weight), before)
    table.update(ids, grad_out)
    assert torch.equal(module.weight, before)
    module.table.update(ids, grad_out)
    for name, value in table.state_dict().items():
        assert (module.table.state_dict()[name] == torch.as_tensor(value)).all()


def test_decay_of_touched_rows_that_is_switched_in_a_group():
    """A state says what the rule was at that time, whatever the group was made of."""
    ids = torch.tensor([1, 3, 1])

    def stepped(rule, *changes):
        module = st.Embedding(6, 4)
        optimizer = st.Optimizer([module.weight], rule)
        for change in ({}, *changes):
            optimizer.param_groups[0].update(change)
            optimizer.zero_grad()
            module(ids).sum().backward()
            optimizer.step()
        return optimizer.state_dict()

    off = stepped(se.SGD(0.1, touched_weight_decay=0.1), {"touched_weight_decay": 0.0})
    assert off["param_groups"][0]["weight_decay"] == 0
    st.Optimizer([st.Embedding(6, 4).weight], se.SGD(0.1)).load_state_dict(off)
    dense = torch.nn.Embedding(6, 4, sparse=True)
    torchs = torch.optim.SGD([dense.weight], lr=0.1)
    torchs.load_state_dict(off)
    dense(ids).sum().backward()
    torchs.step()
    on = stepped(se.SGD(0.1), {"touched_weight_decay": 0.1})
    assert "weight_decay" not in on["param_groups"][0]  # so that a step of torch's, which would leave it out, raises
    torchs.load_state_dict(on)
    with pytest.raises(KeyError, match="weight_decay"):
        torchs.step()

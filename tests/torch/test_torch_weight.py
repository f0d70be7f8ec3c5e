"""Weights that are reached past their modules while rows have missed steps: what is read, and what is written."""

import copy
import pickle

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_cases import DENSE, options_of

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")
ROWS, DIM = 6, 2
RULES = pytest.mark.parametrize("name", DENSE)


class Ours:
    """A table in the middle of training, with rows that have missed steps."""

    def __init__(self, name, fused=False):
        torch.manual_seed(0)
        own = {"fused": True, "optimizer": DENSE[name][0]} if fused else {}
        self.module = st.Embedding(ROWS, DIM, dtype=torch.float64, **own)
        self.optimizer = None if fused else st.Optimizer(self.module.parameters(), DENSE[name][0])

    def step(self, *ids):
        loss = self.module(torch.tensor(ids)).pow(2).sum()
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()


class Torchs(Ours):
    """The same with torch's module and dense optimizer."""

    def __init__(self, name, fused=False):
        torch.manual_seed(0)
        self.module = torch.nn.Embedding(ROWS, DIM, dtype=torch.float64)
        rule, kind = DENSE[name]
        self.optimizer = kind(self.module.parameters(), **options_of(rule))


def pair(name, fused=False):
    both = Ours(name, fused), Torchs(name)
    for each in both:
        for ids in ([0, 1], [1, 2, 2], [4]):
            each.step(*ids)
    return both


def close(actual, expected):
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def fill(model):
    for parameter in model.parameters():
        parameter.fill_(0.5)


@torch.no_grad()
def one_row(model):
    next(model.parameters())[1] = 0.5


@torch.no_grad()
def scale(model):
    for parameter in model.parameters():
        parameter.mul_(0.5)


def scale_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


def through_vector(model):
    vector_to_parameters(parameters_to_vector(model.parameters()) * 0.5, model.parameters())


def initialise(model):
    torch.manual_seed(1)
    torch.nn.init.normal_(next(model.parameters()))


@torch.no_grad()
def several_at_once(model):
    torch._foreach_mul_([*model.parameters()], 0.5)


@torch.no_grad()
def as_output(model):
    (weight,) = model.parameters()
    torch.mul(torch.full((ROWS, DIM), 2.0, dtype=torch.float64), 3.0, out=weight)


def other_memory(model):
    (weight,) = model.parameters()
    weight.data = weight.data * 0.5


WRITES = [fill, one_row, scale, scale_data, through_vector, initialise, several_at_once, as_output, other_memory]


@RULES
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_is_the_last_word(name, fused, write):
    both = pair(name, fused)
    for each in both:
        write(each.module)
        each.read = each.module(torch.arange(ROWS))
        each.step(3)
        each.step(0, 3)
    ours, theirs = both
    close(ours.read, theirs.read)
    close(ours.module.weight, theirs.module.weight)


def test_a_list_kept_from_earlier_is_as_good():
    ours, theirs = Ours("Adam"), Torchs("Adam")
    kept = [[*each.module.parameters()] for each in (ours, theirs)]
    for each, (weight,) in zip((ours, theirs), kept, strict=True):
        each.step(0)
        each.step(1)
        each.norm = weight.detach().norm()
        with torch.no_grad():
            weight[0] += 1.0
        each.step(2)
    close(ours.norm, theirs.norm)
    close(ours.module.weight, theirs.module.weight)


@RULES
@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.5)], ids=["SWA", "EMA"])
@pytest.mark.parametrize("fused", [False, True])
def test_averages_are_those_of_the_dense_optimizer(name, average, fused):
    both = Ours(name, fused), Torchs(name)
    for each in both:
        each.average = AveragedModel(each.module, multi_avg_fn=average)
        for ids in ([0], [1, 0], [2], [4]):
            each.step(*ids)
            each.average.update_parameters(each.module)
        with torch.no_grad():  # and back again
            for parameter, mean in zip(each.module.parameters(), each.average.parameters(), strict=True):
                parameter.copy_(mean)
        each.step(3)
    ours, theirs = both
    for mine, its in zip(ours.average.parameters(), theirs.average.parameters(), strict=True):
        close(mine, its)
    close(ours.module.weight, theirs.module.weight)


@RULES
@pytest.mark.parametrize(
    "read",
    [
        lambda p: p.norm(),
        lambda p: p[0],
        lambda p: torch.stack([p, p]),
        lambda p: torch._foreach_norm([p])[0],
        lambda p: torch.nn.functional.embedding(torch.tensor([0, 1]), p),
        lambda p: torch.from_numpy(p.detach().numpy().copy()),
        copy.deepcopy,
        lambda p: pickle.loads(pickle.dumps(p)),
        lambda p: torch.tensor(p.tolist()),
        lambda p: torch.equal(p, p.detach().clone()) and p.data,
        lambda p: torch.nn.utils.parameters_to_vector(iter([p])),
    ],
)
def test_what_is_read_is_what_the_dense_optimizer_has(name, read):
    both = pair(name)
    results = [read(next(each.module.parameters())) for each in both]
    close(results[0].double(), results[1].double())


def test_a_parameter_is_shown_as_torch_shows_it():
    ours, theirs = pair("Adam")
    assert repr(next(ours.module.parameters())) == repr(next(theirs.module.parameters()))
    assert isinstance(ours.module.weight, torch.nn.Parameter)


def test_what_every_training_loop_asks_costs_no_pass_over_the_table():
    ours, _ = pair("Adam")
    model = torch.nn.Sequential(ours.module)
    weight = model[0]._parameters["weight"]
    with torch._C.DisableTorchFunctionSubclass():  # what lies in memory, whatever rows have missed
        memory = weight.detach()
    before = memory.clone()
    ours.module(torch.tensor([1])).sum().backward()
    st.clip_grad_norm_(model.parameters(), 1.0)
    torch.nn.utils.get_total_norm([weight.grad.to_dense()])
    model.zero_grad()
    model.requires_grad_(True)
    model.train()
    assert sum(each.numel() for each in model.parameters()) == ROWS * DIM
    assert (weight.shape, weight.dtype, weight.device) == ((ROWS, DIM), torch.float64, torch.device("cpu"))
    assert st.table_parameters(model)[0] is weight
    assert torch.equal(memory, before)
    weight.sum()
    assert not torch.equal(memory, before)


def test_a_closure_reads_rows_that_are_up_to_date():
    seen = []
    for each in pair("Adam"):

        def closure(each=each):
            each.optimizer.zero_grad()
            (weight,) = each.module.parameters()
            seen.append(weight.detach().clone())
            loss = each.module(torch.tensor([5])).sum()
            loss.backward()
            return loss

        each.optimizer.step(closure)
        seen.append(each.module.weight)
    close(seen[0], seen[2])
    close(seen[1], seen[3])


def test_rules_that_miss_nothing_leave_the_parameter_alone():
    module = st.Embedding(ROWS, DIM)
    st.Optimizer(module.parameters(), se.SparseAdam())
    assert type(module.weight) is torch.nn.Parameter


def test_a_parameter_is_made_of_a_weight_as_of_any_other():
    ours, theirs = pair("Adam")
    made = [torch.nn.Parameter(each.module._parameters["weight"]) for each in (ours, theirs)]
    close(*made)
    for each, parameter in zip((ours, theirs), made, strict=True):
        assert isinstance(parameter, torch.nn.Parameter)
        assert parameter.requires_grad
        assert parameter.is_leaf
        assert parameter.data_ptr() == each.module.weight.data_ptr()
    assert type(ours.module.weight.detach()) is torch.Tensor
    assert type(ours.module.state_dict()["weight"]) is torch.Tensor

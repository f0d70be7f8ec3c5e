"""Learning rates of sparsembed.torch.Optimizer: torch's schedulers, changes by hand, functions of the step."""

import numpy as np
import pytest
import torch
from torch_cases import DIM, ROWS, close, pair, train, trained

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 / (k + 1)),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=20),  # changes betas, too
    "warm-up": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=4), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        [4],
    ),
}


@pytest.mark.filterwarnings("ignore:.*epoch parameter.*:UserWarning")  # of SequentialLR itself
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("rule", ["SparseAdam", "Adam"])
def test_schedulers(name, rule):
    ours, theirs = pair("Embedding", ROWS, DIM, sparse=rule == "SparseAdam")
    drivers = [st.Optimizer(ours.parameters(), getattr(se, rule)(lr=0.1))]
    drivers += [getattr(torch.optim, rule)(theirs.parameters(), lr=0.1)]
    schedulers = [SCHEDULERS[name](each) for each in drivers]
    for k in range(10):
        for module, driver, scheduler in zip((ours, theirs), drivers, schedulers, strict=True):
            train(module, driver, [k])
            scheduler.step()
        assert drivers[0].param_groups[0]["lr"] == drivers[1].param_groups[0]["lr"]
    close(ours.weight, theirs.weight, terms=600)


def test_reduce_on_plateau_and_changes_by_hand():
    module, optimizer = trained(se.SGD(lr=1.0), steps=0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    rates = []
    for change in (None, "plateau", 0.1, torch.tensor(0.3)):
        if change == "plateau":
            scheduler.step(1.0)
            scheduler.step(1.0)
        elif change is not None:
            optimizer.param_groups[0]["lr"] = change
        before = module.weight.detach()[5].clone()
        optimizer.zero_grad()
        module(torch.tensor([5])).sum().backward()
        optimizer.step()
        rates.append(float((before - module.weight.detach()[5])[0]))
    np.testing.assert_allclose(rates, [1.0, 0.5, 0.1, 0.3], rtol=1e-6)


def test_a_learning_rate_that_is_a_function():
    rule = se.SGD(lr=lambda step: 1.0 / step)
    module, optimizer = trained(rule, steps=0)
    for k in range(1, 4):
        assert optimizer.param_groups[0]["lr"] == 1 / k
        before = module.weight.detach()[5].clone()
        optimizer.zero_grad()
        module(torch.tensor([5])).sum().backward()
        optimizer.step()
        close(before - module.weight[5], torch.full((DIM,), 1 / k))
    saved = optimizer.state_dict()
    other = st.Optimizer(module.parameters(), rule)
    other.load_state_dict(saved)
    assert module.table.step == 3
    train(module, other, [0])
    other.param_groups[0]["lr"] = 0.1
    module(torch.tensor([5])).sum().backward()
    with pytest.raises(ValueError, match="schedule it in one place"):
        other.step()

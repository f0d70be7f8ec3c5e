"""Files of modules: fused, with an Optimizer, or frozen; they go on bit for bit, and `se.load` reads them."""

import numpy as np
import pytest
import torch

import sparsembed as se
import sparsembed.torch as st

ROWS, DIM = 20, 4
RULES = {
    "SGD": se.SGD(lr=0.1),
    "momentum": se.SGD(lr=0.1, momentum=0.5),
    "SparseAdam": se.SparseAdam(lr=0.1),
    "Adam": se.Adam(lr=0.1),
    "RowwiseAdagrad": se.RowwiseAdagrad(lr=0.1),
}


def made(seed, rule=None, fused=False, kind=st.Embedding, **options):
    torch.manual_seed(seed)
    more = {"optimizer": rule, "fused": True} if fused else {}
    module = kind(ROWS, DIM, padding_idx=3, **options, **more)
    return module, None if fused or rule is None else st.Optimizer(module.parameters(), rule)


def train(pair, seeds):
    module, optimizer = pair
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(ROWS, (3, 5), generator=generator)
        if optimizer is not None:
            optimizer.zero_grad()
        module(ids).pow(2).sum().backward()
        if optimizer is not None:
            optimizer.step()


def held(pair):
    table = pair[0].table
    return [
        table.step,
        table.weight.tobytes(),
        *(np.ascontiguousarray(each).tobytes() for each in table.state.values()),
    ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "module.safetensors"


@pytest.mark.parametrize("kind", [st.Embedding, st.EmbeddingBag])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_a_module_goes_on_bit_for_bit(name, fused, kind, path):
    mine, its = made(0, RULES[name], fused, kind), made(1, RULES[name], fused, kind)
    train(mine, range(3))
    train(its, range(5))
    st.save(mine[0], path)
    st.load(its[0], path)
    assert held(mine) == held(its)
    assert mine[0].table.seed == its[0].table.seed
    for pair in (mine, its):
        train(pair, range(10, 14))
    assert held(mine) == held(its)


@pytest.mark.parametrize("fused", [True, False])
def test_the_file_of_a_module_is_that_of_a_table(fused, path):
    pair = made(0, se.SparseAdam(lr=0.1), fused)
    train(pair, range(3))
    with torch.no_grad():
        pair[0].weight[3] = 7.0  # torch lets the padding hold anything
    st.save(pair[0], path)
    table, module = se.load(path), pair[0].table
    assert (table.step, table.optimizer, table.padding_idx) == (3, se.SparseAdam(lr=0.1), 3)
    others = np.arange(ROWS) != 3
    np.testing.assert_array_equal(table.weight[others], module.weight[others])
    assert (table.weight[3] == 0).all()
    np.testing.assert_array_equal(table.state["exp_avg"], module.state["exp_avg"])
    again = made(1, se.SparseAdam(lr=0.1), fused)
    st.load(again[0], path)
    assert held(again) == held(pair)


def test_what_a_scheduler_has_set_is_saved_and_comes_back(path):
    mine, its = made(0, se.Adam(lr=0.4)), made(1, se.Adam(lr=0.1, betas=(0.8, 0.9)))
    scheduler = torch.optim.lr_scheduler.StepLR(mine[1], step_size=1, gamma=0.5)
    train(mine, [0])
    scheduler.step()
    st.save(mine[0], path)
    st.load(its[0], path)
    group = its[1].param_groups[0]
    assert (group["lr"], group["betas"]) == (0.2, (0.9, 0.999))
    for pair in (mine, its):
        train(pair, range(10, 13))
    assert held(mine) == held(its)


def test_a_fused_module_gets_the_hyperparameters(path):
    mine, its = made(0, se.Adam(lr=0.4), True), made(1, se.Adam(lr=0.1, betas=(0.8, 0.9)), True)
    st.save(mine[0], path)
    st.load(its[0], path)
    assert its[0].optimizer == mine[0].optimizer


def falling(step):
    return 0.5 / step


@pytest.mark.parametrize("fused", [True, False])
def test_a_schedule_is_given_again(fused, path):
    rule = se.SparseAdam(lr=falling)
    mine, its = made(0, rule, fused), made(1, rule, fused)
    train(mine, range(3))
    st.save(mine[0], path)
    with pytest.raises(ValueError, match="pass optimizer="):
        st.load(its[0], path)
    st.load(its[0], path, optimizer=rule)
    for pair in (mine, its):
        train(pair, range(10, 13))
    assert held(mine) == held(its)


def test_a_module_without_optimizer_takes_the_weight(path):
    mine, its = made(0, se.Adam(lr=0.4)), made(1)
    train(mine, range(3))
    st.save(mine[0], path)
    st.load(its[0], path)
    assert its[0].table.optimizer is None
    assert torch.equal(its[0].weight, mine[0].weight)


def test_autograd_is_told(path):
    """A graph that has read the old rows is refused."""
    pair = made(0, se.SGD(lr=0.1))
    st.save(pair[0], path)
    loss = pair[0].weight.pow(2).sum()
    st.load(pair[0], path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_does_not_fit_changes_nothing(path):
    pair = made(0, se.SparseAdam(lr=0.1))
    train(pair, range(3))
    st.save(pair[0], path)
    smaller = st.Embedding(ROWS - 1, DIM, padding_idx=3)
    for module, error, match in [
        (made(1, se.Adam(lr=0.1))[0], ValueError, "must be of the class of the saved SparseAdam"),
        (made(1, se.Adagrad(lr=0.1), True)[0], ValueError, "must be of the class of the saved SparseAdam"),
        (made(1, scale_grad_by_freq=True)[0], ValueError, "module must have the options of the saved table"),
        (made(1, dtype=torch.float64)[0], ValueError, "module must have the shape and dtype"),
        (smaller, ValueError, "module must have the shape and dtype"),
        (torch.nn.Embedding(ROWS, DIM), TypeError, r"module must be a sparsembed\.torch\.Embedding"),
    ]:
        before = module.weight.detach().clone()
        with pytest.raises(error, match=match):
            st.load(module, path)
        assert torch.equal(module.weight, before)
    with pytest.raises(TypeError, match=r"module must be a sparsembed\.torch\.Embedding"):
        st.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(TypeError, match="optimizer must be a sparsembed optimizer"):
        st.load(pair[0], path, optimizer="Adam")

"""Parameters of a model apart, and gradients clipped together."""

import copy

import pytest
import torch
from torch_cases import close, grad

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.tied = st.Embedding(20, 3), st.EmbeddingBag(20, 3, mode="sum")
        self.tied.weight = self.table.weight
        self.layer, self.theirs = torch.nn.Linear(3, 2), torch.nn.Embedding(5, 3)
        self.fused = st.EmbeddingBag(20, 3, optimizer=se.SGD(lr=0.1), fused=True)

    def forward(self, ids):
        return self.layer(self.table(ids) + self.theirs(ids % 5)) + self.tied(ids[:, None]).sum()


def test_parameters_apart():
    model = Model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(each)] for each in st.table_parameters(model)] == ["table.weight"]
    assert [names[id(each)] for each in st.dense_parameters(model)] == ["layer.weight", "layer.bias", "theirs.weight"]
    st.Optimizer(st.table_parameters(model), se.SGD(lr=0.1))
    torch.optim.SGD(st.dense_parameters(model), lr=0.1)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, float("inf")])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_clip_equals_that_of_dense_gradients(max_norm, norm_type):
    """Of torch, over table and layers together."""
    model, ids = Model(), torch.tensor([3, 1, 3, 7])
    model(ids).pow(2).sum().backward()
    dense = copy.deepcopy(model)
    for mine, its in zip(model.parameters(), dense.parameters(), strict=True):
        its.grad = None if mine.grad is None else mine.grad.to_dense() if mine.grad.is_sparse else mine.grad.clone()
    trained = [*st.table_parameters(model), *st.dense_parameters(model)]
    others = [*st.table_parameters(dense), *st.dense_parameters(dense)]
    norm = st.clip_grad_norm_(trained, max_norm, norm_type)
    close(norm, torch.nn.utils.clip_grad_norm_(others, max_norm, norm_type))
    for mine, its in zip(trained, others, strict=True):
        close(mine.grad.to_dense() if mine.grad.is_sparse else mine.grad, its.grad)
    if norm_type != 2:
        return
    with pytest.raises(Exception, match=r"[Ss]parse"):  # what users of nn.Embedding(sparse=True) get
        torch.nn.utils.clip_grad_norm_(trained, 1.0)


def test_clip_of_repeated_rows_sums_them_first():
    module = torch.nn.Embedding(5, 1, sparse=True)
    (3 * module(torch.tensor([1, 1])).sum()).backward()
    assert float(st.clip_grad_norm_(module.weight, 3.0)) == 6
    close(grad(module)[1], torch.tensor([3.0]), terms=64)


def test_clip_and_what_is_not_finite():
    module = st.Embedding(5, 1)
    (module(torch.tensor([1])) * float("inf")).sum().backward()
    before = grad(module)
    with pytest.raises(RuntimeError, match="expected a finite number"):
        st.clip_grad_norm_(module.parameters(), 1.0, error_if_nonfinite=True)
    assert torch.equal(grad(module), before)
    assert torch.isinf(st.clip_grad_norm_(module.parameters(), 1.0))


def test_clip_without_gradients_and_what_it_refuses():
    module = st.Embedding(5, 1)
    assert float(st.clip_grad_norm_(module.parameters(), 1.0)) == 0
    with pytest.raises(ValueError, match="max_norm must be a number that is not negative, got -1"):
        st.clip_grad_norm_(module.parameters(), -1.0)
    with pytest.raises(TypeError, match=r"parameters\[0\] must be a tensor, got str"):
        st.clip_grad_norm_(["weight"], 1.0)
    with pytest.raises(TypeError, match="parameters must be tensors, got int"):
        st.clip_grad_norm_(3, 1.0)


def test_clipping_can_only_measure_and_takes_a_gradient_once():
    embedding = st.Embedding(3, 1)
    (3 * embedding(torch.tensor([1])) + 4 * embedding(torch.tensor([2]))).backward()
    weight = embedding.weight
    assert st.clip_grad_norm_([weight, weight], float("inf")).item() == 5
    assert st.clip_grad_norm_([weight], torch.tensor(10.0), norm_type="inf").item() == 4
    assert weight.grad.values().ravel().tolist() == [3, 4]
    with pytest.raises(ValueError, match="max_norm"):
        st.clip_grad_norm_([weight], float("nan"))
    assert st.clip_grad_norm_([weight, weight], 2.5).item() == 5
    torch.testing.assert_close(weight.grad.values().ravel(), torch.tensor([1.5, 2.0]))


def test_fused_modules_that_share_a_weight_share_its_optimizer():
    one = st.Embedding(4, 2, optimizer=se.SGD(lr=1.0), fused=True)
    other = st.Embedding(4, 2, optimizer=se.Adagrad(lr=0.1), fused=True)
    with pytest.raises(ValueError, match="one optimizer"):
        other.weight = one.weight
    other(torch.tensor([1])).sum().backward()
    assert (one.table.step, other.table.step) == (0, 1)


@pytest.mark.parametrize("foreach", [None, True, False])
def test_foreach_is_accepted_as_by_torch(foreach):
    module = st.Embedding(5, 1)
    (3 * module(torch.tensor([1])).sum()).backward()
    assert float(st.clip_grad_norm_(module.weight, 1.0, foreach=foreach)) == 3
    with pytest.raises(TypeError, match="foreach must be True, False or None, got 'yes'"):
        st.clip_grad_norm_(module.weight, 1.0, foreach="yes")

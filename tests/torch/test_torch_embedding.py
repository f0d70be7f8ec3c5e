"""sparsembed.torch.Embedding beside torch.nn.Embedding: the cases of torch's own tests."""

import numpy as np
import pytest
import torch
from torch_cases import DTYPES, INTS, close, grad, pair, step_both

import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")
V, D = 20, 5
SHAPES = [(), (1,), (7,), (3, 4), (2, 3, 4), (0,), (2, 0)]


def ids_of(shape, dtype=torch.int64, high=V):
    return torch.randint(high, shape, dtype=dtype, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ints", INTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("padding_idx", [None, 0, -2])
def test_forward_and_gradient(dtype, ints, shape, padding_idx):
    modules = pair("Embedding", V, D, padding_idx=padding_idx, dtype=dtype)
    ours, theirs = step_both(modules, lambda module: module(ids_of(shape, ints, 6)))
    assert torch.equal(ours, theirs)
    assert ours.dtype == dtype
    close(grad(modules[0]), grad(modules[1]))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"padding_idx": -1}, {"max_norm": 1.5, "norm_type": 1.0}])
def test_the_same_seed_gives_the_same_module(options):
    ours, theirs = pair("Embedding", V, D, **options)
    if "max_norm" not in options:
        assert torch.equal(ours.weight, theirs.weight)
    for name in ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert isinstance(ours, torch.nn.Embedding)
    assert repr(ours) == repr(theirs).replace(")", ", sparse=True)")
    assert ours.weight.data_ptr() % 64 == 0


def test_gradient_is_sparse_whatever_sparse_says():
    """And coalesced, as torch's is not."""
    for sparse in (False, True):
        module = st.Embedding(10, D, sparse=sparse)
        assert module.sparse
        module(torch.tensor([[0, 2, 4, 5], [4, 3, 0, 9]])).sum().backward()
        found = module.weight.grad
        assert found.is_sparse
        assert found.is_coalesced()
        assert found.shape == module.weight.shape
        assert found.indices().tolist() == [[0, 2, 3, 4, 5, 9]]
        assert found.values()[:, 0].tolist() == [2, 1, 1, 2, 1, 1]


def test_gradient_accumulates_within_the_rows_ever_touched():
    ours, theirs = pair("Embedding", V, D, sparse=True)
    for k in range(5):
        step_both((ours, theirs), lambda module: module((ids_of((30,), high=4) + k) % 4), seed=k)  # noqa: B023
        assert ours.weight.grad.is_coalesced()
        assert ours.weight.grad._nnz() <= 4
    assert theirs.weight.grad._nnz() > 4
    close(grad(ours), grad(theirs), terms=200)


def test_ids_changed_between_two_backward_passes():
    """Each backward takes the ids of its own forward."""
    module, ids = st.Embedding(10, 3), torch.tensor([7, 1, 3])
    module(ids).sum().backward()
    ids[0] = 8
    module(ids).sum().backward()
    assert module.weight.grad.indices().tolist() == [[1, 3, 7, 8]]
    assert module.weight.grad.values()[:, 0].tolist() == [2, 2, 1, 1]
    output = module(ids)
    ids[0] = 9
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("layout", ["expanded", "transposed", "strided"])
def test_gradients_of_any_layout(layout):
    modules = pair("Embedding", V, D)
    outputs = [module(ids_of((4, 6))) for module in modules]
    for output in outputs:
        if layout == "expanded":
            output.sum().backward()
        elif layout == "transposed":
            (output.transpose(0, 2) * torch.arange(4.0)).sum().backward()
        else:
            output[::2, ::3].pow(2).sum().backward()
    close(grad(modules[0]), grad(modules[1]))


def test_strided_ids():
    modules = pair("Embedding", V, D)
    ids = ids_of((6, 8))
    ours, theirs = step_both(modules, lambda module: module(ids.T[::2]))
    assert torch.equal(ours, theirs)
    close(grad(modules[0]), grad(modules[1]))


@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_grad_by_freq(dtype, padding_idx):
    """Sparse, which torch's is not: each row's mean over its occurrences in the lookup."""
    modules = pair("Embedding", V, D, padding_idx=padding_idx, scale_grad_by_freq=True, dtype=dtype)
    for k in range(2):  # each lookup counts for itself
        step_both(modules, lambda module: module(ids_of((3, 9), high=3 + 2 * k)), seed=k)  # noqa: B023
    close(grad(modules[0]), grad(modules[1]))
    with pytest.raises(RuntimeError, match="sparse"):
        torch.nn.Embedding(3, 2, scale_grad_by_freq=True, sparse=True)(torch.tensor([1])).sum().backward()


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_norm(dtype, norm_type):
    modules = pair("Embedding", V, D, max_norm=1.0, norm_type=norm_type, padding_idx=2, dtype=dtype)
    ours, theirs = step_both(modules, lambda module: module(torch.tensor([2, 8, 8, 6])))
    close(ours, theirs)
    close(grad(modules[0]), grad(modules[1]))
    assert torch.equal(ours[1], ours[2])
    assert (torch.linalg.vector_norm(ours, norm_type, dim=1) <= 1).all()


def test_max_norm_never_writes_in_forward():
    """A lookup between a use of weight and its backward raises in torch: pytorch#26596."""
    ours, theirs = pair("Embedding", 3, D, max_norm=1.0)
    factor, ids = torch.randn(7, D, requires_grad=True), torch.tensor([1, 2])
    for module in (ours, theirs):
        product = (module.weight @ factor.T).unsqueeze(0) + (module(ids) @ factor.T).unsqueeze(1)
        if module is ours:
            product.sigmoid().prod().backward()
            assert not ours.weight.grad.is_sparse  # the sum of a dense and a sparse one
        else:
            with pytest.raises(RuntimeError, match="inplace"):
                product.sigmoid().prod().backward()


def test_max_norm_holds_for_weights_that_are_loaded_or_drawn_again():
    module = st.Embedding(V, D, max_norm=0.5)
    module.load_state_dict({"weight": torch.full((V, D), 3.0)})
    assert (module(torch.arange(V)).norm(dim=1) <= 0.5).all()
    module.reset_parameters()
    assert (module(torch.arange(V)).norm(dim=1) <= 0.5).all()
    assert module.weight.std() > 0.1


def test_from_pretrained():
    weight = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    module = st.Embedding.from_pretrained(weight)
    assert torch.equal(module(torch.tensor([0, 1])), weight)
    assert not module.weight.requires_grad
    assert not module(torch.tensor([0])).requires_grad
    assert module.weight.data_ptr() == weight.data_ptr()
    module = st.Embedding.from_pretrained(weight.clone().requires_grad_(), freeze=False)
    assert module.weight.is_leaf
    assert module(torch.tensor([0])).requires_grad


def test_from_pretrained_keeps_the_padding_row_and_options():
    weight = torch.rand(4, 3, requires_grad=True)
    module = st.Embedding.from_pretrained(weight, padding_idx=2)
    assert torch.equal(module.weight, weight)
    assert module(torch.tensor(2)).abs().sum() > 0
    weight = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    module = st.Embedding.from_pretrained(weight, max_norm=2.0, norm_type=0.5, sparse=True)
    assert torch.equal(module(torch.tensor([0, 1])), weight)  # scaled in place, as by torch
    expected = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    theirs = torch.nn.Embedding.from_pretrained(expected, max_norm=2.0, norm_type=0.5)
    close(module.weight, theirs(torch.tensor([0, 1])))
    with pytest.raises(AssertionError, match="2-dimensional"):
        st.Embedding.from_pretrained(torch.ones(3))


@pytest.mark.parametrize("other", [[], [1, 3], [2]])
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_padding_gets_no_gradient(n, other):
    module = st.Embedding(5, 2, padding_idx=0)
    module(torch.tensor([*other, *[0] * n])).sum().backward()
    assert module.weight.grad.coalesce().indices().tolist() == [other]
    assert (module.weight[0] == 0).all()


def test_padding_row_can_be_changed():
    module = st.Embedding(10, 4, padding_idx=2)
    with torch.no_grad():
        module.weight[2] = 1.0
    assert torch.equal(module(torch.tensor([0, 2]))[1], torch.ones(4))


def test_weights_of_any_strides():
    weight = torch.randn(6, V).T
    for matrix in (weight, weight[::2], torch.randn(V, 12)[:, 1:7]):
        module = st.Embedding.from_pretrained(matrix, freeze=False)
        ids = ids_of((9,), high=len(matrix))
        assert torch.equal(module(ids), matrix[ids])
        module(ids).sum().backward()
        assert module.weight.grad.values().shape[1] == 6


def test_functional_call_with_other_weights():
    """The gradient goes to the tensor that took the place of weight, which may be no leaf."""
    module, ids = st.Embedding(4, 3), torch.tensor([[0, 1, 1], [3, 1, 0]])
    for factor in (1.0, 2.0):
        given = torch.randn(4, 3, requires_grad=True)
        weight = given if factor == 1 else given * factor
        output = torch.func.functional_call(module, {"weight": weight}, (ids,))
        assert torch.equal(output, weight[ids])
        output.sum().backward()
        count = torch.tensor([2.0, 3, 0, 1])
        assert torch.equal(given.grad.to_dense(), factor * count[:, None].expand(4, 3))
    assert module.weight.grad is None


def test_second_derivatives_are_refused():
    module = st.Embedding(4, 3)
    output = module(torch.tensor([1])).pow(2).sum()
    (first,) = torch.autograd.grad(output, module.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        first.to_dense().sum().backward()


MISTAKES = [
    ({"num_embeddings": 10, "padding_idx": 25}, AssertionError, "within num_embeddings"),
    ({"num_embeddings": 10, "padding_idx": -25}, AssertionError, "within num_embeddings"),
    ({"num_embeddings": 0}, ValueError, "num_embeddings must be at least 1"),
    ({"num_embeddings": 10, "embedding_dim": 0}, ValueError, "embedding_dim must be at least 1"),
    ({"num_embeddings": 10, "dtype": torch.float16}, TypeError, "float32 or torch.float64"),
    ({"num_embeddings": 10, "dtype": torch.bfloat16}, TypeError, "float32 or torch.float64"),
    ({"num_embeddings": 10, "device": "meta"}, TypeError, "device is on meta, expected host memory"),
    ({"num_embeddings": 10, "_weight": torch.ones(10, 3)}, AssertionError, "Shape of weight"),
    ({"num_embeddings": 10, "_weight": torch.ones(10, 4, dtype=torch.int64), "_freeze": True}, TypeError, "float32 or"),
    ({"num_embeddings": 10, "_weight": torch.ones(10, 4, device="meta")}, TypeError, "weight is on meta"),
    ({"num_embeddings": 10, "max_norm": -1.0}, ValueError, "max_norm must be above zero"),
    ({"num_embeddings": 10, "max_norm": 1.0, "norm_type": 0.0}, ValueError, "norm_type must be above zero"),
    ({"num_embeddings": 10, "max_norm": 1.0, "norm_type": "2"}, TypeError, "norm_type must be a number, got str"),
    ({"num_embeddings": 10, "scale_grad_by_freq": 2}, TypeError, "scale_grad_by_freq must be True or False"),
]


@pytest.mark.parametrize(("options", "error", "message"), MISTAKES, ids=[str(message) for *_, message in MISTAKES])
def test_what_the_constructor_refuses(options, error, message):
    with pytest.raises(error, match=message):
        st.Embedding(**{"embedding_dim": 4, **options})


def test_default_device_and_dtype():
    with torch.device("meta"), pytest.raises(TypeError, match="device is on meta"):
        st.Embedding(3, 2)
    torch.set_default_dtype(torch.float64)
    try:
        assert st.Embedding(3, 2).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.tensor([1, V]), IndexError, rf"^input\[1\] is {V}"),
        (torch.tensor([[1, -1]]), IndexError, r"^input\[0, 1\] is -1"),
        (torch.tensor(V), IndexError, rf"^input\[\(\)\] is {V}"),
        (torch.tensor([1.0]), TypeError, "input must be int32 or int64, got torch.float32"),
        (torch.tensor([1], dtype=torch.int16), TypeError, "input must be int32 or int64, got torch.int16"),
        (torch.eye(2, dtype=torch.int64).to_sparse(), TypeError, "input must be a dense tensor, got torch.sparse_coo"),
        ([1, 2], TypeError, "input must be a torch.Tensor of int32 or int64 ids, got list"),
        (np.array([1]), TypeError, "input must be a torch.Tensor"),
        (torch.tensor([1], device="meta"), TypeError, "input is on meta, expected host memory"),
    ],
    ids=str,
)
def test_what_forward_refuses(ids, error, message):
    with pytest.raises(error, match=message):
        st.Embedding(V, D)(ids)


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_input_is_refused(layout):
    ids = torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])], layout=layout)
    with pytest.raises(TypeError, match=r"input is a nested tensor.*input.values\(\)"):
        st.Embedding(V, D)(ids)


def test_a_weight_that_is_no_tensor():
    weight = np.ones((3, 2), np.float32)
    for make in (
        lambda: st.Embedding(3, 2, _weight=weight),
        lambda: st.EmbeddingBag(3, 2, _weight=weight),
        lambda: st.Embedding.from_pretrained(weight),
        lambda: st.EmbeddingBag.from_pretrained(weight),
    ):
        with pytest.raises(TypeError, match=r"(_weight|embeddings) must be a torch.Tensor, got ndarray.*from_numpy"):
            make()

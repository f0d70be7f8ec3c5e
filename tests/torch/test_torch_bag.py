"""sparsembed.torch.EmbeddingBag beside torch.nn.EmbeddingBag: the cases of torch's own tests."""

import itertools

import numpy as np
import pytest
import torch
from torch_cases import DTYPES, INTS, close, grad, pair, step_both

import sparsembed as se
import sparsembed.torch as st

pytestmark = pytest.mark.usefixtures("strict_torch")
V, D = 20, 5
MODES = ["sum", "mean", "max"]


def lookup_of(ints=torch.int64, offset_ints=torch.int64, include_last_offset=False):
    """Ids of bags of which some are empty, the first and the last among them, and their offsets."""
    ids = torch.randint(6, (23,), dtype=ints, generator=torch.Generator().manual_seed(3))
    ends = [0, 0, 3, 3, 10, 11, 23, 23] + [23] * include_last_offset
    return ids, torch.tensor(ends, dtype=offset_ints)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("ints", "offset_ints"), [*itertools.product(INTS, INTS)])
@pytest.mark.parametrize("include_last_offset", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_bags_by_offsets(mode, include_last_offset, ints, offset_ints, dtype):
    modules = pair("EmbeddingBag", V, D, mode=mode, include_last_offset=include_last_offset, dtype=dtype)
    arguments = lookup_of(ints, offset_ints, include_last_offset)
    ours, theirs = step_both(modules, lambda module: module(*arguments))
    close(ours, theirs)
    assert (ours[0] == 0).all()  # an empty bag, of mode max, too
    close(grad(modules[0]), grad(modules[1]))


@pytest.mark.parametrize("ints", INTS)
@pytest.mark.parametrize("mode", MODES)
def test_the_known_example(mode, ints):
    module = st.EmbeddingBag(5, 2, mode=mode, dtype=torch.float64)
    module.weight.data.copy_(torch.arange(1, 11).view(5, 2))
    ids, offsets = torch.tensor([3, 1, 1, 1, 4, 0], dtype=ints), torch.tensor([0, 0, 3, 3, 6], dtype=ints)
    expected, gradient = torch.tensor([[13.0, 16], [13, 16]]), [[3.0, 4], [5, 8], [0, 0], [1, 2], [3, 4]]
    if mode == "max":
        expected, gradient = torch.tensor([[7.0, 8], [9, 10]]), [[0.0, 0], [0, 0], [0, 0], [1, 2], [3, 4]]
    divisor = 3 if mode == "mean" else 1
    output = module(ids, offsets)
    close(output[[1, 3]], expected.double() / divisor)
    assert (output[[0, 2, 4]] == 0).all()
    output.backward(torch.tensor([[99.0, 99], [1, 2], [99, 99], [3, 4], [99, 99]], dtype=torch.float64))
    close(grad(module), torch.tensor(gradient, dtype=torch.float64) / divisor)
    module.zero_grad()
    output = module(ids.view(2, 3))  # the same bags in two dimensions
    close(output, expected.double() / divisor)
    output.backward(torch.tensor([[1.0, 2], [3, 4]], dtype=torch.float64))
    close(grad(module), torch.tensor(gradient, dtype=torch.float64) / divisor)
    module.zero_grad()
    module(torch.tensor([], dtype=ints), torch.tensor([0, 0, 0, 0], dtype=ints)).sum().backward()
    assert (grad(module) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("include_last_offset", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_padding_in_every_place(mode, include_last_offset, dtype):
    ids, offsets = lookup_of(include_last_offset=include_last_offset)
    for padding_idx in [*sorted({*ids.tolist()}), -1, -V]:
        options = {"mode": mode, "padding_idx": padding_idx, "include_last_offset": include_last_offset}
        modules = pair("EmbeddingBag", V, D, dtype=dtype, **options)
        ours, theirs = step_both(modules, lambda module: module(ids, offsets))
        close(ours, theirs)
        close(grad(modules[0]), grad(modules[1]))
        assert modules[0].padding_idx == padding_idx % V


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("all_padding", [False, True])
@pytest.mark.parametrize("bags", [1, 10])
@pytest.mark.parametrize("mode", MODES)
def test_padding_in_two_dimensions(mode, bags, all_padding, dtype):
    ids = torch.randint(0, 4, (bags, 10), generator=torch.Generator().manual_seed(1))
    if all_padding:
        ids.fill_(1)
    else:
        ids[bags // 2] = ids[bags // 2, 0].item()  # one bag of one id, all padding for that one
    for padding_idx in ids.unique().tolist():
        modules = pair("EmbeddingBag", V, D, mode=mode, padding_idx=padding_idx, dtype=dtype)
        ours, theirs = step_both(modules, lambda module: module(ids))
        close(ours, theirs)
        close(grad(modules[0]), grad(modules[1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("ints", "offset_ints"), [*itertools.product(INTS, INTS)])
@pytest.mark.parametrize("include_last_offset", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_per_sample_weights(trained, padding_idx, include_last_offset, ints, offset_ints, dtype):
    options = {"mode": "sum", "padding_idx": padding_idx, "include_last_offset": include_last_offset}
    modules = pair("EmbeddingBag", V, D, dtype=dtype, **options)
    arguments = lookup_of(ints, offset_ints, include_last_offset)
    if trained == (False, True) and torch.__version__ < "2.5":
        pytest.skip("torch 2.4 fails where the weight is frozen: isDifferentiableType(variable.scalar_type())")
    outputs, factors = [], []
    for module in modules:
        module.requires_grad_(trained[0])
        given = torch.linspace(-1, 1, 23, dtype=dtype).requires_grad_(trained[1])
        outputs.append(module(*arguments, per_sample_weights=given))
        factors.append(given)
    close(*outputs)
    assert outputs[0].requires_grad == outputs[1].requires_grad == any(trained)
    if any(trained):
        for output in outputs:
            output.pow(2).sum().backward()
    for of in (0, 1):
        assert (modules[of].weight.grad is None) == (not trained[0])
    if trained[0]:
        close(grad(modules[0]), grad(modules[1]), terms=128)
    if trained[1]:
        close(factors[0].grad, factors[1].grad, terms=128)


SHAPES = [(2, 3, 5, 7), (2, 5, 53, 23), (101, 5, 3, 7), (2, 101, 3, 7), *itertools.product((1, 2), repeat=4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", [*MODES, "weighted"])
def test_against_lookup_and_reduction(shape, mode):
    """Bags are a lookup and a reduction, as `Embedding` and torch's sum, mean and max compute them."""
    rows, dim, bags, longest = shape
    bag = st.EmbeddingBag(rows, dim, mode="sum" if mode == "weighted" else mode, dtype=torch.float64)
    lookup = st.Embedding(rows, dim, dtype=torch.float64)
    lookup.load_state_dict(bag.state_dict())
    ids = torch.randint(rows, (bags, longest))
    given = torch.randn(bags, longest, dtype=torch.float64).softmax(-1)
    factors = [given.clone().requires_grad_() for _ in range(2)]
    offsets = torch.arange(bags) * longest
    if mode == "weighted":
        ours, reference = bag(ids.view(-1), offsets, factors[0].view(-1)), lookup(ids) * factors[1].unsqueeze(-1)
    else:
        ours, reference = bag(ids.view(-1), offsets), lookup(ids)
    reduced = {"mean": lambda: reference.mean(1), "max": lambda: reference.max(1)[0]}
    reference = reduced.get(mode, lambda: reference.sum(1))()
    close(ours, reference, terms=256)
    grad_out = torch.rand(bags, dim, dtype=torch.float64)
    ours.backward(grad_out)
    reference.backward(grad_out)
    close(grad(bag), grad(lookup), terms=512)
    if mode == "weighted":
        close(factors[0].grad, factors[1].grad, terms=256)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm_type", [1.0, 2.0])
def test_max_norm(mode, norm_type):
    modules = pair("EmbeddingBag", V, D, mode=mode, max_norm=1.0, norm_type=norm_type)
    ours, theirs = step_both(modules, lambda module: module(*lookup_of()))
    close(ours, theirs)
    close(grad(modules[0]), grad(modules[1]))


def expected_by_reference(module, ids, offsets, grad_out):
    ends = np.append(offsets.numpy(), len(ids))
    bags = se.Bags(ids.numpy(), ends)
    return torch.from_numpy(se.reference.pool_gradient(bags, grad_out.numpy(), V, module.mode, scale_grad_by_freq=True))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_grad_by_freq(mode, dtype):
    """Mixed counts, which torch 2.13 divides wrongly on the CPU (pytorch#190063): the reference is right."""
    modules = pair("EmbeddingBag", V, D, mode=mode, scale_grad_by_freq=True, dtype=dtype)
    ids, offsets = lookup_of()
    grad_out = torch.randn(8, D, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for module in modules:
        module(ids, offsets).backward(grad_out)
    close(grad(modules[0]), expected_by_reference(modules[0], ids, offsets, grad_out).to(dtype))
    for module in modules:  # where every id occurs as often, torch is right
        module.zero_grad()
        module(torch.tensor([1, 2, 2, 1]), torch.tensor([0, 3])).sum().backward()
    close(grad(modules[0]), grad(modules[1]))


def test_scale_grad_by_freq_of_the_upstream_report():
    """ids 1, 1, 1, 2 in bags of two, mode mean: the gradient of row 2 is 1/2, of which torch 2.13 made a sixth."""
    module = st.EmbeddingBag(4, 1, mode="mean", scale_grad_by_freq=True)
    module(torch.tensor([1, 1, 1, 2]), torch.tensor([0, 2])).sum().backward()
    assert grad(module).flatten().tolist() == [0, 0.5, 0.5, 0]


def test_ids_behind_the_last_offset_are_refused():
    """torch 2.13 uses them in modes mean and max and drops them in mode sum: pytorch#191965."""
    module = st.EmbeddingBag(V, D, include_last_offset=True, padding_idx=11)
    with pytest.raises(ValueError, match=r"offsets must end at len\(ids\) = 4, got 3"):
        module(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 3, 3]))
    output = module(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 3, 4]))
    close(output, torch.stack([module.weight[:3].mean(0), module.weight[3]]))


def test_max_shows_nan_wherever_it_stands():
    """torch keeps a NaN in the first place of a bag and drops it elsewhere."""
    weight = torch.tensor([[1.0], [float("nan")], [2.0]])
    module = st.EmbeddingBag.from_pretrained(weight, mode="max")
    assert module(torch.tensor([[1, 0, 2], [0, 1, 2], [0, 2, 1]])).isnan().all()


def test_max_and_frequency_take_sparse():
    """torch refuses both; here every gradient is sparse."""
    for options in ({"mode": "max"}, {"scale_grad_by_freq": True}):
        module = st.EmbeddingBag(V, D, sparse=True, **options)
        module(*lookup_of()).sum().backward()
        assert module.weight.grad.is_coalesced()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ints", INTS)
def test_no_ids_at_all(mode, ints):
    for ends in ([0], [0, 0], [0, 0, 0]):
        modules = pair("EmbeddingBag", V, D, mode=mode)
        arguments = torch.tensor([], dtype=ints), torch.tensor(ends, dtype=ints)
        ours, theirs = step_both(modules, lambda module: module(*arguments))  # noqa: B023
        assert torch.equal(ours, theirs)
        assert torch.equal(grad(modules[0]), torch.zeros(V, D))
    given = torch.tensor([], requires_grad=True)
    st.EmbeddingBag(V, D, mode="sum")(torch.tensor([], dtype=ints), torch.tensor([0, 0]), given).sum().backward()
    assert given.grad.shape == (0,)
    assert st.EmbeddingBag(V, D)(torch.zeros((3, 0), dtype=ints)).tolist() == [[0.0] * D] * 3


def test_from_pretrained():
    weight = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    module = st.EmbeddingBag.from_pretrained(weight)
    assert torch.equal(module(torch.tensor([0, 1]), torch.arange(2)), weight)
    assert torch.equal(module(torch.tensor([[0, 1]])), weight.mean(0, keepdim=True))
    assert not module.weight.requires_grad
    assert module.weight.data_ptr() == weight.data_ptr()
    embeddings = torch.rand(4, 3, requires_grad=True)
    assert torch.equal(st.EmbeddingBag.from_pretrained(embeddings, padding_idx=2).weight, embeddings)
    of_parameter = st.EmbeddingBag.from_pretrained(torch.nn.Embedding(4, 3).weight, freeze=False)
    assert of_parameter.weight.requires_grad
    weight = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    module = st.EmbeddingBag.from_pretrained(weight, max_norm=2.0, norm_type=0.5, mode="max")
    assert torch.equal(module(torch.tensor([[0, 1]])), weight.max(0, keepdim=True)[0])
    assert (torch.linalg.vector_norm(weight, 0.5, dim=1) <= 2).all()


def test_weights_of_any_strides():
    weight = torch.randn(3, 4)[:, :3]
    for mode in MODES:
        arguments = torch.tensor([0, 1, 2]), torch.tensor([0, 2])
        results = [st.EmbeddingBag.from_pretrained(w, mode=mode)(*arguments) for w in (weight, weight.contiguous())]
        assert torch.equal(*results)


def test_the_same_seed_gives_the_same_module():
    ours, theirs = pair("EmbeddingBag", V, D, padding_idx=3, mode="max")
    assert torch.equal(ours.weight, theirs.weight)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, torch.nn.EmbeddingBag)


def test_gradcheck_of_per_sample_weights():
    module = st.EmbeddingBag(V, D, mode="sum", dtype=torch.float64, padding_idx=1).requires_grad_(False)
    ids, offsets = lookup_of()
    factors = torch.randn(23, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: module(ids, offsets, given), factors)


def test_per_sample_weights_are_brought_to_the_dtype_of_the_table():
    """Where torch raises; so that weights from a layer under autocast can be used."""
    module = st.EmbeddingBag(V, D, mode="sum")
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        given = torch.ones(2, 3, dtype=dtype, requires_grad=True)
        output = module(torch.tensor([[1, 2, 3], [4, 5, 6]]), per_sample_weights=given)
        assert output.dtype == torch.float32
        output.sum().backward()
        assert given.grad.dtype == dtype


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_rows_changed_between_forward_and_backward_are_noticed(mode):
    """Where backward needs them: in mode max, and for the gradient of per-sample weights."""
    module = st.EmbeddingBag(V, D, mode=mode)
    optimizer = st.Optimizer([module.weight], se.SGD(lr=0.1))
    ids, factors = torch.tensor([[1, 2]]), torch.ones(1, 2, requires_grad=True)
    stale = module(ids, per_sample_weights=factors if mode == "sum" else None)
    without = module(ids) if mode == "sum" else None
    module(ids).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="changed by an inplace operation"):
        stale.sum().backward()
    if without is not None:
        without.sum().backward()


MISTAKES = [
    (lambda: st.EmbeddingBag(4, 3, padding_idx=4), AssertionError, "within num_embeddings"),
    (lambda: st.EmbeddingBag(4, 3, padding_idx=-5), AssertionError, "within num_embeddings"),
    (lambda: st.EmbeddingBag(4, 3, mode="median"), ValueError, "mode must be one of 'sum', 'mean', 'max'"),
    (lambda: st.EmbeddingBag(4, 3, mode="max", scale_grad_by_freq=True), ValueError, "does not scale gradients"),
    (lambda: bag()(torch.ones(2, 3, 4, dtype=torch.int64)), ValueError, "input must have one or two dimensions, got 3"),
    (lambda: bag()(torch.ones(3, dtype=torch.int64)), ValueError, "offsets must be given"),
    (lambda: bag()(ones(3, 4), torch.arange(3)), ValueError, "offsets must be None"),
    (lambda: bag()(ones(12), ones(1, 1)), ValueError, "offsets must have one dimension"),
    (lambda: bag()(ones(12), torch.tensor([1, 2])), ValueError, "offsets must start at 0"),
    (lambda: bag()(ones(12), torch.tensor([0, 5, 3])), ValueError, "offsets must not decrease"),
    (lambda: bag()(ones(12), torch.tensor([0.0])), TypeError, "offsets must be int32 or int64"),
    (lambda: bag()(ones(12), [0]), TypeError, "offsets must be a torch.Tensor"),
    (lambda: bag()(ones(2, 2), None, torch.ones(4)), ValueError, "must have the shape of input"),
    (lambda: bag()(ones(2), torch.tensor([0]), torch.ones(3)), ValueError, "must have the shape of input"),
    (lambda: bag()(ones(2, 2), None, ones(2, 2)), TypeError, "must be a tensor of floats, got torch.int64"),
    (lambda: bag("mean")(ones(2, 2), None, torch.ones(2, 2)), NotImplementedError, "mode='sum' only"),
    (lambda: bag("max")(ones(2, 2), None, torch.ones(2, 2)), NotImplementedError, "mode='sum' only"),
    (lambda: bag()(torch.tensor([[-1, 1]])), IndexError, r"^input\[0, 0\] is -1"),
    (lambda: bag("max")(torch.tensor([[8, 11]], dtype=torch.int32)), IndexError, r"^input\[0, 1\] is 11"),
    (
        lambda: bag()(ones(2), torch.tensor([0, 5])),
        ValueError,
        r"^offsets\[1\] is 5, expected at most 2, the ids in inp",
    ),
    (lambda: bag()(ones(2), ones(0)), ValueError, "offsets is empty, but input has 2 ids"),
    (lambda: bag()(ones(2), torch.tensor([0.0])), TypeError, "offsets must be int32 or int64, got torch.float32"),
    (lambda: bag()(torch.ones(2), torch.tensor([0])), TypeError, "input must be int32 or int64, got torch.float32"),
    (
        lambda: bag()(torch.nested.nested_tensor([ones(2), ones(3)], layout=torch.jagged)),
        TypeError,
        "input is a nested tensor",
    ),
]


def bag(mode="sum"):
    return st.EmbeddingBag(10, 2, mode=mode)


def ones(*shape):
    return torch.ones(shape, dtype=torch.int64)


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize(("call", "error", "message"), MISTAKES, ids=[str(message) for *_, message in MISTAKES])
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()

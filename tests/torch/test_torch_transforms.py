"""What torch does with modules besides running and training them: right numbers, or an error that says what to do."""

import pytest
import torch
import torch.autograd.forward_ad as fw

import sparsembed as se
import sparsembed.torch as st

KINDS = ("DeprecationWarning", "FutureWarning", "UserWarning", "torch.jit.TracerWarning")
pytestmark = pytest.mark.filterwarnings(*(f"ignore::{kind}" for kind in KINDS))
ROWS, DIM = 5, 3
T = torch.tensor


def kinds(cls, *arguments, **options):
    """Our module and torch's with the same weight."""
    torch.manual_seed(0)
    weight = torch.randn(ROWS, DIM)
    return [getattr(each, cls)(ROWS, DIM, *arguments, _weight=weight.clone(), **options) for each in (st, torch.nn)]


# -- forward mode


def test_tangents_are_not_dropped():
    module = st.Embedding(ROWS, DIM).requires_grad_(False)
    bag = st.EmbeddingBag(ROWS, DIM, mode="sum").requires_grad_(False)
    with fw.dual_level():
        weight = fw.make_dual(torch.ones(ROWS, DIM), torch.full((ROWS, DIM), 5.0))
        factors = fw.make_dual(torch.ones(1, 2), torch.ones(1, 2))
        calls = [
            lambda: torch.func.functional_call(module, {"weight": weight}, (T([1]),)),
            lambda: torch.func.functional_call(bag, {"weight": weight}, (T([[1]]),)),
            lambda: bag(T([[1, 2]]), per_sample_weights=factors),
        ]
        for call in calls:
            with pytest.raises(NotImplementedError, match="forward-mode"):
                call()
            with torch.no_grad(), pytest.raises(NotImplementedError, match="forward-mode"):
                call()
        assert module(T([1])).shape == (1, DIM)
        trained = st.Embedding(ROWS, DIM)
        out = trained(T([1])) * fw.make_dual(torch.ones(1, DIM), torch.ones(1, DIM))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.autograd.grad(out.sum(), trained.weight)


# -- second derivatives


def test_jvp_by_two_backward_passes_raises():
    module = st.Embedding(ROWS, DIM)

    def lookup(weight):
        return torch.func.functional_call(module, {"weight": weight}, (T([1]),)).sum()

    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.functional.jvp(lookup, torch.ones(ROWS, DIM), torch.ones(ROWS, DIM))


def test_a_gradient_that_is_derived_raises():
    module, bag = st.Embedding(ROWS, DIM), st.EmbeddingBag(ROWS, DIM, mode="sum")
    scale = torch.ones((), requires_grad=True)
    factors = torch.ones(1, 2, requires_grad=True)
    pairs = [
        (module(T([1])).sum() * scale, module.weight, scale),
        (bag(T([[1, 2]])).sum() * scale, bag.weight, scale),
        (bag(T([[1, 2]]), per_sample_weights=factors).sum(), bag.weight, factors),
        (bag(T([[1, 2]]), per_sample_weights=factors).sum(), factors, bag.weight),
        (bag(T([[1, 2]]), per_sample_weights=factors).sum() * scale, factors, scale),
    ]
    for loss, first, second in pairs:
        (gradient,) = torch.autograd.grad(loss, first, create_graph=True)
        for strict in (False, True):
            with pytest.raises(RuntimeError, match="no second derivatives"):
                torch.autograd.grad(gradient.sum(), second, allow_unused=not strict, retain_graph=True)


@pytest.mark.parametrize("fused", [False, True])
def test_a_graph_of_gradients_leaves_first_derivatives_alone(fused):
    """As for a penalty on the gradient of the dense part."""
    own = {"fused": True, "optimizer": se.SGD(lr=1.0)} if fused else {}
    results = []
    for package, options in ((st, own), (torch.nn, {})):
        module = package.Embedding(ROWS, DIM, _weight=torch.ones(ROWS, DIM), **options)
        optimizer = None if fused and options else torch.optim.SGD(module.parameters(), lr=1.0)
        if package is st and not fused:
            optimizer = st.Optimizer(module.parameters(), se.SGD(lr=1.0))
        dense = torch.full((DIM,), 2.0, requires_grad=True)
        rows = module(T([1, 1]))
        (rows * dense).pow(2).sum().backward(create_graph=True)
        (dense.grad.sum()).detach()
        if optimizer is not None:
            optimizer.step()
        results.append(module.weight.detach())
    torch.testing.assert_close(*results)


def test_gradients_in_batches_are_refused():
    module = st.Embedding(ROWS, DIM)
    out = module(T([1]))
    with pytest.raises(NotImplementedError, match="one gradient at a time"):
        torch.autograd.grad(out, module.weight, torch.ones(2, 1, DIM), is_grads_batched=True)


# -- programs


def calls(cls):
    """Inputs of a module: one to record with, and others."""
    if cls == "Embedding":
        return [(T([0, 1, 4]),), (T([2, 2, 3]),)]
    return [(T([0, 1, 4]), T([0, 2])), (T([2, 2, 3]), T([0, 1]))]


OPTIONS = [
    ("Embedding", {}),
    ("Embedding", {"padding_idx": 2, "max_norm": 1.0}),
    ("EmbeddingBag", {"mode": "sum"}),
    ("EmbeddingBag", {"mode": "mean", "padding_idx": 2}),
    ("EmbeddingBag", {"mode": "max", "max_norm": 1.0}),
]


def traced(module, inputs):
    return torch.jit.trace(module, inputs, check_trace=False)


def exported(module, inputs):
    return torch.export.export(module, inputs).module()


def made_fx(module, inputs):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(module)(*inputs)


def symbolic(module, inputs):
    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

    Whole.forward = (
        (lambda self, ids: self.inner(ids))
        if len(inputs) == 1
        else (lambda self, ids, offsets: self.inner(ids, offsets))
    )
    return torch.fx.symbolic_trace(Whole())


@pytest.mark.parametrize("record", [traced, exported, made_fx, symbolic])
@pytest.mark.parametrize(("cls", "options"), OPTIONS)
@pytest.mark.parametrize("state", ["trained", "frozen", "no_grad"])
def test_a_recorded_program_computes_what_the_module_does(record, cls, options, state):
    ours, _ = kinds(cls, **options)
    first, second = calls(cls)
    if state == "frozen":
        ours.requires_grad_(False)
    with torch.set_grad_enabled(state != "no_grad"):
        program = record(ours, first)
        for inputs in (first, second):
            torch.testing.assert_close(program(*inputs), ours(*inputs))


@pytest.mark.parametrize("record", [traced, exported, made_fx, symbolic])
@pytest.mark.parametrize("fused", [False, True])
def test_rows_of_a_program_are_up_to_date(record, fused):
    own = {"fused": True, "optimizer": se.Adam(lr=0.1)} if fused else {}
    module = st.Embedding(ROWS, DIM, **own)
    optimizer = None if fused else st.Optimizer(module.parameters(), se.Adam(lr=0.1))
    for ids in ([0, 1], [2]):
        module(T(ids)).sum().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    program = record(module, (T([0, 1]),))
    result = program(T([1, 2]))
    torch.testing.assert_close(result, module(T([1, 2])))


def test_weights_of_samples_in_a_program():
    bag = st.EmbeddingBag(ROWS, DIM, mode="sum").requires_grad_(False)
    inputs = T([[0, 1]]), None, torch.tensor([[2.0, 3.0]], dtype=torch.float64)

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = bag

        def forward(self, ids, factors):
            return self.bag(ids, per_sample_weights=factors)

    program = torch.jit.trace(Whole(), (inputs[0], inputs[2]))
    other = T([[4, 2]]), torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(program(*other), bag(other[0], per_sample_weights=other[1]))


def test_ids_are_no_constants_of_a_trace():
    bag = st.EmbeddingBag.from_pretrained(torch.eye(3), mode="sum")
    program = torch.jit.trace(bag, (T([0, 1]), T([0])))
    assert program(T([2, 2]), T([0])).tolist() == [[0, 0, 2]]


@pytest.mark.parametrize("fused", [False, True])
def test_a_program_that_is_trained_is_refused(fused):
    own = {"fused": True, "optimizer": se.SGD(lr=1.0)} if fused else {}
    module = st.Embedding(ROWS, DIM, **own)
    program = torch.jit.trace(module, (T([0, 1]),))
    if fused:
        with pytest.raises(RuntimeError, match="something other than its lookups"):
            program(T([2, 2])).sum().backward()
        return
    optimizer = st.Optimizer(module.parameters(), se.SGD(lr=1.0))
    program(T([2, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="dense gradient"):
        optimizer.step()


@pytest.mark.parametrize("cls", ["Embedding", "EmbeddingBag"])
def test_scripts_are_refused(cls):
    model = torch.nn.Sequential(getattr(st, cls)(ROWS, DIM), torch.nn.ReLU())
    before = model[0]
    with pytest.raises(NotImplementedError, match=rf"torch\.nn\.{cls}\.from_pretrained\(module\.weight"):
        torch.jit.script(model)
    assert model[0] is before
    other = torch.nn.Sequential(getattr(torch.nn, cls).from_pretrained(model[0].weight.detach()), torch.nn.ReLU())
    ids = T([[1, 2]])
    torch.testing.assert_close(torch.jit.script(other)(ids), model(ids).detach())


def test_tables_are_leaves_for_a_tracer_that_says_so():
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, st.Embedding | st.EmbeddingBag) or super().is_leaf_module(module, name)

    model = torch.nn.Sequential(st.Embedding(ROWS, DIM), torch.nn.Linear(DIM, 1))
    program = torch.fx.GraphModule(model, Tracer().trace(model))
    optimizer = st.Optimizer(st.table_parameters(model), se.SGD(lr=1.0))
    program(T([1, 1])).sum().backward()
    optimizer.step()
    assert model[0].table.step == 1


# -- torch.func over the dense part


def samples(cls):
    if cls == "Embedding":
        return torch.randint(ROWS, (7, 2))
    return torch.randint(ROWS, (7, 1, 4))


@pytest.mark.parametrize("cls", ["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("how", ["frozen", "no_grad"])
def test_transforms_of_the_dense_part(cls, how):
    modules = kinds(cls)
    torch.manual_seed(0)
    dense = torch.nn.Linear(DIM, 2)
    parameters = {k: v.detach() for k, v in dense.named_parameters()}
    ids = samples(cls)
    results = []
    for module in modules:
        if how == "frozen":
            module.requires_grad_(False)

        def loss(parameters, ids, module=module):
            with torch.set_grad_enabled(True):
                if how == "no_grad":
                    with torch.no_grad():
                        rows = module(ids)
                else:
                    rows = module(ids)
                return torch.func.functional_call(dense, parameters, (rows,)).pow(2).sum()

        func = torch.func
        one = func.grad(loss)(parameters, ids[0])
        each = func.vmap(func.grad(loss), in_dims=(None, 0))(parameters, ids)
        last = func.vmap(func.grad(loss), in_dims=(None, -1))(parameters, ids.movedim(0, -1))
        twice = func.vmap(func.vmap(loss, (None, 0)), (None, 0))(parameters, ids.reshape(7, 1, *ids.shape[1:]))
        same = func.vmap(lambda p, i=ids, f=loss: f(p, i[0]))(
            {k: torch.stack([v, 2 * v]) for k, v in parameters.items()}
        )
        ones = {k: torch.ones_like(v) for k, v in parameters.items()}
        jvp = func.jvp(lambda p, i=ids, f=loss: f(p, i[0]), (parameters,), (ones,))
        hessian = func.hessian(loss)(parameters, ids[0])
        jacobian = func.jacrev(lambda p, i=ids, f=loss: f(p, i[0]))(parameters)
        results.append([one, each, last, twice, same, jvp, hessian, jacobian])
    torch.testing.assert_close(*results)


def test_single_ids_under_vmap():
    ours, theirs = kinds("Embedding")
    for module in (ours, theirs):
        module.requires_grad_(False)
    ids = T([1, 4, 2])
    torch.testing.assert_close(torch.func.vmap(ours)(ids), torch.func.vmap(theirs)(ids))
    with pytest.raises(IndexError):
        torch.func.vmap(ours)(T([1, ROWS]))


def test_transforms_that_would_pass_through_a_table_are_refused():
    module, bag = st.Embedding(ROWS, DIM), st.EmbeddingBag(ROWS, DIM, mode="sum")
    weight = torch.ones(ROWS, DIM)
    func = torch.func

    def by_weight(weight):
        return func.functional_call(module, {"weight": weight}, (T([1]),)).sum()

    def by_factors(factors):
        return bag(T([[1, 2]]), per_sample_weights=factors).sum()

    refused = [
        lambda: func.grad(by_weight)(weight),
        lambda: func.jvp(by_weight, (weight,), (weight,)),
        lambda: func.vmap(by_weight)(torch.stack([weight, weight])),
        lambda: func.grad(by_factors)(torch.ones(1, 2)),
        lambda: func.vmap(module)(T([1, 2])),
        lambda: func.grad(lambda x: (module(T([1])) * x).sum())(torch.ones(DIM)),
        lambda: func.vmap(bag)(T([[1, 2]]), T([[0, 1]])),
    ]
    for call in refused:
        with pytest.raises(NotImplementedError, match=r"torch\.func .*only where it is frozen"):
            call()
    module.requires_grad_(False)
    bag.requires_grad_(False)
    for call in (*refused[:4], refused[6]):
        with pytest.raises(NotImplementedError, match=r"torch\.func"):
            call()

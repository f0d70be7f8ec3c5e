"""The shape of the code: what may import what, which names exist, what is documented, what loads on import."""

import ast
import inspect
import io
import re
import tokenize
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from programs import python

import sparsembed as se

PACKAGE = Path(se.__file__).parent
SOURCES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imports(name, everywhere=True):
    """Yield what a module imports: modules of the package by path ("rules/sgd"), others by dotted name."""
    home = name.split("/")[:-1]
    for node in ast.walk(TREES[name]) if everywhere else at_import(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{each.name}" for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] + (node.module.split(".") if node.module else [])
            for each in node.names:
                candidates = ([*base, each.name], [*base, each.name, "__init__"], base, [*base, "__init__"])
                yield next(path for path in map("/".join, candidates) if path in SOURCES)


def at_import(tree):
    """The nodes that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef):
            yield node
            yield from at_import(node)


def inside(name, everywhere=True):
    return {each for each in imports(name, everywhere) if each in SOURCES}


def test_imports_are_found():
    assert inside("rules/sgd") == {"rules/_catch_up", "rules/_forms", "rules/_history", "rules/_rule"}
    assert "rules/__init__" in inside("reference")
    assert "kernels/cpu/_intrinsics" in inside("kernels/cpu/gather")
    assert "_jit" in inside("kernels/cpu/gather")
    assert "numba.extending.overload" in set(imports("rules/_dispatch"))


def test_imports_flow_one_way():
    """No module imports one that needs it, and the layers of the design are in order."""
    needs = {name: inside(name, everywhere=False) for name in SOURCES}
    done = set()
    while ready := {name for name in needs if name not in done and needs[name] <= done}:
        done |= ready
    assert set(needs) == done, "these modules import each other"


# From what is imported to what imports: a module, or the modules of a folder, may import what stands above it.
LAYERS = (
    ("_typing", "_cache", "_inlined", "_compiling", "_signals", "_jit"),
    ("rules/",),
    ("losses/",),
    ("kernels/",),
    ("_check", "_frameworks", "_options", "_saved"),
    ("jit",),
    ("_cpu/",),
    ("_cuda/",),
    ("_engine",),
    ("plan",),
    ("bags",),
    ("_clip", "_exchange", "gradient"),
    ("_gradients", "_contents", "initializers", "_first_rows"),
    ("functional", "pooling", "sampler", "scores", "storage/"),
    ("table", "cuda", "_versions"),
    ("storage/loading", "_process"),  # give tables, and take them
    ("_formulas", "reference"),
    ("testing",),
    ("__init__",),
    ("torch/",),
)
BESIDES = {  # what a layer must not import, though it stands above
    "_cuda/": ("_cpu/",),
    "_engine": ("_cuda/",),  # which it imports when it is asked
    "rules/": ("_jit", "_compiling", "_signals"),
    "losses/": ("_jit", "_compiling", "_signals"),
    "kernels/": ("_cache", "_compiling", "rules/_history"),
    "reference": ("_cpu/", "_engine", "functional", "pooling", "table"),
    "_formulas": ("_cpu/", "_engine", "functional", "pooling", "table"),
}
LATE = {  # why these may
    ("_cuda/table", "table"),  # a name in old pickles
    ("rules/_moments", "_jit"),  # a history that a compiled function keeps
    ("_cuda/rows", "_cpu/norms"),  # rows that are replaced have the bits of rows on the host
    ("_cuda/store", "_cpu/norms"),  # a loaded state has the bits of one on the host
}


def layer_of(name):
    """The layer that names a module, or else its folder."""
    named = [i for i, layer in enumerate(LAYERS) if name in layer]
    return (named or [i for i, layer in enumerate(LAYERS) if f"{name.split('/')[0]}/" in layer])[0]


def test_layers_import_what_lies_below_them():
    """Folders hold the direction: no module imports what is built on it."""
    for name in SOURCES:
        for each in inside(name) - {"__init__"}:
            if (name, each) in LATE or each == name:
                continue
            assert layer_of(each) <= layer_of(name), f"{name} imports {each}"
            wrong = next((value for key, value in BESIDES.items() if name.startswith(key)), ())
            assert not each.startswith(wrong or ("-",)), f"{name} imports {each}"


def test_the_core_reaches_the_gpu_by_one_way():
    """Nothing but `_engine`, which imports when it is asked, knows the CUDA engine."""
    for name in SOURCES:
        if not name.startswith(("_cuda/", "kernels/cuda/")):
            assert not {each for each in inside(name) if each.startswith(("_cuda/", "kernels/cuda/"))}, name


ONLY = {  # files of one engine, and why the other has none
    # A queue makes a GPU's arrays, the GPU has threads of its own, and its calls with few ids are as all others.
    "cpu": {"entry", "memory", "prepared", "threads"},
    "cuda": {"array", "code", "driver", "errors", "queue", "queues", "table", "together"},  # what only a GPU has
}


def test_engines_have_the_same_files():
    files = {each: {name.split("/")[1] for name in SOURCES if name.startswith(f"_{each}/")} for each in ONLY}
    assert files["cpu"] - ONLY["cpu"] == files["cuda"] - ONLY["cuda"]
    assert all(ONLY[each] <= files[each] for each in ONLY)


def arguments_of(file, name):
    """Names and defaults of a function's arguments."""
    for node in TREES[file].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            if isinstance(node, ast.ClassDef):
                return [each.target.id for each in node.body if isinstance(each, ast.AnnAssign)]
            return ast.unparse(without_types(node.args))
    return None


def without_types(arguments):
    for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if each is not None:
            each.annotation = None
    return arguments


def test_engines_have_the_same_functions_in_the_same_files():
    """What an engine is made of, by file, name and arguments, is what `_engine.Engine` says."""
    homes = {}
    for each in ONLY:
        for node in TREES[f"_{each}/engine"].body:
            if isinstance(node, ast.ImportFrom):
                homes.setdefault(each, {}).update({alias.name: node.module for alias in node.names})
    assert homes["cpu"] == homes["cuda"]
    protocol = next(each for each in TREES["_engine"].body if getattr(each, "name", "") == "Engine")
    promised = {each.name: each for each in protocol.body if isinstance(each, ast.FunctionDef)}
    assert set(homes["cpu"]) - {"Place"} == set(promised)
    for name, home in homes["cpu"].items():
        mine, its = (arguments_of(f"_{each}/{home}", name) for each in ONLY)
        assert mine is not None, f"{home}.{name}"
        if name not in MORE:
            assert mine == its, f"{home}.{name}"
        if name != "Place":
            its_promise = without_types(promised[name].args)
            its_promise.args = its_promise.args[1:]  # self
            assert ast.unparse(its_promise) == mine if name not in MORE else True, name


MORE = {  # functions of which one engine takes more than is promised
    "hold": "the CPU's also at a step, and without zeroing the padding row, for parameters of torch",
    "restore": "the same",
    "check_bags": "a GPU's also several sets of bags, joined",
    "sort": "the CPU's also labels",
}


# Of one row, and of calls with few ids.
NOT_MIRRORED = ("dot", "row_squares", "clip_row", "dot_few", "dot_row", "current_row", "add_rows")


def test_kernels_of_both_devices_mirror_each_other():
    """The same files, and in them the same names."""
    for file in ("gather", "pool", "dot", "segment", "update", "norm"):
        cpu, gpu = (set(functions_of(f"kernels/{device}/{file}")) for device in ("cpu", "cuda"))
        mine = {name for name in cpu if name[0] != "_" and name not in NOT_MIRRORED}
        assert {name for name in mine - gpu if name != "sum_segment"} == set(), file


def test_adapters_are_not_needed_by_the_core():
    for name in SOURCES:
        assert name.startswith("torch/") or not {each for each in inside(name) if each.startswith("torch/")}, name


def lines_of_code(text):
    """How many lines hold code: neither comments, nor docstrings, nor nothing."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = (each for each in ast.walk(ast.parse(text)) if isinstance(each, documented))
    strings = (each.body[0] for each in nodes if ast.get_docstring(each, False) is not None)
    prose = {number for each in strings for number in range(each.lineno, each.end_lineno + 1)}
    names = ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")
    nothing = {getattr(tokenize, name) for name in names}
    tokens = (each for each in tokenize.generate_tokens(io.StringIO(text).readline) if each.type not in nothing)
    return len({number for each in tokens for number in range(each.start[0], each.end[0] + 1)} - prose)


def test_no_source_file_is_long():
    """At most 200 lines of code. Documentation is free: a class in one file is worth more than a short file."""
    lengths = {name: lines_of_code(path.read_text()) for name, path in SOURCES.items()}
    longer = {  # one file on purpose: what a successor of numba-cuda replaces; a class and its documentation
        "kernels/cuda/_intrinsics": 260,
        "table": 325,
    }
    assert {name: length for name, length in lengths.items() if length > longer.get(name, 200)} == {}
    assert lines_of_code('"""A docstring."""\n\n# a comment\nx = (\n    1,\n)\n') == 3


_LLVM = {"kernels/cuda/_intrinsics"} | {
    f"kernels/cpu/{name}" for name in ("_atomic", "_elements", "_intrinsics", "_sharing", "_vectors", "_workers")
}
_CUDA = {
    "_jit",
    "kernels/cuda/_intrinsics",
    "kernels/cuda/_block",
    "kernels/cuda/_dispatch",
    "_cuda/code",
    "_frameworks",
}
_WAITING = {"_cuda/queue", "_cuda/queues", "_cuda/errors", "_cuda/store"}
OUTSIDE = {  # what -> the only modules that may import it
    "llvmlite.ir": _LLVM,
    "numba.core.cgutils": _LLVM,
    "numba.extending.intrinsic": _LLVM,
    "numba.extending.overload": {"jit", "rules/_dispatch", "losses/_dispatch"},
    "numba.core.caching": {"_cache"},
    "threading": {
        "_compiling",
        "_signals",
        "_contents",
        "_cpu/threads",
        "_cuda/queue",
        "_cuda/queues",
        "_cuda/errors",
        "_cuda/store",
        "sampler",
    },
    "numba.cuda": _CUDA,
    "torch": {name for name in SOURCES if name.startswith("torch/")},
    **{framework: set() for framework in ("jax", "tensorflow", "cupy", "pandas")},
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_each_outside_thing_has_one_home(what):
    users = {name for name in SOURCES if any(f"{each}.".startswith(f"{what}.") for each in imports(name))}
    assert users <= OUTSIDE[what]
    assert users or not OUTSIDE[what]


def test_all_options_of_the_compiler_live_in_one_module():
    calls = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("njit", "jit", "guvectorize"):
                calls.setdefault(name, []).append(ast.unparse(node))
            text = ast.unparse(node) if isinstance(node, ast.keyword) else ""
            assert not text.startswith(("fastmath", "parallel=", "cache=")), f"{name}: {text}"
    assert set(calls) == {"_jit"}, calls


def functions_of(name):
    return {node.name: node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef)}


def floats_in(node):
    return [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, float)]


def test_arithmetic_keeps_the_dtype_of_the_table():
    """A float literal is a float64 and promotes float32: rules and kernels on rows have none."""
    for name in SOURCES:
        if name.startswith("rules/") and (step := functions_of(name).get("step")):
            for part in (step, functions_of(name).get("reduce"), functions_of(name).get("row")):
                assert part is None or floats_in(part) == [], name
    for name in ("gather", "segment", "update"):
        assert floats_in(TREES[f"kernels/cpu/{name}"]) == [], name
    for name in ("gather", "segment", "update", "pool", "sort", "catch_up", "_sharing"):
        assert floats_in(TREES[f"kernels/cuda/{name}"]) == [], name
    for file, names in {"pool": "add_rows pool_rows pool_max _factor", "_bags": "_pool_columns pool_bag"}.items():
        for function in names.split():  # divisors are computed in float64
            assert floats_in(functions_of(f"kernels/cpu/{file}")[function]) == [], function


def test_kernels_neither_allocate_nor_raise_nor_read_outside():
    for name in SOURCES:
        if not name.startswith("kernels/cpu/") or name in _LLVM or name.endswith("__init__"):
            continue
        text = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
        assert not text & {"np.empty", "np.zeros", "np.array", "np.empty_like", "np.zeros_like", "np.full", "list"}, (
            name
        )
        assert not [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Raise | ast.Try)], name


# The names of the design, with their parameters; programs outside this repository call them.
NAMES = {
    "EmbeddingTable": "num_rows dim optimizer dtype padding_idx rng max_norm norm_type scale_grad_by_freq",
    "EmbeddingTable.from_array": "weight optimizer copy padding_idx max_norm norm_type scale_grad_by_freq",
    "EmbeddingTable.lookup": "ids",
    "EmbeddingTable.update": "ids grad_out check_finite",
    "EmbeddingTable.pool": "bags mode",
    "EmbeddingTable.update_pooled": "bags grad_out mode",
    "EmbeddingTable.gradient": "ids grad_out",
    "EmbeddingTable.apply": "gradient",
    "EmbeddingTable.state_dict": "",
    "EmbeddingTable.load_state_dict": "state_dict",
    "EmbeddingTable.save": "path progress",
    "load": "path mode optimizer comm device verify progress",
    "Bags": "ids offsets per_sample_weights",
    "Bags.from_padded": "ids padding_idx",
    "Bags.from_lists": "ids",
    "Bags.from_csr": "matrix",
    "NegativeSampler": "counts power seed exclude",
    "NegativeSampler.draw": "n k keys",
    "RowGradient": "rows values num_rows",
    "plan": "ids num_rows",
    "clip_by_global_norm": "gradients max_norm dense",
    "gather": "weight ids out",
    "pool": "weight bags mode out",
    "scatter_add": "weight ids values alpha",
    "coalesce": "ids grad_out num_rows",
    "pool_gradient": "bags grad_out num_rows mode",
    "per_sample_weights_gradient": "weight bags grad_out mode",
    "testing.check_optimizer": "rule trace",
    "testing.check_loss": "loss scores labels",
    "EmbeddingTable.dot_loss": "bags x labels loss weights",
    "reference.dot_loss": "weight bags x labels loss weights",
    "losses.Logistic": "",
    "losses.Softmax": "",
    "losses.Pairwise": "",
    "losses.Squared": "",
    "reference.gather": "weight ids",
    "reference.pool": "weight bags mode",
    "reference.scatter_add": "weight ids values alpha",
    "reference.coalesce": "ids grad_out num_rows",
    "reference.pool_gradient": "bags grad_out num_rows mode",
    "reference.per_sample_weights_gradient": "weight bags grad_out mode",
    "SGD": "lr touched_weight_decay",
    "Adagrad": "lr touched_weight_decay",
    "RowwiseAdagrad": "lr",
    "jit.prefetch_row": "weight row",
    "jit.dot_row": "weight row x",
    "jit.add_row": "weight row a x",
    "jit.read_row": "weight row out",
    "jit.row_step": "rule",
    "jit.hyper": "rule step dtype",
    "SparseAdam": "lr betas eps touched_weight_decay",
}


OF_TORCH = {  # names of sparsembed.torch
    "Embedding": "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq optimizer fused",
    "EmbeddingBag": "num_embeddings embedding_dim max_norm mode include_last_offset padding_idx optimizer fused",
    "Optimizer": "params rule",
    "dot": "module input x offsets",
    "convert": "model optimizer fused",
    "clip_grad_norm_": "parameters max_norm norm_type error_if_nonfinite",
    "dense_parameters": "model",
    "save": "module path progress",
    "load": "module path optimizer verify progress",
    "table_parameters": "model",
}


def find(path):
    value = se
    for part in path.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("path", [*NAMES])
def test_the_names_of_the_design_exist(path):
    parameters = inspect.signature(find(path)).parameters
    assert set(NAMES[path].split()) <= set(parameters)


def test_attributes_of_the_design_exist():
    table = se.EmbeddingTable(3, 2, se.SparseAdam(), rng=0)
    assert (table.weight.shape, table.step, list(table.state)) == ((3, 2), 0, ["exp_avg", "exp_avg_sq"])
    gradient = table.gradient(np.array([1]), np.ones((1, 2)))
    assert (gradient.rows.shape, gradient.values.shape, gradient.num_rows) == ((1,), (1, 2), 3)
    assert np.shares_memory(table[np.array([1])], table.weight) is False
    plan = se.plan(np.array([1, 1]), 3)
    assert (list(plan.rows), list(plan.order), list(plan.segment_offsets)) == ([1], [0, 1], [0, 2])


def test_the_package_shows_what_is_public_and_nothing_else():
    assert dir(se) == sorted({*se.__all__, "__doc__", "__version__", "cuda"})
    assert all(getattr(se, name) is not None for name in dir(se))


def public():
    """Every public function and class, and every public method, by path."""
    for name in se.__all__:
        value = getattr(se, name)
        members = {each: getattr(value, each) for each in dir(value) if each[0] != "_"}
        if isinstance(value, ModuleType):
            mine = {k: v for k, v in members.items() if getattr(v, "__module__", "").startswith(value.__name__)}
            yield from ((f"{name}.{k}", v) for k, v in mine.items() if inspect.isroutine(v) or inspect.isclass(v))
        else:
            yield name, value
            routines = {k: v for k, v in members.items() if inspect.isroutine(v) and "sparsembed" in v.__module__}
            yield from ((f"{name}.{k}", v) for k, v in routines.items() if not issubclass(value, se.rules.Rule))


PUBLIC = dict(public())


@pytest.mark.parametrize("path", PUBLIC)
def test_public_things_are_documented(path):
    """Methods of tables, gradients and the reference may leave the example to the class or the function."""
    value, text = PUBLIC[path], inspect.getdoc(PUBLIC[path]) or ""
    assert text.split("\n")[0].endswith((".", ":", "``")), "starts with a sentence"
    owner = path.split(".")[0] if "." in path else ""
    assert ">>> " in text or owner in ("EmbeddingTable", "RowGradient", "reference") or path == "Plan", "no example"
    error = inspect.isclass(value) and issubclass(value, BaseException)  # has Python's own arguments
    names = set() if error else set(inspect.signature(value).parameters) - {"self", "transient"}
    if owner not in ("reference", "initializers", "Bags", "RowGradient") and path not in (
        "Plan",
        "EmbeddingTable.pool",
    ):
        assert not names or "Parameters\n------" in text
        assert {name for name in names if name not in text} == set(), "parameters without a word"


def test_names_of_the_torch_adapter_exist_and_are_documented():
    pytest.importorskip("torch")
    import sparsembed.torch as st

    assert set(OF_TORCH) == set(st.__all__)
    for name, parameters in OF_TORCH.items():
        found, text = set(inspect.signature(getattr(st, name)).parameters), inspect.getdoc(getattr(st, name))
        assert set(parameters.split()) <= found
        assert {each for each in found if each not in text} == set(), name
        assert ">>> " in text
        assert "Parameters\n------" in text


def test_import_and_use_load_no_framework_and_import_starts_nothing():
    script = """
import sys, threading
import sparsembed
heavy = "numba.cuda torch jax tensorflow cupy pandas scipy.sparse pytest"
heavy += " sparsembed.jit sparsembed.reference sparsembed.testing"
print([name for name in heavy.split() if name in sys.modules], threading.active_count())
table = sparsembed.EmbeddingTable(9, 2, sparsembed.SGD(lr=0.1))
table.update([1], table.lookup([1]))
print([name for name in heavy.split() if name in sys.modules])
sparsembed.reference.onehot([1], 2)
print("scipy.sparse" in sys.modules)
"""
    assert python(script).splitlines() == ["[] 1", "[]", "True"]


def test_show_versions_prints_what_an_issue_needs():
    lines = dict(
        line.split(maxsplit=1) for line in python("import sparsembed; sparsembed.show_versions()").splitlines()
    )
    assert {"sparsembed", "numba", "llvmlite", "numpy", "scipy", "python", "system", "processor", "threads"} <= set(
        lines
    )
    assert lines["numpy"] == np.__version__
    assert (
        int(python("import sparsembed; sparsembed.show_versions()", NUMBA_NUM_THREADS="3").count("threads      3")) == 1
    )


BOUNDS = "|".join(
    (
        r"timeout[\"']?\s*[=:]\s*\d",
        r"\.(?:join|wait|get)\([1-9]",
        r"(?:monotonic|perf_counter|time)\(\) [+<>] \d",
        r"_later\(\d",
    )
)


def test_drawing_examples_may_take_any_time():
    """A machine that is stopped for a while meanwhile says nothing about what is drawn."""
    assert settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check


def test_no_test_has_a_bound_on_time_of_its_own():
    """`patience` has it for all, so that none is missed by a machine that is busy with something else."""
    here = Path(__file__)
    others = [path for path in here.parents[1].rglob("*.py") if path != here]
    assert len(others) > 60
    impatient = {path.name: re.findall(BOUNDS, path.read_text()) for path in others}
    assert {name: found for name, found in impatient.items() if found} == {}
    for line in (
        "f(timeout=5)",
        '{"timeout": 300}',
        "thread.join(60)",
        "time.monotonic() + 20",
        "dump_traceback_later(120)",
    ):
        assert re.search(BOUNDS, line)


def test_the_guide_names_every_file():
    """By its path, or by its name beside another file of its folder; files of both engines once."""
    guide = (PACKAGE.parent / "docs" / "guide.md").read_text().partition("## Where things are")[2]
    named, folder = set(), ""
    for line in guide.splitlines():
        folder = ""
        for each in re.findall(r"`([\w/]+\.py)`", line.split("|")[1] if line.startswith("|") else ""):
            path = Path(each)
            folder = path.parent.as_posix() if path.parent.as_posix() != "." else folder
            both = "(in `_cpu/`" in line or "(both)" in line
            for place in ("_cpu", "_cuda") if both else (folder,):
                named.add((Path(place) / path.name).with_suffix("").as_posix())
    kernels = {name.replace("kernels/cpu", "kernels/cuda") for name in named if name.startswith("kernels/cpu/")}
    missing = {name for name in SOURCES if not name.endswith("__init__")} - named - kernels
    assert not missing
    assert not named - set(SOURCES)

"""What the CUDA kernels become, on each architecture; needs the tools of the extra `cuda-ci`, and no GPU."""

import itertools

import numpy as np
import pytest
from numba.cuda import types
from numba.cuda.typing.templates import _OverloadFunctionTemplate

import sparsembed as se
from benchmarks.gpu import cases as gpu_cases
from benchmarks.gpu import code as gpu_code
from benchmarks.gpu import ptx
from sparsembed._cache import rules_in
from sparsembed._cuda import code
from sparsembed._cuda.array import DeviceArray
from sparsembed.losses import _dispatch as of_losses
from sparsembed.losses._loss import LOSSES
from sparsembed.rules import _dispatch
from sparsembed.rules._rule import RULES

CASES = gpu_cases.cases()
F32 = DeviceArray(0, (3,), np.float32, None)


def test_every_rule_is_compiled():
    built_in = {rule for rule in RULES.values() if rule.__module__.startswith("sparsembed.")}
    assert built_in <= {case.rule for case in CASES}
    losses = {each for each, loss in LOSSES.items() if loss.__module__.startswith("sparsembed.")}
    assert losses <= {each for case in CASES for each in rules_in(case.kinds)}


def test_code_is_kept_for_the_next_process(tmp_path, monkeypatch):
    monkeypatch.setattr(code.config, "CACHE_DIR", str(tmp_path))
    case = next(case for case in CASES if case.name == "gather_rows")
    with gpu_code.device_of((9, 0)):
        made = code.build(case.kernel, case.kinds, (9, 0), 256)
        monkeypatch.setattr(code, "ptx_of", None)
        assert code.build(case.kernel, case.kinds, (9, 0), 256) == made
        (path,) = (tmp_path / "sparsembed").iterdir()
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(TypeError):
            code.build(case.kernel, case.kinds, (9, 0), 256)  # cut short: compiles again


def test_the_rules_are_the_functions_of_the_cpu():
    """Each function that reaches a rule is specialised for CUDA by the very same choice."""
    from numba.cuda.typing import templates

    found = {
        (template.key, template._overload_func)
        for template in templates.builtin_registry.functions
        if isinstance(template, type) and issubclass(template, _OverloadFunctionTemplate)
    }
    assert {*_dispatch.SPECIALISATIONS, *of_losses.SPECIALISATIONS} <= found
    hp = type("Kind", (), {"instance_class": se.SparseAdam.Hyper})
    assert dict(_dispatch.SPECIALISATIONS)[_dispatch.step](None, None, None, None, hp) is se.SparseAdam.step


def look_at(kernel, kinds, capability=(9, 0)):
    """The faults of one kernel."""
    (found,) = gpu_code.look_at([gpu_cases.Case(kernel, kinds)], capability)
    return set(found.faults)


def lanes(count, kind=types.float32):
    return types.UniTuple(kind, count)


def test_faults_are_found():
    def gather_rows(weight, out, n, zero):
        out[0] = weight[1] * 0.1 + out[1]  # float64

    kinds = code.types_of((F32, F32, 3))
    missing = {"no ld weight of 16 bytes", "no st out of 16 bytes"}
    narrow = {"ld weight of 4 bytes", "ld out of 4 bytes", "st out of 4 bytes"}
    assert look_at(gather_rows, (*kinds, lanes(4))) == {"float64", *missing, *narrow}
    assert look_at(gather_rows, (*kinds, lanes(1))) == {"float64"}


@pytest.mark.parametrize("capability", gpu_code.ARCHITECTURES)
def test_rows_that_are_moved_by_halves_are_found(capability):
    """One access of 16 bytes is not enough: all have to be."""
    case = next(case for case in CASES if case.name == "update_rows" and case.rule is se.SparseAdam and case.lanes == 4)
    assert look_at(*case, capability) == set()
    kinds = tuple(lanes(2) if kind == lanes(4) else kind for kind in case.kinds)
    assert {f"{each} of 8 bytes" for each in ("ld weight", "st weight", "ld state", "st state", "ld grad")} <= look_at(
        case.kernel, kinds, capability
    )


def test_fused_products_are_found(monkeypatch):
    """The compiler is told not to fuse; where it does, `-fmad=false` of the assembler changes nothing."""
    case = next(case for case in CASES if case.name == "update_rows" and case.rule is se.SparseAdam and case.lanes == 4)
    monkeypatch.setitem(code.COMPILER, "fma", True)
    assert look_at(*case) == {"fused"}


def test_divisions_that_are_not_ieee_are_found(monkeypatch):
    case = next(case for case in CASES if case.name == "share_bags" and "float32" in str(case.kinds))
    assert look_at(*case) == set()
    monkeypatch.setitem(code.COMPILER, "prec_div", False)
    assert look_at(*case) == {"inexact"}


def test_accesses_are_traced_to_arguments():
    def kernel(p, q, n, s):
        p[n + 1] = q[n] + s[0]

    kinds = (*code.types_of((F32, F32, 3)), types.UniTuple(types.float32, 3))
    with gpu_code.device_of((9, 0)):
        text = code.ptx_of(kernel, kinds, (9, 0), 256)
    names = ptx.parameters(kernel, kinds)
    assert names == ["p", "q", "", "", "", ""]
    assert sorted(ptx.accesses(text, names)) == [("ld", "q", 4), ("st", "p", 4)]


def test_cases_hold_every_two_types_that_meet_in_a_launch():
    """And are far fewer than all launches."""
    every, chosen = gpu_cases.everything(), {}
    for case in CASES:
        pairs = itertools.combinations(enumerate(map(str, case.kinds)), 2)
        chosen.setdefault(case.kernel, set()).update(pairs)
    for case in every:
        assert set(itertools.combinations(enumerate(map(str, case.kinds)), 2)) <= chosen[case.kernel]
    assert len(CASES) * 4 < len(every)


def test_gradients_of_every_kind_are_compiled():
    """Those of lookups, of bags with and without factors, and of maxima: in both tiers, for either count."""
    wanted = {("none", "none", "none"), ("none", "float32*", "none"), ("int32*", "float32*", "none"),
              ("int32*", "none", "int32*")}  # fmt: skip
    for name in ("update_rows", "update_hot_rows", "segment_sum", "segment_sum_hot", "sum_hot"):
        mine = [case for case in CASES if case.name == name and "float64" not in str(case.kinds)]
        assert wanted <= {(case.kind("bags"), case.kind("coefs"), case.kind("winners")) for case in mine}
        assert name == "sum_hot" or {case.has("by_count") for case in mine} == {False, True}

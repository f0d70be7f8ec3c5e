"""The disk cache of compiled kernels, keyed on everything a kernel was made from.

Numba validates a cached kernel against the one source file that holds it.  Here a kernel is
made from several files (the kernel, the intrinsics, a rule that may be in a
user's module), so the key covers the whole package and the code of the rule.  One file per key and
no shared index: two processes that compile at the same time cannot mix up their entries, and
a rule defined in one program's ``__main__`` is never unpickled by another program.
"""

import contextlib
import hashlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from numba.core.caching import FunctionCache, IndexDataCacheFile

PACKAGE = Path(__file__).parent
_SETTLED = {*sys.stdlib_module_names, "numpy", "numba"} - {"__main__"}  # code changes only with the version
STAMP = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(PACKAGE.rglob("*.py")))).hexdigest()


def fingerprint(item: object) -> str:
    """Return a text that changes when a function, or anything that its code refers to, changes."""
    return _fingerprint(item, {}, frozenset())


def _fingerprint(item: object, seen: dict[int, object], names: frozenset[str]) -> str:
    """Return a text for `item`; `names` are the attribute names in the code that uses `item`."""
    item = getattr(item, "py_func", item)  # a jitted function stands for its source
    if id(item) in seen:
        return "seen"
    if isinstance(item, FunctionType):
        seen[id(item)] = item  # keep the item alive: Python reuses the id of a freed object
        names = frozenset(names_in(item.__code__))
        scope = {name: item.__globals__[name] for name in names & item.__globals__.keys()}
        cells = [cell.cell_contents for cell in item.__closure__ or ()]
        used = [*(scope[name] for name in sorted(scope)), *cells, *(item.__defaults__ or ())]
        return _code(item.__code__) + "".join(_fingerprint(each, seen, names) for each in used)
    if isinstance(item, ModuleType):
        if item.__name__.partition(".")[0] in _SETTLED:
            return item.__name__
        used = [getattr(item, name) for name in sorted(names) if hasattr(item, name)]
        seen[id(item)] = item
        return item.__name__ + "".join(_fingerprint(each, seen, names) for each in used)
    if isinstance(item, np.ndarray):
        return f"{item.dtype}{item.shape}{hashlib.sha256(item.tobytes()).hexdigest()}"
    return repr(item)


def names_in(code: CodeType) -> set[str]:
    """Return the names that code refers to, with those of the functions in it."""
    nested = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*map(names_in, nested))


def _code(code: CodeType) -> str:
    consts = [_code(const) if isinstance(const, CodeType) else repr(const) for const in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{code.co_varnames}{consts}"


def rules_in(signature: Any) -> Iterator[type]:
    """Yield the named tuple classes in a signature, nested ones included: each class stands for one rule."""
    for kind in getattr(signature, "args", signature):
        if (hyper := getattr(kind, "instance_class", None)) is not None:
            yield hyper
        elif (parts := getattr(kind, "types", None)) is not None:
            yield from rules_in(parts)


class _OneFilePerKey(IndexDataCacheFile):
    def _data_name(self, key: str) -> str:
        return f"{Path(self._index_name).stem}.{key}.nbc"

    def save(self, key: str, data: object) -> None:
        self._save_data(self._data_name(key), data)

    def _save_data(self, name: str, data: object) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest() + content)

    def load(self, key: str) -> object | None:
        try:
            stored = Path(self._data_path(self._data_name(key))).read_bytes()
        except OSError:
            return None
        digest, content = stored[:32], stored[32:]
        if hashlib.sha256(content).digest() != digest:
            return None  # truncated by a full disk, or damaged: compile again
        data: object = pickle.loads(content)
        return data

    def flush(self) -> None:
        for path in Path(self._cache_path).glob(self._data_name("*")):
            path.unlink(missing_ok=True)


class KernelCache(FunctionCache):
    """Cache of one kernel, for `Dispatcher._cache`."""

    def __init__(self, kernel: FunctionType) -> None:
        super().__init__(kernel)
        self._cache_file = _OneFilePerKey(self._cache_path, self._impl.filename_base, STAMP)

    def _index_key(self, signature: Any, codegen: Any) -> str:
        _, target, code = super()._index_key(signature, codegen)
        rules = [hyper.fingerprint() for hyper in rules_in(signature) if hasattr(hyper, "fingerprint")]
        return hashlib.sha256(repr((str(signature), target, code, STAMP, rules)).encode()).hexdigest()[:32]

    def _load_overload(self, signature: Any, target_context: Any) -> Any:
        try:
            result = super()._load_overload(signature, target_context)
        except (ImportError, AttributeError, pickle.UnpicklingError):
            return None  # the module of the rule cannot be imported by name: compile again
        if result is None:
            return None
        # A rule in __main__ is pickled by value, so unpickling creates a new class.  Register the
        # machine code under the requested types; otherwise the next call compiles again.
        asked = tuple(getattr(signature, "args", signature))
        return result._replace(signature=result.signature.replace(args=asked))

    @contextlib.contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        # A full or read-only disk costs a recompilation; it must not stop a training run.
        with contextlib.suppress(OSError):
            yield

"""A report of what the engine runs on, for issues and benchmarks."""

import platform


def show_versions() -> None:
    """Print versions, processor, number of threads and folder of the kernel cache.

    Examples
    --------
    >>> import sparsembed as se
    >>> se.show_versions()  # doctest: +ELLIPSIS
    sparsembed ...
    """
    import importlib.metadata

    import llvmlite.binding

    from ._cpu import threads
    from .kernels.cpu.update import update_rows

    lines = {}
    for name in ("sparsembed", "numba", "llvmlite", "numpy", "scipy"):
        lines[name] = importlib.metadata.version(name)
    lines["python"] = platform.python_version()
    lines["system"] = platform.platform()
    lines["processor"] = llvmlite.binding.get_host_cpu_name()
    lines["threads"] = str(threads.num_threads())
    cache = getattr(update_rows, "_cache", None)
    lines["kernel cache"] = getattr(cache, "cache_path", "none")
    width = max(map(len, lines))
    print("\n".join(f"{name:{width}} {value}" for name, value in lines.items()))  # noqa: T201

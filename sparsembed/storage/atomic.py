"""A file that is replaced whole: the old one or the new one stands at its path, and never a part."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from typing import Any


def path_of(value: Any) -> str:
    """Check a path, and return it."""
    path = value if isinstance(value, str) else os.fspath(value) if isinstance(value, os.PathLike) else None
    if not isinstance(path, str):
        raise TypeError(f"path must be a str or an os.PathLike such as pathlib.Path, got {type(value).__name__}")
    return path


@contextlib.contextmanager
def replacing(path: str) -> Iterator[Any]:
    """Yield a new file without a buffer, which takes the place of `path` at the end of the block.

    It is synced, then renamed, then the folder is synced.  After an exception `path` is as it was, and no other file
    is left.  Errors of the system name `path`.
    """
    with naming(path):
        target, old = _target(path)
    folder, name = os.path.split(target)
    # In the same folder, since a file is renamed within a file system; long names must leave room for what is added.
    new = os.path.join(folder, f".{name[:60]}.{secrets.token_hex(4)}.tmp")  # noqa: PTH118  (strings throughout)
    try:
        with naming(path, new), open(new, "x+b", buffering=0) as file:  # noqa: PTH123
            yield file
            with naming(path):
                if old is not None:
                    _take_permissions(file, old)
                os.fsync(file.fileno())
        with naming(path):
            os.replace(new, target)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)  # noqa: PTH108
        raise
    with naming(path):
        _sync_folder(folder)


@contextlib.contextmanager
def naming(path: str, only: str | None = None) -> Iterator[None]:
    """Let errors of the system name this path, rather than none, or that of a temporary file; or `only` that."""
    try:
        yield
    except OSError as error:
        if only is None or error.filename == only:
            error.filename = path
            if error.filename2 is not None:
                error.filename2 = path
        raise


def _target(path: str) -> tuple[str, os.stat_result | None]:
    """Return the absolute path of the file that a path leads to, and what stands there; refuse what is no file."""
    target = os.path.realpath(path)
    if not path or path.endswith(os.sep) or os.path.isdir(target):  # noqa: PTH112
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    try:
        old = os.stat(target)  # noqa: PTH116
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(old.st_mode):
        raise ValueError(f"path must be that of an ordinary file or of none, and {path} is a device, pipe or socket")
    if not os.access(target, os.W_OK):  # it could be replaced, but whoever protected it means that it should not be
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return target, old


def _take_permissions(file: Any, old: os.stat_result) -> None:
    if hasattr(os, "fchown"):
        for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):
            with contextlib.suppress(PermissionError):  # only root gives files away, others to groups of their own
                os.fchown(file.fileno(), owner, group)
    if hasattr(os, "fchmod"):
        os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))


def _sync_folder(folder: str) -> None:
    """Let a rename reach the disk; some file systems and systems cannot be asked to."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)

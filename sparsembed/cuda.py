"""Synchronisation and error reporting of calls on a GPU."""

from ._engine import cuda

__all__ = ["checks", "synchronize"]


def synchronize(device: int = 0, stream: int | None = None) -> None:
    """Wait for a GPU, and raise if an id has been out of range since the last time.

    Parameters
    ----------
    device : int
    stream : int, optional
        The address of a stream, such as ``torch.cuda.current_stream().cuda_stream``, 0 for the default stream:
        waits for that alone.  None: for all streams that calls were made on.

    Raises
    ------
    IndexError, ValueError
        For the first call that had an id, or offsets of bags, out of range.  That call wrote nothing, and neither
        did calls that used its results.  Other calls have done their work, unless they had such an error, too; only
        the first error is reported.
    ImportError, RuntimeError
        Without numba-cuda, or without a GPU; the message says what is missing.

    Examples
    --------
    >>> import sparsembed.cuda
    >>> sparsembed.cuda.synchronize()  # doctest: +SKIP
    """
    cuda("errors").synchronize(device, stream)


def checks(when: str | None = None) -> str:
    """Set when ids that are out of range raise.

    Parameters
    ----------
    when : {"late", "now"}, optional
        "late": at the next `synchronize`, or where a call waits anyway, so that none waits for the check.
        "now": in the call itself, which then waits.  For all threads; None changes nothing.

    Returns
    -------
    str
        What was set before; "late" at first.

    Raises
    ------
    ValueError
        For anything else.
    ImportError
        Without numba-cuda; the message says what is missing.

    Examples
    --------
    >>> import sparsembed.cuda
    >>> sparsembed.cuda.checks("now")  # doctest: +SKIP
    'late'
    """
    return str(cuda("errors").checks(when))

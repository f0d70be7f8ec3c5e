"""What calls on device arrays have besides the calls themselves: when they wait, and when they raise."""

from ._device import engine

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
        For the first call that had an id, or offsets of bags, out of range.  It wrote nothing, nor did what
        followed from it; calls after it have done their work, but for others that had one, which are not named.
    ImportError, RuntimeError
        Without numba-cuda, or without a GPU; the message says what is missing.

    Examples
    --------
    >>> import sparsembed.cuda
    >>> sparsembed.cuda.synchronize()  # doctest: +SKIP
    """
    engine("errors").synchronize(device, stream)


def checks(when: str | None = None) -> str:
    """Say when ids that are out of range raise.

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
    return str(engine("errors").checks(when))

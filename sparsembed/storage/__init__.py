"""Files of tables, and the errors that are raised for what they hold.

Examples
--------
>>> import os, tempfile, sparsembed as se
>>> with tempfile.TemporaryDirectory() as folder:
...     path = os.path.join(folder, "table.safetensors")
...     se.EmbeddingTable(9, 4, rng=0).save(path)
...     os.truncate(path, 100)
...     try:
...         se.load(path)
...     except se.storage.DamagedError as error:
...         print(type(error).__name__, isinstance(error, ValueError))
DamagedError True
"""

__all__ = ["DamagedError"]


class DamagedError(ValueError):
    """The bytes of a file are not those that were written; the message names the file and the part.

    Examples
    --------
    >>> import sparsembed as se
    >>> issubclass(se.storage.DamagedError, ValueError)
    True
    """

"""A name in pickles of tables on a GPU."""

from ..table import EmbeddingTable as DeviceTable

__all__ = ["DeviceTable"]

"""FBGEMM's table-batched embedding on the CPU, with exact rowwise Adagrad."""

from collections.abc import Callable
from typing import Any

from ..workload import Batches
from .ours import ROWWISE


def module(batches: Batches, pooling: str, offsets: Any) -> tuple[Callable[[int], Any], Any]:
    """Return what looks batch i up, and the weights that its backward pass updates."""
    if batches.size.dim % 4:
        raise NotImplementedError(f"FBGEMM takes multiples of 4, not {batches.size.dim} columns")
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
    from fbgemm_gpu.tbe.config.embedding_config import ComputeDevice, EmbeddingLocation, PoolingMode

    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(batches.size.num_rows, batches.size.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=ROWWISE.lr,
        eps=ROWWISE.eps,
        pooling_mode=PoolingMode[pooling],
        device="cpu",
    )
    weight = table.split_embedding_weights()[0].detach()
    weight.copy_(torch.from_numpy(batches.weight))
    ids, where = [*map(torch.from_numpy, batches.ids)], torch.from_numpy(offsets)
    return lambda i: table(ids[i], where), weight

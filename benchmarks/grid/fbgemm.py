"""FBGEMM's table-batched embedding on the CPU, on the weights that everybody has."""

from collections.abc import Callable
from typing import Any

import sparsembed as se

from .. import timing
from .data import Array, Data

RULE = se.RowwiseAdagrad(lr=1e-3, eps=1e-8)


def _module(data: Data) -> Any:
    """Return FBGEMM's module, or None if it is not installed or does not take such rows."""
    if data.dim % 4 or not timing.installed("fbgemm_gpu"):
        return None
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
    from fbgemm_gpu.tbe.config.embedding_config import ComputeDevice, EmbeddingLocation, PoolingMode

    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(data.rows, data.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=RULE.lr,
        eps=RULE.eps,
        pooling_mode=PoolingMode.SUM,
        device="cpu",
    )
    module.weights_host.data = torch.from_numpy(data.weight).view(-1)
    return module


def pool(data: Data) -> Callable[[Any], Any] | None:
    """Return what pools a batch, or None."""
    if (module := _module(data)) is None:
        return None
    import torch

    def step(batch: Any) -> Any:
        with torch.no_grad():
            return module(batch.torch.ids, batch.torch.offsets)

    return step


def step(data: Data) -> tuple[Callable[[Any], Any], Array] | None:
    """Return what looks a batch up in bags of one and updates it, and the rows' state; or None."""
    if (module := _module(data)) is None:
        return None

    def both(batch: Any) -> Any:
        vectors = module(batch.torch.ids, batch.torch.ends)
        vectors.backward(batch.torch.grads)
        return vectors

    return both, module.split_optimizer_states()[0][0].numpy()

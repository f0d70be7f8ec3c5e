"""The same numbers as FBGEMM's EXACT_ROWWISE_ADAGRAD on the CPU.  Runs where fbgemm-gpu-cpu is installed.

Without decay: FBGEMM's CPU kernel ignores it, where ours does what its GPU kernel does; the
formulas with decay are held to hand-computed numbers in test_reference.
"""

import warnings

import numpy as np
import pytest
from strategies import numbers, pick_ids

import sparsembed as se

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its imports warn of kernels that the CPU package leaves out
    pytest.importorskip("fbgemm_gpu")
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

V, BAGS, STEPS = 60, 25, 10
MODES = {"sum": PoolingMode.SUM, "mean": PoolingMode.MEAN}


def engine(weight, mode, **options):
    """FBGEMM's module with one table."""
    spec = [(*weight.shape, EmbeddingLocation.HOST, ComputeDevice.CPU)]
    kind = EmbOptimType.EXACT_ROWWISE_ADAGRAD
    module = SplitTableBatchedEmbeddingBagsCodegen(spec, optimizer=kind, pooling_mode=MODES[mode], **options)
    module.split_embedding_weights()[0].copy_(torch.tensor(weight))
    return module


@pytest.mark.parametrize("dim", [4, 20, 64])
@pytest.mark.parametrize(("mode", "weighted"), [("sum", False), ("sum", True), ("mean", False)])
def test_rowwise_adagrad(mode, weighted, dim, rng):
    """Not the weighted mean: FBGEMM's CPU backward omits its division."""
    weight = numbers(rng, (V, dim), np.float32)
    theirs = engine(weight, mode, learning_rate=0.1, eps=1e-6)
    ours = se.EmbeddingTable.from_array(weight.copy(), se.RowwiseAdagrad(lr=0.1, eps=1e-6))
    for step in range(STEPS):
        lengths = rng.integers(0, 9, BAGS)
        ids = pick_ids(rng, lengths.sum(), V, "zipf" if step % 2 else "hot")
        offsets = np.cumsum([0, *lengths])
        factors = numbers(rng, len(ids), np.float32) if weighted else None
        given = None if factors is None else torch.tensor(factors)
        bags, grad_out = se.Bags(ids, offsets, factors), numbers(rng, (BAGS, dim), np.float32)
        out = theirs(torch.tensor(ids), torch.tensor(offsets), per_sample_weights=given)
        # A row sums up to 100 products; the error of the table grows with the steps.
        near = {"rtol": 1e-5, "atol": 1e-5 * (step + 1)}
        np.testing.assert_allclose(ours.pool(bags, mode), out.detach(), **near)
        out.backward(torch.tensor(grad_out))
        ours.update_pooled(bags, grad_out, mode)
        np.testing.assert_allclose(ours.weight, theirs.split_embedding_weights()[0], **near)
        np.testing.assert_allclose(ours.state["sum"], theirs.split_optimizer_states()[0][0], **near)
    assert np.abs(ours.weight - weight).max() > 0.1


@pytest.mark.parametrize("weight_decay_mode", ["l2", "decoupled"])
def test_decay_is_not_ignored(weight_decay_mode, rng):
    """FBGEMM's CPU kernel leaves the weights as they are without decay (a bug); ours decays."""
    weight = numbers(rng, (V, 4), np.float32)
    kwargs = {"weight_decay": 0.1, "weight_decay_mode": weight_decay_mode}
    table = se.EmbeddingTable.from_array(weight.copy(), se.RowwiseAdagrad(lr=0.1, **kwargs))
    plain = se.EmbeddingTable.from_array(weight.copy(), se.RowwiseAdagrad(lr=0.1))
    for each in (table, plain):
        each.update([3], np.ones((1, 4), np.float32))
    assert (np.abs(table.weight[3] - plain.weight[3]) > 1e-4).all()
    np.testing.assert_array_equal(table.weight[4:], weight[4:])

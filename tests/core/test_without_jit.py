"""The kernels are plain Python too: under NUMBA_DISABLE_JIT they compute what the compiled ones do."""

import os
import subprocess
import sys

import numpy as np
from patience import HANGS

PROGRAM = """
import sys
import numpy as np
import sparsembed as se

rng = np.random.default_rng(0)
ids, grad = rng.integers(0, 20, 60), rng.standard_normal((60, 5)).astype(np.float32)
found = []
for rule in (se.SGD(0.1), se.Adagrad(0.1), se.RowwiseAdagrad(0.1, weight_decay=0.01), se.SparseAdam(0.1)):
    table = se.EmbeddingTable(20, 5, optimizer=rule, padding_idx=3, rng=1)
    table.update([ids[:20], ids[20:]], [grad[:20], grad[20:]])
    weighted = se.Bags(ids, np.array([0, 10, 10, 60]), rng.random(60).astype(np.float32))
    plain = se.Bags(ids, weighted.offsets)
    for bags, mode in ((weighted, "sum"), (weighted, "mean"), (weighted, "sqrtn"), (plain, "max")):
        found.append(table.pool(bags, mode))
        table.update_pooled(bags, grad[:3], mode)
    found += [table.weight, table.gradient(ids, grad).values, table.lookup(ids)]
    found += [table.dot(plain, grad[:3]), table.dot(ids.reshape(12, 5), grad[:12])]
    found.append(se.per_sample_weights_gradient(table.weight, weighted, grad[:3], "mean"))
options = {"norm_type": 1.0, "scale_grad_by_freq": True}
short = se.EmbeddingTable(20, 5, se.SparseAdam(0.1), max_norm=0.5, rng=1, **options)
short.update(ids, grad)
short.update_pooled(plain, grad[:3], "max")
found.append(short.weight)
found.append(se.EmbeddingTable.from_array(grad, max_norm=1.0, copy=True).weight)
half = table.weight.astype(np.float16)
found += [se.gather(half, ids), se.pool(half, plain), se.dot(half, plain, grad[:3])]
late = se.EmbeddingTable(20, 5, se.Adam(0.1), rng=1)
late.update(ids[:9], grad[:9])
late.update_dot(plain, grad[:3], grad[:, 0])
found.append(late.dot(plain, grad[:3]))
for loss in (se.losses.Squared(), se.losses.Pairwise(), se.losses.Softmax()):
    found += late.dot_loss(plain, grad[:3], None if loss.pair or not loss.term else abs(grad[:, 1]), loss)
found += short.dot_loss(ids.reshape(12, 5), grad[:12], grad.reshape(12, 25)[:, :5] > 0)
np.savez(sys.argv[1], *found)
"""


def run(path, **environment):
    subprocess.run([sys.executable, "-c", PROGRAM, path], check=True, env=os.environ | environment, timeout=HANGS)
    with np.load(path) as saved:
        return [saved[name] for name in saved.files]


def test_plain_python_equals_compiled(tmp_path):
    compiled = run(str(tmp_path / "compiled.npz"))
    plain = run(str(tmp_path / "plain.npz"), NUMBA_DISABLE_JIT="1")
    assert len(compiled) == len(plain) == 58
    for a, b in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

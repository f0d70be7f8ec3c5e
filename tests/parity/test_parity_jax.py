"""JAX trains with rows in and row gradients out, the table outside the traced graph."""

import numpy as np
import pytest

import sparsembed as se

jax = pytest.importorskip("jax")
jnp = jax.numpy


def test_training_with_rows_in_and_gradients_out_equals_the_dense_gradient():
    ids = np.array([4, 2, 4, 0], np.int32)
    target = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    table = se.EmbeddingTable(6, 4, optimizer=se.SGD(lr=0.1), rng=1)
    dense = jnp.array(table.weight)

    @jax.jit
    def step(rows):
        return jax.grad(lambda x: ((x - target) ** 2).sum())(rows)

    @jax.jit
    def dense_step(weight):
        return weight - 0.1 * jax.grad(lambda w: ((w[ids] - target) ** 2).sum())(weight)

    for _ in range(5):
        rows = table.lookup(jnp.asarray(ids))
        assert isinstance(rows, jax.Array)
        table.update(ids, step(rows))
        dense = dense_step(dense)
    np.testing.assert_allclose(table.weight, np.asarray(dense), rtol=1e-5, atol=1e-6)

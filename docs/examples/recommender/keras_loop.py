"""The recommender in Keras 3 on torch or JAX: `fit` with a train step that leaves tables outside of Keras.

Keras reads its backend from the environment when it is imported: ``KERAS_BACKEND=torch`` or ``KERAS_BACKEND=jax``.
"""

import common
import keras
import numpy as np

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    import torch
elif BACKEND == "jax":
    import jax
else:
    raise ImportError(f"KERAS_BACKEND must be torch or jax for this example, got {BACKEND}")


class TableModel(keras.Model):
    """A Keras model of rows, together with the tables they come from: its inputs are ids.

    Call ``compile(optimizer=..., run_eagerly=True)``: the train step runs in Python, because tables are outside
    of traced graphs; the model of rows is compiled all the same on JAX.  The optimizer is for the model of rows,
    each table has its own.  The loss in the logs is that of the last batch, not Keras's average so far.

    Parameters
    ----------
    tables : list of EmbeddingTable
        One for each input.
    body : keras.Model
        From a list of rows, one array of shape ``ids.shape + (dim,)`` for each table, to predictions.
    loss_of : callable ``(target, predicted) -> scalar``
        Such as ``keras.losses.MeanSquaredError()``.
    """

    def __init__(self, tables, body, loss_of):
        super().__init__()
        self.tables, self.body, self.loss_of = tables, body, loss_of
        self.built = True  # body is, and nothing else has weights
        if BACKEND == "jax":
            self._value_and_grad = jax.jit(jax.value_and_grad(self._stateless_loss, argnums=(0, 1), has_aux=True))

    def compile(self, *args, run_eagerly=True, loss=None, **kwargs):
        """Configure `fit`, as for every Keras model."""
        if not run_eagerly or loss is not None:
            raise ValueError("TableModel needs run_eagerly=True, and its loss as loss_of when it is made")
        super().compile(*args, run_eagerly=True, **kwargs)

    def lookup(self, ids):
        """Return the rows of each table."""
        return [table.lookup(each) for table, each in zip(self.tables, ids, strict=True)]

    def update(self, ids, grads):
        """Take a step with each table."""
        for table, each, grad in zip(self.tables, ids, grads, strict=True):
            table.update(each, grad)

    def call(self, ids, training=False):
        """Predict, eagerly."""
        return self.body(self.lookup(ids), training=training)

    def train_step(self, *args):
        """Take one step: tables, then weights of the model of rows."""
        return self._step_on_torch(*args) if BACKEND == "torch" else self._step_on_jax(*args)

    def _step_on_torch(self, data):
        ids, target, _ = keras.utils.unpack_x_y_sample_weight(data)
        rows = [each.requires_grad_() for each in self.lookup(ids)]
        self.zero_grad()
        loss = self.loss_of(target, self.body(rows, training=True))
        loss.backward()
        self.update(ids, [each.grad for each in rows])
        with torch.no_grad():
            self.optimizer.apply([weight.value.grad for weight in self.trainable_weights], self.trainable_weights)
        return {"loss": loss.detach()}

    def _stateless_loss(self, rows, trainable, others, target):
        predicted, others = self.body.stateless_call(trainable, others, rows, training=True)
        return self.loss_of(target, predicted), others

    def _step_on_jax(self, state, data):
        trainable, others, of_optimizer, of_metrics = state
        ids, target, _ = keras.utils.unpack_x_y_sample_weight(data)
        (loss, others), (grad_rows, grads) = self._value_and_grad(self.lookup(ids), trainable, others, target)
        self.update(ids, grad_rows)
        trainable, of_optimizer = self.optimizer.stateless_apply(of_optimizer, grads, trainable)
        return {"loss": loss}, (trainable, others, of_optimizer, of_metrics)


class Losses(keras.callbacks.Callback):
    """Keeps the loss of each step."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        """Note the loss."""
        self.values.append(float(logs["loss"]))


def build(tables, dense):
    """Make the model."""
    x, y = keras.Input((common.DIM,)), keras.Input((common.DIM,))
    hidden = keras.layers.Dense(common.HIDDEN, activation="tanh")(keras.layers.Concatenate()([x, y]))
    predicted = keras.layers.Dense(1)(hidden) + keras.layers.Dot(axes=1)([x, y])
    body = keras.Model([x, y], keras.layers.Reshape(())(predicted))
    body.set_weights(dense)
    model = TableModel(tables, body, keras.losses.MeanSquaredError())
    model.compile(optimizer=keras.optimizers.SGD(learning_rate=common.DENSE_LR, momentum=common.MOMENTUM))
    return model


def train(tables, dense, batches):
    """Train the tables in place; return the loss of each step and the trained dense weights."""
    model, losses = build(tables, dense), Losses()
    users, items, ratings = map(np.concatenate, zip(*batches, strict=True))
    model.fit([users, items], ratings, batch_size=common.BATCH, shuffle=False, verbose=0, callbacks=[losses])
    return losses.values, model.get_weights()


if __name__ == "__main__":
    if BACKEND == "torch":
        torch.set_num_threads(1)  # the products are too small to share out
    common.main(train)

"""The recommender in JAX: one jitted function of rows and dense weights, tables outside of it."""

import common
import jax
import jax.numpy as jnp


def loss_of(x, y, dense, ratings):
    """Return the mean squared error."""
    w1, b1, w2, b2 = dense
    hidden = jnp.tanh(jnp.concatenate([x, y], axis=1) @ w1 + b1)
    return jnp.mean(((hidden @ w2)[:, 0] + b2 + (x * y).sum(axis=1) - ratings) ** 2)


@jax.jit
def model(x, y, dense, speed, ratings):
    """Return the loss, the gradients of the rows, and the dense weights and their momentum after the step."""
    loss, (grad_x, grad_y, grads) = jax.value_and_grad(loss_of, argnums=(0, 1, 2))(x, y, dense, ratings)
    speed = [common.MOMENTUM * old + grad for old, grad in zip(speed, grads, strict=True)]
    dense = [weight - common.DENSE_LR * each for weight, each in zip(dense, speed, strict=True)]
    return loss, grad_x, grad_y, dense, speed


def train(tables, dense, batches):
    """Train the tables in place; return the loss of each step and the trained dense weights."""
    speed, losses = [0 * weight for weight in dense], []
    for users, items, ratings in batches:
        x, y = tables[0].lookup(users), tables[1].lookup(items)
        loss, grad_x, grad_y, dense, speed = model(x, y, dense, speed, ratings)
        tables[0].update(users, grad_x)
        tables[1].update(items, grad_y)
        losses.append(float(loss))
    return losses, dense


if __name__ == "__main__":
    common.main(train)

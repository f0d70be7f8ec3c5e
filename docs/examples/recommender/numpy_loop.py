"""The recommender in NumPy: every gradient by hand, in float32 or, as the yardstick, in float64."""

import os
import sys

# The products are too small to share out, and waiting BLAS threads would spin on the tables' cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import common
import numpy as np


def gradients(x, y, dense, ratings):
    """Return the loss, and its gradients with respect to x, y and the dense weights."""
    w1, b1, w2, b2 = dense
    both = np.concatenate([x, y], axis=1)
    hidden = np.tanh(both @ w1 + b1)
    error = (hidden @ w2)[:, 0] + b2 + (x * y).sum(axis=1) - ratings
    slope = ((2 / len(ratings)) * error)[:, None]
    into_hidden = slope * w2[:, 0] * (1 - hidden**2)
    into_both = into_hidden @ w1.T
    grad_x, grad_y = into_both[:, : x.shape[1]] + slope * y, into_both[:, x.shape[1] :] + slope * x
    return (error**2).mean(), grad_x, grad_y, [both.T @ into_hidden, into_hidden.sum(0), hidden.T @ slope, slope.sum(0)]


def train(tables, dense, batches):
    """Train the tables in place; return the loss of each step and the trained dense weights."""
    dtype = tables[0].weight.dtype
    dense = [weight.astype(dtype) for weight in dense]
    speed, losses = [0 * weight for weight in dense], []
    for users, items, ratings in batches:
        x, y = tables[0].lookup(users), tables[1].lookup(items)
        loss, grad_x, grad_y, grads = gradients(x, y, dense, ratings.astype(dtype))
        tables[0].update(users, grad_x)
        tables[1].update(items, grad_y)
        for i, grad in enumerate(grads):
            speed[i] = common.MOMENTUM * speed[i] + grad
            dense[i] = dense[i] - common.DENSE_LR * speed[i]
        losses.append(float(loss))
    return losses, dense


if __name__ == "__main__":
    exact = "--float64" in sys.argv
    common.main(train, np.float64 if exact else np.float32, [each for each in sys.argv[1:] if each != "--float64"])

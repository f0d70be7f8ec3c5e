"""The recommender in PyTorch: looked-up rows are leaves, autograd fills in their gradients."""

import common
import torch


def train(tables, dense, batches):
    """Train the tables in place; return the loss of each step and the trained dense weights."""
    w1, b1, w2, b2 = weights = [torch.nn.Parameter(torch.from_numpy(weight)) for weight in dense]
    optimizer = torch.optim.SGD(weights, lr=common.DENSE_LR, momentum=common.MOMENTUM)
    losses = []
    for batch in batches:
        users, items, ratings = map(torch.from_numpy, batch)
        x, y = tables[0].lookup(users).requires_grad_(), tables[1].lookup(items).requires_grad_()
        hidden = torch.tanh(torch.cat([x, y], dim=1) @ w1 + b1)
        predicted = (hidden @ w2)[:, 0] + b2 + (x * y).sum(dim=1)
        loss = torch.nn.functional.mse_loss(predicted, ratings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tables[0].update(users, x.grad)
        tables[1].update(items, y.grad)
        losses.append(loss.item())
    return losses, [weight.detach().numpy() for weight in weights]


if __name__ == "__main__":
    torch.set_num_threads(1)  # the products are too small to share out
    common.main(train)

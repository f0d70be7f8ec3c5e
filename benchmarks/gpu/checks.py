"""Results of the stateless functions on fresh random inputs, against the float64 reference."""

from typing import Any

import numpy as np

import sparsembed as se

from .inputs import MODES, Size, close, inputs, same


def gather(device: Any, rng: Any, size: Size) -> None:
    for each in inputs(rng, size):
        table, ids = device.up(each.weight), device.up(each.ids)
        same(device.down(se.gather(table, ids)), each.weight[each.ids])
        half = each.weight.astype(np.float16)
        same(device.down(se.gather(device.up(half), ids)), half.astype(np.float32)[each.ids], "float16")


def pool(device: Any, rng: Any, size: Size) -> None:
    for each in inputs(rng, size):
        table, longest = device.up(each.weight), int(np.diff(each.offsets).max())
        for mode in MODES:
            for weighted in (False, True) if mode != "max" else (False,):
                there, here = each.bags(device, weighted)
                for padding in (None, each.padding):
                    got = device.down(se.pool(table, there, mode, padding_idx=padding))
                    want = se.reference.pool(each.weight, here, mode, padding)
                    scale = se.reference.pool(np.abs(each.weight), here, mode, padding) if mode != "max" else 0.0
                    close(got, want, scale, 2 * longest)


def coalesce(device: Any, rng: Any, size: Size) -> None:
    for each in inputs(rng, size):
        ids, grad = device.up(each.ids), device.up(each.grad)
        most = int(np.bincount(each.ids).max())
        for padding, by_count in ((None, False), (each.padding, True)):
            got = se.coalesce(ids, grad, each.num_rows, padding_idx=padding, scale_grad_by_freq=by_count)
            rows = np.unique(each.ids[each.ids != (-1 if padding is None else padding)])
            same(device.down(got.rows), rows, "rows")
            want, scale = (
                se.reference.coalesce(each.ids, values, each.num_rows, by_count)[rows]
                for values in (each.grad, np.abs(each.grad))
            )
            close(device.down(got.values), want, scale, most)
        half = each.n // 2
        lists = [[device.up(array[:half]), device.up(array[half:])] for array in (each.ids, each.grad)]
        whole = se.coalesce(ids, grad, each.num_rows)
        same(device.down(se.coalesce(*lists, each.num_rows).values), device.down(whole.values), "several lookups")


def pool_gradient(device: Any, rng: Any, size: Size) -> None:
    for each in inputs(rng, size):
        most = int(np.bincount(each.ids).max()) + 2 * int(np.diff(each.offsets).max())
        for mode in MODES:
            for weighted in (False, True) if mode != "max" else (False,):
                there, here = each.bags(device, weighted)
                extra = {"weight": each.weight} if mode == "max" else {}
                for padding, by_count in ((None, False), (each.padding, True)):
                    options = {"padding_idx": padding, "scale_grad_by_freq": by_count}
                    moved = {name: device.up(array) for name, array in extra.items()}
                    got = se.pool_gradient(there, device.up(each.pooled), each.num_rows, mode, **options, **moved)
                    rows = device.down(got.rows)
                    same(rows, np.unique(each.ids[each.ids != (-1 if padding is None else padding)]), "rows")
                    want, scale = (
                        se.reference.pool_gradient(here, grad, each.num_rows, mode, **options, **extra)[rows]
                        for grad in (each.pooled, np.abs(each.pooled))
                    )
                    close(device.down(got.values), want, scale, most)


def per_sample_weights_gradient(device: Any, rng: Any, size: Size) -> None:
    for each in inputs(rng, size):
        table, grad = device.up(each.weight), device.up(each.pooled)
        lengths = np.diff(each.offsets)
        for mode in MODES[:3]:
            there, here = each.bags(device, True)
            for padding in (None, each.padding):
                got = device.down(se.per_sample_weights_gradient(table, there, grad, mode, padding_idx=padding))
                want = se.reference.per_sample_weights_gradient(each.weight, here, each.pooled, mode, padding)
                size_of, pulls = np.abs(each.weight), np.abs(each.pooled)
                scale = (np.repeat(pulls, lengths, axis=0) * size_of[each.ids]).sum(axis=1)
                if mode != "sum":  # the quotient rule takes two sums apart, each of which is rounded
                    counted = each.shares * (each.ids != (-1 if padding is None else padding))
                    bag_of = np.repeat(np.arange(len(lengths)), lengths)
                    total = np.bincount(bag_of, counted if mode == "mean" else counted**2, minlength=len(lengths))
                    divisor = np.maximum(total if mode == "mean" else np.sqrt(total), 0.5)
                    pulled = (pulls * se.reference.pool(size_of, here, mode, padding)).sum(axis=1)
                    scale = (scale + 1.5 * pulled[bag_of]) / divisor[bag_of]
                close(got, want, scale, each.dim + 2 * int(lengths.max()))


def dot(device: Any, rng: Any, size: Size) -> None:
    for each in inputs(rng, size):
        table, x, (there, here) = device.up(each.weight), device.up(each.pooled), each.bags(device, False)
        for padding in (None, each.padding):
            got = device.down(se.dot(table, there, x, padding_idx=padding))
            want, scale = (
                se.reference.dot(weight, here, vectors, padding)
                for weight, vectors in ((each.weight, each.pooled), (np.abs(each.weight), np.abs(each.pooled)))
            )
            close(got, want, scale, each.dim)


def dot_loss(device: Any, rng: Any, size: Size) -> None:
    losses = se.losses
    for each in inputs(rng, size):
        table, x, (there, here) = device.up(each.weight), device.up(each.pooled), each.bags(device, False)
        held, lengths = se.EmbeddingTable.from_array(table, padding_idx=each.padding), np.diff(here.offsets)
        sizes = se.reference.dot(np.abs(each.weight), here, np.abs(each.pooled), each.padding)
        scale = (2 + sizes.max(initial=0)) * max(int(lengths.max(initial=0)), 1)  # slopes are at most this
        for loss in (losses.Logistic(), losses.Squared(), losses.Pairwise(), losses.Softmax()):
            labels = None if loss.term is None else rng.random(len(each.ids)).astype(each.pooled.dtype)
            marks = None if labels is None else device.up(labels)
            got = held.dot_loss(there, x, marks, loss)
            want = se.reference.dot_loss(each.weight, here, each.pooled, labels, loss, None, each.padding)
            pull = here.with_weights(np.full(len(each.ids), scale))
            scales = (
                (scale * (2 + sizes)).sum(),
                se.reference.pool(np.abs(each.weight), pull, "sum", each.padding),
                np.full(len(each.ids), scale),
            )
            for mine, its, most in zip(got, want, scales, strict=True):
                close(device.down(mine), its, most, each.dim + 40)


def scatter_add(device: Any, rng: Any, size: Size) -> None:
    for each in inputs(rng, size):
        table, alpha = device.up(each.weight), -0.5
        se.scatter_add(table, device.up(each.ids), device.up(each.grad), alpha)
        want = se.reference.scatter_add(each.weight, each.ids, each.grad, alpha)
        summed = se.reference.coalesce(each.ids, np.abs(each.grad), each.num_rows)
        close(device.down(table), want, np.abs(each.weight) + summed, int(np.bincount(each.ids).max()))


ALL = {
    each.__name__: each
    for each in (gather, pool, dot, dot_loss, coalesce, pool_gradient, per_sample_weights_gradient, scatter_add)
}

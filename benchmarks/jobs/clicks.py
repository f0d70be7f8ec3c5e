"""A click model of 26 tables in torch, beside torch's 26 embedding bags with SparseAdam.

The model is that of `benchmarks.dlrm`; all models start from the same weights and see the same batches.  Ours is there
with a module for each table, and with one module for all, whose ids have the number of the rows of the tables before
theirs added to them.
"""

from typing import Any

from .job import Job, Line, Tool

TORCH, EACH, ONE = "torch, 26 bags, SparseAdam", "a module for each table, fused", "one module for all tables, fused"


class Steps:
    """A model, and how many steps a piece has."""

    def __init__(self, training: Any, steps: int) -> None:
        self.training, self.steps = training, steps

    def piece(self, i: int) -> None:
        for step in range(i * self.steps, (i + 1) * self.steps):
            self.training.step(step)

    def quality(self) -> float:
        """Return the loss of the first batches, on which the models were trained."""
        import torch

        with torch.no_grad():
            return float(sum(self.training.loss(i) for i in range(4)) / 4)


def one_table(size: Any, batches: list[Any]) -> Any:
    """Return a training whose tables are parts of one."""
    import torch

    import sparsembed as se
    from sparsembed import torch as st

    from .. import dlrm

    class OneTable(dlrm.Training):
        def __init__(self) -> None:
            super().__init__(size, batches, "fused")
            rows = torch.cat([each.weight.detach() for each in self.model.bags])
            rule = se.SparseAdam(lr=dlrm.RATE)
            self.all = st.EmbeddingBag.from_pretrained(rows, freeze=False, mode="sum", optimizer=rule, fused=True)
            del self.model.bags
            self.firsts = torch.arange(size.tables)[:, None] * size.num_rows
            self.offsets = torch.arange(0, size.tables * size.batch * size.bag, size.bag)

        def pooled(self, batch: Any) -> list[Any]:
            ids = torch.stack(batch.ids) + self.firsts
            return list(self.all(ids.ravel(), self.offsets).view(size.tables, size.batch, size.dim))

    return OneTable()


def job(size: str) -> Job:
    """Make the job with ids that repeat as in production."""
    return _job(size, "production", 1.8, 2.7)


def uniform(size: str) -> Job:
    """Make the job with uniform ids."""
    return _job(size, "uniform", 2.4, 3.0)


def _job(size: str, stream: str, target: float, target_of_one: float) -> Job:
    from .. import dlrm

    its = dlrm.TINY if size == "tiny" else dlrm.QUICK._replace(tables=26)
    batches = dlrm.make_batches(its, stream)
    steps = 4 if size == "full" else 2

    def start(make: Any) -> Any:
        return lambda rate, threads: Steps(make(), steps)

    rates = (dlrm.RATE,)
    tools = [
        Tool(EACH, "torch + sparsembed", start(lambda: dlrm.Training(its, batches, "fused")), rates),
        Tool(ONE, "torch + sparsembed, one table", start(lambda: one_table(its, batches)), rates),
        Tool(TORCH, "torch", start(lambda: dlrm.Training(its, batches, "torch")), rates),
    ]
    lines = [Line(EACH, TORCH, target), Line(ONE, TORCH, target_of_one)]
    data = (
        f"{its.tables} tables of {its.num_rows:,} rows, dim {its.dim}, {its.batch} samples of {its.bag} ids, {stream}"
    )
    pieces, look = {"full": (30, 6), "quick": (8, 4), "tiny": (2, 2)}[size]
    name = "click model" if stream == "production" else f"click model, {stream}"
    return Job(name, data, "training loss (nats a sample)", False, 0.001, tools, lines, pieces, look)


NEEDS = ("torch",)

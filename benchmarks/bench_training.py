"""Updates by every rule, and whole steps: lookup and update, pool and update."""

from .cases import RULES, SHAPES, STREAMS, Timed


class Update(Timed):
    """Updates by each rule, on the first shape."""

    work = "update"
    params = [list(SHAPES)[:1], STREAMS, RULES]
    param_names = ["shape", "ids", "rule"]

    def time_update(self, shape: str, ids: str, rule: str) -> None:
        self.next()


class Step(Timed):
    """Lookup and SparseAdam update."""

    work = "step"

    def time_step(self, shape: str, ids: str) -> None:
        self.next()


class PooledStep(Timed):
    """Pool, 20 ids to a bag, and rowwise Adagrad update."""

    work = "pooled_step"

    def time_pooled_step(self, shape: str, ids: str) -> None:
        self.next()

"""Each operation of the stateless layer: 100,000 ids, pooled 20 to a bag."""

from .cases import Timed


class Gather(Timed):
    work = "gather"

    def time_gather(self, shape: str, ids: str) -> None:
        self.next()


class Pool(Timed):
    work = "pool"

    def time_pool(self, shape: str, ids: str) -> None:
        self.next()


class Dot(Timed):
    work = "dot"

    def time_dot(self, shape: str, ids: str) -> None:
        self.next()


class ScatterAdd(Timed):
    work = "scatter_add"

    def time_scatter_add(self, shape: str, ids: str) -> None:
        self.next()


class Coalesce(Timed):
    work = "coalesce"

    def time_coalesce(self, shape: str, ids: str) -> None:
        self.next()

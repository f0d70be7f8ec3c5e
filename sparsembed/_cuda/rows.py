"""Rows of a table on a GPU: take, replace them, and forget their state; not append them yet."""

import itertools
from typing import Any

import numpy as np

from .._cpu import norms
from .._frameworks import LEGACY, NUMPY
from .._options import Options
from .array import DeviceArray
from .catch_up import start_at
from .store import Place, hold, whole
from .views import Caller


def grown(contents: Any, rows: Any) -> dict[str, Any]:
    """Refuse to grow, which a GPU does not do yet."""
    raise NotImplementedError("a table on a GPU does not grow")


def taken(contents: Any, rows: Any, options: Options) -> dict[str, Any]:
    """Return the parts of a table of these rows, with their state, through the host; every row catches up first."""
    contents.flush()
    old, rule, step = contents.where, contents.rule, contents.step
    where = Place(Caller(NUMPY, old.device, LEGACY))
    with old.current() as home:
        weight, state, row_state = (
            home.download(each)[rows] for each in (contents.table.array, contents.state, contents.row_state)
        )
        parts = hold(where, where.home.upload(weight), rule, options)
        for name, host in (("state", state), ("row_state", row_state)):
            home.write(parts[name], host)
        home.write(parts["last"], np.full(len(parts["last"]), step, np.int32))
    history = None if parts["history"] is None or rule is None else rule.history(contents.table.dtype, step)
    return parts | {"steps": np.array([step, step, 0]), "history": history}


def reset(contents: Any, rows: Any, weights: Any, state: Any = None, keep: bool = False) -> None:
    """Give rows new weights, and unless `keep` fresh state, run by run of neighbours; an interrupt waits.

    With `keep` every row has caught up.  `state` is for the CPU, where single rows catch up.
    """
    dtype, where = contents.table.dtype, contents.where
    order = np.argsort(rows, kind="stable")
    rows, weights = rows[order], np.array(weights, dtype, order="C")[order]
    if contents.limit is not None:
        norms.clip_rows(weights, contents.limit)
    weights[rows == contents.padding] = 0
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]

    def write() -> None:
        for since, until in itertools.pairwise(cuts):
            first, count = int(rows[since]), until - since
            home.write(contents.table.array.part(first, count), weights[since:until])
            for array in () if keep else (contents.state, contents.row_state):
                if array.size:
                    home.write(array.part(first, count), np.zeros((count, *array.shape[1:]), dtype))
            if len(contents.last):
                home.write(contents.last.part(first, count), np.full(count, contents.step, np.int32))

    with where.current() as home:
        whole(write)


def clear(contents: Any) -> None:
    """Set state and step to zero; every row has caught up."""
    dtype, where = contents.table.dtype, contents.where

    def write() -> None:
        for array in (contents.state, contents.row_state):
            home.write(array, np.zeros(array.shape, dtype))
        home.write(contents.last, np.zeros(len(contents.last), np.int32))
        start_at(contents, 0)
        where.begun = None

    with where.current() as home:
        whole(write)


def own_ids(contents: Any, ids: Any) -> DeviceArray:
    """Return ids of the host as an array that lookups take."""
    with contents.where.current() as home:
        array: DeviceArray = home.upload(ids)
        return array

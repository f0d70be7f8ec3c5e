"""Bags: ids grouped by the sample whose rows are pooled together."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import _check as check
from ._cpu.inputs import id_array, sample_weights
from ._cpu.views import freeze
from ._engine import CPU, engine_of
from ._frameworks import as_array, by_name, framework_of
from .plan import Plan, original


class Bags:
    """Ids of many samples, one bag each, in the CSR form.

    Parameters
    ----------
    ids : int32 or int64 array of shape (n,), or Plan of one
        Ids of all bags, one bag after the other.
    offsets : int32 or int64 array of shape (num_bags + 1,)
        Bag b holds ``ids[offsets[b]:offsets[b + 1]]``; the last offset is n.
    per_sample_weights : array of shape (n,), optional
        One weight per id: floats, or whole numbers, which become float64.

    Raises
    ------
    TypeError
        If ids or offsets are not int32 or int64, or the weights are not floats.
    ValueError
        If the offsets do not start at 0, decrease, or do not end at n.

    Notes
    -----
    Offsets are copied, ids and weights are not: do not change them while the bags are in use.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> bags = se.Bags(np.array([4, 1, 4]), np.array([0, 2, 2, 3]))
    >>> bags, bags.num_bags
    (Bags(3 bags, 3 ids), 3)
    >>> se.pool(np.eye(5), bags, mode="mean")[0]
    array([0. , 0.5, 0. , 0. , 0.5])
    """

    __slots__ = ("_engine", "_place", "_plan", "ids", "offsets", "per_sample_weights")

    def __init__(self, ids: Any, offsets: Any, per_sample_weights: Any = None) -> None:
        self._engine = engine = engine_of(ids, offsets, per_sample_weights)
        self._plan = ids if isinstance(ids, Plan) else None
        if self._plan is not None:
            if engine is not CPU:
                raise TypeError("ids must be an array: on a GPU bags are not made of plans")
            if self._plan.several:
                raise ValueError("ids is a plan of several lookups; a bag needs the plan of one array")
        given = {"ids": original(ids), "offsets": offsets, "per_sample_weights": per_sample_weights}
        flat, shape = engine.ids(given["ids"])
        if len(shape) != 1:
            raise ValueError(f"ids must have shape (n,), got {shape}; for 2-D ids use Bags.from_padded{engine.on_host}")
        ends, weights = engine.offsets(offsets, len(flat)), None
        if per_sample_weights is not None:
            weights = engine.sample_weights(per_sample_weights)
            if weights.shape != shape:
                raise ValueError(f"per_sample_weights must have one weight per id, {shape}, got {weights.shape}")
        self._hold(engine.Place(flat, ends, weights, engine.caller_of(**given)), given)

    def _hold(self, place: Any, given: dict[str, Any]) -> None:
        """Set `_place` and the public attributes: the engine's views on the CPU, the given arrays on a GPU."""
        self._place = place
        self.ids, self.offsets, self.per_sample_weights = place[:3] if self._engine is CPU else given.values()

    @classmethod
    def from_padded(cls, ids: Any, padding_idx: int | None = 0, per_sample_weights: Any = None) -> "Bags":
        """Make one bag of each row of a rectangle of ids, leaving out the padding.

        Parameters
        ----------
        ids : int32 or int64 array of shape (num_bags, longest)
        padding_idx : int or None
            The id that fills up short rows, wherever it stands; None keeps all ids.
        per_sample_weights : array of the shape of `ids`, optional
            As in `Bags`.

        Returns
        -------
        Bags
            Ids and weights are copies.

        Raises
        ------
        TypeError, ValueError
            For ids that are no such array, or weights of another shape.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> se.Bags.from_padded(np.array([[3, 5, 0], [2, 0, 0]])).ids
        array([3, 5, 2])
        """
        array = id_array(ids)
        if array.ndim != 2:
            raise ValueError(f"ids must have shape (num_bags, longest), got {array.shape}")
        keep = np.ones(array.shape, bool)
        if padding_idx is not None:
            keep = array != check.count(padding_idx, "padding_idx", least=-(2**63))
        weights = None
        if per_sample_weights is not None:
            weights = as_array(per_sample_weights, "per_sample_weights")
            if weights.shape != array.shape:
                raise ValueError(f"per_sample_weights must have the shape of ids, {array.shape}, got {weights.shape}")
            weights = weights[keep]
        bags = cls(array[keep], np.concatenate([[0], np.cumsum(keep.sum(axis=1))]), weights)
        bags._place = bags._place._replace(caller=framework_of(ids))
        return bags

    @classmethod
    def from_lists(cls, ids: Iterable[Sequence[int]], per_sample_weights: Any = None) -> "Bags":
        """Make one bag of each list of ids (and of weights, shaped alike).

        Parameters
        ----------
        ids : iterable of lists, or of int32 or int64 arrays of shape (n,)
        per_sample_weights : list of lists of numbers, optional

        Returns
        -------
        Bags
            With int64 ids unless all are int32 arrays.

        Raises
        ------
        TypeError, ValueError
            If ids are no whole numbers, or weights are not one per id.

        Examples
        --------
        >>> import sparsembed as se
        >>> se.Bags.from_lists([[1, 2, 3], [], [2]]).offsets
        array([0, 3, 3, 4])
        """
        if not isinstance(ids, Iterable):
            raise TypeError(f"ids must be a list of lists of ids, got {type(ids).__name__}")
        parts = [id_array(bag, f"ids[{b}]") for b, bag in enumerate(ids)]
        for b, part in enumerate(parts):
            if part.ndim != 1:
                raise ValueError(f"ids[{b}] must be a list of ids, got shape {part.shape}")
        lengths = [len(part) for part in parts]
        weights = None
        if per_sample_weights is not None:
            given = check.several(per_sample_weights, "per_sample_weights", "lists")
            lists = [
                sample_weights(bag, None, f"per_sample_weights[{b}]") if np.size(bag) else np.zeros(0)
                for b, bag in enumerate(given)
            ]
            if any(bag.ndim != 1 for bag in lists):
                raise ValueError("per_sample_weights must be a list of lists of weights, shaped like ids")
            if [len(bag) for bag in lists] != lengths:
                raise ValueError(f"per_sample_weights must have one weight per id, bags of {lengths} ids")
            weights = np.concatenate([*lists, np.zeros(0)])
        joined = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return cls(joined, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64), weights)

    @classmethod
    def from_csr(cls, matrix: Any) -> "Bags":
        """Make one bag of each row of a scipy CSR matrix: column indices are ids, data are weights.

        ``se.pool(weight, bags)`` is then ``matrix @ weight``.  Data that are all one are left
        out, so that such bags can be pooled with mode "max", too.

        Parameters
        ----------
        matrix : scipy CSR array or matrix of shape (num_bags, num_rows), of real numbers
            Ids are not copied, nor are float weights.

        Returns
        -------
        Bags

        Raises
        ------
        TypeError
            For another format, or complex numbers.

        Examples
        --------
        >>> import numpy as np, scipy.sparse, sparsembed as se
        >>> matrix = scipy.sparse.csr_array(np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]))
        >>> se.pool(np.ones((3, 1)), se.Bags.from_csr(matrix)).ravel()
        array([2., 4.])
        """
        if getattr(matrix, "format", None) != "csr":
            raise TypeError(f"matrix must be a scipy CSR array, got {type(matrix).__name__}; convert with .tocsr()")
        data = np.asarray(matrix.data)
        if data.dtype.kind not in "fiub":
            raise TypeError(f"matrix must hold real numbers, got {data.dtype}")
        weights = None if (data == 1).all() else data if data.dtype.kind == "f" else data.astype(np.float64)
        end = int(matrix.indptr[-1])  # the arrays of a CSR matrix may be longer than needed
        return cls(matrix.indices[:end], matrix.indptr, None if weights is None else weights[:end])

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        if self._engine is not CPU:
            raise TypeError("bags on a GPU are not pickled; copy their arrays to the host")
        names = ("_plan", "ids", "offsets", "per_sample_weights")
        return None, {"_kind": self._place.caller.name} | {name: getattr(self, name) for name in names}

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        found = state[1]
        self._engine, self._plan = CPU, found["_plan"]
        ids, offsets, weights = (freeze(found[name]) for name in ("ids", "offsets", "per_sample_weights"))
        self._hold(CPU.Place(ids, offsets, weights, by_name(found["_kind"])), {})

    @property
    def num_bags(self) -> int:
        """Number of bags."""
        return int(self._place.num_bags)

    @property
    def _on_device(self) -> bool:
        return self._engine is not CPU

    def __len__(self) -> int:
        return self.num_bags

    def __repr__(self) -> str:
        weighted = "" if self.per_sample_weights is None else ", weighted"
        where = self._engine.place_name(self._place.caller)
        return f"Bags({self.num_bags} bags, {len(self._place.ids)} ids{weighted}{where})"

"""Bags: ids grouped by the sample whose rows are pooled together."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from types import EllipsisType
from typing import Any

import numpy as np

from . import _check as check
from ._cpu.inputs import id_array, sample_weights
from ._cpu.views import freeze, read_only
from ._engine import CPU, engine_of
from ._frameworks import as_array, by_name, framework_of
from .plan import Plan, original


class Bags:
    """Ids of many samples, one bag each, in the CSR form.

    Parameters
    ----------
    ids : integer array of shape (n,), or Plan of one
        Ids of all bags, one bag after the other.
    offsets : integer array of shape (num_bags + 1,)
        Bag b holds ``ids[offsets[b]:offsets[b + 1]]``; the last offset is n.
    per_sample_weights : array of shape (n,), optional
        One weight per id: floats, or whole numbers, which become float64.
    mode : {"sum", "mean", "sqrtn", "max"}, optional
        The mode of every operation on these bags that is given none.  Operations on bags without a mode use "sum".

    Raises
    ------
    TypeError
        If ids or offsets are not integers, or the weights are not floats.
    ValueError
        If the offsets do not start at 0, decrease, or do not end at n, or for weights with mode "max".

    Notes
    -----
    Offsets are copied, ids and weights are not: do not change them while the bags are in use.  Integers other than
    int32 and int64 are copied to int64.

    ``bags[b]`` are the ids of bag b; ``bags[start:stop]`` and ``bags[array]`` are `Bags` of some of the bags, in that
    order and with repeats, weights and mode along; iteration gives the ids of each bag.  A slice of step 1 copies
    neither ids nor weights.  A plan is not kept.  All of this is for bags in host memory.

    An operation that is given another mode than the bags' own raises ValueError: so the backward pass cannot
    differ from the forward pass.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> bags = se.Bags(np.array([4, 1, 4]), np.array([0, 2, 2, 3]))
    >>> bags, bags.num_bags
    (Bags(3 bags, 3 ids), 3)
    >>> se.pool(np.eye(5), bags, mode="mean")[0]
    array([0. , 0.5, 0. , 0. , 0.5])
    >>> bags = se.Bags(np.array([4, 1, 4]), np.array([0, 2, 2, 3]), mode="mean")
    >>> bags[0], bags[-1:], bags[[2, 0]].ids, [len(ids) for ids in bags]
    (array([4, 1]), Bags(1 bags, 1 ids, mode='mean'), array([4, 4, 1]), [2, 0, 1])
    """

    _instead = "pool bags with table.pool or se.pool, train with update_pooled; their ids are bags.ids"
    __slots__ = ("_choices", "_engine", "_place", "_plan", "ids", "mode", "offsets", "per_sample_weights")

    def __init__(self, ids: Any, offsets: Any, per_sample_weights: Any = None, *, mode: str | None = None) -> None:
        if mode is not None:
            check.mode(mode, None, per_sample_weights is not None)
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
        self._hold(engine.Place(flat, ends, weights, engine.caller_of(**given)), given, mode)

    def _hold(self, place: Any, given: dict[str, Any], mode: str | None) -> None:
        """Set `_place` and the public attributes: the engine's views on the CPU, the given arrays on a GPU."""
        self._place, self.mode, self._choices = place, mode, check.CHOICES[mode]
        self.ids, self.offsets, self.per_sample_weights = place[:3] if self._engine is CPU else given.values()

    def _with(self, place: Any, given: Any, plan: Plan | None) -> "Bags":
        """Return bags with this mode, of arrays that need no check."""
        made = Bags.__new__(type(self))
        made._engine, made._plan = self._engine, plan
        made._hold(place, given, self.mode)
        return made

    @classmethod
    def from_padded(
        cls,
        ids: Any,
        padding_idx: int | EllipsisType | None = ...,
        per_sample_weights: Any = None,
        *,
        mode: str | None = None,
    ) -> "Bags":
        """Make one bag of each row of a rectangle of ids, leaving out the padding.

        Parameters
        ----------
        ids : integer array of shape (num_bags, longest)
        padding_idx : int or None
            The id that fills up short rows, wherever it stands; None keeps all ids.  It must be given.
        per_sample_weights : array of the shape of `ids`, optional
            As in `Bags`.
        mode : str, optional
            As in `Bags`.

        Returns
        -------
        Bags
            Ids and weights are copies.

        Raises
        ------
        TypeError
            For ids that are no integers, or without `padding_idx`.
        ValueError
            For ids that are no rectangle, or weights of another shape.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> se.Bags.from_padded(np.array([[3, 5, 0], [2, 0, 0]]), padding_idx=0).ids
        array([3, 5, 2])
        """
        if padding_idx is ...:
            raise TypeError("padding_idx must be given: say which id fills up short rows, or None to keep all ids")
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
        bags = cls(array[keep], np.concatenate([[0], np.cumsum(keep.sum(axis=1))]), weights, mode=mode)
        bags._place = bags._place._replace(caller=framework_of(ids))
        return bags

    @classmethod
    def from_lists(
        cls, ids: Iterable[Sequence[int]], per_sample_weights: Any = None, *, mode: str | None = None
    ) -> "Bags":
        """Make one bag of each list of ids (and of weights, shaped alike).

        Parameters
        ----------
        ids : iterable of lists, or of integer arrays of shape (n,)
        per_sample_weights : list of lists of numbers, optional
        mode : str, optional
            As in `Bags`.

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
        if isinstance(ids, Bags) or not isinstance(ids, Iterable):
            raise TypeError(f"ids must be a list of lists of ids, got {check.kind_of(ids)}")
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
        return cls(joined, _ends(np.array(lengths, np.int64)), weights, mode=mode)

    @classmethod
    def from_csr(cls, matrix: Any, *, mode: str | None = None) -> "Bags":
        """Make one bag of each row of a scipy CSR matrix: column indices are ids, data are weights.

        ``se.pool(weight, bags)`` is then ``matrix @ weight``.  Data that are all one are left
        out, so that such bags can be pooled with mode "max", too.

        Parameters
        ----------
        matrix : scipy CSR array or matrix of shape (num_bags, num_rows), of real numbers
            Ids are not copied, nor are float weights.
        mode : str, optional
            As in `Bags`.

        Returns
        -------
        Bags

        Raises
        ------
        TypeError
            For another format, or complex numbers.
        ValueError
            For mode "max" if the data are not all one.

        Examples
        --------
        >>> import numpy as np, scipy.sparse, sparsembed as se
        >>> matrix = scipy.sparse.csr_array(np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]))
        >>> se.pool(np.ones((3, 1)), se.Bags.from_csr(matrix)).ravel()
        array([2., 4.])
        """
        if getattr(matrix, "format", None) != "csr":
            how = "convert with .tocsr()" if check.is_sparse(matrix) else "make one with scipy.sparse.csr_array"
            raise TypeError(f"matrix must be a scipy CSR array, got {check.kind_of(matrix)}; {how}")
        data = np.asarray(matrix.data)
        if data.dtype.kind not in "fiub":
            raise TypeError(f"matrix must hold real numbers, got {data.dtype}")
        weights = None if (data == 1).all() else data if data.dtype.kind == "f" else data.astype(np.float64)
        end = int(matrix.indptr[-1])  # the arrays of a CSR matrix may be longer than needed
        return cls(matrix.indices[:end], matrix.indptr, None if weights is None else weights[:end], mode=mode)

    @classmethod
    def concatenate(cls, bags: Iterable["Bags"], *, mode: str | None = None) -> "Bags":
        """Put several `Bags` one after the other.

        Parameters
        ----------
        bags : iterable of Bags
            In host memory.  Where only some have weights, the weights of the others are 1.
        mode : str, optional
            The mode of bags without one.

        Returns
        -------
        Bags
            Copies of the ids and weights.

        Raises
        ------
        TypeError
            For anything but `Bags`, and for bags on a GPU.
        ValueError
            For none at all, and for bags of several modes.

        Examples
        --------
        >>> import sparsembed as se
        >>> one, two = se.Bags.from_lists([[1, 2]]), se.Bags.from_lists([[3], [4]], [[0.5], [2.0]])
        >>> both = se.Bags.concatenate([one, two])
        >>> both.ids, both.offsets, both.per_sample_weights
        (array([1, 2, 3, 4]), array([0, 2, 3, 4]), array([1. , 1. , 0.5, 2. ]))
        """
        if isinstance(bags, Bags) or not isinstance(bags, Iterable):
            raise TypeError(f"bags must be a list of Bags, got {check.kind_of(bags)}")
        parts = list(bags)
        if not parts:
            raise ValueError("bags must be a list of at least one Bags, got none")
        for i, each in enumerate(parts):
            if not isinstance(each, Bags):
                raise TypeError(f"bags[{i}] must be a Bags, got {check.kind_of(each)}")
            each._on_host("concatenated")
        check.mode(mode)
        modes = {each.mode if mode is None or each.mode is not None else mode for each in parts}
        if len(modes) > 1 or mode not in (None, *modes):
            names = ", ".join(repr(each.mode) for each in parts)
            raise ValueError(f"bags must have one mode, got {names}{'' if mode is None else f' with mode={mode!r}'}")
        weights = [each.per_sample_weights for each in parts]
        given = [each for each in weights if each is not None]
        if given:
            kind = np.result_type(*given)
            weights = [np.ones(len(b.ids), kind) if w is None else w for w, b in zip(weights, parts, strict=True)]
        ids = np.concatenate([each.ids for each in parts])
        ends = _ends(np.concatenate([np.diff(each.offsets) for each in parts]))
        made = cls(ids, ends, np.concatenate(weights) if given else None, mode=next(iter(modes)))
        made._place = made._place._replace(caller=parts[0]._place.caller)
        return made

    def with_weights(self, per_sample_weights: Any) -> "Bags":
        """Return bags of the same ids, offsets, plan and mode with other weights; ids are not checked or sorted again.

        Parameters
        ----------
        per_sample_weights : array of shape (n,), or None for bags without weights
            As in `Bags`; not copied.

        Returns
        -------
        Bags

        Raises
        ------
        TypeError
            For weights that are no floats, or in the memory of another device.
        ValueError
            For weights of another shape, or with mode "max".

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> bags = se.Bags(se.plan(np.array([4, 1, 4]), num_rows=5), np.array([0, 2, 3]))
        >>> se.pool(np.ones((5, 1)), bags.with_weights(np.array([0.5, 2.0, 3.0]))).ravel()
        array([2.5, 3. ])
        """
        check.mode(None, self.mode, per_sample_weights is not None)
        given, weights = {"ids": self.ids, "offsets": self.offsets, "per_sample_weights": per_sample_weights}, None
        if per_sample_weights is not None:
            weights = self._engine.sample_weights(per_sample_weights)
            if weights.shape != (wanted := (len(self._place.ids),)):
                raise ValueError(f"per_sample_weights must have one weight per id, {wanted}, got {weights.shape}")
            self._engine.caller_of(**given)
        return self._with(self._place._replace(weights=weights), given, self._plan)

    def __getitem__(self, which: Any) -> Any:
        self._on_host("indexed")
        ids, offsets, weights, _ = self._place
        if isinstance(which, slice) and (steps := which.indices(len(self)))[2] == 1:
            start, stop = steps[0], max(steps[:2])
            part = slice(offsets[start], offsets[stop])
            ends = offsets[start : stop + 1] - offsets[start]
            return self._part(ids[part], ends, None if weights is None else weights[part])
        if isinstance(which, slice):
            index = np.arange(*steps)
        elif isinstance(which, tuple):
            raise TypeError("bags are indexed by one int, slice or array of ints, got a tuple; for several pass a list")
        else:
            index = id_array(which, "index")
            if index.ndim > 1:
                raise ValueError(f"index must be an int, or an array of shape (n,), got shape {index.shape}")
            if (wrong := (index < -len(self)) | (index >= len(self))).any():
                raise IndexError(f"index {np.atleast_1d(index)[np.argmax(wrong)]} is out of range for {len(self)} bags")
            index = np.where(index < 0, index + len(self), index)
            if index.ndim == 0:
                return ids[offsets[index] : offsets[index + 1]]
        ends = _ends(np.diff(offsets)[index])
        places = np.arange(ends[-1]) + np.repeat(offsets[:-1][index] - ends[:-1], np.diff(ends))
        return self._part(ids[places], ends, None if weights is None else weights[places])

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(f"bags are no array; {self._instead}")

    def __iter__(self) -> Iterator[Any]:
        self._on_host("iterated")
        return (self.ids[start:end] for start, end in pairwise(self.offsets.tolist()))

    def _part(self, ids: Any, offsets: Any, weights: Any) -> "Bags":
        """Return some of these bags."""
        arrays = (None if each is None else read_only(each) for each in (ids, offsets, weights))
        return self._with(CPU.Place(*arrays, self._place.caller), {}, None)

    def _on_host(self, what: str) -> None:
        if self._engine is not CPU:
            raise TypeError(f"bags on a GPU are not {what}; do it in host memory, then make them of device arrays")

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        if self._engine is not CPU:
            raise TypeError("bags on a GPU are not pickled; copy their arrays to the host")
        names = ("_plan", "ids", "offsets", "per_sample_weights", "mode")
        return None, {"_kind": self._place.caller.name} | {name: getattr(self, name) for name in names}

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        found = state[1]
        self._engine, self._plan = CPU, found["_plan"]
        ids, offsets, weights = (freeze(found[name]) for name in ("ids", "offsets", "per_sample_weights"))
        mode = found.get("mode")  # older pickles have none
        self._hold(CPU.Place(ids, offsets, weights, by_name(found["_kind"])), {}, mode)

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
        mode = "" if self.mode is None else f", mode={self.mode!r}"
        where = self._engine.place_name(self._place.caller)
        return f"Bags({self.num_bags} bags, {len(self._place.ids)} ids{weighted}{mode}{where})"


def _ends(lengths: Any) -> Any:
    """Return the offsets of bags of some lengths."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])

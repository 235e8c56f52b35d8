"""Plan: who owns which rows and keys, each rank's mask, and what travels; made from masks alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.arguments import flag, integer
from omnicupy.masks.mask import Mask
from omnicupy.parallel import arrays, picture, seen
from omnicupy.parallel.content import content_of
from omnicupy.parallel.exchange import Exchange, Needs, exchange_of, needs_of
from omnicupy.parallel.local import local_mask
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.prediction import Setting
from omnicupy.parallel.seen import Shown
from omnicupy.parallel.statistics import PlanStats, stats_of

FORMAT = b"omnicupy plan 2"


@dataclass(frozen=True, eq=False)
class Plan:
    """Which of `ranks` ranks owns which rows and which keys of a mask, or of several with the same rows and keys.

    Made by `plan`, the same on every rank without communication; NumPy alone; pickles without its caches, so that a
    data loader may make it. Equal plans have equal `digest`s. Methods raise TypeError or ValueError for a rank or a
    mask that the plan does not have, and for arrays of other types.

    masks: one for each kind of layer.  weights: layers of each kind.  rows, keys: their owners.  documents: their
    bounds as the masks show them (places that no pair crosses).  name: of the assignment.  setting: ranks, nodes, heads
    and speeds that the prediction takes for granted.  checks_heads: calls with other heads are refused.
    """

    masks: tuple[Mask, ...]
    weights: tuple[float, ...]
    rows: Owners
    keys: Owners
    documents: NDArray[np.int64]
    name: str
    setting: Setting
    checks_heads: bool
    _found: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name in self.__dataclass_fields__}
        bare = {
            name: Owners(one.edges, one.owner, one.ranks)
            for name, one in (("rows", self.rows), ("keys", self.keys))
        }
        if self.keys is self.rows:
            bare["keys"] = bare["rows"]
        return {**kept, **bare, "_found": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and keys of all ranks together."""
        return self.masks[0].shape

    @property
    def ranks(self) -> int:
        """Ranks of the plan."""
        return self.rows.ranks

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that two plans share only if they are the same."""
        found = hashlib.sha256(FORMAT)
        # As text with lengths in it: no two contents run together to the same bytes.
        found.update(repr((self.shape, self.ranks, self.setting.node, len(self.masks))).encode())
        for owners in (self.rows, self.keys):
            for part in (owners.edges, owners.owner):
                found.update(repr(part.shape).encode() + np.ascontiguousarray(part, "<i8").tobytes())
        for one in range(len(self.masks)):
            found.update(content_of(self.shown(one)))
        return found.digest()

    def positions(self, rank: int) -> NDArray[np.int64]:
        """The rows of a rank as places in the whole sequence, ascending: position ids of its tokens."""
        found: NDArray[np.int64] = self.rows.of(self._rank("positions", rank))
        return found

    def key_positions(self, rank: int) -> NDArray[np.int64]:
        """The keys that a rank owns, as `positions`."""
        found: NDArray[np.int64] = self.keys.of(self._rank("key_positions", rank))
        return found

    def shard(self, x: Any, rank: int, axis: int = -2, *, keys: bool = False) -> Any:
        """The rank's rows of a whole array (NumPy, CuPy, torch), in the order of `positions`; a copy.

        axis: that of the tokens; -2 for (batch, heads, tokens, head_dim).  keys: the rank's keys instead, for k and v
        where rows and keys have owners of their own.
        Raises ValueError where the axis has another length than the plan.
        """
        owners, what = self._owners("shard", keys)
        axis = arrays.check_tokens("shard", "x", x, axis, (owners.tokens, what))
        return arrays.take(x, owners.of(self._rank("shard", rank)), axis)

    def unshard(self, parts: Sequence[Any], axis: int = -2, *, keys: bool = False) -> Any:
        """The whole array again from the shards of all ranks, in their order.

        Raises TypeError or ValueError where there are more or fewer parts than ranks, or one has another length than
        its shard, another dtype than the others or other axes.
        """
        owners, what = self._owners("unshard", keys)
        if not arrays.is_list(parts):
            raise TypeError(
                f"unshard: parts must be a list with an array for each rank, got {type(parts).__name__}"
            )
        if len(parts) != self.ranks:
            raise ValueError(
                f"unshard: expected the parts of {self.ranks} ranks, got {len(parts)}; gather them all"
            )
        for rank, part in enumerate(parts):
            tokens = (int(owners.counts[rank]), f"{what} of rank {rank}")
            axis = arrays.check_tokens("unshard", f"parts[{rank}]", part, axis, tokens)
        arrays.check_alike("unshard", parts, axis)
        order = np.argsort(np.concatenate([owners.of(rank) for rank in range(self.ranks)]), kind="stable")
        return arrays.take(arrays.joined(parts, axis), order, axis)

    def shift(
        self,
        x: Any,
        by: int = 1,
        axis: int = -1,
        *,
        fill: Any = 0,
        mask: int | Sequence[int] | None = None,
    ) -> Any:
        """A whole array whose token i holds what token i + by held, inside each document; others hold `fill`.

        For labels of the next token, and of later ones for multi-token prediction: shift first, then `shard`.
        axis: that of the tokens; -1 for (batch, tokens).  fill: a number that x's dtype holds, such as -100, which
        losses ignore.  mask: whose documents these are. None: of all masks of the plan, as of the layers of a model, so
        that a document ends where it does under all of them; else a place in the plan's masks, or a list of one for
        each batch element, x's first axis.
        """
        axis = arrays.check_tokens("shift", "x", x, axis, (self.rows.tokens, "rows"))
        arrays.check_fill("shift", x, fill)
        size = self.rows.tokens
        step = max(-size, min(integer("shift", "by", by), size))
        if mask is None:
            return arrays.shifted(x, step, axis, fill, self.documents)
        elements = self._which(mask)
        if not isinstance(mask, (list, tuple)):
            return arrays.shifted(x, step, axis, fill, self._documents_of(elements[0]))
        if axis % len(x.shape) == 0 or len(elements) != x.shape[0]:
            raise ValueError(
                f"shift: mask must name one mask for each batch element, x's first axis, got {len(elements)} for shape "
                f"{tuple(x.shape)} with the tokens on axis {axis}; pass a place in the plan's masks for all of them"
            )
        parts = [
            arrays.shifted(x[b : b + 1], step, axis, fill, self._documents_of(one))
            for b, one in enumerate(elements)
        ]
        return arrays.joined(parts, 0)

    def _documents_of(self, mask: int) -> NDArray[np.int64]:
        """`documents` of one mask."""
        key = ("documents", mask)
        if key not in self._found:
            q_len, k_len = self.shape
            self._found[key] = seen.documents([self.shown(mask)]) if q_len == k_len else np.array([0, q_len])
        found: NDArray[np.int64] = self._found[key]
        return found

    def local(self, rank: int, mask: int | Sequence[int] = 0) -> Mask | None:
        """The rank's rows against its own keys, then those that it is sent: an ordinary Mask, one object for all calls.

        mask: which of the plan's masks; with a list, of a batch whose elements have these masks, the first of them
        (`locals` gives all). None for a rank that has no row, or no key to look at.
        """
        found = self.locals(rank, mask)
        return found[0] if found else None

    def locals(self, rank: int, mask: int | Sequence[int] = 0) -> tuple[Mask, ...]:
        """A local mask for each of the masks named, all on the same keys; () where there is no row or no key."""
        which = self._which(mask)
        key = ("local", self._rank("local", rank), which)
        if key not in self._found:
            trip = self.exchange(rank, mask)
            keys = np.concatenate([self.keys.of(rank), trip.foreign])
            empty = not len(keys) or not self.rows.counts[rank]
            made = (
                {}
                if empty
                else {one: local_mask(self.masks[one], self.rows, rank, keys) for one in set(which)}
            )
            self._found[key] = () if empty else tuple(made[one] for one in which)
        found: tuple[Mask, ...] = self._found[key]
        return found

    def exchange(self, rank: int, mask: int | Sequence[int] = 0) -> Exchange:
        """Which keys the rank sends and receives for a mask; for a list of them, those that any of them needs."""
        which = tuple(sorted(set(self._which(mask))))
        key = ("exchange", self._rank("exchange", rank), which)
        if key not in self._found:
            self._found[key] = exchange_of(self.needs(which), self.keys, rank)
        found: Exchange = self._found[key]
        return found

    def travels(self, mask: int | Sequence[int] = 0) -> bool:
        """Whether any rank needs a key of another one; where none does, no rank has to wait for an exchange."""
        which = tuple(sorted(set(self._which(mask))))
        key = ("travels", which)
        if key not in self._found:
            needs = self.needs(which)
            own = needs.need[np.arange(len(needs.owner)), needs.owner]
            self._found[key] = np.count_nonzero(needs.need) > np.count_nonzero(own)
        return bool(self._found[key])

    def needs(self, which: tuple[int, ...]) -> Needs:
        """Which runs of keys the rows of each rank see under any of these masks."""
        key = ("needs", which)
        if key not in self._found:
            self._found[key] = needs_of([self.shown(one) for one in which], self.rows, self.keys)
        found: Needs = self._found[key]
        return found

    def shown(self, mask: int) -> Shown:
        """What one of the masks shows of its tokens."""
        key = ("shown", mask)
        if key not in self._found:
            self._found[key] = Shown.of(self.masks[mask])
        found: Shown = self._found[key]
        return found

    def stats(self) -> PlanStats:
        """Tokens, allowed pairs, bytes and predicted time of each rank; print it."""
        if "stats" not in self._found:
            needs = [self.needs((one,)) for one in range(len(self.masks))]
            shown = [self.shown(one) for one in range(len(self.masks))]
            found = stats_of(shown, self.weights, self.rows, needs, self.setting)
            self._found["stats"] = found
        kept: PlanStats = self._found["stats"]
        return kept

    def plot(self, path: str | PathLike[str]) -> None:
        """Save a picture: whose rows see whose keys, and what each rank holds, computes and receives.

        Raises what `Mask.plot` raises.
        """
        picture.plot(self.masks, self.rows, self.keys, self.name, self.stats(), path)

    def __repr__(self) -> str:
        q_len, k_len = self.shape
        return f"<Plan {self.name}: {q_len} rows and {k_len} keys on {self.ranks} ranks>"

    def __str__(self) -> str:
        return f"{self!r}\n{self.stats()}"

    def _owners(self, where: str, keys: object) -> tuple[Owners, str]:
        return (self.keys, "keys") if flag(where, "keys", keys) else (self.rows, "rows")

    def _rank(self, where: str, rank: object) -> int:
        number = integer(where, "rank", rank)
        if not 0 <= number < self.ranks:
            raise ValueError(f"{where}: rank must be from 0 to {self.ranks - 1}, got {number}")
        return number

    def _which(self, mask: int | Sequence[int]) -> tuple[int, ...]:
        if type(mask) is int and 0 <= mask < len(self.masks):  # most calls
            return (mask,)
        given = mask if isinstance(mask, (list, tuple)) else [mask]
        if any(isinstance(one, Mask) for one in given):
            raise TypeError(
                "mask must name masks of the plan by their places, 0 for the first, got a Mask; make the plan of it, "
                "and leave mask out"
            )
        which = tuple(integer("a plan", "mask", one) for one in given)
        if not which or not all(0 <= one < len(self.masks) for one in which):
            raise ValueError(
                f"mask must name masks of the plan, from 0 to {len(self.masks) - 1}, got {mask!r}; pass their places "
                "in the list that plan was given"
            )
        return which

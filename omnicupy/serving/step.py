"""CachedStep: what one step of decoding works out from its lengths once, for all layers."""

from __future__ import annotations

from typing import Any, NamedTuple

from omnicupy.serving.rule import CachedRule


class HostLists(NamedTuple):
    """What the CPU engine keeps for a step: copies of lengths, and of rows or None."""

    lengths: Any
    rows: Any


class CachedStep:
    """What `plan` returns, to be passed as `mask` to each layer's `attention`: lengths as they were when it was made.

    rule: that of `cached`.  lengths: the array it was made of; a layer's CachedKV must hold the same one.  shapes:
    q's shape, (kv_heads, capacity) of the caches, and max_rows or None.  lists: what the engine made.
    config, split: those of `plan`, which layers get that name none.  softcap: that of `plan`, which layers name again;
    None where it had none.  rows: those of `plan`, None where all sequences have equally many.  layer: a layer's call,
    of which the next ones take over what they have in common; None before.
    """

    __slots__ = ("config", "layer", "lengths", "lists", "rows", "rule", "shapes", "softcap", "split")

    def __init__(
        self,
        rule: CachedRule,
        lengths: Any,
        shapes: tuple[Any, ...],
        lists: Any,
        *,
        config: Any = None,
        split: Any = None,
        rows: Any = None,
        softcap: Any = None,
    ) -> None:
        self.rule = rule
        self.lengths = lengths
        self.shapes = shapes
        self.lists = lists
        self.config = config
        self.split = split
        self.rows = rows
        self.softcap = softcap
        self.layer: Any = None

    def __repr__(self) -> str:
        of_q, (_, capacity), most = self.shapes
        if most is None:
            rows = f"{of_q[0]} sequences, {of_q[2]} row{'s' * (of_q[2] != 1)} each"
        else:
            rows = f"{self.lengths.shape[0]} sequences, {of_q[0]} rows, up to {most} each"
        kernel = "" if self.kernel is None else f", kernel {self.kernel.kernel}"
        return f"<CachedStep of {self.rule!r}: {rows}, capacity {capacity}{kernel}>"

    @property
    def kernel(self) -> Any:
        """The variant that layers like the one it was made of run, an AttnSpec; None on the CPU."""
        return getattr(self.lists, "spec", None)

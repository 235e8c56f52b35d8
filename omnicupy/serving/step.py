"""CachedStep: what one step of decoding works out from its lengths once, for all layers."""

from __future__ import annotations

from typing import Any

from omnicupy.serving.rule import CachedRule


class CachedStep:
    """What `plan` returns, to be passed as `mask` to each layer's `attention`: lengths as they were when it was made.

    rule: that of `cached`.  lengths: the array it was made of; a layer's CachedKV must hold the same one.  shapes:
    (batch, q_heads, q_len, head_dim) of q, and (kv_heads, capacity) of the caches.  lists: what the engine made.
    config, split: those of `plan`, which layers get that name none.
    """

    __slots__ = ("config", "lengths", "lists", "rule", "shapes", "split")

    def __init__(
        self,
        rule: CachedRule,
        lengths: Any,
        shapes: tuple[Any, ...],
        lists: Any,
        *,
        config: Any = None,
        split: Any = None,
    ) -> None:
        self.rule = rule
        self.lengths = lengths
        self.shapes = shapes
        self.lists = lists
        self.config = config
        self.split = split

    def __repr__(self) -> str:
        (batch, _, q_len, _), (_, capacity) = self.shapes
        kernel = "" if self.kernel is None else f", kernel {self.kernel.kernel}"
        return f"<CachedStep of {self.rule!r}: {batch} sequences, {q_len} rows each, capacity {capacity}{kernel}>"

    @property
    def kernel(self) -> Any:
        """The variant that layers like the one it was made of run, an AttnSpec; None on the CPU."""
        return getattr(self.lists, "spec", None)

"""Steps of decoding on fake_tensor's tensors, and which of their layers were launched as the first one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_tensor import cuda

import omnicupy as oc
import omnicupy.torch
from omnicupy.torch import next_layers

BATCH, HEADS, KEYS, PAGE = 3, 8, 64, 16
_zeros = torch.zeros


class Step:
    """A step, and what its layers are called with. dtype: of the caches.  taken: of each call since, whether it was as
    the first one.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, paged: bool = False, dtype: Any = torch.bfloat16
    ) -> None:
        self.paged, self.dtype = paged, dtype
        self.lengths = cuda(_zeros(BATCH, dtype=torch.int32))
        self.table = cuda(_zeros(BATCH, KEYS // PAGE, dtype=torch.int32))
        self.made = oc.torch.plan(self.q(), self.caches(), oc.cached(window=30))
        self.taken: list[bool] = []
        launched = next_layers._launched

        def launches(*given: Any) -> Any:
            self.taken[-1] = True
            return launched(*given)

        monkeypatch.setattr(next_layers, "_launched", launches)

    def q(self, dtype: Any = torch.bfloat16) -> Any:
        return cuda(_zeros(BATCH, 1, HEADS, 64, dtype=dtype).transpose(1, 2))

    def caches(self, columns: int = 64) -> Any:
        if self.paged:
            pools = (cuda(_zeros(9, PAGE, 2, columns, dtype=self.dtype)) for _ in "kv")
            return oc.PagedKV(*pools, self.table, self.lengths)
        pools = (cuda(_zeros(BATCH, 2, KEYS, columns, dtype=self.dtype)) for _ in "kv")
        return oc.CachedKV(*pools, self.lengths)

    def __call__(self, q: Any = None, kv: Any = None, v: Any = None, **options: Any) -> Any:
        self.taken.append(False)
        q, kv = self.q() if q is None else q, self.caches() if kv is None else kv
        return oc.torch.attention(q, kv, v, self.made, **options)


def given_to(device: Any) -> list[dict[str, int]]:
    """The parameters of all launches but the addresses of arrays that are a layer's own."""
    own = {"q", "k", "v", "out", "lse", "sink_logits", "q_map", "k_map", "v_map"}
    return [
        {name: one[name].tobytes() for name in one.dtype.names if name not in own}
        for one in (launch["params"] for launch in device.launches)
    ]


def new_sinks() -> Any:
    """Logits of a layer."""
    return cuda(_zeros(HEADS))


def new_out() -> Any:
    """Memory for what a layer returns."""
    return cuda(_zeros(BATCH, 1, HEADS, 64, dtype=torch.bfloat16).transpose(1, 2))

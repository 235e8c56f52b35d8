"""Random inputs of attention_backward, of many kinds, with the results of the forward pass that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from omnicupy.call import check, check_backward
from omnicupy.cpu import attention as cpu_attention
from omnicupy.cpu import backward as cpu_backward
from omnicupy.masks.mask import Mask
from omnicupy.reference import gradient_budget

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
Rng = np.random.Generator
# What the inputs are like: unit normals, or as `made` says.
KINDS = ("normal", "peaky", "large", "keys alike", "values alike", "rows alike", "dout of ones", "positive")
LAYOUTS = ("packed", "expanded", "transposed", "reversed", "columns apart")


@dataclass
class GradientCase:
    """A call of attention_backward: arrays as `cpu.backward.Arrays`, and its masks, one or one a batch element."""

    arrays: cpu_backward.Arrays
    masks: Sequence[Mask]
    label: str = ""

    @property
    def mask(self) -> Mask | list[Mask]:
        return self.masks[0] if len(self.masks) == 1 else list(self.masks)

    def run(self, wanted: Sequence[str] = ("q", "k", "v"), **options: Any) -> Any:
        """dq, dk and dv of the CPU engine; options: br, bc, out_grads."""
        *given, dlse = self.arrays
        grads = options.get("out_grads")
        call = check_backward.call(*given, mask=self.mask, dlse=dlse, wanted=wanted, out_grads=grads)
        return cpu_backward.attention_backward(call, self.arrays, **options)

    def budget(self) -> gradient_budget.GradientBudget:
        dout, q, k, v, out, lse, dlse = self.arrays
        return gradient_budget.budget(dout, q, k, v, self.mask, out=out, lse=lse, dlse=dlse)

    def check(self, wanted: Sequence[str] = ("q", "k", "v"), **options: Any) -> float:
        """Run, and compare with the budget; the worst ratio."""
        found = self.run(wanted, **options)
        for name, like, array in zip("qkv", self.arrays[1:4], found, strict=True):
            assert (array is None) == (name not in wanted), self.label
            if array is not None:
                assert (array.shape, array.dtype) == (like.shape, like.dtype), self.label
        worst = gradient_budget.compare(found, self.budget())
        assert worst.ok, f"{self.label}: {worst}"
        return worst.ratio


def made(
    masks: Sequence[Mask],
    heads: tuple[int, int, int] = (1, 1, 1),
    head_dim: int = 8,
    dtype: Any = np.float32,
    *,
    kind: str = "normal",
    layout: str = "packed",
    with_dlse: bool = False,
    seed: int = 0,
    value_dim: int | None = None,
) -> GradientCase:
    """Inputs of that kind. heads: (batch, key heads, group).  layout: of dout.  value_dim: of v, None for head_dim."""
    (q_len, k_len), (batch, kv_heads, group) = masks[0].shape, heads
    value_dim = head_dim if value_dim is None else value_dim
    rng, widest = np.random.default_rng(seed), max(head_dim, value_dim)
    q, dout = rng.standard_normal((2, batch, kv_heads * group, q_len, widest))
    k, v = rng.standard_normal((2, batch, kv_heads, k_len, widest))
    q, k, v, dout = (x[..., :n] for x, n in ((q, head_dim), (k, head_dim), (v, value_dim), (dout, value_dim)))
    if kind == "peaky":
        q *= 8
    elif kind == "large":  # scores of about 1e4
        q, k = 40 * q, 40 * k
    elif kind == "dout of ones":
        dout[...] = 1
    elif kind == "positive":
        dout, v = np.abs(dout) + 0.3, np.abs(v) + 0.3
    for array in {"keys alike": (k,), "values alike": (v,), "rows alike": (q, dout)}.get(kind, ()):
        array[...] = array[:, :, :1]
    q, k, v, dout = (array.astype(dtype, order="C") for array in (q, k, v, dout))
    given = masks[0] if len(masks) == 1 else list(masks)
    found = cpu_attention.attention(check.call(q, k, v, given), q, k, v, return_lse=True)
    assert isinstance(found, tuple)
    out, lse = found
    dlse = rng.standard_normal(lse.shape).astype(lse.dtype) if with_dlse else None
    arrays = cpu_backward.Arrays(laid_out(dout, layout), q, k, v, out, lse, dlse)
    sizes = f"{heads}, {head_dim}/{value_dim}"
    return GradientCase(arrays, masks, f"{kind}, {layout}, {sizes}, {np.dtype(dtype)}, {seed}")


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The array in another memory layout; "expanded" has zero strides and repeats one of its numbers."""
    if layout == "expanded":
        return np.broadcast_to(array[:1, :1, :1, :1], array.shape)
    if layout == "transposed":
        return np.asfortranarray(array)
    if layout == "reversed":
        return np.ascontiguousarray(array[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1]
    if layout == "columns apart":
        return np.repeat(array, 3, axis=3)[..., ::3]
    return array


def drawn(rng: Rng, masks: Sequence[Mask], dtype: Any, value_dims: Sequence[int] = ()) -> GradientCase:
    """Heads, sizes, kind and layout at random. value_dims: that of v is one of them, without any that of q and k."""
    heads = (len(masks), int(rng.integers(1, 3)), int(rng.choice([1, 2, 7, 8])))
    return made(
        masks,
        heads,
        int(rng.choice([1, 2, 8, 16, 24])),
        dtype,
        value_dim=int(rng.choice(value_dims)) if value_dims else None,
        kind=str(rng.choice(KINDS)),
        layout=str(rng.choice(LAYOUTS)),
        with_dlse=bool(rng.random() < 0.5),
        seed=int(rng.integers(2**31)),
    )

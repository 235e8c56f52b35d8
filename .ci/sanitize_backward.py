"""Small backward passes for compute-sanitizer, which runs `python .ci/sanitize_backward.py sm90`, for one.

Arguments: kernels (naive, sm80, sm90), head_dims that they are limited to, forms (default, any-order) where not all
are wanted, and `behind`: a launch behind the kernel of all gradients makes dQ of the sums, as it does of larger masks
than these. Each row of the table runs documents, windows, rows and keys that see nothing and hold NaN, grouped heads,
ragged lengths, blocks of keys that are split, a dout of no strides, each subset of gradients that has kernels of its
own, sums in any order and in one order where there are kernels for them, the two kernels in their place, and passes
that read what the one before wrote. A form that is named runs all gradients by its kernel alone, twice, with dlse and
without; any-order is of rows that have one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cupy
import numpy as np
from sanitize import K_LEN, Q_LEN, masks

import omnicupy as oc
from omnicupy.choose import backward_table
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.masks.mask import Mask
from omnicupy.schedule import backward_grid
from omnicupy.tools.random_arrays import DTYPES, random_bits
from omnicupy.tools.verify.backward_inputs import ONE_BITS

KERNELS = ("naive", "sm80", "sm90")
FORMS: dict[str, dict[str, Any]] = {"default": {}, "any-order": {"deterministic": False}}
BEHIND = "behind"


def backward_masks() -> Iterator[tuple[str, Mask]]:
    """Those of the forward kernels, rows that see no key, and few keys that many rows see."""
    yield from masks()
    yield (
        "dead rows",
        oc.full(Q_LEN, K_LEN) & ~oc.ranges([(20, 200, 0, K_LEN), (299, 300, 0, K_LEN)], Q_LEN, K_LEN),
    )
    yield "few keys", oc.full(4096, 60)


def specs(kernel: str, head_dims: set[int]) -> Iterator[BackwardSpec]:
    """The rows of a kernel that an H100 runs, in bfloat16; the naive kernel has none and takes one of its own."""
    plain = backward_table.naive("sm_90", "bfloat16", 64)
    for spec in (plain, *backward_table.rows()):
        runs = spec.kernel == kernel and spec.arch in ("sm_90", "sm_90a") and spec.dtype == "bfloat16"
        if runs and (not head_dims or spec.head_dim in head_dims):
            yield spec


def normal(shape: tuple[int, ...], seed: int) -> Any:
    return random_bits(shape, seed, "bfloat16", 1.0, cupy).view(DTYPES["bfloat16"])


def passes_of(spec: BackwardSpec, forms: list[str], dlse: Any) -> list[dict[str, Any]]:
    """Options of each pass."""
    if forms:
        return [
            FORMS[form] | more
            for form in forms
            if form == "default" or spec.fused is not None
            for more in ({}, {"dlse": dlse})
        ]
    found: list[dict[str, Any]] = [{}, {"dlse": dlse}, {"wanted": ("q",)}, {"wanted": ("k", "v")}]
    found += [FORMS["any-order"]] * (spec.fused is not None)
    found += [{"config": replace(spec, ordered=None)}] * (spec.ordered is not None)
    return found


def call(spec: BackwardSpec, mask: Mask, forms: list[str]) -> int:
    """Some passes; the second one reads what the first one wrote. Returns how many."""
    heads, kv_heads = (2, 1) if spec.head_dim <= 256 else (1, 1)
    (q_len, k_len), d = mask.shape, spec.head_dim
    q, k, v = (
        normal(shape, seed)
        for seed, shape in enumerate([(1, heads, q_len, d), *[(1, kv_heads, k_len, d)] * 2])
    )
    out, lse = oc.attention(q, k, v, mask, return_lse=True)
    dead = cupy.asarray(np.flatnonzero(mask.dead_keys()))
    k[:, :, dead], v[:, :, dead] = np.nan, np.nan
    unseen = cupy.asarray(np.flatnonzero(~mask.dense(0, q_len, 0, k_len).any(axis=1)))
    dout, dlse = normal(q.shape, 3), cupy.ones(lse.shape, np.float32)
    for array in (q, dout, out, lse, dlse):
        array[:, :, unseen] = np.nan
    one = cupy.broadcast_to(cupy.full((1, 1, 1, 1), ONE_BITS["bfloat16"], np.uint16).view(q.dtype), q.shape)
    passes = passes_of(spec, forms, dlse)
    if not passes:
        return 0
    found = []
    for options in passes:
        found += oc.attention_backward(dout, q, k, v, out, lse, mask, **{"config": spec} | options)
        if found[-3] is not None:
            dout = found[-3]  # dq of one pass is dout of the next
    found += oc.attention_backward(one, q, k, v, out, lse, mask, **{"config": spec} | passes[0])
    cupy.cuda.Device().synchronize()
    for array in found:
        finite = array is None or bool(cupy.isfinite(array.astype(np.float32)).all())
        assert finite, (spec, "NaN from rows or keys that see nothing")
    return len(passes) + 1


def main(words: list[str]) -> None:
    forms = [word for word in words if word in FORMS]
    kernels = [word for word in words if word in KERNELS] or list(KERNELS)
    if BEHIND in words:
        backward_grid.FEW_ADDITIONS = backward_grid.MANY_ADDITIONS = 0
    count = 0
    for kernel in kernels:
        for spec in specs(kernel, {int(word) for word in words if word.isdigit()}):
            for name, mask in backward_masks():
                print(f"{spec} {name}", flush=True)
                count += call(spec, mask, forms)
    if not count:
        raise SystemExit(
            f"no row of the table is asked for by {words}: kernels are {', '.join(KERNELS)}, forms {', '.join(FORMS)}"
        )
    print(f"{count} passes")


if __name__ == "__main__":
    from usage import words

    main(words(__doc__, known=(*KERNELS, *FORMS, BEHIND)))

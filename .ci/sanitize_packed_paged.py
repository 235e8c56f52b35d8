"""Small calls of packed tiles of 128 rows, of packed tiles whose keys two warpgroups take in turn, and of prompts on
caches in pages, for compute-sanitizer, which runs `python .ci/sanitize_packed_paged.py`.

Arguments: packed, turns and paged, and head_dims that they are limited to. Keys are tensors, caches in one piece and in
pages; what no row may see is NaN, and pages past lengths are none. Sequences have no key, one, a tile or more, so that
rows are split; some have numbers of rows of their own. Results are compared with those of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import cupy
import numpy as np

import omnicupy as oc
from omnicupy.choose import table
from omnicupy.gpu import pages
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.mask import Mask
from omnicupy.tools.random_arrays import DTYPES, random_bits

SOURCES = {
    "packed": "attention_fwd_packed.cu",
    "turns": "attention_fwd_key_turns.cu",
    "paged": "attention_fwd_paged.cu",
}
BF16 = DTYPES["bfloat16"]
LENGTHS = (0, 1, 130, 700)
K_LEN, KV_HEADS, SPARE = 700, 2, 3
NO_PAGE = 2**31 - 1
CLOSE = 0.03


class Caches(NamedTuple):
    """How they are read. page_size: None in one piece.  group: query heads of a key head.  rows: of each sequence."""

    page_size: int | None
    group: int
    rows: tuple[int, ...]
    rule: oc.CachedRule
    split: int | None = None

    def __str__(self) -> str:
        where = "one piece" if self.page_size is None else f"pages of {self.page_size}"
        return f"{where}, {self.group} heads, rows {self.rows}, split {self.split}"

    @property
    def ragged(self) -> bool:
        return len(set(self.rows)) > 1


def masks(q_len: int) -> Iterator[tuple[str, Mask]]:
    """Named masks of q_len rows and K_LEN keys."""
    yield "causal", oc.causal(q_len, K_LEN)
    yield "window", oc.sliding_window(q_len, K_LEN, left=170) | oc.sink(q_len, 5, K_LEN)
    yield (
        "dead keys",
        oc.ranges([(0, q_len, 40, 140), (0, 1, 250, 390), (q_len - 1, q_len, 500, 650)], q_len, K_LEN),
    )
    yield "bits", oc.from_dense(np.random.default_rng(0).random((q_len, K_LEN)) < 0.3)


def calls(kernel: str) -> Iterator[Caches]:
    """Those on caches."""
    window = oc.cached(window=100, sink=5)
    if kernel == "paged":
        for page_size, group, rows in (
            *((8, 1, 200), (64, 2, 192), (16, 2, 7), (128, 1, 400)),
            *((1, 2, 200), (7, 1, 70)),
        ):
            yield Caches(page_size, group, (rows,) * len(LENGTHS), window if page_size == 64 else oc.cached())
        yield Caches(16, 2, (0, 1, 200, 77), oc.cached())
        yield Caches(64, 1, (3, 193, 0, 390), window)
        yield Caches(1, 1, (3, 193, 0, 390), window)
        return
    tree = oc.cached(tail=oc.from_dense(np.random.default_rng(0).random((4, 4)) < 0.5))
    for page_size in (None, 16, 7):
        yield Caches(page_size, 7, (15,) * len(LENGTHS), oc.cached())
        yield Caches(page_size, 8, (4,) * len(LENGTHS), tree, 384)
        yield Caches(page_size, 12, (16,) * len(LENGTHS), window, 384)
    yield Caches(16, 7, (0, 1, 15, 6), oc.cached())
    yield Caches(16, 12, (3, 10, 0, 8), window, 384)


def specs(kernel: str, head_dims: set[int]) -> list[AttnSpec]:
    """The rows of the table that the kernel runs."""
    return [
        spec
        for spec in table.rows()
        if spec.dtype == "bfloat16"
        and spec.serves_caches
        and spec.head_dim == spec.value_dim
        and (spec.warps == 16 if kernel == "paged" else spec.source == SOURCES[kernel])
        and (not head_dims or spec.head_dim in head_dims)
    ]


def bits(seed: int, *shape: int) -> Any:
    """bfloat16 on the host."""
    return random_bits(shape, seed, "bfloat16", 1.0, np).view(BF16)


def on_device(array: Any) -> Any:
    return cupy.asarray(array.view(np.uint16)).view(BF16) if array.dtype == BF16 else cupy.asarray(array)


def cache(head_dim: int, page_size: int | None) -> Any:
    """Of sequences of LENGTHS, on the host."""
    lengths, batch = np.array(LENGTHS, np.int32), len(LENGTHS)
    if page_size is None:
        k, v = (bits(seed, batch, KV_HEADS, K_LEN, head_dim) for seed in (1, 2))
        for sequence, keys in enumerate(LENGTHS):
            k[sequence, :, keys:], v[sequence, :, keys:] = np.nan, np.nan
        return oc.CachedKV(k, v, lengths)
    most = -(-K_LEN // page_size)
    pools = [bits(seed, batch * most + SPARE, page_size, KV_HEADS, head_dim) for seed in (1, 2)]
    order = np.random.default_rng(3).permutation(batch * most + SPARE)[: batch * most]
    pages_of = order.astype(np.int32).reshape(batch, most)
    for pool in pools:
        seen = np.zeros(pool.shape[:2], bool)
        for sequence, keys in enumerate(LENGTHS):
            seen[pages_of[sequence]] = (np.arange(most * page_size) < keys).reshape(most, page_size)
        pool[~seen] = np.nan
    for sequence, keys in enumerate(LENGTHS):
        pages_of[sequence, -(-keys // page_size) :] = NO_PAGE
    return oc.PagedKV(*pools, pages_of, lengths)


def compare(where: str, found: Any, wanted: Any) -> None:
    """(out, lse) of the GPU and of the CPU."""
    cupy.cuda.Device().synchronize()
    for name, one, other in zip(("out", "lse"), found, wanted, strict=True):
        one, other = cupy.asnumpy(one.astype(np.float32)), other.astype(np.float32)
        assert np.allclose(one, other, rtol=CLOSE, atol=CLOSE), f"{where}: {name} is not that of the CPU"


def on_tensors(kernel: str, spec: AttnSpec) -> int:
    """The calls without a cache, split and whole; how many."""
    count = 0
    for group, q_len in ((7, 15), (8, 4), (12, 16)):
        for number, (name, mask) in enumerate(masks(q_len)):
            where = f"{kernel} d{spec.head_dim}, {group} heads, {q_len} tokens, {name}"
            print(where, flush=True)
            q = bits(0, 2, KV_HEADS * group, q_len, spec.head_dim)
            k, v = (bits(seed, 2, KV_HEADS, K_LEN, spec.head_dim) for seed in (1, 2))
            dead = np.flatnonzero(mask.dead_keys())
            k[:, :, dead], v[:, :, dead] = np.nan, np.nan
            split = 384 if number % 2 else None
            arrays = (on_device(one) for one in (q, k, v))
            found = oc.attention(*arrays, mask, config=spec, return_lse=True, split=split)
            compare(where, found, oc.attention(q, k, v, mask, return_lse=True))
            count += 1
    return count


def compiled(spec: AttnSpec, kv: Any, call: Caches) -> AttnSpec:
    """The variant that a call runs."""
    return pages.spec_of(spec, kv, ragged=call.ragged)


def on_caches(kernel: str, spec: AttnSpec, call: Caches) -> int:
    """A call, and where keys are in pages one of which some entries are no page."""
    kv, where = cache(spec.head_dim, call.page_size), f"{kernel} d{spec.head_dim}, {call}"
    print(where, flush=True)
    assert compiled(spec, kv, call).source == SOURCES[kernel]
    heads, options = KV_HEADS * call.group, {"mask": call.rule, "split": call.split, "return_lse": True}
    if call.ragged:
        q, starts = bits(0, sum(call.rows), heads, spec.head_dim), np.cumsum((0, *call.rows), dtype=np.int32)
        options["max_rows"] = max(call.rows)
    else:
        q, starts = bits(0, len(LENGTHS), heads, call.rows[0], spec.head_dim), None
    of_host = {} if starts is None else {"rows": starts}
    of_device = {name: cupy.asarray(one) for name, one in of_host.items()}
    names = (
        ("k", "v", "lengths") if call.page_size is None else ("k_pages", "v_pages", "page_table", "lengths")
    )
    there = type(kv)(*(on_device(getattr(kv, name)) for name in names))
    found = oc.attention(on_device(q), there, **options, **of_device, config=spec)
    compare(where, found, oc.attention(q, kv, **options, **of_host))
    if call.page_size is None:
        return 1
    there.page_table[-1, 1::3] = NO_PAGE
    out, _ = oc.attention(on_device(q), there, **options, **of_device, config=spec)
    assert bool(cupy.isfinite(out.astype(np.float32)).all()), f"{where}: NaN of no page"
    return 2


def main(words: list[str]) -> None:
    kernels = [word for word in words if word in SOURCES] or list(SOURCES)
    count = 0
    for kernel in kernels:
        for spec in specs(kernel, {int(word) for word in words if word.isdigit()}):
            count += 0 if kernel == "paged" else on_tensors(kernel, spec)
            count += sum(on_caches(kernel, spec, call) for call in calls(kernel))
    if not count:
        raise SystemExit(f"no row of the table is asked for by {words}: kernels are packed, turns and paged")
    print(f"{count} calls")


if __name__ == "__main__":
    from usage import words

    main(words(__doc__, known=tuple(SOURCES)))

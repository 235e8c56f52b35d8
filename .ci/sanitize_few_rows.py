"""Small calls of the kernel for few query rows, for compute-sanitizer, which runs `python .ci/sanitize_few_rows.py`.

Arguments: head_dims that they are limited to. Caches of e4m3 and of 16 bits, whole with heads or tokens first and
in pages, hold NaN past their lengths and in pages that nobody has. Sequences have no key, a few and many, so that rows
are split; rules are causal, a window with sinks, and a draft of bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import cupy
import numpy as np

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import paged
from omnicupy.jit.few_rows_spec import HEAD_DIMS
from omnicupy.jit.spec import AttnSpec
from omnicupy.tools.random_arrays import DTYPES, random_bits

LENGTHS = (0, 1, 33, 700, 5000)
CAPACITY, PAGE, KV_HEADS = 5008, 16, 2
NAN_BYTE = 0x7F  # of e4m3
LAYOUTS = ("heads first", "tokens first", "pages")
ROWS = ((1, 1), (8, 1), (4, 4))  # query heads of a key head, tokens


def rules(q_len: int) -> Iterator[tuple[str, oc.CachedRule]]:
    """Named rules of calls of so many tokens."""
    yield "causal", oc.cached()
    yield "window", oc.cached(window=100, sink=5)
    yield "draft", oc.cached(tail=oc.from_dense(np.random.default_rng(0).random((q_len, q_len)) < 0.5))


def cache(head_dim: int, e4m3: bool, layout: str) -> Any:
    """A cache of sequences of LENGTHS. layout: one of LAYOUTS."""
    shape = (len(LENGTHS), KV_HEADS, CAPACITY, head_dim)
    lengths = cupy.asarray(np.array(LENGTHS, np.int32))
    arrays = []
    for seed in (1, 2):
        one = random_bits(shape, seed, "bfloat16", 1.0, cupy)
        if e4m3:
            one = one.astype(np.uint8) & np.uint8(0xBF)  # no NaN
        for sequence, keys in enumerate(LENGTHS):
            one[sequence, :, keys:] = NAN_BYTE if e4m3 else 0x7FC0
        arrays.append(one)
    scales = {"k_scale": 0.05, "v_scale": 0.25} if e4m3 else {}
    of = arrays[0].dtype if e4m3 else DTYPES["bfloat16"]
    if layout == "heads first":
        return oc.CachedKV(*(one.view(of) for one in arrays), lengths, **scales)
    by_tokens = [cupy.ascontiguousarray(one.transpose(0, 2, 1, 3)).view(of) for one in arrays]
    if layout == "tokens first":
        return oc.CachedKV(*(one.transpose(0, 2, 1, 3) for one in by_tokens), lengths, **scales)
    pages = CAPACITY // PAGE
    pools = [one.reshape(len(LENGTHS) * pages, PAGE, KV_HEADS, head_dim) for one in by_tokens]
    table = np.arange(len(LENGTHS) * pages, dtype=np.int32).reshape(len(LENGTHS), pages)
    for sequence, keys in enumerate(LENGTHS):
        table[sequence, -(-keys // PAGE) :] = 2**31 - 1
    return oc.PagedKV(*pools, cupy.asarray(table), lengths, **scales)


def call(head_dim: int, e4m3: bool, layout: str) -> int:
    """The calls of one cache; how many."""
    kv, count = cache(head_dim, e4m3, layout), 0
    spec = AttnSpec(
        arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=head_dim, br=64, bc=64, warps=8, pack=True
    )
    few = paged.few_rows(spec, Problem(1, 1, 1, 1, 1, head_dim, "bfloat16"), e4m3=e4m3)[0]
    for group, tokens in ROWS:
        shape = (len(LENGTHS), KV_HEADS * group, tokens, head_dim)
        q = random_bits(shape, 3, "bfloat16", 1.0, cupy).view(DTYPES["bfloat16"])
        for name, rule in rules(tokens):
            where = f"d{head_dim} {'e4m3' if e4m3 else 'bfloat16'} {layout}"
            print(f"{where}, {group} x {tokens} rows, {name}", flush=True)
            out = oc.attention(q, kv, mask=rule, config=few)
            cupy.cuda.Device().synchronize()
            assert bool(cupy.isfinite(out.astype(np.float32)).all()), (where, name, "NaN past a length")
            count += 1
    return count


def main(words: list[str]) -> None:
    head_dims = [one for one in HEAD_DIMS if not words or str(one) in words]
    if not head_dims:
        raise SystemExit(f"the kernel for few rows has no head_dim of {words}: it has {HEAD_DIMS}")
    count = sum(call(*each) for each in product(head_dims, (True, False), LAYOUTS))
    print(f"{count} calls")


if __name__ == "__main__":
    from usage import words

    main(words(__doc__, known=()))

"""Writes kernels/omni/sm90/wgmma_table.cuh: the wgmma instructions of every width N the kernels use.

Run it with `--write` to replace the file; `test_wgmma.py` compares the checked-in text with what it makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

WIDTHS = range(16, 257, 16)
TARGET = Path(__file__).resolve().parents[2] / "kernels" / "omni" / "sm90" / "wgmma_table.cuh"

HEADER = """\
// The wgmma instructions of every width N the kernels use (PTX ISA 8.x, wgmma.mma_async). Made by tests/make_wgmma.py:
// change that, not this.
#pragma once

#include "omni/params.cuh"

namespace omni {

// m64 n{kN} k16, float32 accumulators, 16-bit inputs. ss_kk: A and B from shared memory, both K-major. ss_kn: the same
// with B N-major. rs_n: A from registers, B from shared memory, N-major. rs_k: the same with B K-major. accumulate = 0:
// d = a b, else d += a b.
template <int kN, bool kBf16>
struct Wgmma;
"""

STRUCT = """
template <>
struct Wgmma<{n}, {flag}> {{
  __device__ __forceinline__ static void ss_kk(float (&d)[{regs}], u64 a, u64 b, int accumulate) {{
    asm volatile(
        "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{p_ss}, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{type}.{type} {{{list}}}, %{a_ss}, %{b_ss}, p, 1, 1, 0, 0;\\n}}"
        : {outs}
        : "l"(a), "l"(b), "r"(accumulate));
  }}
  __device__ __forceinline__ static void ss_kn(float (&d)[{regs}], u64 a, u64 b, int accumulate) {{
    asm volatile(
        "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{p_ss}, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{type}.{type} {{{list}}}, %{a_ss}, %{b_ss}, p, 1, 1, 0, 1;\\n}}"
        : {outs}
        : "l"(a), "l"(b), "r"(accumulate));
  }}
  __device__ __forceinline__ static void rs_n(float (&d)[{regs}], u32 const* a, u64 b) {{
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{type}.{type} {{{list}}}, {{%{a0}, %{a1}, %{a2}, %{a3}}}, %{b_rs}, 1, 1, 1, 1;"
        : {outs}
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }}
  __device__ __forceinline__ static void rs_k(float (&d)[{regs}], u32 const* a, u64 b, int accumulate) {{
    asm volatile(
        "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{p_rs}, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{type}.{type} {{{list}}}, {{%{a0}, %{a1}, %{a2}, %{a3}}}, %{b_rs}, p, 1, 1, 0;\\n}}"
        : {outs}
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  }}
}};
"""


def struct(n: int, bf16: bool) -> str:
    """The specialisation of one width and dtype."""
    regs = n // 2
    return STRUCT.format(
        n=n,
        flag=str(bf16).lower(),
        type="bf16" if bf16 else "f16",
        regs=regs,
        list=", ".join(f"%{i}" for i in range(regs)),
        outs=", ".join(f'"+f"(d[{i}])' for i in range(regs)),
        a_ss=regs,
        b_ss=regs + 1,
        p_ss=regs + 2,
        a0=regs,
        a1=regs + 1,
        a2=regs + 2,
        a3=regs + 3,
        b_rs=regs + 4,
        p_rs=regs + 5,
    )


def text() -> str:
    """The whole file."""
    structs = [struct(n, bf16) for n in WIDTHS for bf16 in (True, False)]
    return HEADER + "".join(structs) + "\n}  // namespace omni\n"


if __name__ == "__main__":
    if "--write" not in sys.argv:
        sys.exit("usage: make_wgmma.py --write")
    TARGET.write_text(text())

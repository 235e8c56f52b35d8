"""The scanner behind the CUDA style ceilings, on text whose functions are known."""

from __future__ import annotations

from cuda_scan import Function, blanked, functions

TEXT = """\
#pragma once
#include "omni/params.cuh"

namespace omni {

// void commented(int a) { }
constexpr int kTable[2] = {1, 2};

struct Row {
  float out[4] = {};
  u32 pairs[2];
  __device__ __forceinline__ Row(int a, float (&x)[2])
      : out{1.f, 2.f}, mask{a, x} {
    fill();
  }
  template <class T, int kN>
  __device__ static T get(T (&from)[kN], Pair<T, int> two) const {
    if (kN) { return from[0]; }
    auto f = [](int a, int b) { return a + b; };
    return f(1, 2);
  }
  __device__ bool operator()(int q, int k) const { return q < k; }
};

template <>
struct Wgmma<64, true> {
  __device__ static void run() { asm volatile("{ ; }" ::: "memory"); }
};

}  // namespace omni

static_assert(sizeof(int) == 4, "a { b");

extern "C" __global__ void __launch_bounds__(128, 1)
    entry(const __grid_constant__ omni::Params p) {
  auto& s = *reinterpret_cast<int*>(p.x);
}
"""


def test_functions() -> None:
    assert functions(TEXT) == [
        Function("Row", 12, 4, 2),
        Function("get", 16, 6, 2),
        Function("operator()", 22, 1, 2),
        Function("run", 27, 1, 0),
        Function("entry", 34, 4, 1),
    ]


def test_blanked_keeps_lines_and_columns() -> None:
    text = 'a = "x//y"; // c\n/* one\ntwo */ b'
    assert blanked(text) == "a =       ;     \n      \n       b"


def test_nothing() -> None:
    assert functions("") == []
    assert functions("// only a comment { }\n") == []

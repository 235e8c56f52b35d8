"""Runs a kernel's CUDA source on the CPU: the sources as they are, but for their PTX, compiled for the host."""

from __future__ import annotations

import ctypes
import functools
import platform
import re
import shutil
from collections.abc import Sequence
from typing import Any

import host_compiler
import numpy as np
from numpy.typing import NDArray

from omnicupy.jit import source
from omnicupy.jit.params import params_bytes
from omnicupy.jit.spec import KernelSpec

SMEM_MOST = 1 << 18
RAN: set[str] = set()  # sources, since a test began
STRUCTS = {  # of params.PARAMS
    "naive": "ForwardParams",
    "sm80": "ForwardParams",
    "sm90": "ForwardParamsSm90",
    "sm90_narrow": "TailParamsSm90",
    "naive_paged": "PagedParams",
    "sm80_paged": "PagedParams",
    "sm90_paged": "PagedParamsSm90",
    "naive_fp8": "Fp8Params",
    "sm80_fp8": "Fp8Params",
    "sm90_fp8": "Fp8ParamsSm90",
    "naive_ragged": "RaggedParams",
    "sm80_ragged": "RaggedParams",
    "sm90_ragged": "RaggedParamsSm90",
    "bwd": "BackwardParams",
    "bwd_sm90": "BackwardParamsSm90",
    "bwd_sums": "BackwardParamsWithSums",
    "plan": "PlanParams",
    "plan_ragged": "RaggedPlanParams",
    "append": "AppendParams",
    "append_fp8": "Fp8AppendParams",
    "exchange": "ExchangeParams",
    "exchange_add": "ExchangeAddParams",
}

# Headers that are nothing but PTX.
_WHOLE = {
    "omni/exchange/ptx.cuh": "exchange.cuh",
    "omni/sm80/ptx.cuh": "ptx.cuh",
    "omni/sm90/few_rows/ptx.cuh": "ptx_few_rows.cuh",
    "omni/sm90/ptx.cuh": "ptx_sm90.cuh",
    "omni/sm90/wgmma_table.cuh": "wgmma.cuh",
}

# In each header: what is PTX there, what a host does instead, and how often it is there if not once.
_INSTEAD: dict[str, list[tuple[Any, ...]]] = {
    "omni/address.cuh": [
        (
            r"__cvta_generic_to_shared\(pointer\)",
            "static_cast<unsigned char const*>(pointer) - shared_memory",
        ),
    ],
    "omni/numbers.cuh": [
        (r"u32 pair;\n  if constexpr \(kBf16\).*?return pair;", "return cpu::pack<kBf16>(low, high);"),
        (r"float value;\n    asm\(.*?return value;", "return cpu::of_half(bits16);"),
        (r"float y;\n  asm\(.*?return y;", "return exp2f(x);"),
        (r"float power;\n  asm\(.*?return power;", "return log2f(x);"),
    ],
    "omni/reduce.cuh": [
        (r'asm volatile\("red\.relaxed\.gpu\.global\.add\.f32.*?"memory"\);', "cpu::add(g_target, &x, 1);"),
        (r'asm volatile\("red\.relaxed\.gpu\.global\.add\.v4.*?"memory"\);', "cpu::add(g_target, x, 4);"),
    ],
    "omni/softcap.cuh": [(r"float share;\n    asm\(.*?;\n", "float const share = 1.f / sum;\n")],
    "omni/tile.cuh": [(r"int index;\n  asm volatile\(.*?return index;", "return threadIdx.x;")],
    "omni/sm90/wgmma.cuh": [(r'asm volatile\("" : "\+[fr]"\(x\[i\]\)::"memory"\);', ";", 2)],
    "omni/sm90/backward/key_producer.cuh": [
        (r"int blocks;\n    asm volatile\(.*?;\"[^;]*;", "int const blocks = gridDim.x;")
    ],
    "omni/sm90/backward/tickets.cuh": [
        (r"int before;\n  asm volatile\(.*?return before;", "return atomicOr(g_target, bits);")
    ],
    "omni/sm90/packed/ptx.cuh": [
        (r"u32 before;\n  asm volatile\(.*?return before;", "return atomicAdd(g_counter, more);")
    ],
    "omni/work.cuh": [(r"int index;\n  asm volatile\(.*?return index;", "return blockIdx.x;")],
    "omni/mask/rule.cuh": [
        (r"u32 rows;\n  asm\(.*?return rows;", "return first >= 32 ? 0u : 0xffffffffu << max(first, 0);")
    ],
}


def missing() -> str | None:
    """Why kernels cannot run on this CPU, or None when they can."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "threads of a kernel take turns by x86-64 code"
    return None if shutil.which("g++") else "no g++"


@functools.cache
def build(kernel: KernelSpec) -> ctypes.CDLL:
    """A kernel compiled for the host."""
    of_kernel = source.load(kernel.source)
    files = {
        name: _for_host(name, text.decode())
        for name, text in ((kernel.source, of_kernel.text), *of_kernel.headers)
    }
    files["main.cpp"] = (
        f'#include "cuda.h"\n#include "{kernel.source}"\n'
        f'extern "C" void kernel_on_cpu(void const* params) {{\n'
        f"  {kernel.entry}(*static_cast<omni::{STRUCTS[kernel.params]} const*>(params));\n}}\n"
    )
    macros = {**kernel.defines(), "OMNI_PARAMS_BYTES": params_bytes(kernel.params)}
    macros["__CUDA_ARCH__"] = 10 * int(kernel.arch.removeprefix("sm_").rstrip("a"))
    return ctypes.CDLL(str(host_compiler.library(files, macros)))


def _for_host(name: str, text: str) -> str:
    if name in _WHOLE:
        return (host_compiler.HOST / _WHOLE[name]).read_text()
    for pattern, instead, *times in _INSTEAD.get(name, ()):
        text, found = re.subn(pattern, instead.replace("\\", r"\\"), text, flags=re.DOTALL)
        assert [found] == (times or [1]), f"{name}: {pattern} is there {found} times"
    return text


def run(
    library: ctypes.CDLL,
    kernel: KernelSpec,
    params: NDArray[np.void],
    grid: tuple[int, int],
    reads: Sequence[NDArray[Any]],
    late: bool,
    *,
    sums: NDArray[Any] | None = None,
) -> None:
    """Run all thread blocks, one after the other. reads: what cp.async may read.  sums: what reductions may add to.

    late: copies happen when they are waited for, and not at once: either shows another kind of missing wait.
    """
    of_sums = (0, 0) if sums is None else _range(sums)
    ranges = np.array([of_sums, *(_range(array) for array in reads)], np.uint64)
    shape = np.array([*grid, kernel.threads, kernel.smem_bytes], np.int32)
    argument = aligned(params.itemsize, np.uint8)
    argument[...] = np.frombuffer(params.tobytes(), np.uint8)
    assert kernel.smem_bytes < SMEM_MOST
    RAN.add(kernel.source)
    library.run_on_cpu(
        *(ctypes.c_void_p(array.ctypes.data) for array in (argument, ranges)),
        len(ranges),
        ctypes.c_void_p(shape.ctypes.data),
        int(late),
    )


def aligned(shape: int | tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array, uninitialised, that begins at a multiple of 256 bytes as CuPy's do."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 256, np.uint8)
    start = -raw.ctypes.data % 256
    return raw[start : start + size].view(dtype).reshape(shape)


def _range(array: NDArray[Any]) -> tuple[int, int]:
    reach = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
    return array.ctypes.data, reach + array.itemsize

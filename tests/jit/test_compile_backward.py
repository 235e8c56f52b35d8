"""Every row of the backward pass's table compiles for every architecture it names: no spill, no warning."""

from __future__ import annotations

import pytest
from cubin_code import WARPSYNC, opcodes

from omnicupy.choose import backward_table
from omnicupy.jit import archs, cache
from omnicupy.jit.backward_spec import BackwardKernel

REGISTERS_A_MULTIPROCESSOR = 65536
PLAIN = [
    backward_table.naive(arch, dtype, 128)
    for arch in (archs.ARCHES[0], archs.ARCHES[-1])
    for dtype in ("float16", "bfloat16")
]
# Rows share the kernel that prepares, and maybe tiles.
KERNELS = list(
    dict.fromkeys(kernel for spec in (*backward_table.rows(), *PLAIN) for kernel in spec.kernels().values())
)
HOPPER = [kernel for kernel in KERNELS if kernel.params == "bwd_sm90"]


def _name(kernel: BackwardKernel) -> str:
    dtype = {"float16": "f16", "bfloat16": "bf16"}[kernel.dtype]
    tile = f"{kernel.br}x{kernel.bc}-s{kernel.stages}-w{kernel.warps}"
    return f"{kernel.part}-{kernel.kernel}-{kernel.arch}-{dtype}-d{kernel.head_dim}-{tile}"


@pytest.mark.parametrize("kernel", KERNELS, ids=_name)
def test_compiles_without_a_spill(kernel: BackwardKernel) -> None:
    found = cache.entry(kernel)
    assert found.registers > 0, found.log
    assert found.spill_bytes == 0, found.log
    assert found.warnings == (), found.log
    assert found.registers * kernel.threads <= REGISTERS_A_MULTIPROCESSOR, found.log
    assert f"'{kernel.entry}'" in found.log


def test_hopper_has_rows() -> None:
    assert {kernel.part for kernel in HOPPER} == {"dkdv", "dq"}


@pytest.mark.parametrize("kernel", HOPPER, ids=_name)
def test_hopper_code_is_known_to_be_uniform(kernel: BackwardKernel) -> None:
    """ptxas sees that a consumer's warps do not diverge, as in the forward kernel."""
    found = set(opcodes(cache.cubin(kernel).read_bytes(), kernel.entry))
    assert 0x947 in found, "no branch: these are no opcodes"
    assert not found & WARPSYNC

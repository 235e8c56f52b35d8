"""The Hopper kernels of the backward pass compile for every row of the table: no spill, no warning, uniform code."""

from __future__ import annotations

import pytest
from cubin_code import WARPSYNC, opcodes

from omnicupy.choose import backward_table
from omnicupy.jit import cache
from omnicupy.jit.backward_kernel import FUSED_PARTS, BackwardKernel

REGISTERS_A_MULTIPROCESSOR = 65536
HOPPER = list(
    dict.fromkeys(
        kernel
        for spec in backward_table.rows()
        for kernel in spec.kernels().values()
        if kernel.kernel == "sm90"
    )
)


def _name(kernel: BackwardKernel) -> str:
    dtype = {"float16": "f16", "bfloat16": "bf16"}[kernel.dtype]
    tile = f"{kernel.br}x{kernel.bc}-s{kernel.stages}-w{kernel.warps}"
    return f"{kernel.part}-{kernel.kernel}-{kernel.arch}-{dtype}-d{kernel.head_dim}-{tile}"


@pytest.mark.parametrize("kernel", HOPPER, ids=_name)
def test_compiles_without_a_spill(kernel: BackwardKernel) -> None:
    found = cache.entry(kernel)
    assert found.registers > 0, found.log
    assert found.spill_bytes == 0, found.log
    assert found.warnings == (), found.log
    assert found.registers * kernel.threads <= REGISTERS_A_MULTIPROCESSOR, found.log
    assert f"'{kernel.entry}'" in found.log


def test_hopper_has_rows() -> None:
    assert {kernel.part for kernel in HOPPER} == {"dkdv", "dq", *FUSED_PARTS}


@pytest.mark.parametrize("kernel", HOPPER, ids=_name)
def test_hopper_code_is_known_to_be_uniform(kernel: BackwardKernel) -> None:
    """ptxas sees that a consumer's warps do not diverge, as in the forward kernel."""
    found = set(opcodes(cache.cubin(kernel).read_bytes(), kernel.entry))
    assert 0x947 in found, "no branch: these are no opcodes"
    assert not found & WARPSYNC

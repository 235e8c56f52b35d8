"""The Hopper kernels of the backward pass compile for every row of the table: no spill, no warning, uniform code."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cubin_code import WARPSYNC, compiled_without_a_spill, opcodes
from turns import every_turn, in_turn, of_turn

from omnicupy.choose import backward_table
from omnicupy.jit import cache
from omnicupy.jit.backward_kernel import FUSED_PARTS, BackwardKernel

# Values of another width: a role a warpgroup for wide keys or wide values, a warpgroup with keys of its own, and one
# kernel for all gradients by two and three warpgroups. Three stages: statistics of no whole KiB.
PAIRS = [
    backward_table.pick("sm_90", "bfloat16", head_dim, value_dim=value_dim, softcap=softcap)
    for softcap in (False, True)
    for head_dim, value_dim in ((192, 128), (128, 192), (16, 256), (128, 64), (64, 128), (64, 32))
]
PAIRS.append(replace(PAIRS[0], dkdv=PAIRS[0].dkdv._replace(stages=3)))
KERNELS = dict.fromkeys(
    kernel
    for spec in (*backward_table.rows(), *PAIRS)
    for kernel in spec.kernels().values()
    if kernel.kernel == "sm90"
)


HOPPER = in_turn(KERNELS, 10, lambda kernel: (kernel.part, kernel.softcap, kernel.finishes))


def _name(kernel: BackwardKernel) -> str:
    dtype = {"float16": "f16", "bfloat16": "bf16"}[kernel.dtype]
    tile = f"{kernel.br}x{kernel.bc}-s{kernel.stages}-w{kernel.warps}"
    tile += "-softcap" * kernel.softcap + f"-{kernel.finishes}" * bool(kernel.finishes)
    widths = f"d{kernel.head_dim}v{kernel.value_dim}"
    return f"{kernel.part}-{kernel.kernel}-{kernel.arch}-{dtype}-{widths}-{tile}"


@pytest.mark.parametrize("kernel", HOPPER, ids=_name)
def test_compiles_without_a_spill(kernel: BackwardKernel) -> None:
    assert compiled_without_a_spill(kernel)


def test_hopper_has_rows() -> None:
    """Each run compiles each part, and both dtypes with soft caps and without."""
    for turn in every_turn(HOPPER):
        run = of_turn(HOPPER, turn)
        assert {kernel.part for kernel in run} == {"dkdv", "dq", "ordered", *FUSED_PARTS}
        assert {(kernel.dtype, kernel.softcap) for kernel in run} == {(k.dtype, k.softcap) for k in KERNELS}


@pytest.mark.parametrize("kernel", HOPPER, ids=_name)
def test_hopper_code_is_known_to_be_uniform(kernel: BackwardKernel) -> None:
    """ptxas sees that a consumer's warps do not diverge, as in the forward kernel."""
    found = set(opcodes(cache.cubin(kernel).read_bytes(), kernel.entry))
    assert 0x947 in found, "no branch: these are no opcodes"
    assert not found & WARPSYNC

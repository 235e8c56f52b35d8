"""The backward kernels but those of sm90: all compile for every row of the table, without a spill or a warning."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from cubin_code import REGISTERS_A_MULTIPROCESSOR, compiled_without_a_spill
from turns import every_turn, in_turn, of_turn

from omnicupy.choose import backward_table
from omnicupy.jit.archs import ARCHES, SMEM_LIMIT_BYTES
from omnicupy.jit.backward_kernel import FUSED_PARTS, PARTS, SINK_PARTS, BackwardKernel, TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.source import kernels_dir
from omnicupy.jit.spec import DTYPES

NAIVE = [
    backward_table.naive(arch, dtype, head_dim)
    for arch, head_dim in ((ARCHES[0], 64), (ARCHES[-1], 1000))
    for dtype in DTYPES
]
# Widths that no row has as its greatest, where the columns are cut unevenly or the swizzle is another one.
WIDTHS = (16, 48, 96, 144, 176, 192, 208, 240, 272)


def _of_width(head_dim: int) -> BackwardSpec:
    return next(
        row.spec("sm_80", "bfloat16", head_dim)
        for row in backward_table.TABLE
        if row.kernel == "sm80" and row.serves("sm_80", head_dim)
    )


# Values of another width: dK and dV cut alike or not, one of them whole in one of two blocks.
PAIRS = [
    row.spec(arch, "bfloat16", *widths)
    for arch in ("sm_80", "sm_89", "sm_90")
    for widths in ((192, 128), (64, 128), (96, 64), (32, 160), (256, 64))
    for row in backward_table.TABLE
    if row.kernel == "sm80" and row.serves(arch, max(widths))
]
PAIRS += [backward_table.naive("sm_80", "bfloat16", 192, value_dim=128)]
SPECS = [*backward_table.rows(), *map(_of_width, WIDTHS), *NAIVE, *PAIRS]
KERNELS = sorted(
    {kernel for spec in SPECS for kernel in spec.kernels().values() if kernel.kernel != "sm90"}, key=str
)


def _name(kernel: BackwardKernel) -> str:
    dtype = {"float16": "f16", "bfloat16": "bf16"}[kernel.dtype]
    tile = "" if kernel.part == "prepare" else f"-{kernel.br}x{kernel.bc}-s{kernel.stages}-w{kernel.warps}"
    return f"{kernel.part}-{kernel.kernel}-{kernel.arch}-{dtype}-d{kernel.head_dim}v{kernel.value_dim}{tile}"


def test_all_of_them_are_here() -> None:
    assert {(k.kernel, k.part) for k in KERNELS} == {
        *(("sm80", part) for part in (*PARTS, *FUSED_PARTS, *SINK_PARTS)),
        ("naive", "dkdv"),
        ("naive", "dq"),
    }
    for arch in ARCHES:
        assert {k.head_dim for k in KERNELS if k.arch == arch and k.part == "dq"} >= {64, 128, 256, 1024}


def _with_dtypes_in_turn() -> list[BackwardKernel]:
    """Where a kernel serves several architectures each has one dtype: they differ in how numbers are rounded."""
    archs_of: dict[BackwardKernel, list[str]] = {}
    for kernel in KERNELS:
        archs_of.setdefault(replace(kernel, arch=ARCHES[0], dtype=DTYPES[0]), []).append(kernel.arch)

    def has_its_turn(kernel: BackwardKernel) -> bool:
        of_kernel = list(dict.fromkeys(archs_of[replace(kernel, arch=ARCHES[0], dtype=DTYPES[0])]))
        return len(of_kernel) == 1 or of_kernel.index(kernel.arch) % 2 == DTYPES.index(kernel.dtype)

    return [kernel for kernel in KERNELS if kernel.kernel != "sm80" or has_its_turn(kernel)]


def _alike(kernel: BackwardKernel) -> tuple[str, ...]:
    return ("naive", kernel.dtype) if kernel.kernel == "naive" else (kernel.arch, kernel.part)


TURNS = in_turn(_with_dtypes_in_turn(), 10, _alike)


def test_each_run_compiles_each_part_for_each_architecture() -> None:
    for turn in every_turn(TURNS):
        run = of_turn(TURNS, turn)
        for arch in ARCHES:
            assert {k.part for k in run if k.arch == arch} == {k.part for k in KERNELS if k.arch == arch}
        assert {(k.dtype, k.kernel) for k in run} == {(k.dtype, k.kernel) for k in KERNELS}


@pytest.mark.parametrize("kernel", TURNS, ids=_name)
def test_compiles_without_a_spill(kernel: BackwardKernel) -> None:
    found = compiled_without_a_spill(kernel)
    assert re.search(r"\b0 bytes stack frame", found.log), found.log


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("part", ["dkdv", "dq", "fused"])
def test_two_thread_blocks_fit_a_multiprocessor_up_to_64_columns(arch: str, part: str) -> None:
    """They hide each other's barriers and loads: 4 warps alone would not."""
    kernel = next(k for k in KERNELS if (k.arch, k.part, k.widest, k.kernel) == (arch, part, 64, "sm80"))
    assert 2 * kernel.threads * 255 <= REGISTERS_A_MULTIPROCESSOR
    assert 2 * (kernel.smem_bytes + 1024) <= SMEM_LIMIT_BYTES[arch] + 1024  # a KiB is the driver's


@pytest.mark.parametrize(
    ("head_dim", "columns", "blocks"),
    [
        *((64, 64, 1), (128, 128, 1), (144, 80, 2), (160, 96, 2), (176, 96, 2), (192, 128, 2)),
        *((208, 112, 2), (224, 128, 2), (240, 128, 2), (256, 128, 2), (272, 64, 5), (1024, 64, 16)),
    ],
)
def test_columns_of_dk_and_dv_are_cut_where_the_swizzle_begins_anew(
    head_dim: int, columns: int, blocks: int
) -> None:
    spec = _of_width(head_dim)
    assert (spec.part("dkdv").columns, spec.part("dkdv").column_blocks) == (columns, blocks)
    if head_dim <= 256:
        chunks = head_dim // 8
        group = next(g for g in (8, 4, 2, 1) if chunks % g == 0)
        assert blocks == 1 or columns % (8 * group) == 0
        assert (spec.part("dq").columns, spec.part("dq").column_blocks) == (head_dim, 1)
    else:
        assert (spec.part("dq").columns, spec.part("dq").column_blocks) == (columns, blocks)
    assert columns * (blocks - 1) < head_dim <= columns * blocks
    assert spec.part("prepare").column_blocks == 1


@pytest.mark.parametrize(
    ("head_dim", "rows"),
    [(16, 256), (32, 256), (48, 128), (64, 128), (80, 64), (128, 64), (144, 32), (256, 32), (1024, 32)],
)
def test_rows_of_a_block_that_prepares(head_dim: int, rows: int) -> None:
    assert _of_width(head_dim).part("prepare").prepared_rows == rows


@pytest.mark.parametrize("part", ["dkdv", "dq"])
def test_a_tile_that_the_warps_do_not_divide_is_refused(part: str) -> None:
    """16 or 32 tokens of those that the thread block owns are a warp's."""
    for bad in (TileShape(32, 32, 1, 4), TileShape(256, 256, 1, 4)):
        with pytest.raises(ValueError, match="16 or 32"):
            BackwardSpec(arch="sm_90", kernel="sm80", dtype="float16", head_dim=64, dkdv=bad, dq=bad).part(
                part
            )


def test_no_kernel_adds_to_memory_of_another_block() -> None:
    """The same call gives the same bits."""
    names = [f"omni/sm80/backward{of}.cuh" for of in ("", "_block", "_gemm", "_mask", "_tiled")]
    for name in [*names, "attention_bwd_sm80.cu", "attention_bwd_naive.cu", "attention_bwd_delta.cu"]:
        text = (kernels_dir() / name).read_text()
        assert "atomic" not in text, name
        assert not re.search(r"\bred\.|\badd_to_sums\b", text), name

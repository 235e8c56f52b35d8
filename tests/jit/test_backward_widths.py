"""jit/backward_spec.py: kernels for values of another width than keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backward_specs import NAIVE, SM80, SM90, WIDE

from omnicupy.choose import backward_table
from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.jit.backward_spec import BackwardSpec

PANEL = 2 * 64  # bytes of a row of 64 columns
LATENT = WIDE | {"head_dim": 192, "value_dim": 128}


def test_values_are_as_wide_as_keys_where_nothing_is_said() -> None:
    for given in (SM80, SM90, NAIVE, WIDE):
        spec = BackwardSpec(**given)
        assert spec == BackwardSpec(**given, value_dim=given["head_dim"])
        assert hash(spec) == hash(BackwardSpec(**given, value_dim=np.int64(given["head_dim"])))
        assert "value_dim" not in str(spec)
        assert {kernel.value_dim for kernel in spec.kernels().values()} == {spec.head_dim}


def test_both_widths_reach_every_kernel() -> None:
    spec = BackwardSpec(**LATENT)
    assert str(spec) == "bwd sm90 sm_90a bfloat16 head_dim=192 value_dim=128 dkdv=64x64x2x12 dq=128x64x3x12"
    assert spec != BackwardSpec(**LATENT | {"value_dim": 192})
    for kernel in spec.kernels().values():
        macros = kernel.defines()
        assert (macros["OMNI_HEAD_DIM"], macros["OMNI_VALUE_DIM"]) == (192, 128)
        assert " head_dim=192 value_dim=128 " in str(kernel)


@pytest.mark.parametrize(
    ("given", "value_dim"), [(SM80, 72), (SM80, 0), (SM80, 272), (SM90, 264), (NAIVE, -16), (NAIVE, 1024)]
)
def test_widths_that_no_kernel_has(given: dict[str, Any], value_dim: int) -> None:
    head_dim = given["head_dim"]
    with pytest.raises(ValueError) as caught:
        BackwardSpec(**given, value_dim=value_dim)
    assert str(caught.value) == (
        "config: value_dim must be head_dim, or both multiples of 16 from 16 to 256, got "
        f"head_dim={head_dim} and value_dim={value_dim}"
    )
    with pytest.raises(ValueError, match="got head_dim=272 and value_dim=64"):
        BackwardSpec(**NAIVE | {"head_dim": 272, "value_dim": 64})


@pytest.mark.parametrize("value", [2.0, "64", True, np.float32(64), [64]])
def test_the_width_of_values_is_an_integer(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        BackwardSpec(**SM80, value_dim=value)
    assert str(caught.value) == (
        f"config: value_dim must be an integer, got {type(value).__name__} {value!r}; pass a whole number"
    )


@pytest.mark.parametrize("widths", [(64, 144), (144, 64)])
def test_one_kernel_for_all_gradients_takes_two_narrow_widths(widths: tuple[int, int]) -> None:
    given = SM80 | dict(zip(("head_dim", "value_dim"), widths, strict=True))
    with pytest.raises(ValueError, match=r"head_dim and value_dim up to 128, got br=64 and 144; leave fused"):
        BackwardSpec(**given | {"fused": TileShape(64, 64, 1, 4), "dkdv": TileShape(32, 64, 1, 4)})


@pytest.mark.parametrize("widths", [(192, 128), (128, 192), (64, 256)])
def test_wide_values_or_keys_take_two_warpgroups_on_hopper(widths: tuple[int, int]) -> None:
    given = SM90 | dict(zip(("head_dim", "value_dim"), widths, strict=True))
    with pytest.raises(ValueError, match="dkdv above 128 columns has 64 keys and 12 warps"):
        BackwardSpec(**given | {"dkdv": TileShape(64, 128, 2, 12), "dq": TileShape(128, 64, 3, 12)})
    BackwardSpec(**given | {"dkdv": TileShape(64, 64, 2, 12), "dq": TileShape(128, 64, 3, 12)})


def test_shared_memory_holds_either_tensor_at_its_width() -> None:
    """Of the tiles: K and V of the keys, Q and dO of two stages, P; then Q and dO, and K or V in turn."""
    spec = BackwardSpec(**LATENT)
    rest = 8 * 2 * 64 + 2 * 8 * 64 + 1024  # statistics, spans, work
    assert spec.part("dkdv").smem_bytes == (3 + 2) * PANEL * (64 + 2 * 64) + 4 * 64 * 64 + rest
    assert spec.part("dq").smem_bytes == (3 + 2) * PANEL * 128 + 3 * 3 * PANEL * 64 + 2 * 8 * 64 * 2 + 1024
    turned = BackwardSpec(**LATENT | {"head_dim": 128, "value_dim": 192})
    assert [turned.part(part).smem_bytes for part in ("dkdv", "dq")] == [
        spec.part(part).smem_bytes for part in ("dkdv", "dq")
    ]
    narrow = BackwardSpec(**SM80, value_dim=32)
    assert narrow.part("dkdv").smem_bytes == 2 * (64 + 32) * (128 + 2 * 64) + 2 * 2 * 4 * 64 + 16 + 2 * 128
    assert BackwardSpec(**NAIVE, value_dim=32).part("dq").smem_bytes == 4 * (64 + 32 + 4 * 128 + 128)


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_shared_memory_of_hopper_kernels_is_a_multiple_of_a_kib(stages: int) -> None:
    """As the size of the struct is whose tiles are aligned so."""
    spec = BackwardSpec(
        **LATENT | {"dkdv": TileShape(64, 64, stages, 12), "dq": TileShape(128, 32, stages, 12)}
    )
    assert [spec.part(part).smem_bytes % 1024 for part in ("dkdv", "dq")] == [0, 0]


@pytest.mark.parametrize(
    ("widths", "columns", "blocks"),
    [
        ((128, 64), (128, 64), 1),
        ((192, 128), (128, 64), 2),
        ((128, 192), (64, 128), 2),
        ((256, 64), (128, 64), 2),  # all of dV in one of the two
        ((32, 160), (32, 96), 2),
        ((144, 16), (80, 16), 2),
        ((240, 256), (128, 128), 2),
    ],
)
def test_columns_of_either_gradient(widths: tuple[int, int], columns: tuple[int, int], blocks: int) -> None:
    head_dim, value_dim = widths
    spec = backward_table.pick("sm_80", "bfloat16", head_dim, value_dim=value_dim)
    kernel = spec.part("dkdv")
    assert (kernel.columns, kernel.value_columns, kernel.column_blocks) == (*columns, blocks)
    assert (spec.part("dq").columns, spec.part("dq").column_blocks) == (head_dim, 1)


@pytest.mark.parametrize(
    ("widths", "rows"), [((192, 128), 32), ((64, 128), 64), ((128, 64), 64), ((16, 256), 32), ((16, 48), 128)]
)
def test_a_block_that_prepares_has_lanes_for_the_wider_row(widths: tuple[int, int], rows: int) -> None:
    spec = backward_table.pick("sm_80", "bfloat16", widths[0], value_dim=widths[1])
    assert spec.part("prepare").prepared_rows == rows


@pytest.mark.parametrize("arch", [arch for arch in SMEM_LIMIT_BYTES if arch != "sm_90a"])
def test_every_pair_up_to_256_columns_has_kernels(arch: str) -> None:
    """The row is that of the greater width, whose tiles hold any narrower tensor."""
    for head_dim in range(16, 257, 16):
        for value_dim in range(16, 257, 16):
            spec = backward_table.pick(arch, "bfloat16", head_dim, value_dim=value_dim)
            assert (spec.head_dim, spec.value_dim) == (head_dim, value_dim)
            whole = backward_table.pick(arch, "bfloat16", max(head_dim, value_dim))
            assert (spec.kernel, spec.dkdv, spec.dq, spec.fused) == (
                whole.kernel,
                whole.dkdv,
                whole.dq,
                whole.fused,
            )

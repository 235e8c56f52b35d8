"""jit/widths.py and the widths of jit/spec.py: which kernels tensors get whose values have another width than keys."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from omnicupy.choose import table
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec
from omnicupy.jit.widths import kernel_widths

SM90: dict[str, Any] = {"arch": "sm_90a", "kernel": "sm90", "dtype": "bfloat16", "head_dim": 192}
SM90 |= {"br": 128, "bc": 128, "stages": 2, "warps": 12}


@pytest.mark.parametrize(
    ("tensors", "kernel"),
    [
        ((64, 64), (64, 64)),
        ((56, 56), (64, 64)),
        ((1000, 1000), (1008, 1008)),
        ((192, 128), (192, 128)),
        ((72, 40), (80, 48)),
        ((40, 48), (48, 64)),
        ((48, 40), (48, 64)),
        ((8, 256), (16, 256)),
    ],
)
def test_widths_are_rounded_up_and_stay_apart(tensors: tuple[int, int], kernel: tuple[int, int]) -> None:
    assert kernel_widths(*tensors) == kernel


@pytest.mark.parametrize("widths", [(576, 512), (512, 576), (264, 64), (64, 264), (248, 256), (256, 248)])
def test_pairs_that_no_kernel_serves_are_named(widths: tuple[int, int]) -> None:
    with pytest.raises(
        UnsupportedError, match=f"v has {widths[1]} columns .* {widths[0]}: .* at most 256 .* 512"
    ):
        kernel_widths(*widths)


def test_a_spec_is_as_wide_as_keys_unless_told() -> None:
    spec = AttnSpec(**SM90 | {"head_dim": 128})
    assert spec.value_dim == 128
    assert spec == replace(spec, value_dim=128)
    assert hash(spec) == hash(AttnSpec(**asdict(spec)))
    assert spec != replace(spec, value_dim=64)


@pytest.mark.parametrize(
    ("head_dim", "value_dim"), [(192, 120), (192, 0), (192, -16), (192, 272), (272, 256), (576, 512)]
)
def test_other_widths_are_refused(head_dim: int, value_dim: int) -> None:
    for kernel in ("naive", "sm80"):
        with pytest.raises(
            ValueError, match="config: value_dim must be head_dim, or both multiples of 16 from 16 to 256"
        ):
            AttnSpec(
                arch="sm_80",
                kernel=kernel,
                dtype="float16",
                head_dim=head_dim,
                value_dim=value_dim,
                br=64,
                bc=32,
            )


def test_memory_counts_both_widths() -> None:
    """Tiles that do not fit for values as wide as keys fit for narrower ones."""
    with pytest.raises(ValueError, match="shared memory"):
        AttnSpec(**SM90)
    spec = AttnSpec(**SM90, value_dim=128)
    spans, rest = 2 * 2 * 128 * 8, 1024
    assert spec.smem_bytes == 2 * 192 * 128 + 2 * 2 * (192 + 128) * 128 + spans + rest
    assert (spec.out_columns, spec.value_pieces) == (128, 1)
    sm80 = AttnSpec(
        arch="sm_80", kernel="sm80", dtype="float16", head_dim=64, value_dim=128, br=64, bc=64, stages=1
    )
    assert sm80.smem_bytes == 2 * 64 * 64 + 2 * 64 * (64 + 128) + 2 * 2 * 64 * 8
    assert replace(sm80, share_kv=True).smem_bytes == 2 * 64 * 64 + 2 * 64 * 128 + 2 * 2 * 64 * 8


def test_columns_above_256_are_owned_in_pieces() -> None:
    spec = AttnSpec(arch="sm_80", kernel="sm80", dtype="float16", head_dim=576, br=64, bc=32)
    assert (spec.value_dim, spec.out_columns, spec.value_pieces) == (576, 192, 3)
    assert (spec.defines()["OMNI_VALUE_DIM"], spec.defines()["OMNI_OUT_COLUMNS"]) == (576, 192)


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90"])
def test_some_row_of_the_table_serves_every_pair(arch: str) -> None:
    """And every row that serves one has a legal tile for it."""
    for head_dim in range(16, 257, 16):
        for value_dim in range(16, 257, 16):
            rows = [row for row in table.TABLE if row.serves(arch, "float16", head_dim, value_dim)]
            specs = [row.spec(arch, "float16", head_dim, value_dim) for row in rows]
            assert {(spec.head_dim, spec.value_dim) for spec in specs} == {(head_dim, value_dim)}
            assert any(row.shape == "any" for row in rows)


def test_rows_of_a_pair_serve_no_other() -> None:
    of_pairs = [row for row in table.TABLE if row.value_dim is not None]
    assert table.PAIRS == ((192, 128),)
    for row in of_pairs:
        assert not any(row.serves("sm_90", "float16", 192, wide) for wide in (None, 112, 144, 192))
        assert row.serves("sm_90", "float16", 192, 128)
    assert {
        replace(AttnSpec(**SM90, value_dim=128), dtype=dtype) for dtype in ("float16", "bfloat16")
    } <= set(table.rows())

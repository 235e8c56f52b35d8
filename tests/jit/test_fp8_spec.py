"""The variants of forward kernels for caches of e4m3, as values."""

from __future__ import annotations

from typing import Any

import pytest

from omnicupy.errors import UnsupportedError
from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.spec import AttnSpec


def _sm90(**fields: Any) -> AttnSpec:
    return AttnSpec(arch="sm_90a", kernel="sm90", dtype="bfloat16", br=64, warps=8, **fields)


def test_stages_give_way_to_what_finds_tiles() -> None:
    for fields, stages in (
        ({"head_dim": 128, "bc": 128, "stages": 2}, 2),
        ({"head_dim": 128, "bc": 192, "stages": 2}, 1),
        ({"head_dim": 64, "bc": 256, "stages": 3}, 2),
    ):
        spec = Fp8Spec.of_e4m3(_sm90(**fields), in_pages=True)
        assert spec.stages == stages
        assert spec.smem_bytes <= SMEM_LIMIT_BYTES["sm_90a"]


def test_wide_instructions_leave_one_warpgroup_that_converts() -> None:
    for fields, converters in (
        ({"head_dim": 128, "bc": 128}, 8),
        ({"head_dim": 192, "bc": 64}, 8),
        ({"head_dim": 256, "bc": 64}, 4),
        ({"head_dim": 256, "value_dim": 128, "bc": 64}, 8),
        ({"head_dim": 64, "bc": 256}, 4),
    ):
        spec = Fp8Spec.of_e4m3(_sm90(**fields), in_pages=False)
        assert (spec.apart_warps, spec.threads) == (converters, 256 + 32 * converters)
        assert spec.defines()["OMNI_CONVERTERS"] == converters
    sm80 = AttnSpec(arch="sm_80", kernel="sm80", dtype="bfloat16", head_dim=64, br=64, bc=64)
    assert Fp8Spec.of_e4m3(sm80, in_pages=False).threads == sm80.threads


def test_a_tile_that_fits_nowhere_is_refused() -> None:
    plain = _sm90(head_dim=192, value_dim=256, bc=224)
    with pytest.raises(
        UnsupportedError, match="k: tiles of bc=224 keys of head_dim 192 do not fit shared memory"
    ):
        Fp8Spec.of_e4m3(plain, in_pages=True)

"""Every row of tune.py compiles for every architecture it names: no spill, no warning, registers that fit."""

from __future__ import annotations

import pytest

from omnicupy import cache, tune
from omnicupy.spec import AttnSpec

REGISTERS_A_MULTIPROCESSOR = 65536
NAIVE = [
    AttnSpec(arch=arch, kernel="naive", dtype=dtype, head_dim=128, br=64, bc=64)
    for arch in (tune.ARCHES[0], tune.ARCHES[-1])
    for dtype in ("float16", "bfloat16")
]


def _name(spec: AttnSpec) -> str:
    dtype = {"float16": "f16", "bfloat16": "bf16"}[spec.dtype]
    tile = f"{spec.br}x{spec.bc}-s{spec.stages}-w{spec.warps}"
    return f"{spec.kernel}-{spec.arch}-{dtype}-d{spec.head_dim}-{tile}"


@pytest.mark.parametrize("spec", [*tune.rows(), *NAIVE], ids=_name)
def test_compiles_without_a_spill(spec: AttnSpec) -> None:
    found = cache.entry(spec)
    assert found.registers > 0, found.log
    assert found.spill_bytes == 0, found.log
    assert found.warnings == (), found.log
    assert found.registers * spec.threads <= REGISTERS_A_MULTIPROCESSOR, found.log
    assert f"'{spec.entry}'" in found.log

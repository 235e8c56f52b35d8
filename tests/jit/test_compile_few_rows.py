"""The kernel for few query rows compiles: no spill, no warning, registers that fit."""

from __future__ import annotations

from itertools import product

import pytest
from cubin_code import WARPSYNC, opcodes
from turns import in_turn

from omnicupy.jit import cache
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.spec import DTYPES, AttnSpec

REGISTERS_A_MULTIPROCESSOR = 65536

# Of few rows each width, of e4m3 and of 16 bits, in pages or not, with the dtypes in turn; of e4m3 each shape.
SPECS = [
    FewRowsSpec.of(
        AttnSpec(arch="sm_90a", kernel="sm90", dtype=dtype, head_dim=head_dim, br=64, bc=64, warps=8),
        **shape,
    ).for_caches(e4m3=e4m3, in_pages=in_pages, ragged=in_pages)
    for i, (head_dim, e4m3, in_pages) in enumerate(product((64, 128), (True, False), (False, True)))
    for shape in ({}, {"compute_warps": 12, "blocks": 1})[: 1 + e4m3]
    for dtype in [DTYPES[(i + len(shape) // 2) % 2]]
]


@pytest.mark.parametrize("spec", in_turn(SPECS, 6), ids=str)
def test_few_rows_compile_without_a_spill_and_are_known_to_be_uniform(spec: FewRowsSpec) -> None:
    found = cache.entry(spec)
    assert (found.spill_bytes, found.warnings) == (0, ()), found.log
    assert found.registers * spec.threads * spec.blocks <= REGISTERS_A_MULTIPROCESSOR
    assert not set(opcodes(cache.cubin(spec).read_bytes(), spec.entry)) & WARPSYNC

"""The kernel for few query rows compiles: no spill, no warning, registers that fit."""

from __future__ import annotations

from itertools import product

import pytest
from cubin_code import WARPSYNC, opcodes
from turns import in_turn

from omnicupy.jit import cache
from omnicupy.jit.few_rows_spec import FEWER_ROWS, ROWS, FewRowsSpec
from omnicupy.jit.spec import DTYPES, AttnSpec

REGISTERS_A_MULTIPROCESSOR = 65536

# Each width, of e4m3 and of 16 bits, in pages or not, and under masks, with the dtypes in turn, in each shape that is
# chosen, for 8 rows and for 16.
SHAPES = {True: ((6, 2), (12, 1)), 64: ((8, 2),), 128: ((12, 1),)}
SPECS = [
    FewRowsSpec.of(
        AttnSpec(arch="sm_90a", kernel="sm90", dtype=DTYPES[i % 2], head_dim=head_dim, br=64, bc=64, warps=8),
        compute_warps=warps,
        blocks=blocks,
        most_rows=most_rows,
    ).for_caches(e4m3=e4m3, in_pages=in_pages, ragged=in_pages)
    for i, (head_dim, e4m3, in_pages) in enumerate(product((64, 128), (True, False), (False, True)))
    for warps, blocks in SHAPES[e4m3 or head_dim]
    for most_rows in (FEWER_ROWS, ROWS)
]
SPECS += [spec.for_masks() for spec in SPECS if not spec.e4m3 and not spec.page]
# LDGSTS, the instruction of cp.async: to an address that is a register, or a register and a uniform one.
LDGSTS, LDGSTS_UNIFORM = 0xFAE, 0xDAE


@pytest.mark.parametrize("spec", in_turn(SPECS, 6), ids=str)
def test_few_rows_compile_without_a_spill_and_are_known_to_be_uniform(spec: FewRowsSpec) -> None:
    found = cache.entry(spec)
    assert (found.spill_bytes, found.warnings) == (0, ()), found.log
    assert found.registers * spec.threads * spec.blocks <= REGISTERS_A_MULTIPROCESSOR
    assert not set(opcodes(cache.cubin(spec).read_bytes(), spec.entry)) & WARPSYNC
    # With a policy for L2 and a uniform register in the address, ptxas encodes no pair of registers for the policy.
    copies = [
        one for one in opcodes(cache.cubin(spec).read_bytes(), spec.entry) if one in (LDGSTS, LDGSTS_UNIFORM)
    ]
    assert copies
    assert LDGSTS_UNIFORM not in copies

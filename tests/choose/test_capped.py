"""What calls with soft caps get in place of the tables' rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from turns import in_turn

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, pick, table, variants
from omnicupy.choose.capped import capped, capped_backward
from omnicupy.choose.classes import class_of
from omnicupy.jit import cache, nvrtc
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.jit.finishing import FINISHING_PARTS, TICKET_PARTS
from omnicupy.jit.spec import KernelSpec

PROBLEM = Problem(2, 32, 8, 4096, 4096, 128, "bfloat16")


# A row at its greatest head_dim, on the first architecture that it serves: soft caps need registers, which all have
# alike. Variants for short block rows serve no soft caps.
def _forward() -> Iterator[KernelSpec]:
    """Tiles that take another's place are among them."""
    for row in table.TABLE:
        for widths in row.widths(every=False) if row.shape != "short" and row.kernel != "naive" else ():
            yield capped(row.spec(row.archs[0], "bfloat16", *widths))


def _backward() -> Iterator[KernelSpec]:
    for row in backward_table.TABLE:
        if row.kernel != "naive":
            spec = capped_backward(row.spec(row.archs[0], "bfloat16", row.head_dims[1]))
            yield from (part for part in spec.kernels().values() if part.softcap)


KERNELS = [
    *in_turn(_forward(), 10, lambda spec: spec.kernel),
    *in_turn(_backward(), 10, lambda part: (part.kernel, part.part)),
]


@pytest.mark.parametrize("spec", KERNELS, ids=str)
def test_no_capped_kernel_spills(spec: KernelSpec) -> None:
    try:
        nvrtc.version()
    except oc.UnsupportedError as error:
        pytest.skip(str(error))
    found = cache.entry(spec)
    assert (found.spill_bytes, found.warnings) == (0, ())


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("head_dim", [64, 128, 256, 320])
def test_a_soft_cap_asks_for_kernels_that_have_one(arch: str, head_dim: int) -> None:
    problem, mask = replace(PROBLEM, head_dim=head_dim, value_dim=None), oc.causal(4096)
    plain = pick.pick(arch, problem, [mask], 132)
    found = pick.pick(arch, replace(problem, softcap=True), [mask], 132)
    assert not plain.softcap
    assert found == capped(plain)
    assert found.softcap
    of_backward = backward_table.pick(arch, "bfloat16", head_dim)
    with_cap = backward_table.pick(arch, "bfloat16", head_dim, softcap=True)
    assert with_cap == capped_backward(of_backward)
    assert {part: kernel.softcap for part, kernel in with_cap.kernels().items()} == {
        part: part in ("dkdv", "dq", "fused", "ordered", *FINISHING_PARTS, *TICKET_PARTS)
        for part in with_cap.kernels()
    }
    assert not any(kernel.softcap for kernel in of_backward.kernels().values())
    assert with_cap.part("prepare") == of_backward.part("prepare")


@pytest.mark.parametrize("split", [None, 384])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_packed_tiles_cap_scores_too(head_dim: int, split: int | None) -> None:
    problem = replace(PROBLEM, q_len=4, head_dim=head_dim, value_dim=None, softcap=True)
    found = pick.pick("sm_90", problem, [oc.full(4, 4096)], 132, split=split)
    assert (found.pack, found.softcap) == (True, True)
    assert 384 % found.bc == 0


def test_a_capped_tile_divides_what_parts_may_be_of() -> None:
    """Parts of 384 keys serve every kernel of the table that splits rows."""
    assert all(384 % capped(spec).bc == 0 for spec in table.rows() if spec.kernel == "sm90")


def test_tiles_that_would_spill_are_smaller() -> None:
    wide = variants.parse("sm90-192x128-s3-w16", "sm_90", "bfloat16", 64)
    assert variants.word(capped(wide)) == "sm90-192x96-s3-w16-softcap"
    tall = variants.parse("sm80-128x64-s1-w4", "sm_90", "bfloat16", 128)
    assert capped(tall) == replace(tall, warps=8, softcap=True)
    narrow = variants.parse("sm80-128x64-s1-w4", "sm_80", "bfloat16", 64)
    assert capped(narrow) == replace(narrow, softcap=True)
    for word, head_dim, instead in (
        ("sm80-128x96-s2-w4", 48, "sm80-128x96-s2-w8-softcap"),
        ("sm80-64x64-s2-w4", 272, "sm80-64x32-s2-w4-softcap"),
        ("sm80-64x64-s1-w4", 256, "sm80-64x64-s1-w4-softcap"),
    ):
        spec = variants.parse(word, "sm_90", "bfloat16", head_dim)
        assert variants.word(capped(spec)) == instead
    assert capped_backward(backward_table.pick("sm_90", "bfloat16", 64)).fused == TileShape(64, 128, 4, 12)


@pytest.mark.parametrize(
    "word",
    [
        "naive-softcap",
        "sm80-64x64-s1-w4-shared-softcap",
        "sm90-128x128-s2-w12-solo-softcap",
        "sm90-64x128-s2-w8-packed-softcap",
    ],
)
def test_words_name_capped_kernels(word: str) -> None:
    spec = variants.parse(word, "sm_90", "bfloat16", 128)
    assert spec.softcap
    assert variants.word(spec) == word
    assert spec.defines()["OMNI_SOFTCAP"] == 1


def test_classes_tell_capped_problems_apart() -> None:
    plain, cap = (class_of(replace(PROBLEM, softcap=one), [oc.causal(4096)], 132) for one in (False, True))
    assert (plain.softcap, cap.softcap) == (False, True)
    assert replace(cap, softcap=False) == plain
    with pytest.raises(ValueError, match="softcap: expected a bool"):
        replace(plain, softcap=1)

"""choose/backward_table.py: every architecture, dtype and head_dim gets kernels of a backward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table
from omnicupy.choose.backward_table import LARGE, SMALL, TABLE, pick, rows
from omnicupy.errors import UnsupportedError
from omnicupy.jit.archs import ARCHES, SMEM_LIMIT_BYTES
from omnicupy.jit.backward_kernel import PARTS, WIDE_HEAD_DIM, TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import DTYPES, MAX_HEAD_DIM, MAX_ONE_PIECE
from omnicupy.schedule import backward_grid


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_head_dim_gets_kernels(arch: str, dtype: str) -> None:
    for head_dim in range(8, MAX_HEAD_DIM + 1, 8):
        spec = pick(arch, dtype, head_dim)
        padded = -(-head_dim // 16) * 16
        assert (spec.dtype, spec.head_dim) == (dtype, padded)
        hopper = arch == "sm_90" and padded <= MAX_ONE_PIECE
        assert (spec.kernel, spec.arch) == (("sm90", "sm_90a") if hopper else ("sm80", arch))
        for kernel in spec.kernels().values():
            assert kernel.smem_bytes <= SMEM_LIMIT_BYTES[kernel.arch]


def test_rows_leave_no_gap_and_list_each_combination_once() -> None:
    for arch in ARCHES:
        for padded in range(16, MAX_HEAD_DIM + 1, 16):
            of_kernel = [row.kernel for row in TABLE if row.serves(arch, padded)]
            assert of_kernel.count("sm80") == 1
            assert of_kernel.count("sm90") == (arch == "sm_90" and padded <= MAX_ONE_PIECE)
            assert of_kernel[0] == ("sm90" if "sm90" in of_kernel else "sm80")
    listed = list(rows())
    assert (
        len(listed)
        == len(set(listed))
        == sum(
            (1 + (row.few is not None) + (row.full is not None)) * len(row.archs) * len(DTYPES)
            for row in TABLE
        )
    )
    assert sorted((*SMALL, *LARGE)) == sorted(ARCHES)


def test_the_rows_of_the_tests_are_the_widest_of_each_range() -> None:
    """What fits there fits for each narrower head_dim of the row."""
    for row in TABLE:
        least, most = row.head_dims
        for arch in row.archs:
            for part in PARTS:
                bytes_of = [
                    row.spec(arch, "bfloat16", head_dim).part(part).smem_bytes
                    for head_dim in range(least, most + 1, 16)
                ]
                assert bytes_of == sorted(bytes_of)


def test_no_row_spans_the_two_forms_of_dk_and_dv_on_hopper() -> None:
    """Above this head_dim a warpgroup has a role, and another number of keys is right."""
    assert any(row.head_dims[1] == WIDE_HEAD_DIM for row in TABLE if row.kernel == "sm90")


def test_every_row_up_to_the_widest_has_one_kernel_for_all_gradients() -> None:
    for row in TABLE:
        for arch in row.archs:
            for dtype in DTYPES:
                for padded in range(row.head_dims[0], row.head_dims[1] + 1, 16):
                    spec = row.spec(arch, dtype, padded)
                    assert (spec.fused is not None) == (padded <= WIDE_HEAD_DIM)


def test_what_is_not_served_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward_table, "SERVED", frozenset())
    with pytest.raises(UnsupportedError) as raised:
        pick("sm_90", "bfloat16", 64)
    assert str(raised.value) == (
        "attention_backward: no kernel serves bfloat16 with head_dim 64 on sm_90; pass NumPy arrays for the CPU"
    )
    monkeypatch.setattr(backward_table, "SERVED", frozenset({"sm80"}))
    assert (pick("sm_90", "float16", 64).kernel, pick("sm_90", "float16", 64).arch) == ("sm80", "sm_90")


@pytest.mark.parametrize("head_dim", [8, 64, 136, 1024])
def test_the_plain_kernels_serve_all(head_dim: int) -> None:
    for arch in ARCHES:
        spec = backward_table.naive(arch, "float16", head_dim)
        assert (spec.kernel, spec.arch, spec.head_dim) == ("naive", arch, -(-head_dim // 16) * 16)


def _have_one(problem: Problem, mask: oc.Mask) -> tuple[bool, bool]:
    """Does one kernel make all gradients of a call in any order, and of one in one order?"""
    in_any, in_one = (
        backward_table.chosen_for("sm_90", problem, (mask,), deterministic=order) for order in (False, True)
    )
    return in_any.fused is not None, in_one.ordered is not None


def test_sums_of_a_few_additions_take_two_kernels_in_any_order_too() -> None:
    def parts(mask: oc.Mask, head_dim: int = 128, group: int = 1) -> tuple[bool, bool]:
        problem = Problem(4, 4 * group, 4, *mask.shape, head_dim, "bfloat16")
        return _have_one(problem, mask)

    few = (oc.full(512), oc.causal(1024), oc.full(576, 512))  # 4, 4.5 and 4 additions to a sum
    fewer = (oc.full(384), oc.causal(512), oc.sliding_window(1024, left=128))  # 3, 2.5 and 2
    for mask in few:
        assert parts(mask) == parts(mask, 80) == (False, False)
        assert parts(mask, 64) == (True, False)
        assert parts(mask, 128, 4) == parts(mask, 80, 4) == (True, True)
    for mask in fewer:
        assert parts(mask) == parts(mask, 96) == parts(mask, 128, 8) == (False, False)
        assert parts(mask, 80) == parts(mask, 80, 8) == (True, True)
    for mask in (oc.full(128), oc.full(640), oc.causal(2048)):  # 1, 5 and 8.5
        assert parts(mask) == parts(mask, 80) == parts(mask, 128, 8) == (True, True)
    problem = Problem(2, 16, 16, 640, 640, 128, "bfloat16")
    batch = (oc.full(640), oc.causal(640))  # 5 and 3
    assert backward_table.chosen_for("sm_90", problem, batch).ordered is None


def test_sums_of_few_additions_have_a_tile_of_their_own_in_any_order() -> None:
    def chosen(mask: oc.Mask, head_dim: int = 64, batch: int = 4, *, order: bool = False) -> BackwardSpec:
        problem = Problem(batch, 16, 16, *mask.shape, head_dim, "bfloat16")
        return backward_table.chosen_for("sm_90", problem, (mask,), deterministic=order)

    usual = backward_table.pick("sm_90", "bfloat16", 64)
    few = replace(usual, fused=TileShape(64, 128, 4, 12))
    assert few in rows()
    assert few in backward_table.every_spec()
    assert few.part("fused").may_finish
    for mask in (oc.full(512), oc.causal(1024), oc.full(640)):  # 4, 4.5 and 5 additions to a sum
        assert chosen(mask) == few
        problem = Problem(4, 16, 16, *mask.shape, 64, "bfloat16")
        assert backward_grid.makes_all_part(few.kernels(), problem, (mask,), deterministic=False) == "tickets"
        assert chosen(mask, order=True).fused == usual.fused
        assert chosen(mask, 48) == backward_table.pick("sm_90", "bfloat16", 48)
    for mask in (oc.causal(640), oc.full(768), oc.causal(2048)):  # 3, 6 and 8.5
        assert chosen(mask) == usual
    assert (
        chosen(oc.full(512), batch=512) == chosen(oc.causal(1024), batch=256) == usual
    )  # more than 1 GiB of sums


def test_full_masks_of_many_additions_have_a_tile_of_their_own_in_one_order() -> None:
    def chosen(
        mask: oc.Mask, *masks: oc.Mask, order: bool = True, head_dim: int = 64, softcap: bool = False
    ) -> BackwardSpec:
        problem = Problem(2, 16, 16, *mask.shape, head_dim, "bfloat16", softcap=softcap)
        return backward_table.chosen_for("sm_90", problem, (mask, *masks), deterministic=order)

    usual = backward_table.pick("sm_90", "bfloat16", 64)
    full = replace(usual, ordered=TileShape(64, 128, 4, 16))
    assert full in rows()
    assert full in backward_table.every_spec()
    assert not full.part("ordered").may_finish
    assert chosen(oc.full(7680)) == chosen(oc.full(16384)) == chosen(oc.full(16384), oc.full(16384)) == full
    assert chosen(oc.full(7552)) == chosen(oc.full(7680), order=False) == chosen(oc.causal(16384)) == usual
    both = oc.full(16384), oc.causal(16384)
    assert chosen(*both) == chosen(*reversed(both)) == usual
    assert chosen(oc.full(8192, 7680)) == full
    assert chosen(oc.full(8064, 8192)) == usual  # fewer queries than keys
    most = 128 * int((backward_grid.MOST_RANKS / 2) ** 0.5)  # tokens, all of whose tiles have ranks
    assert chosen(oc.full(most)) == full
    assert chosen(oc.full(most + 128)) == chosen(oc.full(200_000)) == usual
    assert chosen(oc.full(8192), head_dim=48) == backward_table.pick("sm_90", "bfloat16", 48)
    assert chosen(oc.full(8192), softcap=True) == backward_table.pick("sm_90", "bfloat16", 64, True)


def test_blocks_of_192_keys_leave_sums_of_a_few_additions_to_two_kernels() -> None:
    def parts(mask: oc.Mask, head_dim: int = 64, softcap: bool = False) -> tuple[bool, bool]:
        problem = Problem(4, 16, 16, *mask.shape, head_dim, "bfloat16", softcap=softcap)
        return _have_one(problem, mask)

    # Additions of blocks of 192 keys in one order, of 128 in any.
    assert parts(oc.causal(512)) == (False, False)  # 1.9 and 2.5
    assert parts(oc.full(512)) == parts(oc.causal(1024)) == (True, False)  # 3 and 4, 3.2 and 4.5
    assert parts(oc.full(960)) == parts(oc.causal(2048)) == (True, True)  # 5 and 8, 5.8 and 8.5
    assert parts(oc.full(1024)) == (True, False)  # 6, but its last block pads 1,024 keys by 128
    assert parts(oc.full(1800, 1300)) == (True, True)  # 7
    assert parts(oc.causal(512), softcap=True) == (True, True)
    for head_dim in (16, 48):  # blocks of 192 keys in any order, too
        assert parts(oc.causal(512), head_dim) == parts(oc.full(1024), head_dim) == (True, False)
        assert parts(oc.causal(2048), head_dim) == (True, True)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_few_queries_on_many_keys_take_two_kernels_in_one_order(head_dim: int) -> None:
    def parts(q_len: int, k_len: int, group: int = 4) -> tuple[bool, bool]:
        problem = Problem(8, 8 * group, 8, q_len, k_len, head_dim, "bfloat16")
        return _have_one(problem, oc.full(q_len, k_len))

    assert (
        parts(64, 8256) == parts(256, 8256, 1) == (True, False)
    )  # a draft tree: one tile of queries, 65 additions
    assert parts(1024, 8256) == parts(512, 8256, 8) == (True, True)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_mask_is_cut_at_the_tiles_of_the_kernels_that_a_call_may_get_alone(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[tuple[int, int]] = []
    key_blocks = oc.Mask.key_blocks
    monkeypatch.setattr(
        oc.Mask, "key_blocks", lambda self, *tile: (cut.append(tile), key_blocks(self, *tile))[1]
    )
    for head_dim, in_one, in_any in ((64, (64, 192), (64, 128)), (128, (64, 128), (64, 128))):
        cut.clear()
        problem = Problem(4, 16, 16, 2048, 2048, head_dim, "bfloat16")
        backward_table.chosen_for("sm_90", problem, (oc.causal(2048),), deterministic=deterministic)
        assert set(cut) == {in_one if deterministic else in_any}

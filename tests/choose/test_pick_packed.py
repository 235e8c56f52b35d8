"""choose/pick.py: when the heads of a group are packed into tiles, and what a split leaves to choose."""

from __future__ import annotations

from dataclasses import replace

import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import paged, pick
from omnicupy.choose import table as choose_table

H100_SMS = 132


@pytest.mark.parametrize(
    ("group", "q_len", "packed"),
    [
        *((group, 1, True) for group in (2, 4, 7, 8, 71)),
        *((7, 9, True), (7, 40, True), (4, 33, True), (8, 32, True), (1, 1, False), (1, 64, False)),
        *((7, 64, False), (4, 64, False), (7, 65, False)),
    ],
)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 192, 256])
def test_few_rows_are_packed_where_that_makes_fewer_tiles(
    head_dim: int, group: int, q_len: int, packed: bool
) -> None:
    problem = Problem(4, 2 * group, 2, q_len, 9000, head_dim, "bfloat16")
    spec = pick.pick("sm_90", problem, (oc.full(q_len, 9000),), H100_SMS)
    assert spec.pack == packed
    assert not pick.pick("sm_80", problem, (oc.full(q_len, 9000),), H100_SMS).pack
    assert pick.pick("sm_90", problem, (oc.full(q_len, 9000),), H100_SMS, mappable=False).kernel == "sm80"


@pytest.mark.parametrize(
    ("group", "q_len", "narrow", "wide"),  # rows of the tile at head_dim 64 and at 128
    [
        *((71, 1, 128, 64), (64, 1, 64, 64), (65, 1, 128, 64), (128, 1, 128, 64), (129, 1, 64, 64)),
        *((7, 2, 64, 64), (7, 3, 64, 128), (7, 6, 64, 128), (7, 7, 64, 64), (7, 9, 64, 64), (7, 10, 128, 64)),
        *((16, 1, 64, 64), (17, 1, 64, 128), (48, 1, 64, 128), (49, 1, 64, 64)),
        *((7, 16, 128, 64), (7, 18, 128, 64), (7, 19, 64, 64), (7, 36, 64, 64)),
    ],
)
def test_two_warpgroups_share_the_rows_of_a_key_head(group: int, q_len: int, narrow: int, wide: int) -> None:
    """Where there are as many as were measured to be faster so, and its keys are cut into few parts."""
    for head_dim, rows in ((16, narrow), (64, narrow), (72, wide), (128, wide), (136, 64), (256, 64)):
        problem = Problem(16, group, 1, q_len, 9000, head_dim, "bfloat16")
        masks = (oc.full(q_len, 9000),)
        spec = pick.pick("sm_90", problem, masks, H100_SMS)
        turns = rows == 64 and 72 <= head_dim <= 128 and 49 <= group * q_len <= 128
        assert (spec.pack, spec.br, spec.warps) == (True, rows, 12 if turns else 4 + rows // 16)
        for fewer in (replace(problem, batch=14), replace(problem, batch=1, kv_heads=4, q_heads=4 * group)):
            assert pick.pick("sm_90", fewer, masks, H100_SMS).rows == 64
            assert pick.pick("sm_90", fewer, masks, H100_SMS).warps == 8
        assert pick.pick("sm_90", problem, masks, H100_SMS, split=384).warps == 8


@pytest.mark.parametrize(("head_dim", "group", "br"), [(64, 70, 128), (128, 28, 128), (128, 64, 64)])
def test_caches_of_e4m3_keep_packed_tiles_of_one_warpgroup(head_dim: int, group: int, br: int) -> None:
    problem = Problem(64, group, 1, 1, 9000, head_dim, "bfloat16")
    masks = (oc.full(1, 9000),)
    pair, single = (pick.pick("sm_90", problem, masks, H100_SMS, split=split) for split in (None, 384))
    assert (pair.br, pair.warps, single.br, single.warps) == (br, 12, 64, 8)
    assert paged.for_e4m3(pair, problem) == paged.for_e4m3(single, problem) == single


@pytest.mark.parametrize("q_len", [1, 64, 65, 512, 5000])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_with_a_split_neither_batch_nor_device_nor_tuned_choices_decide(
    monkeypatch: pytest.MonkeyPatch, head_dim: int, q_len: int
) -> None:
    chosen = choose_table.TABLE[-1].spec("sm_90", "bfloat16", 1024)
    monkeypatch.setattr(pick.saved, "find", lambda *_: chosen)
    found = set()
    for batch, sm_count, make in ((1, 132, oc.causal), (64, 132, oc.full), (1, 8, oc.full)):
        problem = Problem(batch, 28, 4, q_len, 9000, head_dim, "bfloat16")
        found.add(pick.select("sm_90", problem, (make(q_len, 9000),), sm_count, split=384))
    assert len(found) == 1
    assert 384 % found.pop().bc == 0


def test_a_multiple_of_384_is_whole_tiles_of_every_row() -> None:
    assert all(384 % row.bc == 0 for row in choose_table.TABLE)


def test_masks_of_few_rows_are_not_cut_for_the_choice() -> None:
    """Each step of decoding brings new ones, and large tiles are not among its variants."""
    masks = tuple(oc.causal(1, 2000).rows(0, 1, keys) for keys in (1000, 2000))
    for arch in ("sm_80", "sm_90"):
        for split in (None, 512):
            pick.pick(arch, Problem(2, 16, 4, 1, 2000, 128, "bfloat16"), masks, H100_SMS, split=split)
    assert not any(mask._blocks for mask in masks)

"""schedule/sections.py: heads of keys that are worked on side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest

import omnicupy as oc
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.ordered_lists import ordered_lists
from omnicupy.schedule.parts import Workers
from omnicupy.schedule.sections import even_section, section_of
from omnicupy.schedule.ticket_lists import ticket_lists

LOCAL = oc.sliding_window(128 * 256, left=2000)  # a tenth of its tiles
DENSE = oc.causal(128 * 256)


def _section(mask: oc.Mask, heads: int, in_l2: int, *, in_order: bool = True, masks: int = 1) -> int:
    blocks = [mask.key_blocks(64, 128)] * masks
    workers = Workers(heads, 132, side_by_side=in_l2, ordered_sums=in_order)
    return section_of(blocks, masks * blocks[0].k_blocks, workers)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("masks", [1, 3])
def test_eight_heads_are_side_by_side_where_parts_add_to_the_same_sums(in_order: bool, masks: int) -> None:
    for heads, section in ((1, 1), (6, 6), (8, 8), (12, 6), (16, 8), (17, 6), (32, 8)):
        assert _section(DENSE, heads, 1, in_order=in_order, masks=masks) == section


def test_more_are_where_eight_do_not_give_each_multiprocessor_a_part() -> None:
    assert _section(oc.causal(8 * 128), 64, 99) == _section(oc.full(8 * 128), 64, 1) == 16
    assert _section(oc.causal(8 * 128), 30, 99) == 15
    assert _section(oc.causal(8 * 128), 64, 99, masks=3) == 8


@pytest.mark.parametrize(
    ("heads", "in_l2", "in_order", "section"),
    [(16, 3, True, 8), (6, 3, True, 6), (16, 2, True, 1), (16, 2, False, 1), (16, 7, False, 1)],
)
def test_parts_with_sums_of_their_own_stay_in_l2(
    heads: int, in_l2: int, in_order: bool, section: int
) -> None:
    assert _section(LOCAL, heads, in_l2, in_order=in_order) == section
    short = oc.sliding_window(128 * 44, left=200)  # 3 heads have a part a multiprocessor
    assert _section(short, heads, in_l2, in_order=in_order) == min(heads, in_l2, 3)


def test_sections_are_as_large_as_each_other() -> None:
    for heads in range(1, 100):
        for most in range(1, 40):
            section = even_section(heads, most)
            assert 1 <= section <= most
            assert -(-heads // section) == -(-heads // most)
            assert all(-(-heads // less) > -(-heads // most) for less in range(1, section))


def test_lists_have_the_section_of_a_kernel_that_makes_all_gradients() -> None:
    blocks = [oc.causal(2048).key_blocks(64, 128)]
    workers = Workers(64, 132, side_by_side=12)
    assert ticket_lists(blocks, workers).section == key_lists(blocks, workers).section == 8
    assert ordered_lists(blocks, replace(workers, ordered_sums=True)).section == 8
    assert key_lists(blocks, replace(workers, side_by_side=0)).section == 0


def test_a_mask_without_a_pair_has_a_section() -> None:
    assert _section(oc.ranges([], 100, 200), 4, 4) == 4

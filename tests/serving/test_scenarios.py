"""Attention over caches on the CPU engine: the scenarios of serving_scenarios.py."""

from __future__ import annotations

import paged_calls
import pytest
import serving_rows
import serving_scenarios as scenarios
import serving_scores as scores

CPU = scenarios.cpu()
KINDS = pytest.mark.parametrize("size", [None, 1, 16], ids=["contiguous", "page1", "page16"])


@KINDS
def test_unused_slots(size: int | None) -> None:
    scenarios.unused_slots(CPU, size)


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("layout", paged_calls.LAYOUTS)
def test_layouts(layout: str, size: int) -> None:
    scenarios.layouts(CPU, layout, size)


@pytest.mark.parametrize("size", [1, 8, 16, 17, 32, 64, 128, 256])
def test_page_sizes(size: int) -> None:
    scenarios.page_sizes(CPU, size)


def test_37_sequences_of_up_to_100_000_keys() -> None:
    scenarios.ragged(CPU, 64)


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("group", scenarios.GROUPS)
def test_groups(group: int) -> None:
    scenarios.groups(CPU, group)


@pytest.mark.parametrize("window", [None, 1000])
@pytest.mark.parametrize("size", [None, 16], ids=["contiguous", "page16"])
def test_lengths_and_pages_that_change_in_place(size: int | None, window: int | None) -> None:
    scenarios.replays(CPU, size, 2, window)


def test_splits() -> None:
    scenarios.splits(CPU)


@KINDS
@pytest.mark.parametrize(("softcap", "split"), scores.SCORES)
def test_sinks(softcap: float | None, split: int | None, size: int | None) -> None:
    scores.sinks(CPU, size, softcap, split)


@KINDS
@pytest.mark.parametrize("window_last", [False, True])
def test_images_in_chunks(window_last: bool, size: int | None) -> None:
    scores.images_in_chunks(CPU, size, window_last)


@pytest.mark.in_turn(3)
@KINDS
@pytest.mark.parametrize("window", [None, 100])
def test_rows_of_their_own(window: int | None, size: int | None) -> None:
    serving_rows.rows_of_their_own(CPU, size, window)


@KINDS
def test_rows_under_a_split(size: int | None) -> None:
    serving_rows.rows_under_a_split(CPU, size)

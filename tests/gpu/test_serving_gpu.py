"""Attention over caches on a GPU: the scenarios of serving_scenarios.py, which the CPU engine goes through as well."""

from __future__ import annotations

from collections.abc import Iterator

import paged_calls
import pytest
import serving_rows
import serving_scenarios as scenarios
import serving_scores as scores

pytestmark = pytest.mark.gpu
KINDS = pytest.mark.parametrize("size", [None, 8, 16], ids=["contiguous", "page8", "page16"])


@pytest.fixture
def engine() -> Iterator[scenarios.Engine]:
    found = scenarios.gpu()
    yield found
    found.xp.cuda.Device().synchronize()


@KINDS
def test_unused_slots(size: int | None, engine: scenarios.Engine) -> None:
    scenarios.unused_slots(engine, size)


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("layout", paged_calls.LAYOUTS)
def test_layouts(layout: str, size: int, engine: scenarios.Engine) -> None:
    scenarios.layouts(engine, layout, size)


@pytest.mark.parametrize("size", [1, 8, 16, 17, 32, 64, 128, 256])
def test_page_sizes(size: int, engine: scenarios.Engine) -> None:
    scenarios.page_sizes(engine, size)


@pytest.mark.parametrize("size", [17, 64])
def test_37_sequences_of_up_to_100_000_keys(size: int, engine: scenarios.Engine) -> None:
    scenarios.ragged(engine, size)


@pytest.mark.parametrize("group", scenarios.GROUPS)
def test_groups(group: int, engine: scenarios.Engine) -> None:
    if engine.xp.cuda.Device().compute_capability != "90":
        pytest.skip("not a Hopper GPU")
    scenarios.groups(engine, group)


@pytest.mark.parametrize("window", [None, 1000])
@KINDS
def test_a_graph_is_replayed_for_other_lengths_and_pages(
    size: int | None, window: int | None, engine: scenarios.Engine
) -> None:
    scenarios.replays(engine, size, 2, window)


def test_splits(engine: scenarios.Engine) -> None:
    scenarios.splits(engine)


@KINDS
@pytest.mark.parametrize(("softcap", "split"), scores.SCORES)
def test_sinks(softcap: float | None, split: int | None, size: int | None, engine: scenarios.Engine) -> None:
    scores.sinks(engine, size, softcap, split)


@KINDS
@pytest.mark.parametrize("window_last", [False, True])
def test_images_in_chunks(window_last: bool, size: int | None, engine: scenarios.Engine) -> None:
    scores.images_in_chunks(engine, size, window_last)


@KINDS
@pytest.mark.parametrize("window", [None, 100])
def test_rows_of_their_own(window: int | None, size: int | None, engine: scenarios.Engine) -> None:
    serving_rows.rows_of_their_own(engine, size, window)


@pytest.mark.parametrize("size", [None, 16], ids=["contiguous", "page16"])
def test_rows_under_a_split(size: int | None, engine: scenarios.Engine) -> None:
    if engine.xp.cuda.Device().compute_capability != "90":
        pytest.skip("not a Hopper GPU")
    serving_rows.rows_under_a_split(engine, size)

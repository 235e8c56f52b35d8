"""Barriers of the Hopper kernels of the backward pass, under random schedules: all ends, nothing is lost unread."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sm90_apart_model  # noqa: F401 - adds the form "apart"
import sm90_backward_model as model
import sm90_fused_model  # noqa: F401 - adds the forms "fused" and "ahead"
from sm90_backward_block import WARPS, Launch
from sm90_backward_model import play
from sm90_block import Item, Place, Tile

FORMS = [("keys", 1), ("keys", 2), ("keys", 3), ("roles", 2), ("dq", 1), ("dq", 2), ("dq", 3)]
FORMS += [("fused", groups) for groups in (1, 2, 3)]
FORMS += [("ahead", 2), ("apart", 2)]
OF_ALL = ("fused", "ahead", "apart")  # gradients


def _items(draw: random.Random, form: str, groups: int) -> list[Item]:
    """More or fewer than thread blocks, some without a tile; tiles times heads of a group."""
    items = []
    for _ in range(draw.randint(0, 9)):
        heads = draw.choice((1, 2, 3)) if form != "dq" else 1
        tiles = [Tile() for _ in range(heads * draw.choice((0, 0, 1, 2, 3, 5)))]
        if form == "dq" and groups > 1:
            tiles += [Tile(draw.randint(1, 2**groups - 1)) for _ in range(draw.choice((0, 1, 2, 4)))]
        items.append(Item(tuple(tiles)))
    return items


def _launch(form: str, groups: int, seed: int, items: Any = None, **more: Any) -> Launch:
    draw = random.Random(seed)
    sizes = {"stages": draw.randint(2, 6), "blocks": draw.randint(1, 3)} | more
    made = _items(draw, form, groups) if items is None else items
    return Launch(form, groups, items=made, draw=draw, **sizes)


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("stages", [2, 3, 4, 5, 6])
@pytest.mark.parametrize(("form", "groups"), FORMS)
def test_any_schedule_ends_and_keeps_buffers_until_they_are_read(form: str, groups: int, stages: int) -> None:
    for seed in range(12):
        launch = _launch(form, groups, 100 * stages + seed, stages=stages)
        blocks = play(launch)
        assert launch.counter == [0, 0]  # as the launch found them
        if form in OF_ALL:  # dQ of every tile, once
            added = [one for block in blocks for one in block.added]  # type: ignore[attr-defined]
            names = [
                (number, tile) for number, item in enumerate(launch.items) for tile in range(len(item.tiles))
            ]
            assert sorted(added) == [(name, warp) for name in names for warp in range(WARPS)]
        for group in range(groups + launch.more_groups):
            wanted = [
                (number, tile)
                for number, item in enumerate(launch.items)
                for tile, one in enumerate(item.tiles)
                if not one.skips >> group & 1
            ]
            for warp in range(WARPS):
                seen = [launch.seen[block, group, warp] for block in range(launch.blocks)]
                assert all(of_block == sorted(of_block) for of_block in seen)
                assert sorted(name for of_block in seen for name in of_block) == wanted


TILES = (Tile(), Tile(), Tile(), Tile())
ITEMS = [Item(TILES), Item(()), Item(TILES[:1]), Item(TILES), Item(TILES), Item(TILES)]
COMMON = ["work_full", "work_empty"]
OF_KEYS = [*COMMON, "kv_full", "kv_empty", "q_full", "q_empty", "dout_full", "dout_empty"]
LOSSES = [
    *(("keys", barrier) for barrier in OF_KEYS),
    *(("roles", barrier) for barrier in (*OF_KEYS, "weights_full", "weights_empty")),
    *(("dq", barrier) for barrier in (*COMMON, "q_full", "q_empty", "kv_full", "kv_empty")),
    *(
        (form, barrier)
        for form in OF_ALL
        for barrier in (*OF_KEYS, "ds_full", "ds_empty", "sums_full", "sums_empty")
    ),
]


def _play_often(seeds: int = 30, **options: Any) -> None:
    """Until some schedule shows a fault."""
    for seed in range(seeds):
        play(_launch(seed=seed, items=ITEMS, blocks=1, **options))


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize(("form", "barrier"), LOSSES)
def test_the_model_sees_a_lost_arrival(
    monkeypatch: pytest.MonkeyPatch, form: str, barrier: str, lost: int
) -> None:
    monkeypatch.setattr(model, "LONGEST_QUIET", 3000)
    with pytest.raises(AssertionError, match="wait for ever"):
        _play_often(form=form, groups=2, lost_at=barrier, lost=lost, stages=2)


@pytest.mark.parametrize(
    ("form", "early"),
    [
        *(("keys", barrier) for barrier in ("q_empty", "owned", "work_empty")),
        *(
            ("roles", barrier)
            for barrier in ("q_empty", "dout_empty", "owned", "work_empty", "weights_empty")
        ),
        *(("dq", barrier) for barrier in ("keys", "owned", "work_empty")),
        *((form, barrier) for form in OF_ALL for barrier in ("q_empty", "owned", "work_empty", "ds_empty")),
    ],
)
@pytest.mark.parametrize("stages", [2, 3])
def test_the_model_sees_what_is_given_back_early(form: str, early: str, stages: int) -> None:
    with pytest.raises(AssertionError):
        _play_often(form=form, groups=2, early=early, stages=stages, seeds=60)


@pytest.mark.parametrize(("form", "early"), [("keys", "dout_empty"), ("dq", "values")])
@pytest.mark.parametrize("stages", [2, 3])
def test_what_the_order_of_loads_guards_already(form: str, early: str, stages: int) -> None:
    """dO of a stage is loaded after its Q, and V after K, which are given back last. Where a role gives Q back first,
    dO needs its barrier: see above.
    """
    _play_often(form=form, groups=2, early=early, stages=stages, seeds=60)


@pytest.mark.parametrize(("form", "groups"), [("keys", 2), ("roles", 2), ("dq", 2)])
def test_the_model_sees_a_wrong_parity(monkeypatch: pytest.MonkeyPatch, form: str, groups: int) -> None:
    """The barriers of what an item owns flip with each item, not with each two."""
    monkeypatch.setattr(Launch, "parity", lambda self, slot: slot.parity)
    monkeypatch.setattr(model, "LONGEST_QUIET", 3000)
    with pytest.raises(AssertionError):
        _play_often(form=form, groups=groups, stages=2)


@pytest.mark.parametrize("stages", [3, 4, 5, 6])
def test_the_model_sees_too_few_places_for_spans(stages: int) -> None:
    """Half of the slots, rounded up, hold keys at the same time."""
    with pytest.raises(AssertionError):
        _play_often(form="dq", groups=2, stages=stages, more_key_tiles=-1, seeds=60)


@pytest.mark.parametrize("groups", [2, 3])
def test_the_model_sees_too_small_a_ring_of_score_gradients(
    monkeypatch: pytest.MonkeyPatch, groups: int
) -> None:
    """Two places less than the kernel has; one less is enough to end, and makes warpgroups wait for each other."""
    monkeypatch.setattr(model, "LONGEST_QUIET", 3000)
    _play_often(form="fused", groups=groups, stages=2, more_ring=-1, seeds=10)
    if groups == 3:
        with pytest.raises(AssertionError, match="wait for ever"):
            _play_often(form="fused", groups=groups, stages=2, more_ring=-2)


def test_the_model_sees_counters_that_are_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = _launch("dq", 1, 0, items=ITEMS, blocks=2, stages=2)
    monkeypatch.setattr(launch, "end", lambda: None)
    play(launch)
    assert launch.counter != [0, 0]


def test_a_place_of_one_flips_each_time() -> None:
    """Two stages of the dQ kernel have one place for spans."""
    place = Place(1)
    found = []
    for _ in range(4):
        found.append((place.stage, place.parity))
        place.next()
    assert found == [(0, 0), (0, 1), (0, 0), (0, 1)]

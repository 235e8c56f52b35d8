"""The cost model: work items, their assignment, and what a call is predicted to take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from entry_walk import tile_by_tile

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import ceilings as choose_ceilings
from omnicupy.choose import prediction
from omnicupy.choose.ceilings import Ceiling, Ceilings, Device
from omnicupy.choose.prediction import Work
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.block_mask import CAUSAL, PARTIAL
from omnicupy.schedule import grid
from omnicupy.schedule.grid import Grid
from omnicupy.schedule.order import ordered, shares
from omnicupy.schedule.parts import Schedule, entry_costs, schedule

DEVICE = Device("Fake", 4, 50 << 20)
CEILING = Ceiling(
    "sm90",
    64,
    128,
    pair_ps=70.0,
    partial_ps=50.0,
    causal_ps=5.0,
    skipped_ps=20.0,
    item_us=2.0,
    launch_us=10.0,
    megabyte_us=0.0,
)
SPEC = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, br=128, bc=64, stages=2, warps=12
)


def _work(
    mask: oc.Mask, heads: int = 3, batch: int = 1, spec: AttnSpec = SPEC, device: Device = DEVICE
) -> Work:
    problem = Problem(batch, heads, heads, *mask.shape, spec.head_dim, "bfloat16")
    return prediction.work_of(spec, problem, mask.blocks(spec.br, spec.bc), device)


def _parts(mask: oc.Mask, heads: int, device: Device = DEVICE) -> Schedule:
    blocks = ordered(mask.blocks(SPEC.br, SPEC.bc))
    problem = Problem(1, heads, heads, *mask.shape, SPEC.head_dim, "bfloat16")
    grid = Grid.of(SPEC, problem, 1, sm_count=device.sm_count, l2_bytes=device.l2_bytes)
    return schedule(blocks.row_offsets, entry_costs(blocks), grid.workers, blocks.tiles)


def test_work_items_are_charged_for_their_tiles() -> None:
    mask = oc.segments([("text", 200), ("image", 150), ("noise", 90)])
    work, blocks, parts = _work(mask), tile_by_tile(ordered(mask.blocks(128, 64))), _parts(mask, 3)
    expected = []
    for first, end in zip(parts.first, parts.end, strict=True):
        pairs = 128 * 64 * shares(blocks)[first:end]
        kinds, skipped = blocks.kinds[first:end], 128 * 64 - pairs
        expected.append(
            [sum(pairs), sum(pairs[kinds == PARTIAL]), sum(pairs[kinds == CAUSAL]), sum(skipped), 1.0]
        )
    assert work.charges.tolist() == expected
    assert work.charges[:, 1].any()
    assert (shares(blocks) == 0.5).any()  # a warpgroup's share of a tile that the other one skips
    assert work.total.tolist() == (3 * work.charges.sum(axis=0)).tolist()
    assert sorted(work.order.tolist()) == np.repeat(np.arange(len(expected)), 3).tolist()


def test_sections_of_heads_follow_each_other_in_each_tier() -> None:
    mask = oc.causal(512)
    device = replace(DEVICE, sm_count=8)  # as many as parts of two heads
    parts = _parts(mask, 5, device)
    assert len(parts.rows) == 4
    work = _work(mask, heads=5, device=device)
    expected: list[int] = []
    first = 0
    for end in parts.tiers:
        tier = np.arange(first, end)
        expected += [*np.repeat(tier, 2), *np.repeat(tier, 2), *tier]
        first = end
    assert work.order.tolist() == expected


def test_each_item_goes_to_the_place_that_is_free_first() -> None:
    costs_of = np.array([5.0, 4.0, 3.0, 3.0, 2.0, 2.0, 1.0])
    work = Work(np.column_stack([costs_of, np.zeros((7, 4))]), np.arange(7), 3)
    slots = prediction.assign(work, np.array([1.0, 0, 0, 0, 0]))
    assert slots.tolist() == [0, 1, 2, 2, 1, 0, 1]
    assert prediction.loads(work, slots)[:, 0].tolist() == [7.0, 7.0, 6.0]


@pytest.mark.parametrize("seed", range(5))
def test_no_place_idles_while_work_waits(seed: int) -> None:
    draw = np.random.default_rng(seed)
    charges = np.column_stack([draw.uniform(1, 9, 40), np.zeros((40, 4))])
    work = Work(charges, draw.permutation(40), 6)
    weights = np.array([1.0, 0, 0, 0, 0])
    loads = prediction.loads(work, prediction.assign(work, weights)) @ weights
    assert loads.sum() == pytest.approx(charges[:, 0].sum())
    assert loads.max() - loads.min() <= charges[:, 0].max()
    assert loads.max() <= charges[:, 0].sum() / 6 + charges[:, 0].max() * (1 - 1 / 6)


def test_a_prediction_adds_up() -> None:
    mask = oc.full(512)
    found = prediction.predict(_work(mask, heads=4), CEILING)  # 16 items on 4 places: four each
    tiles = 4 * 8 * 128 * 64 * 70e-6
    assert found.us == pytest.approx(tiles + 4 * 2.0 + 10.0)
    assert found.parts_us == pytest.approx(
        {
            "tiles": tiles,
            "partial": 0,
            "causal": 0,
            "skipped": 0,
            "items": 8.0,
            "imbalance": 0,
            "launch": 10.0,
            "memory": 0.0,
        },
        abs=1e-9,
    )
    assert (found.balance, found.slots, found.items) == (pytest.approx(1.0), 4, 16)


def test_imbalance_is_what_the_last_place_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "MOST_PARTIAL_BYTES", 0)  # else a row would be split
    found = prediction.predict(_work(oc.full(512), heads=1, device=replace(DEVICE, sm_count=3)), CEILING)
    one = 8 * 128 * 64 * 70e-6 + 2.0  # four equal items on three places
    assert found.us == pytest.approx(2 * one + 10.0)
    assert found.parts_us["imbalance"] == pytest.approx(2 * one - 4 * one / 3)
    assert found.balance == pytest.approx(2 / 3)


def test_masked_pairs_cost_more() -> None:
    causal, partial = oc.causal(128), oc.random(128, 0, text=(20, 20), image=(20, 20))
    device = replace(DEVICE, sm_count=1)
    spec = replace(SPEC, bc=128)
    tile = 128 * 128 * 1e-6
    for mask, extra in ((oc.full(128), 0.0), (causal, 5.0), (partial, 50.0)):
        found = prediction.predict(_work(mask, 1, spec=spec, device=device), CEILING)
        assert found.us == pytest.approx(tile * (70.0 + extra) + 12.0)


def test_skipped_pairs_cost_a_time_of_their_own() -> None:
    """A window of 64 rows and keys: each warpgroup sees one of the two tiles of its block."""
    mask, device = oc.documents([64, 64], causal=False), replace(DEVICE, sm_count=1)
    found = prediction.predict(_work(mask, 1, device=device), CEILING)
    half = 64 * 64 * 1e-6
    assert found.parts_us["skipped"] == pytest.approx(2 * half * 20.0)
    assert found.us == pytest.approx(2 * half * (70.0 + 50.0 + 20.0) + 12.0)


def test_an_empty_mask_takes_its_items_and_the_launch() -> None:
    found = prediction.predict(_work(~oc.full(256), heads=2), CEILING)
    assert found.us == pytest.approx(2.0 + 10.0)
    assert found.parts_us["tiles"] == 0


def test_resident_blocks_share_a_multiprocessor() -> None:
    sm80 = AttnSpec(arch="sm_80", kernel="sm80", dtype="bfloat16", head_dim=64, br=64, bc=64)  # 4 warps
    work = _work(oc.full(256), heads=2, spec=sm80, device=replace(DEVICE, sm_count=2))
    assert (work.resident, work.slots) == (2, 4)  # registers: 65536 / (256 * 128)
    ceiling = replace(CEILING, kernel="sm80")
    # eight equal items on four places, two of which share one multiprocessor: as if each ran alone, one by one
    assert prediction.predict(work, ceiling).us == pytest.approx(8 / 2 * (4 * 64 * 64 * 70e-6 + 2.0) + 10.0)
    big = replace(sm80, bc=128, stages=2)
    assert prediction._resident(big) == (166912 + 1024) // (big.smem_bytes + 1024)
    short = AttnSpec(
        **{**vars(sm80), "arch": "sm_90a", "kernel": "sm90", "warps": 8, "stages": 2, "blocks": 3}
    )
    assert _work(oc.full(256), heads=2, spec=short, device=replace(DEVICE, sm_count=2)).slots == 6
    tiled = replace(sm80, head_dim=512, value_dim=None, arch="sm_90")
    assert len(_work(oc.full(256), heads=2, spec=tiled).order) == 2 * 4 * tiled.value_pieces


def test_kernels_without_work_items_are_refused() -> None:
    naive = AttnSpec(arch="sm_90", kernel="naive", dtype="bfloat16", head_dim=64, br=64, bc=64)
    with pytest.raises(
        UnsupportedError, match="the cost model describes kernels 'sm80' and 'sm90', got 'naive'"
    ):
        _work(oc.full(64), spec=naive)


KNOWN = Ceilings(
    DEVICE,
    (
        replace(CEILING, head_dim=64, br=192, pair_ps=70.0),
        replace(CEILING, head_dim=80, br=128, pair_ps=80.0),
        replace(CEILING, head_dim=128, br=128, pair_ps=100.0),
        replace(CEILING, head_dim=128, br=64, pair_ps=150.0),
    ),
    ("a.json",),
)


@pytest.mark.parametrize(
    ("head_dim", "br", "expected"),
    [
        (128, 128, (128, 100.0)),
        (128, 64, (64, 150.0)),
        (104, 128, (128, 90.0)),
        (96, 192, (128, 80 + 20 / 3)),  # tiles of 192 rows were not fitted there
        (64, 192, (192, 70.0)),
        (16, 128, (128, 80.0)),
        (16, 256, (192, 70.0)),
        (256, 128, (128, 200.0)),
    ],
)
def test_ceilings_between_and_beyond_what_was_fitted(
    head_dim: int, br: int, expected: tuple[int, float]
) -> None:
    found = KNOWN.at("sm90", head_dim, br)
    assert (found.kernel, found.head_dim, found.br) == ("sm90", head_dim, expected[0])
    assert found.pair_ps == pytest.approx(expected[1])
    assert (found.partial_ps, found.launch_us) == (50.0, 10.0)


def test_ceilings_of_another_kernel_are_not_known() -> None:
    with pytest.raises(UnsupportedError, match="no ceilings of kernel 'sm80' on Fake are known; fit them"):
        KNOWN.at("sm80", 64, 64)


def test_rates_are_of_full_tiles() -> None:
    assert CEILING.full_tflops(132) == pytest.approx(4 * 64 * 132 / 70.0)


def test_ceilings_are_files_by_device(tmp_path: Path) -> None:
    path = tmp_path / "ceilings.json"
    choose_ceilings.save(KNOWN, path)
    other = Ceilings(replace(DEVICE, name="Other"), (CEILING,))
    choose_ceilings.save(other, path)
    newer = Ceilings(DEVICE, (replace(CEILING, pair_ps=1.0),), ("b.json",))
    choose_ceilings.save(newer, path)
    assert choose_ceilings.load(path) == [newer, other]
    assert choose_ceilings.nearest(choose_ceilings.load(path), "Fake", "sm90") == (newer, "")
    assert choose_ceilings.nearest([other, newer], "New", "sm90") == (
        other,
        "New has not been measured: these are the ceilings of Other",
    )
    assert (
        choose_ceilings.nearest([other], None, "sm90")[1]
        == "there is no GPU here: these are the ceilings of Other"
    )


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 9}', '{"schema": 1, "devices": [{}]}'])
def test_files_without_ceilings_raise(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"x\.json holds no ceilings \(.*\); fit them anew"):
        choose_ceilings.load(path)


def test_the_library_has_ceilings_and_names_their_records() -> None:
    found = choose_ceilings.load()
    assert {one.kernel for ceilings in found for one in ceilings.of} == {"sm80", "sm90"}
    root = Path(__file__).parents[2] / "docs" / "results"
    for ceilings in found:
        of_gradients = ceilings.backward.sources if ceilings.backward else ()
        assert bool(ceilings.sources) == bool(ceilings.of)
        assert ceilings.sources or of_gradients
        for source in (*ceilings.sources, *of_gradients):
            assert json.loads((root / source).read_text())["device"] == ceilings.device.name


def test_memory_is_charged_by_the_bytes_of_operands_and_result() -> None:
    problem = Problem(2, 8, 2, 512, 768, 64, "bfloat16")
    work = prediction.work_of(SPEC, problem, oc.full(512, 768).blocks(128, 64), DEVICE)
    elements = 2 * 64 * (2 * 8 * 512 + 2 * 2 * 768)  # q and out, k and v
    assert work.megabytes == pytest.approx(2 * elements / 1e6)
    free, dear = (prediction.predict(work, replace(CEILING, megabyte_us=us)) for us in (0.0, 0.5))
    assert free.parts_us["memory"] == 0
    assert dear.us - free.us == pytest.approx(dear.parts_us["memory"])
    multiprocessors = free.us - CEILING.launch_us
    assert dear.us == pytest.approx(
        (multiprocessors**3 + (0.5 * work.megabytes) ** 3) ** (1 / 3) + CEILING.launch_us
    )


def test_memory_bounds_a_call_and_hides_behind_long_work() -> None:
    work = _work(oc.full(512))
    of_item = prediction.predict(work, CEILING).us - CEILING.launch_us
    bound = prediction.predict(work, replace(CEILING, megabyte_us=100 * of_item / work.megabytes))
    assert bound.us - CEILING.launch_us == pytest.approx(100 * of_item, rel=1e-3)
    hidden = prediction.predict(work, replace(CEILING, megabyte_us=of_item / work.megabytes / 100))
    assert hidden.parts_us["memory"] < of_item / 1e4

"""choose/pick.py: the table covers what the library promises, and short problems take small tiles."""

from __future__ import annotations

from dataclasses import replace

import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import ceilings, pick
from omnicupy.choose import table as choose_table
from omnicupy.choose.ceilings import Ceilings, Device, TileCost
from omnicupy.errors import UnsupportedError
from omnicupy.jit import archs
from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.spec import DTYPES, AttnSpec
from omnicupy.masks.mask import Mask

H100_SMS = 132


def _problem(head_dim: int = 128, q_len: int = 8192, dtype: str = "bfloat16", heads: int = 16) -> Problem:
    return Problem(1, heads, heads, q_len, q_len, head_dim, dtype)


@pytest.mark.parametrize("arch", archs.ARCHES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mappable", [True, False])
def test_every_head_dim_has_a_row_for_short_and_long_problems(arch: str, dtype: str, mappable: bool) -> None:
    for head_dim in [*range(8, 257, 8), *range(264, 1025, 40), 1024]:
        for q_len in (1, 70, 8192):
            problem = _problem(head_dim, q_len, dtype)
            spec = pick.pick(arch, problem, (oc.full(1),), H100_SMS, mappable=mappable)
            assert (spec.dtype, spec.head_dim) == (dtype, -(-head_dim // 16) * 16)
            assert spec.arch == ("sm_90a" if spec.kernel == "sm90" else arch)
            assert spec.kernel == "sm80" or (mappable and arch == "sm_90")


@pytest.mark.parametrize("head_dim", [8, 64, 72, 80, 96, 128, 136, 192, 200, 256])
def test_hopper_takes_its_own_kernel_for_long_problems(head_dim: int) -> None:
    spec = pick.pick("sm_90", _problem(head_dim), (oc.full(1),), H100_SMS)
    assert (spec.kernel, spec.arch) == ("sm90", "sm_90a")
    for arch in set(archs.ARCHES) - {"sm_90"}:
        assert pick.pick(arch, _problem(head_dim), (oc.full(1),), H100_SMS).kernel == "sm80"


def test_hopper_leaves_to_sm80_what_its_kernel_cannot_do() -> None:
    mask = (oc.full(1),)
    assert pick.pick("sm_90", _problem(264), mask, H100_SMS).kernel == "sm80"
    for head_dim in (64, 128, 256):
        spec = pick.pick("sm_90", _problem(head_dim), mask, H100_SMS, mappable=False)
        assert (spec.kernel, spec.arch) == ("sm80", "sm_90")


@pytest.mark.parametrize(
    "row", choose_table.TABLE, ids=lambda row: f"d{row.head_dims[0]}-{row.head_dims[1]}-{row.shape}"
)
def test_every_row_is_legal_where_it_serves(row: choose_table.Row) -> None:
    for arch in row.archs:
        for dtype in row.dtypes:
            for head_dim in range(row.head_dims[0], row.head_dims[1] + 1, 16):
                spec = row.spec(arch, dtype, head_dim)
                assert spec.smem_bytes <= SMEM_LIMIT_BYTES[arch]


def test_rows_lists_each_variant_once() -> None:
    specs = list(choose_table.rows())
    assert len(specs) == len(set(specs))
    assert {spec.arch for spec in specs} >= set(archs.ARCHES)
    for row in choose_table.TABLE:
        for arch in row.archs:
            assert row.spec(arch, "float16", row.head_dims[1]) in specs


def _tiles(spec: AttnSpec, problem: Problem) -> int:
    return problem.batch * problem.q_heads * -(-problem.q_len // spec.br) * spec.value_pieces


SHORT = [(arch, head_dim, True) for arch in archs.ARCHES for head_dim in (64, 128)]
SHORT += [("sm_90", 192, True), ("sm_90", 256, True), ("sm_90", 64, False), ("sm_90", 128, False)]


@pytest.mark.parametrize(("arch", "head_dim", "mappable"), SHORT)
def test_short_problems_fill_the_gpu(arch: str, head_dim: int, mappable: bool) -> None:
    def picked(q_len: int, sm_count: int) -> AttnSpec:
        problem = _problem(head_dim, q_len)
        return pick.pick(arch, problem, (oc.random(512, 0),), sm_count, mappable=mappable)

    large, small, problem = picked(8192, H100_SMS), picked(512, H100_SMS), _problem(head_dim, 512)
    assert (small.br, small.kernel, small.arch) == (64, large.kernel, large.arch)
    assert _tiles(large, problem) < H100_SMS
    assert _tiles(small, problem) > _tiles(large, problem)
    assert picked(512, _tiles(large, problem)) == large
    assert picked(512, _tiles(large, problem) + 1) == small


def test_few_rows_take_small_tiles_however_many_heads_there_are() -> None:
    for arch in ("sm_80", "sm_90"):
        problem = Problem(8, 32, 8, 64, 8256, 128, "bfloat16")
        assert pick.pick(arch, problem, (oc.random(64, 0),), H100_SMS).br == 64


@pytest.mark.parametrize(("head_dim", "bc"), [(64, 128), (128, 128), (256, 64)])
def test_few_rows_of_whole_groups_share_tiles_on_hopper(head_dim: int, bc: int) -> None:
    def picked(q_heads: int, q_len: int = 64) -> tuple[int, int, int]:
        problem = Problem(4, q_heads, 2, q_len, 9000, head_dim, "bfloat16")
        spec = pick.pick("sm_90", problem, (oc.full(q_len, 9000),), 132)
        assert spec.bc == bc or q_len > 64
        return spec.br, spec.warps, spec.heads

    assert picked(8) == (64, 12, 2)
    assert picked(4) == (64, 12, 2)
    assert picked(6) == picked(2) == (64, 8, 1)  # three heads, one head a group
    assert picked(8, 65)[2] == 1


def test_long_rows_are_split_rather_than_made_of_small_tiles_on_hopper() -> None:
    problem = Problem(1, 4, 4, 512, 16384, 128, "bfloat16")
    masks = (oc.random(512, 0),)
    assert pick.pick("sm_90", problem, masks, H100_SMS).br > 64
    assert pick.pick("sm_90", problem, masks, H100_SMS, mappable=False).br == 64


def test_without_a_small_row_short_problems_keep_their_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_table, "TABLE", [row for row in choose_table.TABLE if row.shape == "any"])
    for head_dim in (64, 128, 192, 256):
        short, long = (
            pick.pick("sm_90", _problem(head_dim, q_len), (oc.random(512, 0),), H100_SMS)
            for q_len in (1, 8192)
        )
        assert short == long
        assert short.kernel == "sm90"


def test_no_row_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_table, "TABLE", choose_table.TABLE[:1])
    with pytest.raises(UnsupportedError) as error:
        pick.pick("sm_90", _problem(200), (oc.full(1),), H100_SMS)
    assert str(error.value) == "no kernel serves bfloat16 with head_dim 200 on sm_90; cast q, k and v"


WIDE, NARROW = (
    choose_table.Row(head_dims=(16, 128), br=br, bc=bc, warps=8, competes=True)
    for br, bc in ((256, 64), (128, 128))
)
COSTS = (
    TileCost("sm80", (16, 128), 256, 64, pair_ps=1.0, partial_ps=3.0, block_us=0.0, launch_us=0.0),
    TileCost("sm80", (16, 128), 128, 128, pair_ps=1.1, partial_ps=1.2, block_us=1e-5, launch_us=0.0),
)


def _known(monkeypatch: pytest.MonkeyPatch, *costs: TileCost) -> None:
    known = [Ceilings(Device("a GPU", H100_SMS, 50 << 20), (), tiles=costs), *ceilings.load()]
    monkeypatch.setattr(ceilings, "_of_the_library", lambda: known)


def _taken(
    monkeypatch: pytest.MonkeyPatch, *masks: Mask, table: tuple[choose_table.Row, ...] = (WIDE, NARROW)
) -> int:
    monkeypatch.setattr(choose_table, "TABLE", (*table, *choose_table.TABLE))
    _known(monkeypatch, *COSTS)
    q_len, k_len = masks[0].shape
    problem = Problem(len(masks), 500, 500, q_len, k_len, 128, "bfloat16")
    return pick.pick("sm_90", problem, masks, H100_SMS).br


def test_competing_rows_are_chosen_by_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _taken(monkeypatch, oc.full(2048)) == 256
    assert _taken(monkeypatch, oc.full(2048), oc.full(2048)) == 256
    assert _taken(monkeypatch, oc.documents([100] * 20)) == 128
    assert _taken(monkeypatch, oc.full(2048), *[oc.documents([256] * 8)] * 3) == 256
    assert _taken(monkeypatch, oc.full(130)) == 128  # half of the taller tile would lie past the end


def test_what_a_launch_costs_decides_for_few_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_table, "TABLE", (WIDE, NARROW))
    _known(monkeypatch, replace(COSTS[0], launch_us=1e2), COSTS[1])

    def taken(heads: int) -> int:
        problem = Problem(1, heads, heads, 2048, 2048, 128, "bfloat16")
        return pick.pick("sm_90", problem, (oc.full(2048),), H100_SMS).br

    assert (taken(10), taken(100_000)) == (128, 256)


def test_a_mask_is_cut_again_only_where_that_may_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full mask nothing can be saved; of a causal one less than a twentieth; of windows much."""
    for mask, sizes in (
        (oc.full(4096), {(256, 64)}),
        (oc.causal(1 << 14), {(256, 64)}),
        (oc.documents([100] * 40), {(256, 64), (128, 128)}),
    ):
        _taken(monkeypatch, mask)
        assert {(br, bc) for _, br, bc in mask._blocks} == sizes


def test_every_row_that_competes_has_a_cost() -> None:
    for row in choose_table.TABLE:
        for head_dim in range(row.head_dims[0], row.head_dims[1] + 1, 16) if row.competes else ():
            cost = ceilings.tile_cost(row.kernel, head_dim, row.br, row.bc)
            assert cost.pair_ps > 0
    with pytest.raises(UnsupportedError) as error:
        ceilings.tile_cost("sm90", 128, 64, 32)
    assert str(error.value) == (
        "the cost of 64 x 32 tiles of kernel 'sm90' at head_dim 128 is not known; measure `bench choices` and fit it "
        "with `explain --fit`"
    )


def test_only_neighbours_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = choose_table.Row(head_dims=(16, 128), br=64, bc=96)
    mask = oc.documents([100] * 20)
    assert _taken(monkeypatch, mask, table=(WIDE, plain, NARROW)) == 256
    assert _taken(monkeypatch, mask, table=(plain, WIDE, NARROW)) == 64


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_100"),
        ((12, 0), "sm_120"),
        ((12, 1), "sm_120"),
    ],
)
def test_arch_of(capability: tuple[int, int], arch: str) -> None:
    assert archs.arch_of(*capability) == arch
    assert archs.runs_on(arch, *capability)


@pytest.mark.parametrize("capability", [(7, 5), (6, 1), (7, 0)])
def test_old_devices_are_refused_by_name(capability: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedError) as error:
        archs.arch_of(*capability)
    major, minor = capability
    assert str(error.value) == (
        f"compute capability {major}.{minor} is not supported: 8.0 or later is needed; "
        "pass NumPy arrays for the CPU"
    )


def test_unknown_new_devices_are_refused() -> None:
    with pytest.raises(UnsupportedError) as error:
        archs.arch_of(11, 0)
    assert str(error.value) == (
        "compute capability 11.0 is not supported: kernels exist for sm_80, sm_86, sm_89, sm_90, sm_100, sm_120; "
        "pass NumPy arrays for the CPU"
    )


def test_runs_on() -> None:
    assert archs.runs_on("sm_90a", 9, 0)
    assert not archs.runs_on("sm_90a", 9, 1)
    assert not archs.runs_on("sm_90a", 10, 0)
    assert archs.runs_on("sm_80", 8, 9)
    assert not archs.runs_on("sm_89", 8, 6)
    assert not archs.runs_on("sm_90", 10, 0)


def test_a_tuned_choice_needs_groups_that_fill_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in choose_table.TABLE if row.shape == "shared")
    shared = row.spec("sm_90", "bfloat16", 128)
    assert shared.heads == 2
    monkeypatch.setattr(pick.saved, "find", lambda *_, **of: shared)
    for q_heads, taken in ((8, True), (6, False)):
        problem = Problem(4, q_heads, 2, 64, 9000, 128, "bfloat16")
        assert (pick.select("sm_90", problem, (oc.full(64, 9000),), 132) == shared) == taken


def test_only_served_kernels_are_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, masks = _problem(128), (oc.full(300),)
    monkeypatch.setattr(pick, "SERVED", frozenset())
    picked = pick.pick("sm_90", problem, masks, H100_SMS)
    with pytest.raises(UnsupportedError) as error:
        pick.select("sm_90", problem, masks, H100_SMS)
    assert str(error.value) == (
        "kernel 'sm90' would serve this call, but no attestation covers it as it stands; verify it on this GPU "
        f"(`python cli.py verify --kernel sm90`) and ask for it: config={picked!r}"
    )
    with pick.serve_every_kernel():
        assert pick.select("sm_90", problem, masks, H100_SMS) == picked
    with pytest.raises(UnsupportedError):
        pick.select("sm_90", problem, masks, H100_SMS)
    monkeypatch.setattr(pick, "SERVED", frozenset({"sm90"}))
    assert pick.select("sm_90", problem, masks, H100_SMS) == picked
    with pytest.raises(UnsupportedError, match=r"^kernel 'sm80' would serve"):
        pick.select("sm_80", problem, masks, H100_SMS)

"""Steps with images through the CPU engine against attention by masks of all pairs, in float64. Without vLLM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from vllm_steps import PAD, Request, Step, drawn  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
from omnicupy.vllm import attend  # noqa: E402
from omnicupy.vllm.batch import Batch  # noqa: E402

MIXED = [
    Request(1, 37),
    Request(1, 20, ((2, 9),)),  # decodes behind an image
    Request(23, 23),
    Request(40, 40, ((3, 12), (20, 29))),
    Request(40, 40, ((1, 6),)),
    Request(18, 51, ((20, 31), (36, 44))),  # a chunk behind a prefix
    Request(11, 30, ((15, 24),)),  # an image whose first keys were in the prefix
]
ORDERS = [
    (0, 2, 1, 3),
    (0, 1, 2, 3),
    (1, 0, 2, 3),
]  # vLLM's layouts: tokens first, heads first, heads outermost


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.inference_mode():  # as vLLM runs models
        yield


def ready(step: Step) -> tuple[Batch, tuple[Any, Any]]:
    """What a step is to its layers, and a cache that holds the new keys as well."""
    of_device = step.query_start_loc, step.seq_lens, step.block_table
    pools = attend.pools_of(step.kv_cache, step.head_size)
    attend.append(pools, step.new_keys, step.new_values, step.slots)
    return Batch(step.tokens, *of_device, step.starts, step.bounds, step.ranges), pools


def run(step: Step, layer: attend.Layer, sinks: Any = None) -> Any:
    """The rows that count; the padding stays as it was."""
    batch, pools = ready(step)
    attend.attend(batch, layer, step.query, pools, step.output, sinks)
    assert step.output[step.tokens :].isnan().all()
    return step.output[: step.tokens]


def check(step: Step, layer: attend.Layer, tolerance: float = 1e-12, sinks: Any = None) -> None:
    found = run(step, layer, sinks=sinks)
    wanted = step.wanted(
        layer.window, clamped=layer.clamped, scale=layer.scale, softcap=layer.softcap, sinks=sinks
    )
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("window", [None, 12, 100])
def test_text_images_and_prefixes_in_one_step(window: int | None, clamped: bool) -> None:
    check(Step(MIXED), attend.Layer(0.25, window, clamped))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("heads", [(8, 1), (6, 2), (3, 3)])
def test_groups_and_layouts(heads: tuple[int, int], order: tuple[int, int, int, int]) -> None:
    check(Step(MIXED, heads=heads, order=order), attend.Layer(0.25, 11))


@pytest.mark.parametrize("block_size", [16, 32, 64, 256])
def test_block_sizes(block_size: int) -> None:
    check(Step(MIXED, block_size=block_size), attend.Layer(0.25))


def test_an_image_longer_than_the_window() -> None:
    step = [Request(40, 40, ((5, 30),)), Request(1, 9)]
    check(Step(step), attend.Layer(0.25, 8))
    check(Step(step), attend.Layer(0.25, 8, clamped=True))
    cut = [Request(20, 40, ((5, 30),))]  # its first keys were in the prefix
    check(Step(cut), attend.Layer(0.25, 8, clamped=True))
    with pytest.raises(oc.UnsupportedError, match="longer than the window"):
        run(Step(cut), attend.Layer(0.25, 8))


def test_random_steps() -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        step = Step([drawn(rng) for _ in range(int(rng.integers(1, 7)))], seed=seed)
        window = None if seed % 3 == 0 else int(rng.integers(14, 30))  # at least an image long
        check(step, attend.Layer(0.25, window, clamped=bool(seed % 2)))


def test_softcap_and_sinks() -> None:
    check(Step(MIXED), attend.Layer(0.25, 12, softcap=2.0))
    check(Step(MIXED), attend.Layer(0.25, 12), sinks=torch.randn(4, dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_sixteen_bits(dtype: Any, tolerance: float) -> None:
    check(Step(MIXED, dtype=dtype), attend.Layer(0.25, 12), tolerance)


def test_lengths_that_the_host_overestimates() -> None:
    """Drafts that were not accepted: their requests decode, so no image of theirs has rows."""
    step = [Request(1, 20, ((2, 9),), optimistic=3), Request(4, 33, ((5, 8),), optimistic=3), *MIXED[3:]]
    check(Step(step), attend.Layer(0.25, 12))


def test_padding_requests_have_no_rows() -> None:
    padded = Step([*MIXED, Request(0, 0), Request(0, 0)])
    check(padded, attend.Layer(0.25))


def test_a_step_of_padding_alone_writes_nothing() -> None:
    step = Step([Request(0, 0)])
    assert run(step, attend.Layer(0.25)).shape[0] == 0
    assert step.output.shape[0] == PAD


def test_layers_that_vllm_makes_causal() -> None:
    step = Step(MIXED)
    batch, pools = ready(step)
    layer = attend.Layer(0.25, 12)
    for images in (True, False):
        batch.mm_prefix_range = step.ranges if images else None
        attend.attend(batch, layer, step.query, pools, step.output)
        wanted = step.wanted(12, images=images)
        torch.testing.assert_close(step.output[: step.tokens], wanted, rtol=0, atol=1e-12)


def test_queries_that_are_part_of_a_wider_projection() -> None:
    step = Step(MIXED)
    wide = torch.randn(step.query.shape[0], 8, step.head_size, dtype=torch.float64)
    wide[:, :4] = step.query
    step.query = wide[:, :4]
    check(step, attend.Layer(0.25, 12))


def test_layers_share_the_plans_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made, plan = [], attend.plan_for
    monkeypatch.setattr(attend, "plan_for", lambda *a, **k: made.append(1) or plan(*a, **k))
    step = Step(MIXED)
    batch, pools = ready(step)
    for _ in range(3):
        for window in (None, 12):
            attend.attend(batch, attend.Layer(0.25, window), step.query, pools, step.output)
            torch.testing.assert_close(step.output[: step.tokens], step.wanted(window), rtol=0, atol=1e-12)
    assert len(made) == len(batch.parts(None, False)) + len(batch.parts(12, False))


def test_slots_of_padding_are_left_out() -> None:
    step = Step([Request(5, 5)])
    before = step.kv_cache.clone()
    slots = torch.full((7,), -1, dtype=torch.int64)
    attend.append(
        attend.pools_of(step.kv_cache, step.head_size), step.new_keys[:7], step.new_values[:7], slots
    )
    assert torch.equal(step.kv_cache.nan_to_num(), before.nan_to_num())


def test_what_attention_refuses_is_refused() -> None:
    step = Step([Request(5, 5)])
    step.output = step.output.float()
    with pytest.raises(TypeError, match="out must have the dtype"):
        run(step, attend.Layer(0.25))

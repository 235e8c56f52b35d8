"""Gradients of the default form beside other work, a hundred times and with half of the device: the same bits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from busy_gpu import HalfHeld

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, pick
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.tools.verify import backward_inputs
from omnicupy.tools.verify.backward_cases import BACKWARD_FIXED, BackwardCase
from omnicupy.tools.verify.changed_bits import ChangedBits

REPEATS = 100
THREADS = 8  # in which kernels are compiled
AHEAD = 6  # matrix products that wait or run
LONGEST_S = (
    20.0  # of gradients that take under a millisecond, behind what holds the device for a quarter of a second
)
# Masks of packed samples, windows, sinks, bits; groups of 1, 2, 3, 4 and 8; widths of values; sinks; soft caps; few
# keys, whose blocks several thread blocks make; lengths that no tile divides; the usual head_dims.
NAMES = (
    "bwd-d64-bf16-segments-q1100k1100-h8g1-b6-poison-masks-dlse",
    "bwd-d64-bf16-holes-q262k330-h6g3-b2-cap50-x8-sinks-qkvsink_logits",
    "bwd-d64-bf16-full-q6000k450-h2g1-ones-given",
    "bwd-d96-f16-bits-q263k330-h6g3-b2-sinks-vsink_logits",
    "bwd-d96v64-f16-segments-q500k400-h4g2-b2-bshd-tokens-first-given",
    "bwd-d128-bf16-causal-q1100k1100-h16g4-b6-given",
    "bwd-d128-bf16-segments-q1100k1100-h16g4-b6-poison-masks-given",
    "bwd-d128-bf16-holes-q1100k1100-h16g4-b6-poison-given",
    "bwd-d128-bf16-segments-q2048k2048-h4g2-cap50",
    "bwd-d128-bf16-segments-q2048k2048-h4g2-sinks-qkvsink_logits",
    "bwd-d128-bf16-full-q6000k450-h8g8-ones-given",
    "bwd-d128-bf16-segments-q4096k4096-h4g2",
    "bwd-d128-bf16-window-q264k330-h6g3-b2-cap50-x8-sinks-qkvsink_logits-dlse",
    "bwd-d128-f16-documents-q333k333-h2g1",
    "bwd-d192v128-bf16-causal-q500k400-h4g2-b2-dlse",
    "bwd-d192-bf16-segments-q6000k450-h2g2-poison-tokens-first-given",
    "bwd-d192-f16-causal-q265k330-h6g3-b2-sinks-qkvsink_logits",
    "bwd-d256-bf16-segments-q1100k1100-h8g4-b6-poison-masks",
    "bwd-d256-bf16-sink-q6000k450-h4g2-ones-given",
    "bwd-d256-bf16-window-q266k330-h6g3-b2-sinks-qksink_logits",
)
CASES = {case.id: case for case in BACKWARD_FIXED if case.id in NAMES}
# In one order full masks whose sums have many additions have a tile of their own.
MANY = BackwardCase(
    group="long", mask="full", head_dim=64, dtype="bfloat16", q_len=8192, k_len=8192, q_heads=4, kv_heads=2
)
EVERY = CASES | {MANY.id: MANY}


class Repeated:
    """A case with its inputs, and the gradients of its first call. xp: the arrays' module."""

    def __init__(self, case: BackwardCase, xp: Any) -> None:
        self.case, self.xp = case, xp
        masks = case.masks()
        self.mask = masks[0] if len(masks) == 1 else masks
        self.made = backward_inputs.inputs_of(case, masks, xp)
        self.first = self.gradients()

    def gradients(self) -> Any:
        """Of another call, into new arrays of NaN where the case gives arrays."""
        made = self.made
        how = {"dlse": made.dlse, "wanted": self.case.wanted, **made.changes}
        given = backward_inputs.given_of(self.case, made, self.xp)
        return oc.attention_backward(*made.arrays, self.mask, out_grads=given, **how)


class Noise:
    """Matrix products of random sizes on a stream of their own."""

    def __init__(self, cupy: Any) -> None:
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.matrix = cupy.ones((4096, 4096), np.float32)
        self.rng = np.random.default_rng(0)
        self.ends: deque[Any] = deque()

    def top_up(self) -> None:
        """Enqueue products until AHEAD of them have not ended."""
        while self.ends and self.ends[0].done:
            self.ends.popleft()
        with self.stream:
            while len(self.ends) < AHEAD:
                size = int(self.rng.integers(64, len(self.matrix)))
                self.matrix[:size, :size] @ self.matrix[:size, :size]
                self.ends.append(self.stream.record())

    @property
    def busy(self) -> bool:
        """Whether some have not ended."""
        return not self.ends[-1].done


@pytest.fixture(scope="module")
def repeated() -> dict[str, Repeated]:
    """All cases, compiled side by side."""
    cupy: Any = pytest.importorskip("cupy")

    def made(case: BackwardCase) -> Repeated:
        with cupy.cuda.Stream(non_blocking=True) as stream:
            found = Repeated(case, cupy)
            stream.synchronize()
        return found

    with pick.serve_every_kernel(), ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(EVERY, pool.map(made, EVERY.values()), strict=True))


@pytest.fixture(scope="module")
def noise() -> Iterator[Noise]:
    cupy: Any = pytest.importorskip("cupy")
    made = Noise(cupy)
    cupy.cuda.Device().synchronize()
    yield made
    made.stream.synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize("name", EVERY)
def test_a_hundred_calls_beside_a_busy_stream_give_the_same_bits(
    name: str, repeated: dict[str, Repeated], noise: Noise
) -> None:
    case, busy = repeated[name], 0
    stream = case.xp.cuda.Stream(non_blocking=True)
    with stream:
        again = ChangedBits(case.first)
        for _ in range(REPEATS):
            noise.top_up()
            again.add(case.gradients())
            stream.synchronize()
            busy += noise.busy
        assert again.problem(REPEATS) == ""
    assert busy > REPEATS // 2, "the other stream was not busy"


@pytest.mark.gpu
@pytest.mark.parametrize("name", EVERY)
def test_gradients_end_while_half_of_the_device_is_taken(name: str, repeated: dict[str, Repeated]) -> None:
    """Kernels whose thread blocks wait for each other start together or wait; the same bits come out."""
    case = repeated[name]
    held, holder, stream = HalfHeld(case.xp), *(case.xp.cuda.Stream(non_blocking=True) for _ in range(2))
    case.xp.cuda.Device().synchronize()
    with holder:
        held()
        taken = holder.record()
    with stream:
        again = ChangedBits(case.first)
        again.add(case.gradients())
        assert not taken.done, "half of the device was free again before the call was there"
        until = time.monotonic() + LONGEST_S
        while not stream.done:
            assert time.monotonic() < until, "gradients hang"
            time.sleep(0.001)
        assert again.problem(1) == ""


def test_the_cases_are_twenty_of_verify_and_cover_what_they_are_for() -> None:
    assert set(CASES) == set(NAMES)
    assert len(CASES) == len(NAMES) == 20
    cases = CASES.values()
    assert {case.head_dim for case in cases} == {64, 96, 128, 192, 256}
    assert {"segments", "documents", "window", "sink", "holes", "bits", "causal"} <= {
        case.mask for case in cases
    }
    assert {1, 2, 3, 4, 8} <= {case.q_heads // case.kv_heads for case in cases}
    assert any(case.value_columns != case.head_dim for case in cases)
    assert {case.sinks for case in cases} == {case.softcap is None for case in cases} == {True, False}
    assert {case.dtype for case in cases} == {"bfloat16", "float16"}
    assert any(case.q_len % 16 and case.k_len % 16 for case in cases)


def test_one_more_gets_the_tile_for_full_masks() -> None:
    masks, problem = MANY.masks(), Problem(1, 4, 2, 8192, 8192, 64, "bfloat16")
    found = backward_table.chosen_for("sm_90", problem, masks, deterministic=True)
    assert found.ordered == TileShape(64, 128, 4, 16)
    assert found.ordered != backward_table.pick("sm_90", "bfloat16", 64).ordered


def test_changes_of_a_call_are_seen() -> None:
    """On the CPU engine."""
    case = Repeated(CASES["bwd-d128-f16-documents-q333k333-h2g1"], np)
    again = ChangedBits(case.first)
    again.add(case.gradients())
    assert again.problem(2) == ""
    case.made.v[0, 0, 5] *= 2
    again.add(case.gradients())
    assert "elements differ" in again.problem(3)

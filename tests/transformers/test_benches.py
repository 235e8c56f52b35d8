"""The suites that train and generate with transformers' models, on tiny ones: all attentions give the same results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy_gpu
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

from torch.nn.attention.flex_attention import flex_attention  # noqa: E402
from transformers.integrations import flex_attention as of_transformers  # noqa: E402

from omnicupy.masks.constructors import causal  # noqa: E402
from omnicupy.tools.bench import (  # noqa: E402
    captured,
    generate,
    growing,
    layer_steps,
    padded,
    peers,
    step,
    step_process,
)
from omnicupy.tools.bench.records import Record  # noqa: E402
from omnicupy.tools.bench.step_masks import SYSTEMS, maker  # noqa: E402
from omnicupy.tools.bench.step_process import SEED, Training  # noqa: E402
from omnicupy.tools.bench.step_stacks import FULL, STACKS, Stack  # noqa: E402
from omnicupy.tools.workloads.workload import Workload  # noqa: E402

TINY = [STACKS["tiny-llama"], STACKS["tiny-gemma"]]
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize("stack", TINY, ids=lambda stack: stack.family)
def test_training_gives_the_same_with_ours_and_sdpa(stack: Stack) -> None:
    samples = [Training(stack, system, "cpu").sample(stack.packs[0]) for system in ("omnicupy", "sdpa")]
    assert len(samples[0]) > 1000
    assert step.difference(*samples) < 1e-4
    other = Training(stack, "sdpa", "cpu")
    masks = other.masks
    other.masks = lambda packs, seed: masks(packs, seed + 1)  # type: ignore[method-assign]
    assert step.difference(other.sample(stack.packs[0]), samples[1]) > 2 * step.CLOSE


@pytest.mark.parametrize("stack", TINY, ids=lambda stack: stack.family)
def test_flex_attention_sees_the_same_masks(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward alone and not compiled: it has no gradients on the CPU."""
    monkeypatch.setattr(of_transformers.WrappedFlexAttention, "__call__", lambda self: flex_attention)
    found = {}
    with torch.no_grad():
        for system in SYSTEMS:
            training = Training(stack, system, "cpu")
            monkeypatch.setattr(training, "update", lambda: None)
            monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
            found[system] = [training.backward(stack.packs[0], seed)[1] for seed in (1, 2)]
    for system in SYSTEMS:
        for made, wanted in zip(found[system], found["sdpa"], strict=True):
            assert (made - wanted).abs().max() < 1e-4
    assert (found["sdpa"][0] - found["sdpa"][1]).abs().max() > 0.1


def test_masks_of_several_intervals_and_other_systems_are_refused() -> None:
    stack = TINY[0]
    mask = stack.masks(stack.packs[0], 0)[FULL]
    for system in ("flex_attention", "sdpa"):
        make = maker(system, [FULL], stack.tokens, "cpu")
        with pytest.raises(ValueError, match="of one interval per key, got"):
            make({FULL: ~mask})
    with pytest.raises(ValueError, match="the systems are flex_attention, omnicupy, sdpa"):
        maker("eager", [FULL], stack.tokens, "cpu")


def test_a_training_process_prints_its_figures(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_process, "STEPS", 2)
    monkeypatch.setattr(step_process, "ALONE", 1)
    step_process.main("tiny-llama", "omnicupy")
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("weights")
    (row,) = step.json.loads(last)["rows"].values()
    assert row["steps"] == 2
    assert 0 < row["allowed pairs"] < 0.5
    assert row["tokens a second"] == pytest.approx(1e3 * TINY[0].tokens / row["a step, ms"], rel=0.01, abs=1)
    assert 0 < row["attention alone, ms"] < row["a step, ms"]


def test_timed_steps_have_samples_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    training, seeds = Training(TINY[0], "omnicupy", "cpu"), []
    monkeypatch.setattr(training, "step", lambda packs, seed: seeds.append(seed))
    figures = step_process._timed(training, TINY[0].packs[0])
    assert seeds == [SEED - 1, *range(SEED, SEED + step_process.STEPS)]
    assert figures["steps"] == step_process.STEPS
    found = [TINY[0].masks(TINY[0].packs[0], seed)[FULL].pairs for seed in seeds[1:]]
    assert figures["allowed pairs"] == pytest.approx(sum(found) / len(found) / TINY[0].tokens ** 2, abs=1e-4)


def test_a_training_process_that_fails_ends_with_the_reason(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="bench step: the systems are") as found:
        step_process.main("tiny-llama", "eager")
    assert "\n" not in str(found.value)
    assert "Traceback" in capsys.readouterr().out


def test_weights_move_and_each_step_has_other_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_process, "RATE", 10.0)
    stack = TINY[0]
    training, seen = Training(stack, "omnicupy", "cpu"), []
    make = training._make
    training._make = lambda masks: seen.append(masks[FULL]) or make(masks)
    before = [one.detach().clone() for one in training.model.parameters()]
    for seed in (SEED, SEED + 1):
        training.step(stack.packs[0], seed)
    assert seen[0] != seen[1]
    moved = [not torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True)]
    assert moved == [False] + [True] * (len(moved) - 1)  # nothing is embedded
    assert training.inputs.grad is None


def test_generate_has_a_row_for_each_cache_and_system() -> None:
    record = Record(None, {})
    problem = generate.Problem(tokens=24, padding=(0, 5), new=(6, 2), turns=1, sizes=SIZES)
    generate.measure(record, lambda line: None, problem)
    assert [row["system"] for row in record.rows] == ["sdpa", "omnicupy"] * 2
    assert len({row["workload"] for row in record.rows}) == 2
    for row in record.rows:
        assert row["figures"]["first tokens as with SDPA"] == 1.0
        assert row["figures"]["a token, ms"] == row["figures"]["least, ms"]


class _Graph:
    """A graph that makes its call anew."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.replay = call


def test_a_captured_step_grows_and_stands_over_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    made = captured.Step(captured.Problem("tiny", (5, 9), (4, 2, 16), 2), "cpu")
    lengths: list[list[int]] = []

    def median(graph: Any) -> float:
        for _ in range(3):
            graph.replay()
            lengths.append(made.lengths.tolist())
        return float(len(lengths))

    monkeypatch.setattr(captured, "torch_graph", _Graph)
    monkeypatch.setattr(captured, "_median_ms", median)
    monkeypatch.setattr(captured, "_kernels_ms", lambda graph: 2.0)
    figures = captured.measure(made)
    assert lengths[:3] == [[6, 10], [7, 11], [8, 12]]
    assert len({tuple(one) for one in lengths[3:]}) == 1  # calls alone count nothing up
    assert figures == {
        "a replay, ms": 3.0,
        "calls alone, ms": 6.0,
        "time over calls alone": 0.5,
        "kernels alone, ms": 2.0,
        "time over kernels alone": 1.5,
    }


def test_a_rival_s_step_takes_each_layer_s_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy_gpu.install(monkeypatch)
    monkeypatch.setattr(
        layer_steps.peers, "prepare", lambda name, shared, limit_s: peers.SYSTEMS[name](shared)
    )
    graphs: list[_Graph] = []

    def torch_graph(call: Callable[[], None]) -> _Graph:
        call()
        graphs.append(_Graph(call))
        return graphs[-1]

    monkeypatch.setattr(captured, "torch_graph", torch_graph)
    session: Any = SimpleNamespace(dtype="bfloat16", limit_s=1.0)
    workload = Workload("tiny", 2, (4, 2, 16), lambda: causal(1, 96), "")
    stack = layer_steps.Stack(session, workload, lambda size: 3)
    made = layer_steps.theirs(stack, "sdpa-flash")
    assert [out.shape for out in made.outs] == [(2, 4, 1, 16)] * 3
    assert stack.error(made) < 4
    made.outs.reverse()
    assert stack.error(made) > 50
    with pytest.raises(peers.MissingError, match="no interleaved masks"):
        layer_steps.theirs(
            layer_steps.Stack(session, replace(workload, mask=lambda: causal(4, 96)), lambda size: 2),
            "sdpa-cudnn",
        )


def test_a_step_is_the_calls_that_it_is_compared_with() -> None:
    made = captured.Step(captured.Problem("tiny", (5, 9), (4, 2, 16), 3), "cpu")
    made.longer()
    wanted = made.out.clone()
    made.alone(made.lengths.tolist())()
    assert (made.out - wanted).abs().max() < 1e-5
    assert wanted.abs().max() > 0.1


def test_growing_steps_agree_and_are_a_key_longer_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "STEPS", 3)
    monkeypatch.setattr(growing, "WARM_UP", 1)
    made = growing.Step(captured.Problem("tiny", (40, 40), (4, 2, 16), 2), "cpu")
    found = growing.measure(made)
    assert made.lengths.tolist() == [44, 44]
    assert list(found) == [growing.CACHED, growing.MASKS, growing.SDPA]
    for figures in found.values():
        assert figures["correct"]
        assert 0 < figures["least, ms"] <= figures["a step, ms"]
        assert figures["a layer, us"] == pytest.approx(500 * figures["a step, ms"], abs=0.06)
    assert found[growing.SDPA]["time over SDPA"] == 1
    made.rule = captured.cached(window=4)
    assert [of["correct"] for of in growing.measure(made).values()] == [False, True, True]
    assert growing.STEPS + growing.WARM_UP < captured.SPARE


def test_growing_steps_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="bench growing: expected a GPU that torch finds, found none"):
        growing.growing(Record(None, {}), lambda line: None)


@pytest.mark.parametrize("room", [None, 40])
def test_masks_of_padded_batches_are_those_of_sdpa(room: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = padded.Batch(24, room, (0, 5, 3))
    ways, given = padded._ways("cpu"), padded._given(batch, 2, "cpu")
    ours, theirs = (ways[name](given) for name in (padded.MASKS, padded.SDPA))
    assert torch.equal(ours.dense(), theirs)
    assert theirs.shape == (3, 1, 1, room or 27)
    assert theirs.sum(3).flatten().tolist() == [27, 22, 24]
    monkeypatch.setattr(padded, "STEPS", 3)
    monkeypatch.setattr(padded, "BATCHES", (batch,))
    record = Record(None, {})
    padded.padded(record, lambda line: None)
    assert [row["system"] for row in record.rows] == [padded.MASKS, padded.SDPA]
    mine, own = (row["figures"] for row in record.rows)
    assert own["time over SDPA's mask"] == own["memory over SDPA's mask"] == 1
    assert mine["KB kept"] > 3 * 4 * (room or 28) / 1e3  # an int32 a key and sequence at least
    assert own["KB kept"] > 3 * (room or 28) / 1e3

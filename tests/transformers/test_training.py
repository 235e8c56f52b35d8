"""Models of transformers in training with attn_implementation="omnicupy": the gradients and losses of eager."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs
from torch._dynamo.utils import counters  # noqa: E402

import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import forward  # noqa: E402

NAME = oc.transformers.register()


def _packed() -> dict[str, Any]:
    """Two rows of several sequences each, told by their positions."""
    ids = tiny.text_rows("left", 30, 30)["input_ids"]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in ([9, 1, 20], [14, 16])])
    return {"input_ids": ids, "position_ids": positions, "use_cache": False}


def _inputs(name: str, side: str = "right") -> dict[str, Any]:
    given = _packed() if name == "packed" else tiny.MODELS[name].inputs(side)
    labels = given["input_ids"].clone()
    if "attention_mask" in given:
        labels[given["attention_mask"] == 0] = -100
        # Padding on the left predicts the first token; eager lets its rows see all.
        labels[:, 1:][given["attention_mask"][:, :-1] == 0] = -100
    return given | {"labels": labels}


def _model(name: str, how: Any, **changes: Any) -> Any:
    return tiny.model("llama" if name == "packed" else name, how, **changes).train()


def _gradients(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def _close(
    found: dict[str, Any],
    wanted: dict[str, Any],
    tolerance: float = 3e-5,
    exact: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Each within float32's tolerance of its own norm, or, where nothing but rounding is left, of the largest one.

    exact: makes the gradients in float64. What `wanted` itself loses in float32 differs from processor to processor;
    where `found` is further from it than the tolerance, it may be at most twice as far from the exact ones.
    """
    floor = 1e-6 * max(float(x.norm()) for x in wanted.values() if x is not None)
    for name, gradient in wanted.items():
        if gradient is None:
            assert found[name] is None, name
            continue
        error, norm = float((found[name] - gradient).norm()), float(gradient.norm())
        if error <= tolerance * norm + floor:
            continue
        assert exact is not None, (name, error, norm)
        true = exact()[name]
        ours, theirs = (float((x.double() - true).norm()) for x in (found[name], gradient))
        assert ours <= 2 * theirs + floor, (name, error, norm, ours, theirs)


def _in_float64(name: str, inputs: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Makes eager's gradients in float64, once."""

    @cache
    def made() -> dict[str, Any]:
        given = {key: x.double() if x.is_floating_point() else x for key, x in _tensors(inputs).items()}
        return _gradients(_model(name, "eager").double(), inputs | given)

    return made


def _tensors(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: x for key, x in inputs.items() if torch.is_tensor(x)}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["packed", *tiny.MODELS])
def test_the_gradient_of_every_parameter(name: str, side: str) -> None:
    inputs = _inputs(name, side)
    wanted = _gradients(_model(name, "eager"), inputs)
    assert sum(x is not None and bool(x.any()) for x in wanted.values()) >= 0.8 * len(wanted)
    _close(_gradients(_model(name, NAME), inputs), wanted, exact=_in_float64(name, inputs))


def test_the_comparison_sees_a_wrong_mask() -> None:
    inputs = _inputs("packed")
    wanted = _gradients(_model("packed", "eager"), inputs)
    del inputs["position_ids"]
    found = _gradients(_model("packed", NAME), inputs)
    for exact in (None, _in_float64("packed", _inputs("packed"))):
        with pytest.raises(AssertionError):
            _close(found, wanted, 0.01, exact)


def test_a_packed_vision_tower() -> None:
    inputs = _inputs("qwen2_5_vl")
    wanted = _gradients(_model("qwen2_5_vl", "eager"), inputs)
    ours = _model("qwen2_5_vl", NAME)
    ours.model.visual.config._attn_implementation = NAME + "_flash_varlen"
    _close(_gradients(ours, inputs), wanted, exact=_in_float64("qwen2_5_vl", inputs))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["packed", "gemma3"])
def test_gradient_checkpointing(name: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = forward._run
    monkeypatch.setattr(forward, "_run", lambda *args: calls.append(1) or run(*args))
    inputs = _inputs(name)
    ours = _model(name, NAME)
    wanted = _gradients(ours, inputs)
    once = len(calls)
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        ours.enable_input_require_grads()
    _close(_gradients(ours, inputs), wanted, 1e-6)
    assert len(calls) - once > once * 1.4  # the passes that are made again


def test_a_frozen_vision_tower() -> None:
    inputs = _inputs("gemma3")
    models = [_model("gemma3", how) for how in ("eager", NAME)]
    for model in models:
        model.model.vision_tower.requires_grad_(False)
    wanted, found = (_gradients(model, inputs) for model in models)
    assert any(x is None for x in wanted.values())
    _close(found, wanted)


def test_dropout_raises_in_training_alone() -> None:
    inputs = _inputs("llama")
    model = _model("llama", NAME, attention_dropout=0.1)
    with pytest.raises(oc.UnsupportedError, match=r"^LlamaAttention asks for dropout \(dropout: 0\.1\)"):
        model(**inputs)
    wanted = _gradients(_model("llama", NAME).eval(), inputs)
    _close(_gradients(model.eval(), inputs), wanted, 0)


def _losses(model: Any, given: list[dict[str, Any]], steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        loss = model(**given[step % len(given)]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("name", ["packed", "gemma3"])
def test_fifty_steps_follow_eager_s_losses(name: str) -> None:
    given = [_inputs(name)]
    wanted, found = (_losses(_model(name, how), given, 50) for how in ("eager", NAME))
    assert wanted[-1] < 0.9 * wanted[0]
    assert found == pytest.approx(wanted, rel=1e-4)


def _pack(seed: int, tokens: int = 48) -> oc.Mask:
    """A training row as BAGEL packs it: other samples, and other splits of them, in each step."""
    rng = np.random.default_rng(seed)
    first = int(rng.integers(12, 30))
    splits, modes = [], []
    for sample in (first, tokens - first):
        text, image = int(rng.integers(2, 5)), int(rng.integers(2, 4))
        splits += [text, image, sample - text - image]
        modes += ["causal", "full", "noise"]
    return oc.presets.bagel(sample_lens=[first, tokens - first], split_lens=splits, attn_modes=modes)


@pytest.mark.in_turn(8, at=1)
def test_a_pack_with_a_new_mask_every_step_compiles_twice() -> None:
    ids = tiny.text_rows("left", 48, 48)["input_ids"][:1]
    torch._dynamo.reset()
    counters.clear()
    losses: dict[str, list[float]] = {}
    graphs = []
    for how in ("eager", NAME):
        model = _model("llama", how)
        run = model if how == "eager" else torch.compile(model, backend="aot_eager", fullgraph=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
        losses[how] = []
        for step in range(6):
            mask: Any = _pack(step)
            given: Any = (
                torch.where(torch.from_numpy(mask.to_dense()), 0.0, -1e9)[None, None]
                if how == "eager"
                else oc.transformers.attention_mask(mask)
            )
            loss = run(ids, attention_mask=given, labels=ids, use_cache=False).loss
            del mask, given
            gc.collect()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[how].append(float(loss.detach()))
            if how == NAME:
                graphs.append(counters["stats"]["unique_graphs"])
    assert losses[NAME] == pytest.approx(losses["eager"], rel=1e-4)
    assert graphs[1:] == [graphs[1]] * 5
    assert not counters["graph_break"]


def test_bfloat16_is_as_exact_as_sdpa() -> None:
    inputs = _inputs("packed")
    exact = _gradients(_model("packed", "eager"), inputs)
    errors = {}
    for how in (NAME, "sdpa"):
        found = _gradients(_model("packed", how).bfloat16(), inputs)
        errors[how] = sum(float((found[name].float() - x).square().sum()) for name, x in exact.items()) ** 0.5
    assert 0 < errors[NAME] <= 2 * errors["sdpa"]

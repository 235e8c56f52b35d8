"""Unchanged models of transformers with attn_implementation="omnicupy": the logits and tokens of eager."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs
from torch._dynamo.utils import counters  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import forward  # noqa: E402

NAME = oc.transformers.register()


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def _pair(name: str, **changes: Any) -> tuple[Any, Any]:
    return tiny.model(name, "eager", **changes), tiny.model(name, NAME, **changes)


def _same(found: Any, wanted: Any, keep: Any = None) -> None:
    """Equal within what float32 leaves, where `keep` says so, and finite everywhere."""
    assert found.isfinite().all()
    keep = torch.ones(found.shape[:2], dtype=torch.bool) if keep is None else keep.bool()
    assert (found - wanted)[keep].abs().max() <= 2e-5 * wanted[keep].abs().max()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_logits(name: str, side: str) -> None:
    eager, ours = _pair(name)
    inputs = tiny.MODELS[name].inputs(side)
    wanted = eager(**inputs).logits
    _same(ours(**inputs).logits, wanted, inputs["attention_mask"])
    # What the comparison can see: padding that is not hidden, images and prefixes that are causal.
    changed = {"attention_mask": torch.ones_like(inputs["attention_mask"])} if side == "left" else {}
    if "token_type_ids" in inputs:
        changed["token_type_ids"] = torch.full_like(inputs["token_type_ids"], int(name == "paligemma"))
    if changed:
        with pytest.raises(AssertionError):
            _same(ours(**inputs | changed).logits, wanted, inputs["attention_mask"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.OTHERS)
def test_models_that_do_not_generate(name: str, side: str) -> None:
    eager, ours = _pair(name)
    inputs = tiny.OTHERS[name].inputs(side)
    _same(ours(**inputs).last_hidden_state, eager(**inputs).last_hidden_state, inputs["attention_mask"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral", "llama4"])
def test_padding_longer_than_a_window(name: str, side: str) -> None:
    eager, ours = _pair(name)
    inputs = tiny.text_rows(side, 7, 30)
    _same(ours(**inputs).logits, eager(**inputs).logits, inputs["attention_mask"])


def test_rows_that_see_nothing_give_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    attention = forward.front.attention
    monkeypatch.setattr(
        forward.front, "attention", lambda *args, **kwargs: found.append(attention(*args, **kwargs))
    )
    tiny.model("llama", NAME)(**tiny.text_rows("left", 7, 30))
    assert len(found) == 3
    for out in found:  # (batch, heads, rows, head_dim)
        assert not out[1, :, :23].any()
        assert out[1, :, 23:].any(dim=-1).all()
        assert out[0].any(dim=-1).all()


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "cache"), tiny.CACHES)
def test_generated_tokens(name: str, cache: str | None, side: str) -> None:
    inputs = tiny.MODELS[name].inputs(side)
    wanted, found = (
        model.generate(**inputs, max_new_tokens=14, do_sample=False, cache_implementation=cache)
        for model in _pair(name)
    )
    assert torch.equal(found, wanted)
    assert len(set(found[0, -14:].tolist())) > 2  # no model that repeats itself, whatever it attends to


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral", "llama4"])
def test_rows_after_a_cache(name: str, side: str) -> None:
    """Chunks of 9, 1 and 13 tokens; the sliding cache drops keys, so rows and keys start at other places."""
    inputs = tiny.text_rows(side, 20, 23)
    ids, padding = inputs["input_ids"], inputs["attention_mask"]
    logits = []
    for model in _pair(name):
        cache, parts = transformers.DynamicCache(config=model.config), []
        for first, stop in ((0, 9), (9, 10), (10, 23)):
            done = model(ids[:, first:stop], attention_mask=padding[:, :stop], past_key_values=cache)
            parts.append(done.logits)
        logits.append(torch.cat(parts, dim=1))
    _same(logits[1], logits[0], padding)
    _same(logits[1], tiny.model(name, NAME)(**inputs).logits, padding)


@pytest.mark.parametrize("name", ["llama", "mistral", "llama4"])
def test_packed_sequences(name: str) -> None:
    eager, ours = _pair(name)
    ids = tiny.text_rows("left", 30, 30)["input_ids"]
    lengths = ([9, 1, 20], [14, 16])
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    found = ours(ids, position_ids=positions, use_cache=False).logits
    _same(found, eager(ids, position_ids=positions, use_cache=False).logits)
    if name == "llama4" and not tiny.LATER:
        return  # chunks were those of the row, not of the sequence
    for row, sizes in enumerate(lengths):
        for first, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            alone = ours(ids[row : row + 1, first : first + size], use_cache=False).logits
            _same(found[row : row + 1, first : first + size], alone)


SEGMENTS = [("text", 7), ("image", 9), ("text", 4), ("noise", 10)]


def test_a_mask_of_one_s_own() -> None:
    eager, ours = _pair("llama")
    ids = tiny.text_rows("left", 30, 30)["input_ids"]
    masks = [oc.segments(SEGMENTS), oc.random(30, 1, text=(2, 5), image=(3, 9))]
    dense = torch.stack([torch.from_numpy(mask.to_dense()) for mask in masks])[:, None]
    additive = torch.where(dense, 0.0, torch.finfo(torch.float32).min)
    wanted = eager(ids, attention_mask=additive).logits
    _same(ours(ids, attention_mask=oc.transformers.attention_mask(masks)).logits, wanted)
    for given in (dense, additive, dense.expand(-1, 4, -1, -1)):
        _same(ours(ids, attention_mask=given).logits, wanted)
    _same(
        ours(ids, attention_mask=oc.transformers.attention_mask(masks[0], batch=2)).logits,
        eager(ids, attention_mask=additive[:1]).logits,
    )


def test_masks_of_one_s_own_by_kind_of_layer() -> None:
    eager, ours = (tiny.model("gemma3", how).model.language_model for how in ("eager", NAME))
    ids = tiny.text_rows("left", 30, 30)["input_ids"]
    whole = oc.segments(SEGMENTS)
    masks = {"full_attention": whole, "sliding_attention": whole & oc.sliding_window(30, left=5, right=30)}
    additive = {
        kind: torch.where(torch.from_numpy(mask.to_dense()), 0.0, torch.finfo(torch.float32).min)[None, None]
        for kind, mask in masks.items()
    }
    given = {kind: oc.transformers.attention_mask(mask, batch=2) for kind, mask in masks.items()}
    _same(
        ours(ids, attention_mask=given).last_hidden_state,
        eager(ids, attention_mask=additive).last_hidden_state,
    )


def test_a_vision_tower_in_one_call_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, ours = _pair("qwen2_5_vl")
    inputs = tiny.MODELS["qwen2_5_vl"].inputs("left")
    images = {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"]}
    wanted = torch.cat(eager.get_image_features(**images).pooler_output)
    calls: list[Any] = []
    attention = forward.front.attention
    monkeypatch.setattr(
        forward.front, "attention", lambda *args, **kwargs: calls.append(args) or attention(*args, **kwargs)
    )
    found = torch.cat(ours.get_image_features(**images).pooler_output)
    _same(found[None], wanted[None])
    assert len(calls) > 3
    ours.model.visual.config._attn_implementation = "omnicupy_flash_varlen"
    calls.clear()
    found = torch.cat(ours.get_image_features(**images).pooler_output)
    _same(found[None], wanted[None])
    assert [call[3].shape for call in calls] == [(96, 96)] * 3
    assert calls[0][3] is calls[2][3]  # the window layers share a mask
    _same(ours(**inputs).logits, eager(**inputs).logits, inputs["attention_mask"])


@pytest.mark.in_turn(8, at=7)
def test_a_compiled_step_recompiles_for_no_mask() -> None:
    """Decoding with a static cache: the masks are made outside of the graph and are inputs of it."""
    inputs = tiny.MODELS["gemma3"].inputs("left")
    eager, ours = _pair("gemma3")
    options = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": "static"}
    wanted = eager.generate(**inputs, **options)
    how = transformers.generation.CompileConfig(backend="aot_eager", mode=None, fullgraph=True)
    how._compile_all_devices = True
    torch._dynamo.reset()
    counters.clear()
    assert torch.equal(ours.generate(**inputs, **options, compile_config=how), wanted)
    assert 1 <= counters["stats"]["unique_graphs"] <= 2
    assert not counters["graph_break"]


@pytest.mark.in_turn(8, at=0)
def test_a_compiled_model_makes_its_masks_outside_of_the_graph() -> None:
    eager, ours = _pair("mistral")
    inputs = tiny.MODELS["mistral"].inputs("left")
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager")
    for first in (0, 2):
        given = {name: tensor[:, first:] for name, tensor in inputs.items()}
        _same(compiled(**given).logits, eager(**given).logits, given["attention_mask"])


def test_half_precision_is_as_exact_as_sdpa() -> None:
    inputs = tiny.MODELS["llama"].inputs("left")
    keep = inputs["attention_mask"].bool()
    exact = tiny.model("llama", "eager")(**inputs).logits[keep]
    errors = [
        (tiny.model("llama", how).bfloat16()(**inputs).logits.float()[keep] - exact).abs().max()
        for how in (NAME, "sdpa")
    ]
    assert errors[0] <= 2 * errors[1]

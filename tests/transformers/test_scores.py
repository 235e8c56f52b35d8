"""Models with soft caps and sinks under attn_implementation="omnicupy": logits, tokens and gradients of eager."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import forward  # noqa: E402

NAME = oc.transformers.register()
WITH_SINKS = [name for name in tiny.SCORES if name != "gemma2"]


def _model(name: str, how: str, dtype: Any = torch.float32) -> Any:
    """Sinks that count: they are drawn as weights are, of which vectors stay as they were made."""
    model = tiny.model(name, how)
    generator = torch.Generator().manual_seed(2)
    for of, parameter in model.named_parameters():
        if of.endswith("sinks"):
            parameter.data = torch.randn(parameter.shape, generator=generator) + 1
    return model.to(dtype)


def _same(found: Any, wanted: Any, keep: Any, tolerance: float = 2e-5) -> None:
    assert found.isfinite().all()
    assert (found - wanted)[keep.bool()].abs().max() <= tolerance * wanted[keep.bool()].abs().max()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.SCORES)
def test_logits(name: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tiny.SCORES[name].inputs(side)
    with torch.no_grad():
        wanted, ours = _model(name, "eager")(**inputs).logits, _model(name, NAME)
        _same(ours(**inputs).logits, wanted, inputs["attention_mask"])
        # What the comparison can see: scores that are not changed.
        attention = forward.front.attention
        monkeypatch.setattr(
            forward.front,
            "attention",
            lambda *given, sink_logits=None, softcap=None, **rest: attention(*given, **rest),
        )
        with pytest.raises(AssertionError):
            _same(ours(**inputs).logits, wanted, inputs["attention_mask"], 1e-3)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", tiny.SCORES)
def test_tokens(name: str, cache: str | None) -> None:
    inputs = tiny.SCORES[name].inputs("left")
    how = {"max_new_tokens": 10, "do_sample": False} | ({"cache_implementation": cache} if cache else {})
    with torch.no_grad():
        wanted, found = (_model(name, of).generate(**inputs, **how) for of in ("eager", NAME))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.SCORES)
def test_the_gradient_of_every_parameter(name: str, side: str) -> None:
    inputs = tiny.SCORES[name].inputs(side)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    # Padding on the left predicts the first token; eager lets its rows see all.
    labels[:, 1:][inputs["attention_mask"][:, :-1] == 0] = -100
    found = []
    for how in ("eager", NAME):
        model = _model(name, how).train()
        model(**inputs, labels=labels).loss.backward()
        found.append({of: p.grad for of, p in model.named_parameters() if p.grad is not None})
    wanted, ours = found
    assert wanted.keys() == ours.keys()
    assert sum(of.endswith("sinks") for of in ours) == (3 if name in WITH_SINKS else 0) or name != "gpt_oss"
    floor = 1e-6 * max(float(grad.norm()) for grad in wanted.values())
    for of, grad in wanted.items():
        assert float((ours[of] - grad).norm()) <= 3e-5 * float(grad.norm()) + floor, of


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_one_compiled_graph(name: str) -> None:
    inputs = tiny.SCORES[name].inputs("right") | {"use_cache": False}
    model = _model(name, NAME).train()
    if name == "gpt_oss":  # whose experts break graphs by themselves
        layer, inputs = model.model.layers[0].self_attn, {}
        hidden = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))
        positions = model.model.rotary_emb(hidden, torch.arange(9)[None])

        def run(call: Any) -> Any:
            return call(hidden, position_embeddings=positions, attention_mask=None)[0]
    else:
        layer = model

        def run(call: Any) -> Any:
            return call(**inputs).logits

    results = []
    for call in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        out = run(call)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WITH_SINKS)
def test_half_precision_sinks(name: str) -> None:
    """Sinks in bfloat16, as checkpoints have them, get their gradients in it."""
    inputs = tiny.SCORES[name].inputs("right")
    model = _model(name, NAME, torch.bfloat16).train()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    sinks = [p for of, p in model.named_parameters() if of.endswith("sinks")]
    assert sinks
    assert all(p.dtype == p.grad.dtype == torch.bfloat16 and p.grad.any() for p in sinks)


def test_sinks_that_are_no_logits_a_head_are_refused() -> None:
    q = torch.zeros(1, 4, 6, 8)
    module = torch.nn.Identity()
    for sinks in (torch.zeros(2), torch.zeros(4, 6), 1.0):
        with pytest.raises(oc.UnsupportedError, match="Identity asks for sinks other than a logit a head"):
            forward.attention(module, q, q, q, None, s_aux=sinks)


def test_keys_that_a_compressor_adds_are_refused() -> None:
    """DeepSeek-V4's layers cast the numbers that mask these keys to booleans, which then say the opposite."""
    q, module = torch.zeros(1, 4, 6, 8), torch.nn.Identity()
    module.compressor = torch.nn.Linear(2, 2)
    with pytest.raises(
        oc.UnsupportedError, match=r"^Identity asks for attention to compressed keys \(compressor: 'Linear'\)"
    ):
        forward.attention(module, q, q, q, None)
    module.compressor = None
    forward.attention(module, q, q, q, None)

"""Models whose values are narrower than their keys (multi-head latent attention, MiMo): logits, tokens and gradients
of eager.
"""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as models  # noqa: E402 - after what it needs
from tiny_families import tiny  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import forward  # noqa: E402

NAME = oc.transformers.register()
KINDS = (
    "DeepseekV2",
    "DeepseekV3",
    "Glm4MoeLite",
    "KimiLinear",
    "LongcatFlash",
    "MiMoV2Flash",
    "MiniCPM3",
    "Mistral4",
    "Youtu",
)
LATENT = [kind for kind in KINDS if hasattr(transformers, f"{kind}ForCausalLM")]


def _model(name: str, how: str, dtype: Any = torch.float32) -> Any:
    config = tiny(getattr(transformers, f"{name}Config"))
    config.eos_token_id = None
    model = models.made(getattr(transformers, f"{name}ForCausalLM"), config, how)
    generator = torch.Generator().manual_seed(2)
    for of, parameter in model.named_parameters():
        if of.endswith("sinks"):  # vectors stay as they were made, and these are to count
            parameter.data = torch.randn(parameter.shape, generator=generator) + 1
    return model.to(dtype)


def _widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The widths of keys and values of each call of omnicupy."""
    found: list[tuple[int, int]] = []
    attention = forward.front.attention

    def seen(q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> Any:
        found.append((k.shape[3], v.shape[3]))
        return attention(q, k, v, *rest, **options)

    monkeypatch.setattr(forward.front, "attention", seen)
    return found


def _same(found: Any, wanted: Any, keep: Any, tolerance: float = 2e-5) -> None:
    assert found.isfinite().all()
    assert (found - wanted)[keep.bool()].abs().max() <= tolerance * wanted[keep.bool()].abs().max()


def test_the_families_are_there() -> None:
    assert {"DeepseekV3", "Glm4MoeLite", "KimiLinear", "MiMoV2Flash", "Mistral4"} <= set(LATENT)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", LATENT)
def test_logits(name: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, widths = models.text_rows(side, 20, 23), _widths(monkeypatch)
    with torch.no_grad():
        wanted = _model(name, "eager")(**inputs).logits
        assert not widths
        _same(_model(name, NAME)(**inputs).logits, wanted, inputs["attention_mask"])
    assert widths
    assert all(keys > values for keys, values in widths)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", LATENT)
def test_tokens(name: str) -> None:
    inputs = models.text_rows("left", 20, 23)
    with torch.no_grad():
        wanted, found = (
            _model(name, how).generate(**inputs, max_new_tokens=10, do_sample=False)
            for how in ("eager", NAME)
        )
    assert torch.equal(found, wanted)
    assert len(set(found[0, -10:].tolist())) > 2


@pytest.mark.parametrize("name", [name for name in ("DeepseekV3", "MiMoV2Flash") if name in LATENT])
def test_tokens_of_a_static_cache(name: str) -> None:
    inputs = models.text_rows("left", 20, 23)
    how = {"max_new_tokens": 10, "do_sample": False, "cache_implementation": "static"}
    with torch.no_grad():
        wanted, found = (_model(name, of).generate(**inputs, **how) for of in ("eager", NAME))
    assert torch.equal(found, wanted)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", LATENT)
def test_the_gradient_of_every_parameter(name: str) -> None:
    inputs = models.text_rows("right", 20, 23)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    found = []
    for how in ("eager", NAME):
        model = _model(name, how).train()
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        found.append({of: p.grad for of, p in model.named_parameters() if p.grad is not None})
    wanted, ours = found
    assert wanted.keys() == ours.keys()
    floor = 1e-6 * max(float(grad.norm()) for grad in wanted.values())
    for of, grad in wanted.items():
        assert float((ours[of] - grad).norm()) <= 3e-5 * float(grad.norm()) + floor, of


def test_packed_sequences() -> None:
    """Each as if it were alone."""
    ids = models.text_rows("left", 30, 30)["input_ids"][:1]
    positions = torch.cat([torch.arange(9), torch.arange(21)])[None]
    ours = _model("DeepseekV3", NAME)
    with torch.no_grad():
        found = ours(ids, position_ids=positions, use_cache=False).logits
        for first, stop in ((0, 9), (9, 30)):
            alone = ours(ids[:, first:stop], use_cache=False).logits
            _same(found[:, first:stop], alone, torch.ones(1, stop - first))


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in ("DeepseekV3", "MiMoV2Flash") if name in LATENT])
def test_one_compiled_graph_of_a_layer(name: str, dtype: Any) -> None:
    model = _model(name, NAME, dtype).train()
    layer = model.model.layers[-1].self_attn
    hidden = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    kind = (layer.layer_type,) if name == "MiMoV2Flash" else ()
    positions = model.model.rotary_emb(hidden, torch.arange(9)[None], *kind)
    results = []
    torch._dynamo.reset()
    for call in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        out = call(hidden, position_embeddings=positions, attention_mask=None)[0]
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

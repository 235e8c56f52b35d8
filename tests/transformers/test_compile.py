"""Models of transformers inside torch.compile, torch.export and torch.autocast."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs
from torch._dynamo.utils import counters  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import forward  # noqa: E402

NAME = oc.transformers.register()
IDS = tiny.text_rows("left", 20, 20)["input_ids"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    torch.compiler.reset()
    counters.clear()
    with torch.no_grad():
        yield
    torch.compiler.reset()


def _compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="aot_eager", **options)


def _close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-4)


def _random(seed: int) -> oc.Mask:
    return oc.random(20, seed, text=(2, 5), image=(3, 9))


def _additive(mask: Any) -> Any:
    return torch.where(torch.from_numpy(mask.to_dense()), 0.0, -1e9)[None, None]


def test_a_model_with_4d_masks_is_one_graph() -> None:
    eager, ours = tiny.model("llama", "eager"), _compiled(tiny.model("llama", NAME), fullgraph=True)
    for seed in range(3):
        mask = _additive(_random(seed))
        _close(ours(IDS, attention_mask=mask, use_cache=False).logits, eager(IDS, attention_mask=mask).logits)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_buffer_that_a_compiled_model_gets_is_read_anew() -> None:
    eager, ours = tiny.model("llama", "eager"), _compiled(tiny.model("llama", NAME))
    buffer = _additive(oc.causal(20))
    ours(IDS, attention_mask=buffer)
    buffer.data.copy_(_additive(_random(1)))
    _close(ours(IDS, attention_mask=buffer).logits, eager(IDS, attention_mask=buffer).logits)


def test_a_mask_that_the_model_wrote_is_read() -> None:
    eager, ours = tiny.model("llama", "eager"), _compiled(tiny.model("llama", NAME))
    mask = oc.transformers.attention_mask(oc.causal(20))
    mask[:, :, 5:, 2] = False
    wanted = eager(IDS, attention_mask=torch.where(mask, 0.0, -1e9)).logits
    _close(ours(IDS, attention_mask=mask).logits, wanted)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", tiny.OTHERS)
def test_encoders_and_cross_attention(name: str) -> None:
    inputs = tiny.OTHERS[name].inputs("right")
    keep = inputs["attention_mask"].bool()
    wanted, found = (
        how(tiny.model(name, attention))(**inputs).last_hidden_state[keep]
        for how, attention in ((lambda model: model, "eager"), (_compiled, NAME))
    )
    _close(found, wanted)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("packed", [False, True])
def test_a_vision_tower(packed: bool) -> None:
    inputs = tiny.MODELS["qwen2_5_vl"].inputs("left")
    images = (inputs["pixel_values"], inputs["image_grid_thw"])
    wanted = tiny.model("qwen2_5_vl", "eager").model.visual(*images).pooler_output
    tower = tiny.model("qwen2_5_vl", NAME).model.visual
    if packed:
        tower.config._attn_implementation = NAME + "_flash_varlen"
    _close(_compiled(tower)(*images).pooler_output, wanted)


class Layer(torch.nn.Module):
    is_causal = True

    def forward(self, q: Any, k: Any, v: Any, mask: Any = None, **options: Any) -> Any:
        return forward.attention(self, q, k, v, mask, **options)[0] + 0


Q, K, V = (torch.randn(1, h, 20, 8, generator=torch.Generator().manual_seed(h)) for h in (4, 2, 2))
BOUNDS = torch.tensor([0, 8, 20])
OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"is_causal": False},
    "a window": {"sliding_window": 5},
    "bounds": {"cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": torch.tensor([0, 3, 20])},
    "bounds and a window": {"cu_seq_lens_q": BOUNDS, "sliding_window": 5},
    "a tensor": {"mask": _additive(_random(1))},
    "a tensor and bounds": {"mask": _additive(_random(1)), "cu_seq_lens_q": BOUNDS},
}


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("what", OPTIONS)
def test_one_layer_is_one_graph_and_can_be_exported(what: str) -> None:
    layer, options = Layer(), OPTIONS[what]
    wanted = layer(Q, K, V, **options)
    assert torch.equal(_compiled(layer, fullgraph=True)(Q, K, V, **options), wanted)
    for strict in (False, True):
        program = torch.export.export(layer, (Q, K, V), options, strict=strict)
        assert torch.equal(program.module()(Q, K, V, **options), wanted)
    if what == "a tensor":  # nothing of it is stored
        other = {"mask": _additive(_random(2))}
        assert torch.equal(program.module()(Q, K, V, **other), layer(Q, K, V, **other))
        assert not torch.equal(layer(Q, K, V, **other), wanted)


def test_masks_and_bounds_in_one_graph() -> None:
    layer, mask = Layer(), oc.transformers.attention_mask(_random(1))
    wanted = layer(Q, K, V, mask, cu_seq_lens_q=BOUNDS)
    assert torch.equal(_compiled(layer, fullgraph=True)(Q, K, V, mask, cu_seq_lens_q=BOUNDS), wanted)
    assert not torch.equal(layer(Q, K, V, mask), wanted)


def test_masks_are_not_exported() -> None:
    mask = oc.transformers.attention_mask(_random(1))

    class Holds(torch.nn.Module):
        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return Layer()(q, k, v, mask)

    with pytest.raises(oc.UnsupportedError, match=r"^mask must be None in torch\.export"):
        torch.export.export(Holds(), (Q, K, V), strict=False)
    model = tiny.model("llama", NAME)
    with pytest.raises(oc.UnsupportedError, match=r"^torch\.export cannot store a mask that is made"):
        torch.export.export(model, (IDS,), {"use_cache": False}, strict=False)


def test_the_operator_keeps_torch_s_contract() -> None:
    operator = torch.ops.omnicupy.attention_of_tensors.default
    handles = [_random(1).handle]
    mask = _additive(_random(3))
    keep = [_random(1)]
    handles = [one.handle for one in keep]
    for given in (
        (mask, None, 0.3, None, None, None, True),
        (None, None, None, BOUNDS, None, 5, True),
        (None, handles, None, BOUNDS, BOUNDS, None, False),
        (None, None, None, None, None, None, True),
    ):
        torch.library.opcheck(operator, (Q, K, V, *given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "bart", "qwen2_5_vl"])
def test_autocast_is_as_exact_as_sdpa(name: str, dtype: Any) -> None:
    tables = tiny.MODELS | tiny.OTHERS
    inputs = tables[name].inputs("left")
    keep = inputs["attention_mask"].bool()

    def result(how: str) -> Any:
        found = tiny.model(name, how)(**inputs)
        return (found.logits if "logits" in found else found.last_hidden_state)[keep].float()

    exact = result("eager")
    with torch.autocast("cpu", dtype=dtype):
        errors = [(result(how) - exact).abs().mean() for how in (NAME, "sdpa")]
    assert errors[0] <= 1.5 * errors[1]

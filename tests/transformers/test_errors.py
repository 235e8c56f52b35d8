"""What omnicupy does not compute for transformers raises at the first call and names the feature."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import forward  # noqa: E402

ROOT = Path(__file__).parents[2]
IDS = torch.arange(2, 12)[None]


def _made(kind: str, **config: Any) -> Any:
    kinds = {
        "Gemma2": (transformers.Gemma2ForCausalLM, transformers.Gemma2Config, {"query_pre_attn_scalar": 8}),
        "GptOss": (
            transformers.GptOssForCausalLM,
            transformers.GptOssConfig,
            {"num_local_experts": 2, "num_experts_per_tok": 1},
        ),
        "Llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {}),
    }
    model, made, more = kinds[kind]
    return model._from_config(
        made(**tiny.TEXT, head_dim=8, **more, **config), attn_implementation=oc.transformers.register()
    )


def _t5() -> Any:
    config = transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel._from_config(config, attn_implementation=oc.transformers.register())


def _with_grad(model: Any) -> Any:
    with torch.enable_grad():
        return model(IDS)


def _with_dense(dense: Any) -> Any:
    return _made("Llama").eval()(IDS, attention_mask=dense)


REST = ", which omnicupy does not compute; load the model with attn_implementation='eager'"
NO_BIAS = "only 0 (visible) and -inf (hidden); use attn_implementation='sdpa' for this model"
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "soft cap": (
        lambda: _made("Gemma2").eval()(IDS),
        oc.UnsupportedError,
        f"Gemma2Attention asks for a soft cap of the scores (softcap: 50.0){REST}",
    ),
    "sinks": (
        lambda: _made("GptOss").eval()(IDS),
        oc.UnsupportedError,
        f"GptOssAttention asks for attention sinks (s_aux: a tensor (4,)){REST}",
    ),
    "position bias": (
        lambda: _t5().eval()(IDS),
        oc.UnsupportedError,
        f"T5Attention asks for a position bias (position_bias: a tensor (1, 4, 10, 10)){REST}",
    ),
    "dropout": (
        lambda: _made("Llama", attention_dropout=0.1).train()(IDS),
        oc.UnsupportedError,
        f"LlamaAttention asks for dropout (dropout: 0.1){REST}",
    ),
    "weights": (
        lambda: _made("Llama").eval()(IDS, output_attentions=True),
        oc.UnsupportedError,
        f"LlamaAttention asks for the attention weights (output_attentions: True){REST}",
    ),
    "gradients": (
        lambda: _with_grad(_made("Llama")),
        oc.UnsupportedError,
        "LlamaAttention asks for gradients (query, key or value requires one), but attention has no backward pass "
        "yet; call the model under torch.no_grad() or torch.inference_mode()",
    ),
    "a bias": (
        lambda: _with_dense(torch.full((1, 1, 10, 10), -2.0)),
        oc.UnsupportedError,
        f"attention_mask: biases are not supported, {NO_BIAS}",
    ),
    "a mask for each head": (
        lambda: _with_dense(torch.arange(10) <= torch.arange(4)[:, None, None].expand(1, 4, 10, 1)),
        oc.UnsupportedError,
        "attention_mask: a mask for each head, of shape (1, 4, 10, 10), is not supported; use "
        "attn_implementation='sdpa' for this model",
    ),
    "a mask of integers": (
        lambda: _with_dense(torch.ones(1, 1, 10, 10, dtype=torch.long)),
        TypeError,
        "attention_mask must be boolean or 0 and -inf, got torch.int64; pass attention_mask.bool()",
    ),
    "a mask of other tokens": (
        lambda: _with_dense(torch.ones(1, 1, 10, 12, dtype=torch.bool)),
        ValueError,
        "mask must have the shape (q tokens, k tokens) = (10, 10), got (10, 12); build it for these lengths or "
        "cut it with mask.rows or mask[a:b, c:d]",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_models(what: str) -> None:
    call, error, message = BAD[what]
    with torch.no_grad(), pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


class Layer(torch.nn.Module):
    is_causal = True


class PagedAttentionCache:
    """By this name transformers passes the cache of continuous batching."""

    def __repr__(self) -> str:
        return "a paged cache"


def _attention(mask: Any = None, rows: int = 6, keys: int = 6, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, 8, generator=generator) for h, n in ((4, rows), (2, keys), (2, keys)))
    given = {"query": q, "key": k, "value": v} | options
    return forward.attention(Layer(), attention_mask=mask, **given)[0]


CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "continuous batching": (
        lambda: _attention(cache=PagedAttentionCache()),
        oc.UnsupportedError,
        f"Layer asks for continuous batching (cache: a paged cache){REST}",
    ),
    "indices": (
        lambda: _attention(indices=torch.zeros(1, 6, 3)),
        oc.UnsupportedError,
        f"Layer asks for sparse attention by indices (indices: a tensor (1, 6, 3)){REST}",
    ),
    "a window": (
        lambda: _attention(sliding_window=4),
        oc.UnsupportedError,
        f"Layer asks for a window without a mask (sliding_window: 4){REST}",
    ),
    "values": (
        lambda: _attention(value=torch.zeros(1, 2, 6, 16)),
        oc.UnsupportedError,
        "Layer asks for a head_dim of the values other than that of the queries (8) (value: a tensor "
        f"(1, 2, 6, 16)){REST}",
    ),
    "a padding mask": (
        lambda: _attention(torch.ones(1, 6, dtype=torch.bool)),
        TypeError,
        "attention_mask must have 4 axes (batch, heads, rows, keys), got shape (1, 6); pass a mask of shape "
        "(batch, tokens) to the model, which makes one of it",
    ),
    "bounds of other keys": (
        lambda: _attention(cu_seq_lens_q=torch.tensor([0, 6]), cu_seq_lens_k=torch.tensor([0, 2, 6])),
        oc.UnsupportedError,
        "cu_seq_lens_k other than cu_seq_lens_q is not supported; use attn_implementation='sdpa'",
    ),
    "bounds with a cache": (
        lambda: _attention(cu_seq_lens_q=torch.tensor([0, 6]), keys=9),
        ValueError,
        "cu_seq_lens_q goes with a batch of one and as many keys as rows, got (1, 4, 6, 8) and (1, 2, 9, 8); put "
        "all sequences in one row",
    ),
    "no masks": (
        lambda: oc.transformers.attention_mask([]),
        ValueError,
        "attention_mask: masks must hold at least one mask, got none; pass one an element",
    ),
    "no mask": (
        lambda: oc.transformers.attention_mask([oc.causal(3), 4]),
        TypeError,
        "attention_mask: masks[1] must be a Mask, got int; build it with omnicupy",
    ),
    "another batch than the list's": (
        lambda: oc.transformers.attention_mask([oc.causal(3), oc.causal(3)], batch=3),
        ValueError,
        "attention_mask: batch must be the number of masks (2) or left out, got 3; pass a single mask to share it",
    ),
    "no batch": (
        lambda: oc.transformers.attention_mask(oc.causal(3), batch=-1),
        ValueError,
        "attention_mask: batch must be at least 1, got -1; pass a positive number",
    ),
    "another batch than the inputs'": (
        lambda: _attention(oc.transformers.attention_mask(oc.causal(6), batch=5)),
        ValueError,
        "attention_mask must have the batch size of the inputs (1) or 1, got 5; pass one mask an element",
    ),
    "masks of several shapes": (
        lambda: oc.transformers.attention_mask([oc.causal(3), oc.causal(4)]),
        ValueError,
        "attention_mask: masks must have one shape, got (3, 3) and masks[1] of (4, 4); pad them with "
        "presets.padding",
    ),
    "a name": (
        lambda: oc.transformers.register(3),
        TypeError,
        "register: name must be a string, got int 3; pass a name",
    ),
    "a name with a meaning": (
        lambda: oc.transformers.register("my_flash"),
        ValueError,
        "register: name must hold none of flash, sdpa, flex, eager, paged, /, :, which transformers reads as its "
        "own, got 'my_flash'; take 'omnicupy'",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_calls(what: str) -> None:
    call, error, message = CALLS[what]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize(("rows", "keys"), [(6, 6), (6, 9), (9, 6), (1, 6)])
@pytest.mark.parametrize("is_causal", [None, True, False])
def test_without_a_mask_it_is_what_sdpa_does(rows: int, keys: int, is_causal: bool | None) -> None:
    sdpa = transformers.AttentionInterface()["sdpa"]
    q, k, v = (
        torch.randn(2, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (rows, keys, keys)
    )
    wanted, _ = sdpa(Layer(), q, k, v, None, is_causal=is_causal, scaling=0.3)
    found, weights = forward.attention(Layer(), q, k, v, None, is_causal=is_causal, scaling=0.3)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous()
    assert weights is None


def test_sequences_by_their_bounds() -> None:
    bounds = torch.tensor([0, 2, 2, 6], dtype=torch.int32)
    for is_causal in (True, False):
        mask = oc.presets.varlen([0, 2, 6], causal=is_causal)
        wanted = _attention(oc.transformers.attention_mask(mask))
        assert torch.equal(_attention(cu_seq_lens_q=bounds, is_causal=is_causal), wanted)


def test_other_names_can_be_registered() -> None:
    assert oc.transformers.register("another") == "another"
    model = _made("Llama").eval()
    with torch.no_grad():
        wanted = model(IDS).logits
        model.set_attn_implementation("another")
        assert torch.equal(model(IDS).logits, wanted)


def test_it_is_imported_by_name_and_models_on_the_cpu_import_no_cupy() -> None:
    code = """
import sys, omnicupy
print("torch" in sys.modules, "transformers" in sys.modules, hasattr(omnicupy, "transformers"))
import tiny_models, torch, omnicupy.transformers
model = tiny_models.model("llama", omnicupy.transformers.register())
with torch.no_grad():
    model(torch.ones(1, 5, dtype=torch.long))
print("cupy" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT / "tests" / "helpers",
        check=False,
    )
    assert done.stdout.splitlines() == ["False False False", "False"], done.stderr

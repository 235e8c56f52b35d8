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

import odd_tensors  # noqa: E402 - after what it needs
import odd_values  # noqa: E402
import tiny_families  # noqa: E402
import tiny_models as tiny  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402

ROOT = Path(__file__).parents[2]
IDS = torch.arange(2, 12)[None]


def _made(kind: str, **config: Any) -> Any:
    kinds = {
        "Llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {}),
    }
    model, made, more = kinds[kind]
    return model._from_config(
        made(**tiny.TEXT, head_dim=8, **more, **config), attn_implementation=oc.transformers.register()
    )


def _t5() -> Any:
    config = transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel._from_config(config, attn_implementation=oc.transformers.register())


def _with_dense(dense: Any) -> Any:
    return _made("Llama").eval()(IDS, attention_mask=dense)


REST = ", which omnicupy does not compute; load the model with attn_implementation='eager'"
EAGER = "load the model with attn_implementation='eager'"
NO_BIAS = f"only 0 (visible) and -1e4 or less (hidden); {EAGER}"
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
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
    "a bias": (
        lambda: _with_dense(torch.full((1, 1, 10, 10), -2.0)),
        oc.UnsupportedError,
        f"attention_mask: biases are not supported, {NO_BIAS}",
    ),
    "a mask for each head": (
        lambda: _with_dense(torch.arange(10) <= torch.arange(4)[:, None, None].expand(1, 4, 10, 1)),
        oc.UnsupportedError,
        f"attention_mask: a mask for each head, of shape (1, 4, 10, 10), is not supported; {EAGER}",
    ),
    "a mask of integers": (
        lambda: _with_dense(torch.full((1, 1, 10, 10), 2)),
        oc.UnsupportedError,
        f"attention_mask: integers must be 0 and 1, or 0 (visible) and -1e4 or less (hidden); {EAGER}",
    ),
    "a mask of zeros": (
        lambda: _with_dense(torch.zeros(1, 1, 10, 10, dtype=torch.long)),
        TypeError,
        "attention_mask: integers that are all 0 can mean that everything is visible, or nothing; pass booleans",
    ),
    "a mask of other numbers": (
        lambda: _with_dense(torch.zeros(1, 1, 10, 10, dtype=torch.complex64)),
        TypeError,
        "attention_mask must be boolean, floating point or integers, got torch.complex64; pass a boolean mask",
    ),
    "a mask of other tokens": (
        lambda: _with_dense(torch.ones(1, 1, 10, 12, dtype=torch.bool)),
        ValueError,
        "attention_mask must broadcast to (batch, heads, rows, keys) = (1, 4, 10, 10), got shape (1, 1, 10, 12); "
        "build it for these lengths",
    ),
    "an option that nobody knows": (
        lambda: _made("Llama").eval()(IDS, attention_temperature=2.0),
        oc.UnsupportedError,
        f"LlamaAttention passes attention_temperature (2.0), which omnicupy does not know; {EAGER}, or, where it "
        "changes nothing of attention, call omnicupy.transformers.register(ignore=['attention_temperature'])",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_models(what: str) -> None:
    call, error, message = BAD[what]
    with torch.no_grad(), pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize("kind", ["GPT2", "GPTBigCode", "Nemotron", "OPT", "Bart"])
def test_weights_are_refused_where_layers_do_not_hear_of_them(kind: str) -> None:
    """transformers collects them by hooks, so that many models hand no output_attentions on."""
    config = tiny_families.tiny(getattr(transformers, f"{kind}Config"))
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, name)._from_config(config, attn_implementation=oc.transformers.register())
    with torch.no_grad():
        for call in (model.eval(), model.generate):
            with pytest.raises(
                oc.UnsupportedError, match=r"asks for the attention weights \(output_attentions: True"
            ):
                call(IDS, output_attentions=True, **_of_generate(call))
        assert len(model(IDS, output_hidden_states=True).hidden_states) > 1
        assert model(IDS).attentions is None


def _of_generate(call: Any) -> dict[str, Any]:
    return {} if isinstance(call, torch.nn.Module) else {"max_new_tokens": 2, "return_dict_in_generate": True}


@pytest.mark.parametrize("shape", [(10,), (1, 10), (2, 10, 10), (2, 1, 1, 10, 10)])
def test_a_mask_of_other_axes_is_named(shape: tuple[int, ...]) -> None:
    mask = torch.ones(shape)
    mask[..., 0] = 0
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"^attention_mask must have shape \(batch, tokens\)"),
    ):
        _made("Llama").eval()(IDS.expand(2, -1), attention_mask=mask)


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


def test_odd_values_never_fail_inside() -> None:
    def values() -> Any:
        yield from odd_values.odd()
        yield from odd_tensors.odd()

    mask = {"masks": oc.causal(4), "batch": 1, "device": "cpu"}
    found = odd_values.raw_errors(oc.transformers.attention_mask, mask, values)
    found += odd_values.raw_errors(oc.transformers.register, {"name": "omnicupy", "ignore": ()})
    found += odd_values.raw_errors(oc.transformers.continuous, {"model": _made("Llama")})
    assert not found


def test_names_to_ignore_are_not_lost_in_an_iterator() -> None:
    with pytest.raises(TypeError, match=r"^register: ignore must be a list of names, got <list_iterator"):
        oc.transformers.register("mine", ignore=iter(["my_option"]))  # type: ignore[arg-type]

"""Models that cannot call a registered attention are refused while they are made, with advice that works."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import loading  # noqa: E402

NAME = oc.transformers.register()
SMALL = {"vocab_size": 96, "hidden_size": 32, "pad_token_id": 0}
BERT = {**tiny.ENCODER, "num_hidden_layers": 1}


def _vision(kind: Any) -> Any:
    return kind(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)


def _gpt_neo() -> tuple[Any, Any]:
    config = transformers.GPTNeoConfig(**SMALL, num_layers=1, num_heads=4, attention_types=[[["global"], 1]])
    return transformers.GPTNeoForCausalLM, config


def _deberta() -> tuple[Any, Any]:
    return transformers.DebertaV2Model, transformers.DebertaV2Config(**BERT)


# A class and its configuration; the last ones choose among classes of their own, which was a KeyError.
OWN = {
    "bloom": lambda: (transformers.BloomForCausalLM, transformers.BloomConfig(**SMALL, n_layer=1, n_head=4)),
    "mpt": lambda: (
        transformers.MptForCausalLM,
        transformers.MptConfig(vocab_size=96, d_model=32, n_layers=1, n_heads=4),
    ),
    "mpnet": lambda: (transformers.MPNetModel, transformers.MPNetConfig(**BERT)),
    "deberta": _deberta,
    "xlnet": lambda: (
        transformers.XLNetModel,
        transformers.XLNetConfig(vocab_size=96, d_model=32, n_layer=1, n_head=4, d_inner=32),
    ),
    "openai-gpt": lambda: (
        transformers.OpenAIGPTModel,
        transformers.OpenAIGPTConfig(vocab_size=96, n_embd=32, n_layer=1, n_head=4),
    ),
    "falcon": lambda: (
        transformers.FalconForCausalLM,
        transformers.FalconConfig(**SMALL, num_hidden_layers=1, num_attention_heads=4),
    ),
    "gpt_neo": _gpt_neo,
    "sam": lambda: (transformers.SamVisionModel, _vision(transformers.SamVisionConfig)),
    "data2vec": lambda: (transformers.Data2VecVisionModel, _vision(transformers.Data2VecVisionConfig)),
}


@pytest.mark.parametrize("name", OWN)
def test_models_with_attention_of_their_own_are_refused(name: str) -> None:
    kind, config = OWN[name]()
    with pytest.raises(
        oc.UnsupportedError, match=f"^{kind.__name__} takes no registered attention: "
    ) as raised:
        kind._from_config(config, attn_implementation=NAME)
    (advice,) = re.findall(r"attn_implementation='(\w+)'", str(raised.value))
    kind, config = OWN[name]()
    kind._from_config(config, attn_implementation=advice)


def test_a_subclass_elsewhere_is_refused_as_well() -> None:
    class Mine(transformers.MPNetModel):
        pass

    with pytest.raises(
        oc.UnsupportedError, match=r"^Mine takes no registered attention: it has attention code"
    ):
        Mine._from_config(transformers.MPNetConfig(**BERT), attn_implementation=NAME)


def test_a_model_made_of_models_is_warned_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "class OwnAttention(nn.Module):\n    pass\nAutoModel.from_config(config)\n"
    monkeypatch.setattr(loading, "_source", lambda kind: source)
    loading._check_model.cache_clear()
    with pytest.warns(
        UserWarning, match=r"LlamaModel has attention code of its own, which attn_implementation="
    ):
        loading._check_model(transformers.LlamaModel, NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loading._check_model(transformers.LlamaModel, NAME)
    loading._check_model.cache_clear()


def test_models_that_call_it_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in tiny.MODELS:
            kind, config = tiny.MODELS[name].make()
            kind._from_config(config, attn_implementation=NAME)


def test_other_attentions_are_not_looked_at() -> None:
    kind, config = OWN["bloom"]()
    assert kind._from_config(config, attn_implementation="eager").config._attn_implementation == "eager"


def test_the_method_that_is_wrapped_is_the_one_that_transformers_calls() -> None:
    check = transformers.PreTrainedModel.get_correct_attn_implementation
    assert check.checked_by_omnicupy
    oc.transformers.register("twice")
    assert transformers.PreTrainedModel.get_correct_attn_implementation is check
    model = tiny.model("llama", "eager")
    with pytest.raises(ValueError, match="Specified `attn_implementation="):
        model.set_attn_implementation("none such")

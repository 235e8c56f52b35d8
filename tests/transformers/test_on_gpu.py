"""Models of transformers on a GPU, in the precision that they run in there: as exact as with torch's own attention."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402

pytestmark = pytest.mark.gpu
NAME = oc.transformers.register()
NEW_TOKENS = 6


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def _on_device(name: str, side: str) -> dict[str, Any]:
    return {key: value.cuda() for key, value in tiny.MODELS[name].inputs(side).items()}


def _in_bfloat16(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: x.bfloat16() if x.is_floating_point() else x for key, x in inputs.items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_bfloat16_is_as_exact_as_sdpa(name: str, side: str) -> None:
    inputs = _on_device(name, side)
    keep = inputs["attention_mask"].bool()
    exact = tiny.model(name, "eager").cuda()(**inputs).logits[keep]
    errors = {}
    for how in (NAME, "sdpa"):
        found = tiny.model(name, how).cuda().bfloat16()(**_in_bfloat16(inputs)).logits
        assert how != NAME or found.isfinite().all()
        errors[how] = float((found.float()[keep] - exact).abs().max())
    assert 0 < errors[NAME] <= 2 * errors["sdpa"]


@pytest.mark.parametrize("name", tiny.MODELS)
def test_tokens_are_generated_from_finite_logits(name: str) -> None:
    """Greedy tokens with a cache. The prompt's logits are sdpa's; later tokens may part where two are as likely."""
    inputs = _in_bfloat16(_on_device(name, "left"))
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    ours, theirs = (
        tiny.model(name, how).cuda().bfloat16().generate(**inputs, max_new_tokens=NEW_TOKENS, **options)
        for how in (NAME, "sdpa")
    )
    assert len(ours.logits) == NEW_TOKENS
    assert all(logits.isfinite().all() for logits in ours.logits)
    wanted = theirs.logits[0].float()
    assert (ours.logits[0].float() - wanted).abs().max() <= 0.05 * wanted.abs().max()

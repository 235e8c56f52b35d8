"""Models of transformers on a GPU, in the precision that they run in there: as exact as with torch's own attention."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs
from batched import MODELS, NEW, SIZES, batched, give_room, order_streams, prompts, watch  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import masking, on_device  # noqa: E402

pytestmark = pytest.mark.gpu
NAME = oc.transformers.register()
NEW_TOKENS = 6
NEAR = 0.05  # of the highest logit: what bfloat16 leaves of two that are as likely


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


def _additive(mask: oc.Mask) -> Any:
    return torch.where(torch.from_numpy(mask.to_dense()), 0.0, -1e9)[None, None].cuda().bfloat16()


def test_a_buffer_that_is_written_is_read_again() -> None:
    model = tiny.model("llama", NAME).cuda().bfloat16()
    ids = tiny.text_rows("left", 20, 20)["input_ids"].cuda()
    buffer, new = _additive(oc.causal(20)), _additive(oc.segments([("text", 4), ("image", 10), ("text", 6)]))
    first = model(ids, attention_mask=buffer).logits
    buffer.data.copy_(new)
    assert torch.equal(
        model(ids, attention_mask=buffer).logits, model(ids, attention_mask=new.clone()).logits
    )
    assert not torch.equal(model(ids, attention_mask=buffer).logits, first)


def test_a_mask_tensor_is_not_read_in_a_capture() -> None:
    model = tiny.model("llama", NAME).cuda().bfloat16()
    ids, buffer = tiny.text_rows("left", 20, 20)["input_ids"].cuda(), _additive(oc.causal(20))
    held = oc.transformers.attention_mask(oc.causal(20), batch=2, device="cuda")
    wanted = model(ids, attention_mask=held, use_cache=False).logits
    for _ in range(2):  # once read and once not
        graph = torch.cuda.CUDAGraph()
        with (
            pytest.raises(
                oc.UnsupportedError, match="a tensor cannot be read for its mask while a CUDA graph"
            ),
            torch.cuda.graph(graph),
        ):
            model(ids, attention_mask=buffer, use_cache=False)
        torch.cuda.synchronize()
        model(ids, attention_mask=buffer, use_cache=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = model(ids, attention_mask=held, use_cache=False).logits
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_float32_weights(dtype: Any) -> None:
    inputs = _on_device("gemma3", "left")
    keep = inputs["attention_mask"].bool()
    exact = tiny.model("gemma3", "eager").cuda()(**inputs).logits[keep]
    with torch.autocast("cuda", dtype=dtype):
        errors = [
            float((tiny.model("gemma3", how).cuda()(**inputs).logits[keep] - exact).abs().mean())
            for how in (NAME, "sdpa")
        ]
    assert errors[0] <= 1.5 * errors[1]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A mask of one row whose keys a table names, q, k and v, and a call of a layer."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the host makes masks of one row but for Hopper GPUs")
    monkeypatch.setattr(on_device, "compiles", lambda: False)  # other tests do
    padding = torch.ones(2, 300, dtype=torch.bool, device="cuda")
    padding[1, :40] = False
    mask = masking.make_mask(2, 1, 300, q_offset=299, attention_mask=padding, device=padding.device)
    assert mask.held.keys is not None
    inputs = [torch.randn(2, 4, rows, 64, device="cuda").bfloat16() for rows in (1, 300, 300)]
    return mask, inputs, lambda mask, inputs: oc.transformers.forward.attention(None, *inputs, mask)[0]


def test_keys_of_a_step_are_not_read_in_a_capture(step: Any) -> None:
    mask, inputs, call = step
    with (
        pytest.raises(oc.UnsupportedError, match="a tensor cannot be read for its mask while a CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        call(mask, inputs)
    wanted = call(mask, inputs)
    # From here on the host has the masks, and a plan for them.
    torch.testing.assert_close(
        call(oc.transformers.MaskTensor(mask.masks, 2, "cuda"), inputs), wanted, rtol=0, atol=2e-2
    )
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call(mask, inputs)
    graph.replay()
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-2)


def test_a_step_on_another_device_than_its_mask(step: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    mask, inputs, call = step
    wanted, there = call(mask, inputs), [one.to("cuda:1") for one in inputs]
    for one in (mask, mask.to("cuda:1"), mask):
        assert torch.equal(call(one, there).to("cuda:0"), wanted)
    assert len(mask.held.keys._elsewhere) == 1


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_of_continuous_batching(name: str, graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens may part from those of generate where two are as likely: each has about the highest logit of `eager`."""
    give_room(monkeypatch)
    order_streams(monkeypatch)
    replayed = watch(monkeypatch, torch.cuda.CUDAGraph, "replay")
    # Of one expert in two a rounding can choose the other one, and then logits jump.
    every = {"num_experts_per_tok": 2} if name == "gpt_oss" else {}
    eager, ours = (tiny.model(name, how, **every).cuda().bfloat16() for how in ("eager", NAME))
    config = oc.transformers.continuous(ours, use_cuda_graph=graphs, **SIZES)
    found = batched(ours, prompts(), config)
    assert bool(replayed) == graphs
    for prompt, tokens in zip(prompts(), found, strict=True):
        assert len(tokens) == NEW
        whole = torch.tensor([[*prompt, *tokens]], device="cuda")
        logits = eager(whole[:, :-1]).logits[0, len(prompt) - 1 :].float()
        chosen = logits.gather(1, whole[0, len(prompt) :, None])[:, 0]
        assert float((logits.max(dim=1).values - chosen).max()) <= NEAR * float(logits.abs().max())

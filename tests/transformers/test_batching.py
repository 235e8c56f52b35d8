"""Continuous batching: generate_batch gives the tokens of generate, and what of it is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs
from batched import MODELS, NEW, SIZES, batched, generated, give_room, how, prompts, watch  # noqa: E402
from transformers.generation.continuous_batching import cache as of_batches  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import batching, forward  # noqa: E402

NAME = oc.transformers.register()


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> Any:
    give_room(monkeypatch)
    with torch.no_grad():
        yield


def _batched(model: Any, given: list[list[int]], **changes: Any) -> list[list[int]]:
    return batched(model, given, oc.transformers.continuous(model, **SIZES), **changes)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_generate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eager, ours = tiny.model(name, "eager"), tiny.model(name, NAME)
    wanted = [generated(eager, prompt) for prompt in prompts()]
    shared = watch(monkeypatch, of_batches.PagedAttentionCache, "search_prefix_match")
    masks = watch(monkeypatch, batching, "_mask")
    assert _batched(ours, prompts()) == wanted
    assert len({token for row in wanted for token in row}) > 10  # no model that repeats itself
    steps = [[(stop - first) for first, stop in pairwise(args[0])] for args, _ in masks]
    assert any(max(rows) > 1 and len(rows) > 1 for rows in steps)  # prompts beside sequences that go on
    keys = [[(stop - first) for first, stop in pairwise(args[1])] for args, _ in masks]
    assert any(1 < r < k for rows, of in zip(steps, keys, strict=True) for r, k in zip(rows, of, strict=True))
    # transformers shares pages where every layer sees all.
    assert any(length >= 32 for _, length in shared) == (name == "llama")


def test_a_sequence_that_ends_early_leaves_the_others_alone() -> None:
    eager, ours = tiny.model("gpt_oss", "eager"), tiny.model("gpt_oss", NAME)
    end = generated(eager, prompts()[0])[6]
    wanted = [generated(eager, prompt, eos_token_id=end) for prompt in prompts()]
    assert len({len(row) for row in wanted}) > 1
    assert _batched(ours, prompts(), eos_token_id=end) == wanted


def test_a_step_reads_its_bounds_once_and_makes_a_mask_for_each_kind_of_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = tiny.model("gpt_oss", NAME)
    reads = watch(monkeypatch, batching, "array")
    calls = watch(monkeypatch, batching.forward, "attention")
    _batched(ours, prompts()[:2])
    layers = ours.config.num_hidden_layers
    assert len(calls) % layers == 0
    steps = len(calls) // layers
    assert steps > NEW
    given = [args[0] for args, _ in reads if args[0].dtype == torch.int32]
    assert len(given) <= 3 * steps  # rows, keys of full layers, keys of windows
    for first in range(0, len(calls), layers):
        masks = [args[4] for args, _ in calls[first : first + layers]]
        assert masks[0] is masks[2]
        assert masks[0] is not masks[1] or masks[0].masks[0].shape[1] <= 6


def test_generate_goes_on_as_before() -> None:
    eager, ours = tiny.model("mistral", "eager"), tiny.model("mistral", NAME)
    inputs = tiny.MODELS["mistral"].inputs("left")
    oc.transformers.continuous(ours)
    assert ours.config._attn_implementation.endswith("omnicupy_flash_varlen")
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(ours.generate(**inputs, **options), eager.generate(**inputs, **options))


def test_a_manager_that_takes_requests_as_they_come() -> None:
    """What a server does: requests one by one, tokens as they are made."""
    eager, ours = tiny.model("gemma2", "eager"), tiny.model("gemma2", NAME)
    config = oc.transformers.continuous(ours, **SIZES)
    options = transformers.GenerationConfig(**how())
    manager = ours.init_continuous_batching(generation_config=options, continuous_batching_config=config)
    manager.start()
    try:
        names = [manager.add_request(prompt, max_new_tokens=NEW) for prompt in prompts()]
        found: dict[str, list[int]] = {}
        while len(found) < len(names):
            result = manager.get_result(timeout=60)
            assert result is not None
            if result.is_finished():
                found[result.request_id] = result.generated_tokens
    finally:
        manager.stop(block=True)
    assert [found[name] for name in names] == [generated(eager, prompt) for prompt in prompts()]


def test_the_serve_command_takes_names_of_its_own_alone() -> None:
    """What docs/serving.md says of it; a version that takes ours should be told there."""
    from transformers.cli.serving.model_manager import ModelManager

    with pytest.raises(ValueError, match="Unsupported attention implementation: 'omnicupy'"):
        ModelManager(attn_implementation=NAME)


class Layer(torch.nn.Module):
    is_causal = True


def _call(rows: int, keys: int, mask: Any = None, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, 8, generator=generator) for h, n in ((4, rows), (2, keys), (2, keys)))
    given = {"key": k, "value": v} | options
    # Some layers pass all of these by name.
    return batching.attention(Layer(), query=q, attention_mask=mask, **given)[0]


def _step(q: list[int], k: list[int], **options: Any) -> dict[str, Any]:
    bounds = {"cu_seq_lens_q": torch.tensor(q, dtype=torch.int32)}
    bounds["cu_seq_lens_k"] = torch.tensor(k, dtype=torch.int32)
    return bounds | {"read_index": [], "write_index": [], "is_causal": True} | options


@pytest.mark.parametrize("window", [None, 4])
def test_padding_of_a_step_is_neither_read_nor_written(window: int | None) -> None:
    q, k = [0, 5, 5, 6, 9], [0, 5, 5, 19, 30]
    rows, keys = 12, 37
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(1, 2, keys, 8, generator=generator) for _ in range(2))
    key[:, :, 30:], value[:, :, 30:] = float("nan"), float("inf")
    found = _call(rows, keys, key=key, value=value, **_step(q, k, sliding_window=window))
    assert not found[0, 9:].any()
    dense = np.zeros((9, 30), np.bool_)
    for (q0, q1), (k0, k1) in zip(pairwise(q), pairwise(k), strict=True):
        ahead = np.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0) - np.arange(k1 - k0)
        dense[q0:q1, k0:k1] = (ahead >= 0) & (ahead < (window or 99))
    query = torch.randn(1, 4, rows, 8, generator=torch.Generator().manual_seed(0))[:, :, :9]
    mask = oc.transformers.attention_mask(oc.from_dense(dense))
    wanted, _ = forward.attention(Layer(), query, key[:, :, :30], value[:, :, :30], mask)
    torch.testing.assert_close(found[:, :9], wanted)


def test_bounds_that_are_written_again_are_read_again() -> None:
    given = _step([0, 4, 6], [0, 4, 6])
    before = _call(6, 6, **given)
    given["cu_seq_lens_q"][1], given["cu_seq_lens_k"][1] = 2, 2
    after = _call(6, 6, **given)
    assert torch.equal(after, _call(6, 6, **_step([0, 2, 6], [0, 2, 6])))
    assert not torch.equal(after, before)


class OnDevice(torch.Tensor):  # type: ignore[misc]  # no types where torch is missing
    device = torch.device("cuda", 0)


def _captured() -> Any:
    given = _step([0, 6], [0, 6])
    given["cu_seq_lens_q"] = given["cu_seq_lens_q"].as_subclass(OnDevice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        return _call(6, 6, **given)


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a model with another attention": (
        lambda: oc.transformers.continuous(tiny.model("llama", "sdpa")),
        ValueError,
        "continuous: the model must have been loaded with omnicupy, got attn_implementation='sdpa'; load it with "
        "attn_implementation=omnicupy.transformers.register()",
    ),
    "another attention": (
        lambda: oc.transformers.continuous(tiny.model("llama", NAME), auto_switch_to_flash=True),
        ValueError,
        "continuous: auto_switch_to_flash must be False, got True, which takes another attention; leave it out",
    ),
    "a block table": (
        lambda: _call(6, 6, **_step([0, 6], [0, 6], block_table=torch.zeros(1, 4))),
        oc.UnsupportedError,
        "Layer asks for continuous batching by a block table (block_table: a tensor (1, 4)), which omnicupy does not "
        "compute; load the model with attn_implementation='eager'",
    ),
    "a mask": (
        lambda: _call(6, 6, torch.ones(1, 1, 6, 6), **_step([0, 6], [0, 6])),
        oc.UnsupportedError,
        "Layer asks for a mask beside the bounds of continuous batching (attention_mask: a tensor (1, 1, 6, 6)), which "
        "omnicupy does not compute; load the model with attn_implementation='eager'",
    ),
    "more rows than there are": (
        lambda: _call(6, 9, **_step([0, 7], [0, 9])),
        ValueError,
        "cu_seq_lens_q must rise from 0 to 6 tokens at most, got [0, 7]; pass the cumulative lengths of all sequences",
    ),
    "bounds that fall": (
        lambda: _call(6, 9, **_step([0, 3, 6], [0, 7, 2])),
        ValueError,
        "cu_seq_lens_k must rise from 0 to 9 tokens at most, got [0, 7, 2]; pass the cumulative lengths of all "
        "sequences",
    ),
    "no bounds": (
        lambda: _call(6, 6, **_step([0, 6], [0, 6], cu_seq_lens_k=None)),
        TypeError,
        "cu_seq_lens_k must be a tensor of bounds (sequences + 1,), got None; pass one",
    ),
    "bounds between tokens": (
        lambda: _call(6, 6, **_step([0, 6], [0, 6], cu_seq_lens_k=torch.tensor([0, 6.5]))),
        TypeError,
        "cu_seq_lens_k must be a tensor of integers, got torch.float32; cast it",
    ),
    "a captured graph": (
        _captured,
        oc.UnsupportedError,
        "cu_seq_lens_q cannot be read while a CUDA graph is captured, since a replay would not see what it holds then; "
        "pass the configuration of omnicupy.transformers.continuous(model, use_cuda_graph=True)",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what: str) -> None:
    call, error, message = ERRORS[what]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message

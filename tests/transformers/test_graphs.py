"""Continuous batching with CUDA graphs, played on the CPU: replays give the tokens of generate."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs
from fake_graphs import HostRead, Player  # noqa: E402
from transformers.generation.continuous_batching import cache as of_batches  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import graphs  # noqa: E402

NAME = oc.transformers.register()
MODELS = ["llama", "mistral", "gemma3", *tiny.SCORES]  # full, windows, windows among full ones, sinks
PAGE = {"page_size" if hasattr(transformers.ContinuousBatchingConfig, "page_size") else "block_size": 16}
SIZES = {"num_blocks": 64, "max_batch_tokens": 48} | PAGE
BUCKETS = {"q_padding_interval_size": 16, "kv_padding_interval_size": 128, "use_async_batching": False}
NEW = 18


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> Any:
    if hasattr(of_batches, "PagedAttentionMemoryHandler"):  # 5.17 asks a package that need not be there
        monkeypatch.setattr(of_batches.PagedAttentionMemoryHandler, "get_available_memory", lambda _: 1 << 28)
    with torch.no_grad():
        yield


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Player:
    return Player(monkeypatch)


def _prompts() -> list[list[int]]:
    """The first fills a step, and the next two begin with its tokens; the last is longer than a step."""
    generator = torch.Generator().manual_seed(5)
    some = torch.randint(2, 85, (110,), generator=generator).tolist()
    return [some[:48], [*some[:40], 9], some[:33], [5, 6, 7], some[40:]]


def _how(**changes: Any) -> dict[str, Any]:
    return {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0} | changes


def _generated(model: Any, prompt: list[int], **changes: Any) -> list[int]:
    done = model.generate(torch.tensor([prompt]), **_how(**changes))
    return done[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def _batched(model: Any, prompts: list[list[int]], **changes: Any) -> list[list[int]]:
    config = oc.transformers.continuous(model, use_cuda_graph=True, **SIZES, **BUCKETS)
    how = transformers.GenerationConfig(**_how(**changes))
    done = model.generate_batch(prompts, generation_config=how, continuous_batching_config=config)
    assert [done[f"req_{i}"].error for i in range(len(prompts))] == [None] * len(prompts)
    return [done[f"req_{i}"].generated_tokens for i in range(len(prompts))]


@pytest.mark.parametrize("name", MODELS)
def test_tokens_of_replays_are_those_of_generate(name: str, player: Player) -> None:
    eager, ours = tiny.model(name, "eager"), tiny.model(name, NAME)
    wanted = [_generated(eager, prompt) for prompt in _prompts()]
    assert _batched(ours, _prompts()) == wanted
    assert len({token for row in wanted for token in row}) > 10  # no model that repeats itself
    assert max(graph.hits for graph in player.made) > NEW // 2

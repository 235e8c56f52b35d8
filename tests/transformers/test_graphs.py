"""Continuous batching with CUDA graphs, played on the CPU: replays give the tokens of generate."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs
from batched import MODELS, NEW, SIZES, batched, generated, give_room, prompts, watch  # noqa: E402
from fake_graphs import Player  # noqa: E402
from transformers.generation.continuous_batching import cache as of_batches  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import batching  # noqa: E402

NAME = oc.transformers.register()
BUCKETS = {"q_padding_interval_size": 16, "kv_padding_interval_size": 128, "use_async_batching": False}


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> Any:
    give_room(monkeypatch)
    with torch.no_grad():
        yield


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Player:
    return Player(monkeypatch)


def _config(model: Any, **changes: Any) -> Any:
    return oc.transformers.continuous(model, use_cuda_graph=True, **SIZES | BUCKETS | changes)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", MODELS)
def test_tokens_of_replays_are_those_of_generate(
    name: str, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, ours = tiny.model(name, "eager"), tiny.model(name, NAME)
    wanted = [generated(eager, prompt) for prompt in prompts()]
    shared = watch(monkeypatch, of_batches.PagedAttentionCache, "search_prefix_match")
    assert batched(ours, prompts(), _config(ours)) == wanted
    assert len({token for row in wanted for token in row}) > 10  # no model that repeats itself
    assert any(length >= 32 for _, length in shared) == (name == "llama")
    # Layers of a kind share what a pass plans; a graph plans for itself.
    kinds = 1 if name in ("llama", "mistral") else 2
    assert player.plans == kinds * len(player.made)
    assert player.calls == ours.config.get_text_config().num_hidden_layers * len(player.made)
    assert max(graph.hits for graph in player.made) > NEW // 2
    assert any(0 in rows and 1 in rows for rows, _ in player.replayed)  # fewer sequences than the graph has
    lengths = [max(keys) for _, keys in player.replayed]
    assert name == "mistral" or max(lengths) > min(lengths) + NEW // 2


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_chunks_of_prompts_beside_sequences_that_go_on_are_replayed(name: str, player: Player) -> None:
    """One size for all steps: whatever comes is a replay of the first one."""
    eager, ours = tiny.model(name, "eager"), tiny.model(name, NAME)
    given = [prompts()[3], prompts()[4], [*prompts()[4], 7, 8], prompts()[0]]
    wanted = [generated(eager, prompt) for prompt in given]
    config = _config(ours, max_batch_tokens=24, q_padding_interval_size=24, kv_padding_interval_size=1024)
    assert batched(ours, given, config) == wanted
    mixed = [
        any(1 < r < k for r, k in zip(rows, keys, strict=True)) for rows, keys in player.replayed if 1 in rows
    ]
    assert any(mixed)


def test_a_sequence_that_ends_early_leaves_the_others_alone(player: Player) -> None:
    eager, ours = tiny.model("gpt_oss", "eager"), tiny.model("gpt_oss", NAME)
    end = generated(eager, prompts()[0])[6]
    wanted = [generated(eager, prompt, eos_token_id=end) for prompt in prompts()]
    assert len({len(row) for row in wanted}) > 1
    assert batched(ours, prompts(), _config(ours), eos_token_id=end) == wanted


def test_generate_goes_on_as_before() -> None:
    eager, ours = tiny.model("mistral", "eager"), tiny.model("mistral", NAME)
    inputs = tiny.MODELS["mistral"].inputs("left")
    config = oc.transformers.continuous(ours, use_cuda_graph=True)
    assert config.use_cuda_graph == (True, False)
    assert ours.config._attn_implementation.endswith("omnicupy_graphs_flash_varlen")
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(ours.generate(**inputs, **options), eager.generate(**inputs, **options))
    assert oc.transformers.continuous(ours).use_cuda_graph is False
    assert ours.config._attn_implementation.endswith("omnicupy_flash_varlen")


def test_a_recording_gives_no_numbers_to_the_host(player: Player) -> None:
    """The name without graphs reads bounds on the host: the test above would see it."""
    ours = tiny.model("llama", NAME)
    config = _config(ours)
    ours.config._attn_implementation = batching.names(NAME)[-1]
    how = transformers.GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=0)
    done = ours.generate_batch(prompts()[:1], generation_config=how, continuous_batching_config=config)
    assert not player.made
    assert not done or done["req_0"].error

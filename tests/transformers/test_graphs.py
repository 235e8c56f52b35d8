"""Continuous batching with CUDA graphs, played on the CPU: replays give the tokens of generate."""

from __future__ import annotations

from collections.abc import Callable
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
from omnicupy.transformers import batching, graphs  # noqa: E402

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


class Layer(torch.nn.Module):
    is_causal = True
    layer_idx = 0


def _call(function: Callable[..., Any], rows: int, keys: int, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, 8, generator=generator) for h, n in ((4, rows), (2, keys), (2, keys)))
    return function(Layer(), query=q, attention_mask=None, **{"key": k, "value": v} | options)[0]


def _step(q: list[int], k: list[int], **options: Any) -> dict[str, Any]:
    bounds = {"cu_seq_lens_q": torch.tensor(q, dtype=torch.int32)}
    bounds["cu_seq_lens_k"] = torch.tensor(k, dtype=torch.int32)
    return bounds | {"read_index": [], "write_index": [], "is_causal": True} | options


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sliding_window": 4},
        {"scaling": 0.3, "softcap": 2.0, "s_aux": torch.tensor([0.1, 2.0, -1.0, 0.5])},
        {"max_length_k": 14},
        {"max_seqlen_k": 14, "sliding_window": 30},
    ],
)
def test_a_step_is_that_of_batching(options: dict[str, Any]) -> None:
    """Padding is neither read nor written: NaN beside, zeros after the last row."""
    given = _step([0, 5, 5, 6, 9, 9], [0, 5, 5, 19, 30, 30], **options)
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(1, 2, 37, 8, generator=generator) for _ in range(2))
    key[:, :, 30:], value[:, :, 30:] = float("nan"), float("inf")
    found = _call(graphs.attention, 12, 37, key=key, value=value, **given)
    assert not found[0, 9:].any()
    wanted = _call(batching.attention, 12, 37, key=key, value=value, **given)
    torch.testing.assert_close(found, wanted)


def test_layers_share_a_pass_until_they_begin_again() -> None:
    given, layer = _step([0, 4, 6], [0, 4, 6]), Layer()
    generator = torch.Generator().manual_seed(0)
    inputs = {
        name: torch.randn(1, heads, 6, 8, generator=generator)
        for name, heads in (("query", 4), ("key", 2), ("value", 2))
    }
    first = graphs.attention(layer, **inputs, attention_mask=None, **given)[0]
    given["cu_seq_lens_q"][1], given["cu_seq_lens_k"][1] = 2, 2
    again = graphs.attention(layer, **inputs, attention_mask=None, **given)[0]
    assert not torch.equal(again, first)
    layer.layer_idx = 1  # a later layer of the same pass
    given["cu_seq_lens_q"][1], given["cu_seq_lens_k"][1] = 4, 4
    assert torch.equal(graphs.attention(layer, **inputs, attention_mask=None, **given)[0], again)
    bounds = given.pop("cu_seq_lens_q")
    assert len(graphs._passes[bounds].steps) == 1
    before = len(graphs._passes)
    del bounds
    assert len(graphs._passes) == before - 1


def _without_bounds() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "captures", lambda _: True)
        return _call(graphs.attention, 6, 6)


def _continuous(**options: Any) -> Callable[[], Any]:
    return lambda: oc.transformers.continuous(tiny.model("llama", NAME), **options)


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "graphs of block tables": (
        _continuous(use_cuda_graph=(False, True)),
        oc.UnsupportedError,
        "continuous: use_cuda_graph=(False, True) asks for graphs of steps by block tables alone, which omnicupy does "
        "not compute; pass True",
    ),
    "too many requests": (
        _continuous(use_cuda_graph=True, max_requests_per_batch=1025),
        ValueError,
        "continuous: max_requests_per_batch must be at most 1024 with use_cuda_graph, got 1025",
    ),
    "compiled steps": (
        _continuous(use_cuda_graph=True, default_compile_level=1),
        oc.UnsupportedError,
        "continuous: use_cuda_graph with default_compile_level=1 is not supported, since attention runs between the "
        "graphs of torch.compile; leave one of them out",
    ),
    "a captured call that is no step": (
        _without_bounds,
        oc.UnsupportedError,
        "Layer is captured into a CUDA graph without the bounds of continuous batching, by the name of attention that "
        "is for these alone ('_graphs'); set the model's attention to that of omnicupy.transformers.register ahead of "
        "captures of your own",
    ),
    "a block table": (
        lambda: _call(graphs.attention, 6, 6, **_step([0, 6], [0, 6], block_table=torch.zeros(1, 4))),
        oc.UnsupportedError,
        "Layer asks for continuous batching by a block table (block_table: a tensor (1, 4)), which omnicupy does not "
        "compute; load the model with attn_implementation='eager'",
    ),
    "no bounds": (
        lambda: _call(graphs.attention, 6, 6, **_step([0, 6], [0, 6], cu_seq_lens_k=None)),
        TypeError,
        "cu_seq_lens_k must be a tensor of bounds (sequences + 1,), got None; pass one",
    ),
    "wide bounds": (
        lambda: _call(graphs.attention, 6, 6, **_step([0, 6], [0, 6], cu_seq_lens_q=torch.tensor([0, 6]))),
        TypeError,
        "cu_seq_lens_q must be int32 where CUDA graphs may be captured, got torch.int64; cast it",
    ),
    "other sequences": (
        lambda: _call(graphs.attention, 6, 6, **_step([0, 2, 6], [0, 6])),
        ValueError,
        "cu_seq_lens_q and cu_seq_lens_k must bound as many sequences, got 2 and 1; an empty one repeats a bound",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what: str) -> None:
    call, error, message = ERRORS[what]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message

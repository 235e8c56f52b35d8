"""Continuous batching of tiny models, and what it has to give: the tokens of generate."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models as tiny
import torch
import transformers
from transformers.generation.continuous_batching import cache as of_batches
from transformers.generation.continuous_batching import input_outputs

MODELS = ["llama", "mistral", "gemma3", *tiny.SCORES]  # full, windows, windows among full ones, sinks
PAGE = {"page_size" if hasattr(transformers.ContinuousBatchingConfig, "page_size") else "block_size": 16}
SIZES = {"num_blocks": 64, "max_batch_tokens": 48} | PAGE
NEW = 18


def give_room(patch: pytest.MonkeyPatch) -> None:
    """Memory as 5.23 and later need it: 5.17 asks a package that need not be there."""
    if hasattr(of_batches, "PagedAttentionMemoryHandler"):
        patch.setattr(of_batches.PagedAttentionMemoryHandler, "get_available_memory", lambda _: 1 << 28)


def order_streams(patch: pytest.MonkeyPatch) -> None:
    """Asynchronous batching that waits until its buffers on the device have been cleared.

    transformers (5.17 to 5.24) clears them on the default stream and fills them on a stream of its own, which waits for
    nothing: where the default stream is behind, zeros overwrite the first steps, and old memory is taken for tokens.
    """
    buffers = input_outputs.ContinuousBatchingAsyncIOs
    make, reset = buffers.__init__, buffers.reset

    def made(self: Any, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        torch.cuda.synchronize()

    def cleared(self: Any) -> None:
        torch.cuda.synchronize()
        reset(self)
        torch.cuda.synchronize()

    patch.setattr(buffers, "__init__", made)
    patch.setattr(buffers, "reset", cleared)


def prompts() -> list[list[int]]:
    """The first fills a step, and the next two begin with its tokens; the last is longer than a step."""
    generator = torch.Generator().manual_seed(5)
    some = torch.randint(2, 85, (110,), generator=generator).tolist()
    return [some[:48], [*some[:40], 9], some[:33], [5, 6, 7], some[40:]]


def how(**changes: Any) -> dict[str, Any]:
    """Options of generate."""
    return {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0} | changes


def generated(model: Any, prompt: list[int], **changes: Any) -> list[int]:
    """New tokens of one prompt by generate."""
    done = model.generate(torch.tensor([prompt]), **how(**changes))
    return done[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def batched(model: Any, given: list[list[int]], config: Any, **changes: Any) -> list[list[int]]:
    """New tokens of all prompts by generate_batch."""
    options = transformers.GenerationConfig(**how(**changes))
    done = model.generate_batch(given, generation_config=options, continuous_batching_config=config)
    assert [done[f"req_{i}"].error for i in range(len(given))] == [None] * len(given)
    return [done[f"req_{i}"].generated_tokens for i in range(len(given))]


def watch(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, Any]]:
    """Arguments and results of a function from now on."""
    seen: list[tuple[Any, Any]] = []
    function = getattr(owner, name)

    def watched(*args: Any, **options: Any) -> Any:
        found = function(*args, **options)
        seen.append((args, found))
        return found

    patch.setattr(owner, name, watched)
    return seen

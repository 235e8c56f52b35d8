"""bench generate: what a token of transformers' generate takes with ours and with SDPA, in turn in one process.

A batch of prompts padded on the left to one length, 12 layers of random weights, with a cache that grows and with a
static one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from omnicupy.choose import pick
from omnicupy.tools.bench.records import OURS, Record
from omnicupy.tools.bench.torch_inputs import library

SUITE = "generate"
SYSTEMS = ("sdpa", OURS)
CACHES = {"a cache that grows": None, "a static cache": "static"}
PADDING = (0, 300, 17, 900, 120, 64, 500, 1)  # tokens on the left of each prompt, of 2,048

Say = Callable[[str], None]


@dataclass(frozen=True)
class Problem:
    """tokens: of a prompt with its padding.  new: tokens that are generated in a sample, and few of them, whose time is
    taken off.  turns: samples of each system.  sizes: of the model's configuration.
    """

    tokens: int = 2048
    padding: tuple[int, ...] = PADDING
    new: tuple[int, int] = (42, 2)
    turns: int = 5
    sizes: dict[str, Any] = field(
        default_factory=lambda: {
            "vocab_size": 4096,
            "hidden_size": 2048,
            "intermediate_size": 5504,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "max_position_embeddings": 8192,
        }
    )


def generate(record: Record, say: Say) -> None:
    """A row for each cache and system. Raises ImportError without torch or transformers."""
    measure(record, say, Problem())


@pick.serve_every_kernel()
def measure(record: Record, say: Say, problem: Problem) -> None:
    """The rows of a problem: milliseconds a token, and over SDPA's, of the medians of turns."""
    torch = library("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, inputs = _model(problem, device), _inputs(problem, device)
    for cache, implementation in CACHES.items():
        took: dict[str, list[float]] = {system: [] for system in SYSTEMS}
        tokens = {}
        for turn in range(problem.turns + 1):  # the first one compiles
            for system in SYSTEMS:
                model.config._attn_implementation = system
                many, few = (_seconds(model, inputs, new, implementation) for new in problem.new)
                tokens[system] = many[1][:, problem.tokens]  # later ones follow the first that differs
                if turn:
                    took[system].append(1e3 * (many[0] - few[0]) / (problem.new[0] - problem.new[1]))
        medians = {system: statistics.median(of) for system, of in took.items()}
        same = float((tokens[OURS] == tokens[SYSTEMS[0]]).double().mean())
        for system in SYSTEMS:
            figures = {"a token, ms": round(medians[system], 3), "least, ms": round(min(took[system]), 3)}
            figures["time over SDPA"] = round(medians[system] / medians[SYSTEMS[0]], 4)
            figures["first tokens as with SDPA"] = round(same if system == OURS else 1.0, 3)
            record.add(
                workload=_workload(problem, cache), system=system, figures=figures, **{"pass": "forward"}
            )
            say(f"{cache}: {system}: {figures}")


def _workload(problem: Problem, cache: str) -> str:
    layers = problem.sizes["num_hidden_layers"]
    return f"batch {len(problem.padding)} from {problem.tokens:,} tokens, {layers} layers, {cache}"


def _model(problem: Problem, device: str) -> Any:
    torch, transformers = library("torch"), library("transformers")
    import omnicupy.transformers as ours

    ours.register(OURS)
    config = transformers.LlamaConfig(
        **problem.sizes, pad_token_id=0, bos_token_id=1, eos_token_id=None, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        kind = transformers.LlamaForCausalLM
        return kind._from_config(config, attn_implementation=SYSTEMS[0], dtype=dtype).eval()


def _inputs(problem: Problem, device: str) -> dict[str, Any]:
    torch = library("torch")
    generator = torch.Generator().manual_seed(9)
    shape = (len(problem.padding), problem.tokens)
    ids = torch.randint(2, problem.sizes["vocab_size"], shape, generator=generator)
    mask = torch.ones_like(ids)
    for i, count in enumerate(problem.padding):
        mask[i, :count], ids[i, :count] = 0, 0
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _seconds(model: Any, inputs: dict[str, Any], new: int, cache: str | None) -> tuple[float, Any]:
    """Seconds of generating `new` tokens, greedily, and all tokens."""
    torch = library("torch")
    how: dict[str, Any] = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "disable_compile": True,
    }
    how |= {"pad_token_id": 0} | ({} if cache is None else {"cache_implementation": cache})
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begin = time.perf_counter()
    with torch.no_grad():
        found = model.generate(**inputs, **how)
    wait()
    return time.perf_counter() - begin, found

"""`python -m omnicupy.tools.bench.step_process STACK SYSTEM`: train some layers of a model, print what it took as JSON.

A step makes the masks of new samples, runs forward and backward passes in bfloat16 and updates the weights (SGD). Lines
ahead of the last one say how far it is.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from omnicupy.choose import pick
from omnicupy.tools.bench.measure import reason
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.bench.step_masks import FLEX, maker
from omnicupy.tools.bench.step_stacks import FULL, STACKS, Packs, Stack
from omnicupy.tools.bench.torch_inputs import library

STEPS, BUDGET_S = 5, 8.0  # of a kind of rows: at most so many steps, and about so long
LATEST_S = 18.0  # after the first step: later no other kind of rows is begun
ALONE = 5  # samples of attention alone
SAMPLE_ROWS, SAMPLE_COLUMNS = 64, 32
SEED = 1000  # of the first row that is timed
RATE = 1e-3  # of learning
SHARP = 1.8  # of the numbers that attention's weights make: a mask that is wrong shows in the results

Say = Callable[[str], None]
Figures = dict[str, Any]


class Training:
    """A stack with an attention of transformers, its optimizer and its inputs. The same numbers in every process."""

    def __init__(self, stack: Stack, system: str, device: str) -> None:
        torch = library("torch")
        self.stack, self.system, self.device = stack, system, device
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model = _model(stack, system, device, self.dtype)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE, fused=device == "cuda")
        generator = torch.Generator(device).manual_seed(1)
        shape = (1, stack.tokens, stack.sizes["hidden_size"])
        self.inputs, self.target = (
            torch.randn(shape, generator=generator, device=device).to(self.dtype) for _ in range(2)
        )
        self.inputs.requires_grad_()
        self._make = maker(system, sorted(set(stack.layers)), stack.tokens, device)

    def masks(self, packs: Packs, seed: int) -> dict[str, Any]:
        """attention_mask by kind of layer, for new samples."""
        return self._make(self.stack.masks(packs, seed))

    def backward(self, packs: Packs, seed: int) -> tuple[Any, Any]:
        """Loss and last hidden states of new samples; gradients are there."""
        masks = self.masks(packs, seed)
        given = masks if len(masks) > 1 or "Gemma" in self.stack.family else masks[FULL]
        found = self.model(inputs_embeds=self.inputs, attention_mask=given, use_cache=False)
        loss = library("torch").nn.functional.mse_loss(found.last_hidden_state, self.target)
        loss.backward()
        return loss.detach(), found.last_hidden_state.detach()

    def update(self) -> None:
        """The weights by their gradients, which are given back."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.inputs.grad = None

    def step(self, packs: Packs, seed: int) -> None:
        """One step of training."""
        self.backward(packs, seed)
        self.update()

    def sample(self, packs: Packs) -> list[float]:
        """Of a first step: some rows and columns of the last hidden states, and of the gradients of the inputs, scaled
        to a mean square of one. What other systems are compared with.
        """
        torch = library("torch")
        _, hidden = self.backward(packs, SEED)
        assert self.inputs.grad is not None
        rows = torch.linspace(0, self.stack.tokens - 1, SAMPLE_ROWS, device=self.device).long()
        gradient = self.inputs.grad[0, rows, :SAMPLE_COLUMNS].double()
        gradient = gradient / gradient.square().mean().sqrt()
        found = torch.cat([hidden[0, rows, :SAMPLE_COLUMNS].double(), gradient])
        self.update()
        return [round(one, 5) for one in found.flatten().tolist()]

    def alone_ms(self, packs: Packs) -> float:
        """Milliseconds of both passes of all layers' attention, without what is around it."""
        masks = self.masks(packs, SEED)
        layers = self.stack.layers
        return sum(layers.count(kind) * self._layer_ms(layers.index(kind), masks[kind]) for kind in masks)

    def _layer_ms(self, layer: int, mask: Any) -> float:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        torch, sizes = library("torch"), self.stack.sizes
        heads = (sizes["num_attention_heads"], *[sizes["num_key_value_heads"]] * 2)
        tokens, head_dim = self.stack.tokens, sizes["head_dim"]
        arrays = [  # as the model's are, tokens first in memory: for others FlexAttention would be compiled anew
            torch.randn((1, tokens, count, head_dim), device=self.device).to(self.dtype).transpose(1, 2)
            for count in heads
        ]
        for array in arrays:
            array.requires_grad_()
        module = self.model.layers[layer].self_attn
        call = ALL_ATTENTION_FUNCTIONS[self.system]
        dout = torch.randn((1, tokens, heads[0], head_dim), device=self.device).to(self.dtype)

        def both() -> None:
            out, _ = call(module, *arrays, mask, scaling=module.scaling, dropout=0.0)
            torch.autograd.grad(out, arrays, dout)

        both()
        took = []
        for _ in range(ALONE):
            begin = _now(self.device)
            both()
            took.append(1e3 * (_now(self.device) - begin))
        return statistics.median(took)


def _model(stack: Stack, system: str, device: str, dtype: Any) -> Any:
    """The layers with random weights. Raises ImportError without transformers."""
    torch, transformers = library("torch"), library("transformers")
    if system == OURS:
        import omnicupy.transformers as ours

        ours.register(OURS)
    config = getattr(transformers, f"{stack.family}Config")(**stack.sizes)
    torch.manual_seed(0)
    with torch.device(device):
        kind = getattr(transformers, f"{stack.family}Model")
        model = kind._from_config(config, attn_implementation=system, dtype=dtype).train()
    for name, one in model.named_parameters():
        if "self_attn" in name and one.ndim > 1:
            one.data.normal_(0, SHARP / stack.sizes["hidden_size"] ** 0.5)
    return model


def measure(stack: Stack, system: str, say: Say) -> Iterator[Figures]:
    """{"sample": numbers of a first step, "rows": {workload: figures}}, after each kind of rows with those so far.
    Kinds for which no time is left have no figures.
    """
    torch = library("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = Training(stack, system, device)
    say(f"{sum(one.numel() for one in training.model.parameters()):,} weights")
    begin = _now(device)
    sample = training.sample(stack.packs[0])
    first_s = _now(device) - begin
    say(f"first step after {first_s:.1f} s")
    rows: dict[str, Figures] = {}
    for packs in stack.packs:
        if _now(device) - begin - first_s > LATEST_S:
            return
        rows[stack.workload(packs)] = figures = _timed(training, packs) | {"first step, s": round(first_s, 2)}
        say(", ".join(f"{name} {value}" for name, value in figures.items()))
        yield {"sample": sample, "rows": rows}


def _timed(training: Training, packs: Packs) -> Figures:
    """Figures of steps in a row, each with samples of its own, after one that is not counted."""
    torch, stack, device = library("torch"), training.stack, training.device
    begin = _now(device)
    training.step(packs, SEED - 1)
    steps = max(2, min(STEPS, int(BUDGET_S / (_now(device) - begin))))
    graphs = _graphs()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = _now(device)
    for i in range(steps):
        training.step(packs, SEED + i)
    took = (_now(device) - begin) / steps
    compiled = _graphs() - graphs
    found: Figures = {
        "allowed pairs": round(_density(stack, packs, steps), 4),
        "tokens a second": round(stack.tokens / took),
        "a step, ms": round(1e3 * took, 2),
        "steps": steps,
    }
    if training.system == FLEX:
        found["compiled anew while timed"] = compiled
    if device == "cuda":
        found["peak_bytes"] = int(torch.cuda.max_memory_allocated())
        free, total = torch.cuda.mem_get_info()
        found["outside_bytes"] = int(total - free - torch.cuda.memory_reserved())
    return found | {"attention alone, ms": round(training.alone_ms(packs), 2)}


def _density(stack: Stack, packs: Packs, steps: int) -> float:
    """The share of pairs that rows without a window allow, of the steps that are timed."""
    pairs = sum(stack.masks(packs, SEED + i)[FULL].pairs for i in range(steps))
    return float(pairs / steps / stack.tokens**2)


def _graphs() -> int:
    """Graphs that torch.compile has made so far."""
    return int(library("torch._dynamo.utils").counters["stats"]["unique_graphs"])


def _now(device: str) -> float:
    """Seconds, once the device is done."""
    if device == "cuda":
        library("torch").cuda.synchronize()
    return time.perf_counter()


@pick.serve_every_kernel()
def main(stack: str, system: str) -> None:
    """Print how far it is, and after each kind of rows the figures so far as one line of JSON.

    Ends the process with the reason, in one line, where something fails.
    """

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        for figures in measure(STACKS[stack], system, say):
            say(json.dumps(figures))
    except Exception as error:  # of a compiler or an allocator: anything
        say(traceback.format_exc())
        sys.exit(reason(error))


if __name__ == "__main__":
    main(*sys.argv[1:])

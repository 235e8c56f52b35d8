"""Ways of calling attention on torch tensors, whose host time `bench host` measures: ours, torch's own attention,
FlexAttention, and a node of autograd's graph that does nothing, which says what torch itself takes.

The problem is so small that the device is done before the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from omnicupy.masks.mask import Mask
from omnicupy.tools.bench import timing
from omnicupy.tools.bench.measure import reason
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.bench.timing import Call

LAYERS = 32  # calls whose gradients one backward pass makes
LEAST_CALLS = 5
PASSES = 3  # calls ahead of a capture
BACKENDS = {"sdpa-flash": "FLASH_ATTENTION", "sdpa-cudnn": "CUDNN_ATTENTION"}
NODE = "a node that does nothing"
MASK, BOTH = "torch, mask", "torch, forward and backward"
LAYER = f"{BOTH}, a layer of {LAYERS}"
Forward = Callable[[Any, Any, Any], Any]
Around = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Way:
    """One way of calling. call: makes `calls` calls.  around: what stands around these while they are timed."""

    call: Call
    calls: int = 1
    around: Around = nullcontext

    def host_us(self, synchronize: Call, calls: int) -> float:
        """Median host time of one call in microseconds. calls: how many are timed, of ways that make one at once."""
        times = max(LEAST_CALLS, calls // self.calls)
        between = max(1, timing.BETWEEN // self.calls)
        with self.around():
            return timing.host_us(self.call, synchronize, times, between) / self.calls


def ways(shape: tuple[int, ...], mask: Mask, say: Callable[[str], None]) -> dict[tuple[str, str], Way]:
    """By system and what is timed, those with a mask, which is causal, where torch and a GPU that it finds are there;
    {} elsewhere.

    Both passes with `torch.autograd.grad`: in autograd's thread, as torch does it, and in the calling thread
    (`torch.autograd.set_multithreading_enabled(False)`). A layer is a call as a model has it: one of a stack whose
    backward pass wakes that thread once. A captured call is both passes as one CUDA graph. say: told of what torch
    cannot run here.
    """
    if find_spec("torch") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    from omnicupy.torch import attention

    own = torch.nn.functional.scaled_dot_product_attention
    problem = _Problem(shape)
    q, k, v = (tensor.detach() for tensor in problem.inputs[0])

    def ours(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, mask)

    def torch_s(q: Any, k: Any, v: Any) -> Any:
        return own(q, k, v, is_causal=True)

    made = {(OURS, MASK): Way(lambda: ours(q, k, v)), ("sdpa", MASK): Way(lambda: torch_s(q, k, v))}
    forwards: dict[str, Forward] = {OURS: ours, "sdpa": torch_s, NODE: _node()}
    for name, forward in forwards.items():
        made[name, BOTH] = Way(problem.both(forward))
        made[name, f"{BOTH}, calling thread"] = Way(problem.both(forward), around=_calling_thread)
        made[name, LAYER] = Way(problem.stack(forward), LAYERS)
    made[OURS, f"{BOTH}, captured"] = Way(problem.captured(ours))
    for name, make, around in _rivals(torch_s, shape[2]):
        try:
            forward = make()
            way = Way(problem.both(forward), around=around)
            with around():
                way.call()
        except Exception as error:  # whatever a library raises is its result here
            say(f"warm call: {name}: left out: {reason(error)}")
        else:
            made[name, BOTH] = way
            made[name, LAYER] = Way(problem.stack(forward), LAYERS, around)
    return made


def _rivals(torch_s: Forward, length: int) -> Iterator[tuple[str, Callable[[], Forward], Around]]:
    """Forward passes that torch may not have here: the name, what makes one, and what stands around its calls."""
    from torch.nn import attention as nn

    for name, backend in BACKENDS.items():
        around = partial(nn.sdpa_kernel, getattr(nn.SDPBackend, backend))
        yield name, lambda: torch_s, around
    yield "flex", partial(_flex, length), nullcontext


def _flex(length: int) -> Forward:
    """FlexAttention, compiled, with a causal mask."""
    import torch
    from torch.nn.attention import flex_attention as module

    blocks = module.create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device="cuda")
    kernel = torch.compile(module.flex_attention, dynamic=False, fullgraph=True)
    return lambda q, k, v: kernel(q, k, v, block_mask=blocks)


class _Problem:
    """Tensors of calls. inputs: q, k and v of each of LAYERS calls.  dout: the gradient of an output."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        import torch

        q, k, v, self.dout = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        self.inputs = [tuple(tensor.clone().requires_grad_() for tensor in (q, k, v)) for _ in range(LAYERS)]

    def both(self, forward: Forward) -> Call:
        """Both passes of one call."""
        from torch.autograd import grad

        (trained, *_), dout = self.inputs, self.dout
        return lambda: grad(forward(*trained), trained, dout)

    def stack(self, forward: Forward) -> Call:
        """LAYERS forward passes, each the queries of the next, and one backward pass through all of them. Gives the
        inputs, whose `grad` is of this call alone, as that of a model's parameters is in each step.
        """
        (first, *_), dout = self.inputs[0], self.dout
        keys = [(k, v) for _, k, v in self.inputs]
        trained = [first, *(tensor for pair in keys for tensor in pair)]

        def call() -> list[Any]:
            for tensor in trained:
                tensor.grad = None
            out = first
            for k, v in keys:
                out = forward(out, k, v)
            out.backward(dout)
            return trained

        return call

    def captured(self, forward: Forward) -> Call:
        """Both passes of one call as a CUDA graph, which is launched."""
        import torch

        call, stream, graph = self.both(forward), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(PASSES):
                call()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            kept = call()

        def replay(kept: Sequence[Any] = kept) -> None:  # the graph writes to these
            graph.replay()

        return replay


def _node() -> Forward:
    """A node with the inputs, the saved tensors and the results of attention, and no kernel: the least that one written
    in Python can take.
    """
    import torch

    class Nothing(torch.autograd.Function):  # type: ignore[misc]  # no types where torch is missing
        @staticmethod
        def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
            ctx.set_materialize_grads(False)
            out = torch.empty_like(q)
            ctx.save_for_backward(q, k, v, out)
            return out

        @staticmethod
        def backward(ctx: Any, dout: Any) -> Any:
            q, k, v, _ = ctx.saved_tensors
            return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    apply: Forward = Nothing.apply
    return apply


def _calling_thread() -> AbstractContextManager[Any]:
    import torch

    made: AbstractContextManager[Any] = torch.autograd.set_multithreading_enabled(False)
    return made

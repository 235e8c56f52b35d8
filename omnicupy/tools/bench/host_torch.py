"""Ways of calling attention on torch tensors, whose host time `bench host` measures: ours, torch's own attention, and a
node of autograd's graph that does nothing, which says what torch itself takes.

The problem is so small that the device is done before the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from omnicupy.masks.mask import Mask
from omnicupy.tools.bench import timing
from omnicupy.tools.bench.timing import Call

IN_A_PASS = 32  # calls whose gradients one backward pass makes
LEAST_CALLS = 5
PASSES = 3  # calls ahead of a capture
BACKENDS = {"flash": "FLASH_ATTENTION", "cuDNN": "CUDNN_ATTENTION"}
Forward = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Way:
    """One way of calling. call: makes `calls` calls.  around: what stands around these while they are timed."""

    call: Call
    calls: int = 1
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def host_us(self, synchronize: Call, calls: int) -> float:
        """Median host time of one call in microseconds. calls: how many are timed, of ways that make one at once."""
        times = max(LEAST_CALLS, calls // self.calls)
        between = max(1, timing.BETWEEN // self.calls)
        with self.around():
            return timing.host_us(self.call, synchronize, times, between) / self.calls


def ways(shape: tuple[int, ...], mask: Mask, say: Callable[[str], None]) -> dict[str, Way]:
    """Those with a mask, which is causal, where torch and a GPU that it finds are there; {} elsewhere.

    Both passes with `torch.autograd.grad`: in autograd's thread, as torch does it, in the calling thread
    (`torch.autograd.set_multithreading_enabled(False)`), and as a model has them, many calls whose backward pass wakes
    that thread once. A captured call is both passes as one CUDA graph. say: told of kernels that torch has not.
    """
    if find_spec("torch") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    from torch.nn import attention as nn

    from omnicupy.torch import attention

    own = torch.nn.functional.scaled_dot_product_attention
    problem = _Problem(shape)
    q, k, v = (tensor.detach() for tensor in problem.inputs[0])

    def ours(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, mask)

    def torch_s(q: Any, k: Any, v: Any) -> Any:
        return own(q, k, v, is_causal=True)

    forwards = {"torch, mask": ours, "torch's own, causal": torch_s, "a node that does nothing": _node()}
    made = {
        "torch, mask": Way(lambda: ours(q, k, v)),
        "torch's own, causal": Way(lambda: torch_s(q, k, v)),
    }
    for name, forward in forwards.items():
        both = f"{name}, forward and backward"
        made[both] = Way(problem.both(forward))
        made[f"{both}, calling thread"] = Way(problem.both(forward), around=_calling_thread)
        made[f"{both}, each of {IN_A_PASS}"] = Way(problem.many(forward), IN_A_PASS)
    made["torch, mask, forward and backward, captured"] = Way(problem.captured(ours))
    for name, backend in BACKENDS.items():
        way = Way(problem.both(torch_s), around=partial(nn.sdpa_kernel, getattr(nn.SDPBackend, backend)))
        try:
            with way.around():
                way.call()
        except RuntimeError as error:
            say(f"warm call: torch's {name} kernels are left out: {error}")
        else:
            made[f"torch's own, {name}, causal, forward and backward"] = way
    return made


class _Problem:
    """Tensors of calls. inputs: q, k and v of each of IN_A_PASS calls.  dout: the gradient of each output."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        import torch

        q, k, v, self.dout = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        self.inputs = [
            tuple(tensor.clone().requires_grad_() for tensor in (q, k, v)) for _ in range(IN_A_PASS)
        ]

    def both(self, forward: Forward) -> Call:
        """Both passes of one call."""
        from torch.autograd import grad

        (trained, *_), dout = self.inputs, self.dout
        return lambda: grad(forward(*trained), trained, dout)

    def many(self, forward: Forward) -> Call:
        """IN_A_PASS forward passes, and one backward pass through all of them."""
        from torch.autograd import grad

        inputs, douts = self.inputs, [self.dout] * IN_A_PASS
        trained = [tensor for of_call in inputs for tensor in of_call]
        return lambda: grad([forward(*of_call) for of_call in inputs], trained, douts)

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

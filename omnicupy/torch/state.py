"""What torch does with the calls of this process and thread: compiles, traces, transforms or just runs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

PLAIN = (torch.Tensor, torch.nn.Parameter)  # other subclasses go through the dispatcher, which knows them
# What torch.compile has set to look at frames; None where nothing is, and older versions do not say.
tracer: Callable[[], Any] = getattr(
    torch._C._dynamo.eval_frame,
    "get_eval_frame_callback",
    lambda: sys.modules.get("torch._dynamo"),
)
# The public names of these cost several times as much.
any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
jit_traces: Callable[[], bool] = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)
modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
# Whether a transform of torch.func (vmap, functionalize) wraps the tensors.
transform: Callable[[], Any] = getattr(torch._C._functorch, "maybe_current_level", lambda: None)


def are_plain(q: Any, k: Any, v: Any, *others: Any) -> bool:
    """Whether all are tensors and nothing but that; others may be None, but not q, k and v."""
    if not (type(q) is type(k) is type(v) and type(q) in PLAIN):
        given = (q, k, v, *(one for one in others if one is not None))
        return all(type(one) in PLAIN for one in given)
    for one in others:  # noqa: SIM110 - in half the time of all()
        if one is not None and type(one) not in PLAIN:
            return False
    return True


def is_rewritten() -> bool:
    """True where vmap or functionalize, which serve no operator that writes an argument, look at what is called."""
    kinds = torch._C._functorch.TransformType
    found = torch._C._functorch.get_interpreter_stack() or ()
    return any(one.key() in (kinds.Vmap, kinds.Functionalize) for one in found)


def has_tangents() -> bool:
    """True where tensors may carry tangents, those of forward-mode differentiation."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def is_watched() -> bool:
    """True where a dispatch mode, a transform of torch.func or forward mode has to see the operator."""
    # The last of these is has_tangents; each function that autograd's thread finds cold costs it microseconds.
    return bool(modes()) or transform() is not None or getattr(forward_ad, "_current_level", -1) >= 0


def captures(device: Any) -> bool:
    """Whether torch's current stream is captured into a graph. device: of the tensors at hand."""
    return torch.device(device).type == "cuda" and bool(torch.cuda.is_current_stream_capturing())


def is_exporting() -> bool:
    """True in torch.export. `torch.compiler.is_exporting` is also true in torch.compile, up to 2.12."""
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))

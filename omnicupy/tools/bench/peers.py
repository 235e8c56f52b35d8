"""Rival attention libraries on the same inputs, each optional: what cannot run is recorded with its reason.

torch tensors share the memory of our CuPy arrays. Libraries that want (batch, tokens, heads, head_dim) get a
contiguous copy in that layout, so none pays for strides it was not made for.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from omnicupy.tools.bench import peer_masks, torch_inputs
from omnicupy.tools.bench.gradients import ANY_ORDER, PASSES, Pass
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.bench.torch_inputs import Shared

COMPILE_LIMIT_S = 120.0
MOST_DENSE_PAIRS = 2**28  # a dense boolean mask above this is not what anyone would run


class MissingError(Exception):
    """The library is not installed, or does not offer this workload. Its text says which."""


@dataclass
class Peer:
    """A rival ready to be timed.

    call: one pass.  output: its result as (batch, heads, tokens, head_dim), a torch tensor, or three gradients so.
    inputs: q, k and v as it takes them, for gradients; None for those that `Shared` has.  tokens_first: they and the
    result of `call` are (batch, tokens, heads, head_dim).  forward: the result of the forward pass alone, where call is
    more; as output.  build_ms: the time of its mask or plan object, the second time.  first_call_s: its first call,
    compiling.
    """

    call: Callable[[], Any]
    output: Callable[[], Any]
    build_ms: float | None = None
    first_call_s: float = 0.0
    inputs: tuple[Any, Any, Any] | None = None
    tokens_first: bool = False
    forward: Callable[[], Any] | None = None
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


def _sdpa(shared: Shared, backend: str) -> Peer:
    torch, nn = torch_inputs.library("torch"), torch_inputs.library("torch.nn.attention")
    chosen = getattr(nn.SDPBackend, backend)
    if shared.kind == "other":
        raise MissingError("no interleaved masks")
    is_causal = shared.kind == "causal"
    grouped = {} if shared.workload.q_heads == shared.workload.kv_heads else {"enable_gqa": True}

    def call() -> Any:
        with nn.sdpa_kernel(chosen):
            return torch.nn.functional.scaled_dot_product_attention(
                shared.q, shared.k, shared.v, is_causal=is_causal, **grouped
            )

    return Peer(call, call)


def _sdpa_dense(shared: Shared) -> Peer:
    """The memory-efficient backend with a dense boolean mask: what users without a block-sparse library
    run.
    """
    torch, nn = torch_inputs.library("torch"), torch_inputs.library("torch.nn.attention")
    q_len, k_len = shared.mask.shape
    if q_len * k_len > MOST_DENSE_PAIRS:
        raise MissingError("dense mask too large")
    begin = time.perf_counter()
    dense = torch.from_numpy(shared.mask.to_dense()).cuda()
    torch.cuda.synchronize()
    build = 1e3 * (time.perf_counter() - begin)
    group = shared.workload.q_heads // shared.workload.kv_heads
    if group > 1 and shared.dout is not None:
        raise MissingError("no gradients of keys that heads share")
    k, v = (
        tensor.repeat_interleave(group, dim=1) if group > 1 else tensor for tensor in (shared.k, shared.v)
    )

    def call() -> Any:
        with nn.sdpa_kernel(nn.SDPBackend.EFFICIENT_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(shared.q, k, v, attn_mask=dense)

    return Peer(call, call, build)


@contextmanager
def _same_bits() -> Iterator[None]:
    """What torch does in the body gives the same bits each time."""
    torch = torch_inputs.library("torch")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _flash4(shared: Shared, *, deterministic: bool = False) -> Peer:
    if shared.kind == "other":
        raise MissingError("no interleaved masks through this call")
    run = torch_inputs.library("flash_attn.cute").flash_attn_func
    q, k, v = shared.bshd

    def call() -> Any:
        found = run(q, k, v, causal=shared.kind == "causal", deterministic=deterministic)
        return found[0] if isinstance(found, tuple) else found

    return Peer(call, lambda: call().transpose(1, 2), inputs=(q, k, v), tokens_first=True)


def _cudnn_flex(shared: Shared) -> Peer:
    module = torch_inputs.library("cudnn.flex_attention")
    q, k, v = shared.bshd
    endpoints = peer_masks.row_endpoints(shared.mask, shared.workload.batch)
    plan = module.create_mask_plan(endpoints, q, k, v)
    build = torch_inputs.timed_ms(lambda: module.create_mask_plan(endpoints, q, k, v))

    def call() -> Any:
        found = module.flex_attn_func(q, k, v, mask_plan=plan)
        return found[0] if isinstance(found, tuple) else found

    return Peer(call, lambda: call().transpose(1, 2), build, inputs=(q, k, v), tokens_first=True)


def _flex(shared: Shared, backend: str) -> Peer:
    call, build = peer_masks.compiled(shared, backend)
    return Peer(call, call, build)


def _ours(shared: Shared, *, deterministic: bool = True) -> Peer:
    run = torch_inputs.library("omnicupy.torch").attention

    def call() -> Any:
        return run(shared.q, shared.k, shared.v, shared.mask, deterministic=deterministic)

    return Peer(call, call)


# Ours as torch runs it, on tensors and by autograd: in one order of sums, and in any.
BY_TORCH, BY_TORCH_FREE = f"{OURS}:torch", f"{OURS}:torch-{ANY_ORDER}"
SYSTEMS: dict[str, Callable[[Shared], Peer]] = {
    "sdpa-cudnn": lambda shared: _sdpa(shared, "CUDNN_ATTENTION"),
    "sdpa-flash": lambda shared: _sdpa(shared, "FLASH_ATTENTION"),
    "sdpa-efficient": _sdpa_dense,
    "flex": lambda shared: _flex(shared, ""),
    "flex-flash": lambda shared: _flex(shared, "FLASH"),
    "fa4": _flash4,
    "cudnn-flex": _cudnn_flex,
    "sdpa-flash-deterministic": lambda shared: replace(_sdpa(shared, "FLASH_ATTENTION"), within=_same_bits),
    "fa4-deterministic": lambda shared: _flash4(shared, deterministic=True),
    BY_TORCH: _ours,
    BY_TORCH_FREE: lambda shared: _ours(shared, deterministic=False),
}
# Their gradients have the same bits each time; suites leave them out unless they are named. FlexAttention's have them
# by default; cuDNN's are refused by torch in that mode, and its flex_attention has none.
SAME_BITS = ("sdpa-flash-deterministic", "fa4-deterministic")
NEEDS = {  # modules beside torch
    "flex": ("torch.nn.attention.flex_attention",),
    "flex-flash": ("torch.nn.attention.flex_attention", "flash_attn.cute"),
    "fa4": ("flash_attn.cute",),
    "fa4-deterministic": ("flash_attn.cute",),
    "cudnn-flex": ("cudnn.flex_attention",),
}


def missing(names: Iterable[str]) -> dict[str, str]:
    """Of these systems, those whose library cannot be imported, and why."""
    found = {}
    for name in names:
        try:
            for module in ("torch", *NEEDS.get(name, ())):
                torch_inputs.library(module)
        except Exception as error:  # a library that breaks when it is imported is missing too
            found[name] = str(error) or type(error).__name__
    return found


def prepare(name: str, shared: Shared, limit_s: float = COMPILE_LIMIT_S, timed: Pass = PASSES["fwd"]) -> Peer:
    """A peer after its first call of the pass. `shared` has a dout where the pass makes gradients.

    Raises ValueError for an unknown name, MissingError where it cannot be imported, and whatever the library
    raises; TimeoutError when it is not ready after `limit_s` seconds.
    """
    if name not in SYSTEMS:
        raise ValueError(f"systems: expected some of {', '.join(SYSTEMS)}, got {name!r}")
    try:
        torch = torch_inputs.library("torch")
    except ImportError as error:
        raise MissingError(f"missing: {error}") from error
    # As a decorator, too, because every later call runs in the same mode: another one recompiles.
    mode = torch.enable_grad if timed.has_gradients else torch.no_grad
    with mode(), time_limit(limit_s):
        try:
            peer = SYSTEMS[name](shared)
        except ImportError as error:
            raise MissingError(f"missing: {error}") from error
        if timed.has_gradients:
            peer = _with_gradients(peer, shared, timed)
        peer.call, peer.output = mode()(peer.call), mode()(peer.output)
        begin = time.perf_counter()
        peer.call()
        torch.cuda.synchronize()
        peer.first_call_s = time.perf_counter() - begin
    return peer


def _with_gradients(forward: Peer, shared: Shared, timed: Pass) -> Peer:
    """A peer whose call is a backward pass, or both passes, of one that has the forward's."""
    torch = torch_inputs.library("torch")
    inputs = forward.inputs or (shared.q, shared.k, shared.v)
    dout: Any = shared.dout
    if forward.tokens_first:
        dout = dout.transpose(1, 2).contiguous()
    if timed.has_forward:

        def call() -> Any:
            with forward.within():
                return torch.autograd.grad(forward.call(), inputs, dout)

    else:
        out = forward.call()

        def call() -> Any:
            with forward.within():
                return torch.autograd.grad(out, inputs, dout, retain_graph=True)

    def output() -> Any:
        found = call()
        return tuple(one.transpose(1, 2) for one in found) if forward.tokens_first else tuple(found)

    return Peer(call, output, forward.build_ms, forward=torch.enable_grad()(forward.output))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the body after `seconds`, where signals can do that: Python code of the main
    thread.
    """
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(number: int, frame: object) -> None:
        raise TimeoutError(f"not ready after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

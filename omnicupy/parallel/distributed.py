"""attention of several ranks on torch tensors: exchanges of keys and values, and launches beside and behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from omnicupy.choose import backward_table
from omnicupy.errors import UnsupportedError
from omnicupy.jit import archs
from omnicupy.parallel import check, peers
from omnicupy.parallel.overlap import Overlap, Piece
from omnicupy.parallel.places import check_captured
from omnicupy.parallel.plan import Plan
from omnicupy.parallel.ranks import ranks_of
from omnicupy.parallel.trip import joined, sides, widths_of
from omnicupy.parallel.way import Way, way_of
from omnicupy.torch import state, tensors
from omnicupy.torch.autograd import gradients_of
from omnicupy.torch.call import attention as attention_of_tensors
from omnicupy.torch.operator import refuse_second

Which = int | Sequence[int]


# In one piece outside of torch.compile, which would break its graph at each step that it cannot trace.
@torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
def attention(
    arrays: tuple[Any, Any, Any, Any],
    plan: Plan,
    group: Any,
    mask: Which,
    limit: float,
    options: dict[str, Any],
) -> Any:
    """The call on tensors. arrays: q, k, v and sink_logits or None; others as in `omnicupy.parallel.attention`."""
    q, k, v, sink_logits = arrays
    tensors.check(q, k, v, None, sink_logits)
    if not tensors.lie_in_memory(q, k, v):  # keys are moved as they lie
        tensors.check_storage(q=q, k=k, v=v)
    ranks = ranks_of(group)
    check.of_group(plan, ranks.rank, ranks.size)
    if state.any_autocast():
        q, k, v = tensors.autocast(q, k, v)
    overlap: Overlap = options.pop("overlap")
    exchange: str = options.pop("exchange")
    if type(mask) is not int:
        which = plan._which(mask)
        mask = list(which) if isinstance(mask, (list, tuple)) else which[0]
    key = (
        "call",
        ranks.number,
        mask if type(mask) is int else which,
        (overlap, exchange),
        q.shape,
        k.shape,
        v.shape,
        q.dtype,
        k.dtype,
        v.dtype,
        q.device,
    )
    way: Way | None = plan._found.get(key)
    if way is None or way.said not in ranks.agreed:
        check_captured(q.device)
        if way is None:
            check.of_rank(plan, ranks.rank, (q, k, v), mask)
            way = way_of(plan, ranks, mask, (q, k, v), overlap, exchange)
        ranks.agree(way.said, limit)
        peers.connect(way.trip, plan, mask, (k, v), exchange, limit)
        plan._found[key] = way
    if way.masks and not way.travels:
        return attention_of_tensors(q, k, v, _given(way.masks), sink_logits=sink_logits, **options)
    _refuse_transforms(q, k, v)
    if state.has_tangents():
        tensors.check_tangents(q=q, k=k, v=v, sink_logits=sink_logits)
    call = _Call(way, limit, options)
    if _is_seen(q, k, v, sink_logits):
        out, lse = _Shared.apply(q, k, v, sink_logits, call)
    else:
        out, lse, _ = _forward(call, q, k, v, sink_logits)
    return (out, lse) if options["return_lse"] else out


def _refuse_transforms(*given: Any) -> None:
    wrapped = any(one is not None and not torch._C._has_storage(one) for one in given)  # by batched gradients
    if wrapped or state.transform() is not None:
        raise UnsupportedError(
            "attention of several ranks is served without transforms; call it, and backward, outside of torch.func, "
            "torch.vmap and is_grads_batched"
        )


def _is_seen(*given: Any) -> bool:
    """Whether autograd, or what stands in its place, has to see the call."""
    return tensors.need_gradients(*given) or state.is_watched()


def _given(masks: tuple[Any, ...]) -> Any:
    return masks[0] if len(masks) == 1 else list(masks)


class _Call:
    """A call whose keys travel, or of a rank that looks at none. options: of `attention`."""

    def __init__(self, way: Way, limit: float, options: dict[str, Any]) -> None:
        self.way, self.limit, self.options = way, limit, options
        self.trip, self.steps = way.trip, way.steps
        self.scores = options["scale"], options["softcap"]

    def launch(self, arrays: Sequence[Any], out: Any, piece: Piece) -> Any:
        """lse of a launch that writes `out`. arrays: q, k, v and sink_logits."""
        q, k, v, sink_logits = arrays
        found = attention_of_tensors(
            q,
            k,
            v,
            _given(piece.masks),
            scale=self.scores[0],
            softcap=self.scores[1],
            config=self.options["config"],
            sink_logits=sink_logits,
            out=out,
            return_lse=True,
        )
        return found[1]

    def of_queries(self, heads: slice, q: Any) -> slice:
        """Query heads that read these heads of keys."""
        each = q.shape[1] // sum(self.steps.groups)
        return slice(heads.start * each, heads.stop * each)


def _forward(call: _Call, q: Any, k: Any, v: Any, sink_logits: Any) -> tuple[Any, Any, list[Any]]:
    """out, lse, and the buffers of keys for the way back."""
    way, behind = call.way, call.way.behind
    widths = widths_of((k, v))
    # Own keys are copied before the first launch, beside the exchange.
    came = [way.trip.there((k, v), heads, way.kept, call.limit) for heads in way.groups]
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    found = _alone(call, (q, k, v, sink_logits), out)
    parts = []
    for heads, (buffer, pending) in zip(way.groups, came, strict=True):
        pending.wait()
        if behind is None:
            continue
        asked, to, sinks = q, out, sink_logits
        if len(came) > 1:
            these = call.of_queries(heads, q)
            asked, to = q[:, these], out[:, these]
            sinks = None if sink_logits is None else sink_logits[these]
        if behind.stop - behind.first != q.shape[2]:
            rows = slice(behind.first, behind.stop)
            asked, to = asked[:, :, rows], to[:, :, rows]
        parts.append(call.launch((asked, *sides(buffer, widths), sinks), to, behind))
    if behind:
        found[behind.first] = _joined(parts, 1)
    lse = _joined([found[first] for first in sorted(found)], 2)
    return out, lse, [buffer for buffer, _ in came]


class _Shared(torch.autograd.Function):  # type: ignore[misc]  # no types where torch is missing
    """The call as a node of autograd's graph: exchanges and launches one after the other, and the way back."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, sink_logits: Any, call: _Call) -> Any:
        """out and lse."""
        out, lse, buffers = _forward(call, q, k, v, sink_logits)
        ctx.set_materialize_grads(False)
        ctx.call, ctx.widths = call, widths_of((k, v))
        low, high = call.way.kept
        # A buffer with all own keys stands for k and v, too.
        own = (
            (None, None) if call.way.behind and high - low == call.trip.own and len(buffers) == 1 else (k, v)
        )
        ctx.save_for_backward(q, *own, out, lse, sink_logits, *buffers)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Any, dlse: Any) -> Any:
        """Gradients of q, own k and v, and sink_logits."""
        _refuse_transforms(dout, dlse)
        with torch.no_grad():
            back = _Backward(ctx, dout, dlse)
            found = back.run()
        if torch.is_grad_enabled():  # create_graph=True; `out` leads to all inputs
            found = _Once.apply(back.out, back.dout, back.dlse, *found)
        return *found, None


class _Once(torch.autograd.Function):  # type: ignore[misc]
    """Gradients, whose own derivative raises. inputs: what they follow from, three of them, then the gradients."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        return inputs[3:]

    backward = staticmethod(refuse_second)


def _alone(call: _Call, arrays: tuple[Any, Any, Any, Any], out: Any) -> dict[int, Any]:
    """What needs no other rank, into `out`: lse by the first row of its launch. arrays: as of `launch`."""
    q, k, v, sink_logits = arrays
    found = {}
    for piece in call.steps.pieces:
        if not piece.waits:
            rows = slice(piece.first, piece.stop)
            found[piece.first] = call.launch((q[:, :, rows], k, v, sink_logits), out[:, :, rows], piece)
    if not call.steps.pieces:
        out.zero_()
        dtype = torch.promote_types(q.dtype, torch.float32)
        found[0] = q.new_full(q.shape[:3], -torch.inf, dtype=dtype)
    return found


def _joined(parts: Sequence[Any], axis: int) -> Any:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


@cache
def _apart_on_gpu(
    device: int, dtype: str, widths: tuple[int, int], has_cap: bool, deterministic: bool
) -> bool:
    """As `_Backward._is_apart`, by the built-in table."""
    from omnicupy.gpu.device import device_info

    info = device_info(device)
    spec = backward_table.pick(
        archs.arch_of(info.major, info.minor), dtype.removeprefix("torch."), widths[0], has_cap, widths[1]
    )
    return (spec.ordered if deterministic else spec.fused) is None


class _Backward:
    """The backward pass of a call."""

    def __init__(self, ctx: Any, dout: Any, dlse: Any) -> None:
        self.call: _Call = ctx.call
        low, high = self.call.way.kept
        self.kept = high - low  # own keys in the buffers
        self.widths = ctx.widths  # of k and v
        self.q, self.k, self.v, self.out, self.lse, self.sink_logits, *self.buffers = ctx.saved_tensors
        if dout is None and dlse is None:  # other ranks wait for what is due to their keys, be it zeros
            dout = torch.zeros_like(self.out)
        self.dout, self.dlse, self.wanted = dout, dlse, ctx.needs_input_grad[:4]
        self.gradients = gradients_of(dout, dlse)

    def run(self) -> list[Any]:
        """dq, dk, dv and dsink_logits, None for those that are not wanted: of keys this rank's part, then others'."""
        call, trip = self.call, self.call.trip
        travelling = [side for side in (1, 2) if self.wanted[side]]
        travels = bool(travelling) and call.way.travels
        late = travels and self.wanted[0] and call.way.overlaps and self._is_apart()
        keys = self._keys()
        grads = self._of(keys, (False, *self.wanted[1:3], False) if late else self.wanted)
        if travels:
            mine = [grads[side] for side in travelling]
            returned, pending = trip.back(mine, late, call.limit)
            if late:
                grads[::3] = self._of(keys, (True, False, False, self.wanted[3]))[::3]
            pending.wait()
            trip.add(mine, returned)
        for side in travelling:
            grads[side] = grads[side][:, :, : trip.own]
        return grads

    def _is_apart(self) -> bool:
        """Whether dk and dv are made by other kernels than dq, so that they may travel while dq is made."""
        if not self.q.is_cuda:
            return True
        deterministic = self.call.options["deterministic"] or torch.are_deterministic_algorithms_enabled()
        widths = self.q.shape[3], self.out.shape[3]
        return _apart_on_gpu(
            self.q.device.index, str(self.q.dtype), widths, self.call.scores[1] is not None, deterministic
        )

    def _of(self, keys: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
        """Gradients, of received keys too. keys: k and v, as `_keys` gives them."""
        if not self.call.steps.pieces:
            made = (self.q, *keys, self.sink_logits)
            return [torch.zeros_like(one) if want else None for one, want in zip(made, wanted, strict=True)]
        masks = self.call.way.masks
        options = self.call.scores, tuple(wanted), self.call.options["deterministic"]
        saved = (self.q, *keys, self.out, self.lse, self.sink_logits)
        return list(self.gradients((self.dout, self.dlse), saved, _given(masks), *options))

    def _keys(self) -> list[Any]:
        """Own keys and values, then those received."""
        if not self.buffers:
            return [self.k, self.v]
        if self.k is None:
            return sides(self.buffers[0], self.widths)
        received = [buffer[self.kept :] for buffer in self.buffers]
        return joined((self.k, self.v), self.call.way.groups, received)

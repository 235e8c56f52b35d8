"""attention() of one rank: where the tensors or arrays of several ranks come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from omnicupy.call.arrays import is_cupy
from omnicupy.errors import UnsupportedError
from omnicupy.masks.arguments import flag, integer
from omnicupy.parallel import array_calls, check_numbers
from omnicupy.parallel.check import AUTO, EXCHANGES, PEER
from omnicupy.parallel.nccl import NcclGroup
from omnicupy.parallel.overlap import ROWS, Overlap
from omnicupy.parallel.plan import Plan

if TYPE_CHECKING:
    from omnicupy.jit.backward_spec import BackwardSpec
    from omnicupy.jit.spec import AttnSpec

TIME_LIMIT_S = 600.0


def attention(
    q: Any,
    k: Any,
    v: Any,
    plan: Plan,
    *,
    group: Any = None,
    mask: int | Sequence[int] = 0,
    scale: float | None = None,
    sink_logits: Any = None,
    softcap: float | None = None,
    return_lse: bool = False,
    config: AttnSpec | None = None,
    deterministic: bool = True,
    overlap: bool | str | Sequence[int] | None = False,
    exchange: str = AUTO,
    time_limit: float = TIME_LIMIT_S,
) -> Any:
    """This rank's rows of an attention call that all ranks of a process group share; torch tensors or CuPy arrays.

    q: (batch, q_heads, rows of this rank, head_dim).  k, v: (batch, kv_heads, keys of this rank, head_dim), v as wide
        as `omnicupy.attention` allows; shards, as `plan.shard` cuts them.  sink_logits: (q_heads,), on every rank.
    plan: the same on every rank, for the group's ranks.  mask: which of its masks; a list names one for each element.
    group: of tensors a ProcessGroup, a DeviceMesh of one axis, (DeviceMesh, axis name), or None for the default group:
        gloo for the CPU, NCCL for CUDA. Of CuPy arrays an `NcclGroup`.
    overlap: of tensors, whether launches run beside the exchange, the same on every rank: False, None where the plan's
        speeds predict that it pays, never on a CPU, or True where it can be. "rows" has rows that need not wait first;
        a tuple names heads of keys in each of several exchanges, as (2, 6) of 8.
    exchange: of tensors: "group" for the process group's, "peer" for a kernel that writes to other GPUs of the host,
        "auto" for that where each rank can and `overlap` is False, else the group's.
    time_limit: seconds to wait for other ranks, which are then named: at a first call, in exchanges on the CPU, and in
        those by "peer", where NaN stands for what did not come and the next call raises. NCCL has its group's limit.
    scale, softcap, return_lse, config: as in `omnicupy.attention`.  deterministic: of tensors, as there.

    Keys and values that rows of other ranks see travel. With overlap, rows that see none of others are computed
    meanwhile, or heads travel in groups, each while the one before is computed; last bits may change, but never from
    call to call. Of tensors, gradients reach q, k, v and sink_logits; of arrays, `attention_backward` makes them. Those
    of keys that travelled go back to their owner, each rank's part in the dtype of k and v, and are added in float32,
    its own, then the others by rank: the same call gives the same bits, unless `deterministic=False`. That of
    sink_logits is of this rank's rows: add those of all ranks. Returns this rank's `out`, or (out, lse).

    Every rank makes the same calls in the same order, with gradients of the same tensors wanted, also a rank without
    rows: its `out` must reach its loss. Keys received live until the backward pass; activation checkpointing sends them
    again. torch.compile breaks its graph here; fullgraph=True raises. At the first of equal calls ranks compare what
    must be equal. CUDA graphs may capture later ones of tensors, on all ranks; by NCCL replays wait without limit.

    Raises ValueError where plan, group, shards or the ranks' calls do not fit each other; RuntimeError where ranks are
    late; TypeError for others; UnsupportedError for what one device, or "peer", does not serve, and in a capture.
    """
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "config": config}
    options["return_lse"] = flag("attention", "return_lse", return_lse)
    of_tensors = _of_tensors(deterministic, overlap, exchange, q)
    limit = _seconds(time_limit)
    if _of_arrays((q, k, v), group):
        options |= {"sink_logits": sink_logits}
        with q.device:  # whose current stream the exchange and the launch take
            return array_calls.attention((q, k, v), plan, group, mask, limit, options)
    from omnicupy.parallel import distributed

    return distributed.attention((q, k, v, sink_logits), plan, group, mask, limit, options | of_tensors)


def attention_backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    *,
    plan: Plan,
    group: NcclGroup,
    mask: int | Sequence[int] = 0,
    scale: float | None = None,
    dlse: Any = None,
    wanted: Sequence[str] = ("q", "k", "v"),
    deterministic: bool = True,
    sink_logits: Any = None,
    softcap: float | None = None,
    config: BackwardSpec | None = None,
    time_limit: float = TIME_LIMIT_S,
) -> tuple[Any, ...]:
    """Gradients of this rank's q, k and v from CuPy arrays; tensors have autograd.

    dout, out, lse, dlse: of this rank's rows; out and lse are what `attention(..., return_lse=True)` gave.
    plan, group, mask, time_limit: as in `attention`; others as in `omnicupy.attention_backward`. Keys and
    values travel again, and parts of dk and dv come back, as described in `attention`.
    Returns (dq, dk, dv), None for what is not in `wanted`, which is the same on every rank; where it names sink_logits,
    (dq, dk, dv, dsink_logits), the last the part of this rank's rows.
    Raises what `attention` and `omnicupy.attention_backward` raise.
    """
    limit = _seconds(time_limit)
    if not _of_arrays((q, k, v), group):
        raise TypeError(
            "q must be a CuPy array, got a tensor; attention has gradients of tensors by autograd"
        )
    options = {"scale": scale, "dlse": dlse, "wanted": wanted, "config": config}
    options |= {"sink_logits": sink_logits, "softcap": softcap}
    options["deterministic"] = flag("attention_backward", "deterministic", deterministic)
    with q.device:
        return array_calls.attention_backward(
            (q, k, v), (dout, out, lse), plan, group, mask, limit=limit, options=options
        )


def _of_tensors(deterministic: object, overlap: object, exchange: object, q: Any) -> dict[str, Any]:
    """What calls on tensors alone take."""
    return {
        "deterministic": flag("attention", "deterministic", deterministic),
        "overlap": _overlap_of(overlap, q),
        "exchange": _exchange_of(exchange, q),
    }


def _overlap_of(overlap: object, q: Any) -> Overlap:
    found: Overlap
    if overlap is None or (isinstance(overlap, str) and overlap == ROWS):
        found = overlap
    elif isinstance(overlap, (list, tuple)) and overlap:
        found = tuple(integer("attention", "overlap", one) for one in overlap)
    elif isinstance(overlap, bool | np.bool_):
        found = bool(overlap)
    else:
        raise TypeError(
            f'attention: overlap must be True, False, None, "rows" or a tuple of heads, got {overlap!r}; pass one of '
            "these"
        )
    if found and is_cupy(q):
        raise UnsupportedError(
            "overlap must be None or False for CuPy arrays, whose launch begins behind the exchange; leave it out, or "
            "pass torch tensors"
        )
    return found


def _exchange_of(exchange: object, q: Any) -> str:
    if not isinstance(exchange, str):
        raise TypeError(
            f"attention: exchange must be one of {EXCHANGES}, got {exchange!r}; pass one of these"
        )
    if exchange not in EXCHANGES:
        raise ValueError(
            f"attention: exchange must be one of {EXCHANGES}, got {exchange!r}; pass one of these"
        )
    if exchange == PEER and is_cupy(q):
        raise UnsupportedError(
            'exchange="peer" serves torch tensors, whose group tells ranks of each other\'s memory; leave it out for '
            "CuPy arrays, which travel by NCCL"
        )
    return exchange


def _seconds(time_limit: object) -> float:
    seconds = check_numbers.number("attention", "time_limit", time_limit)
    if not 0 < seconds < 1e9:
        raise ValueError(f"time_limit must be a positive number of seconds, got {time_limit}")
    return seconds


def _of_arrays(arrays: tuple[Any, Any, Any], group: Any) -> bool:
    """Whether the call is on CuPy arrays, else it is on tensors. Raises TypeError for mixtures, others, and groups."""
    of_cupy = is_cupy(arrays[0])
    for name, array in zip("qkv", arrays, strict=True):
        if isinstance(array, (np.ndarray, list, tuple)):
            raise TypeError(
                f"{name} must be a tensor or a CuPy array, got {type(array).__name__}; attention_of_ranks takes lists "
                "with a NumPy array for each rank"
            )
        if is_cupy(array) != of_cupy:
            raise TypeError(
                f"q, k and v must all be tensors or all CuPy arrays, got {name} of another kind than q"
            )
    if of_cupy and not isinstance(group, NcclGroup):
        raise TypeError(
            f"group must be an omnicupy.parallel.NcclGroup for CuPy arrays, got {type(group).__name__}; make one "
            "from a cupy.cuda.nccl.NcclCommunicator"
        )
    return of_cupy

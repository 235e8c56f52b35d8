"""attention() of one rank: where the tensors of a process group's ranks come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from omnicupy.call.arrays import is_cupy
from omnicupy.errors import UnsupportedError
from omnicupy.masks.arguments import flag
from omnicupy.parallel.plan import Plan

if TYPE_CHECKING:
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
    return_lse: bool = False,
    config: AttnSpec | None = None,
    deterministic: bool = True,
    time_limit: float = TIME_LIMIT_S,
) -> Any:
    """This rank's rows of an attention call that all ranks of a process group share; torch tensors.

    q: (batch, q_heads, rows of this rank, head_dim).  k, v: (batch, kv_heads, keys of this rank, head_dim); the shards
        of the whole arrays, as `plan.shard` cuts them.
    plan: the same on every rank; as many ranks as the group has.
    group: a ProcessGroup, a DeviceMesh of one axis, (DeviceMesh, axis name), or None for the default group. gloo on
        CPU tensors, NCCL on CUDA tensors.
    mask: which of the plan's masks; a list names one for each batch element.
    time_limit: seconds to wait for other ranks at the first call with a plan, and at each exchange on the CPU. On CUDA
        the exchange waits on the device, under the time limit of the process group.
    Others as `omnicupy.torch.attention` has them.

    Keys and values that rows of other ranks see travel in one exchange, then one launch computes this rank's rows on
    its own keys and those received; nothing overlaps yet. Returns this rank's `out`, or (out, lse). Gradients reach q,
    k and v: those of keys that travelled go back to their owner, each rank's part in the dtype of k and v, and are
    added in float32, its own, then the others by rank: the same call gives the same bits.

    Every rank makes the same calls in the same order, with gradients of the same tensors wanted, also a rank whose plan
    gives it no rows: its `out` has none, and must reach its loss. Keys received live until the backward pass;
    activation checkpointing frees them and has them travel again. Inside torch.compile the call is a break of the
    graph. At the first call with a plan ranks compare its digest.

    Raises ValueError where plan, group and shards do not belong together or ranks have different plans; RuntimeError
    that names the ranks which did not take part in time; UnsupportedError for CuPy arrays, and for what
    `omnicupy.torch.attention` does not serve; TypeError for other arrays.
    """
    for name, array in (("q", q), ("k", k), ("v", v)):
        if is_cupy(array):
            raise UnsupportedError(
                f"{name} is a CuPy array; attention of several ranks takes torch tensors: pass "
                f"torch.as_tensor({name}), which copies nothing"
            )
        if isinstance(array, (np.ndarray, list, tuple)):
            raise TypeError(
                f"{name} must be a torch.Tensor, got {type(array).__name__}; attention_of_ranks takes lists with a "
                "NumPy array for each rank"
            )
    return_lse = flag("attention", "return_lse", return_lse)
    deterministic = flag("attention", "deterministic", deterministic)
    if not 0 < time_limit < 1e9:
        raise ValueError(f"time_limit must be a positive number of seconds, got {time_limit}")
    from omnicupy.parallel import distributed

    options = {"scale": scale, "return_lse": return_lse, "config": config, "deterministic": deterministic}
    return distributed.attention((q, k, v), plan, group, mask, time_limit, options)

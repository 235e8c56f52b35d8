"""bench parallel-flex: FlexAttention as PyTorch shares it, beside which `parallel` stands: every rank gathers all keys.

    torchrun --nproc-per-node 2 -m omnicupy bench parallel-flex --out FILE

Blocks of 128 tokens are dealt by their work, the heaviest first, forth and back over the ranks, as PyTorch's balancer
for such masks does; keys and values are gathered along the tokens, and their gradients scattered by a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.parallel.seen import row_work
from omnicupy.tools.bench import peer_masks, process_group, ranks, torch_passes
from omnicupy.tools.bench.peers import time_limit
from omnicupy.tools.bench.records import Record
from omnicupy.tools.bench.torch_inputs import library
from omnicupy.tools.workloads.workload import Workload, by_name

SUITE = "parallel-flex"
MASKS = ("W1", "W12", "causal-d128-s32768-h32-k8-b1", "W10", "W7")
BLOCK = 128
COMPILE_LIMIT_S = 90.0


def dealt(work: NDArray[Any], count: int) -> list[NDArray[np.int64]]:
    """The tokens of each of `count` ranks, whole blocks in their order. work: of each token.

    Raises ValueError where the blocks do not go round.
    """
    blocks, left = divmod(len(work), BLOCK)
    if left or blocks % count:
        raise ValueError(
            f"bench {SUITE}: expected a multiple of {BLOCK} tokens a rank, got {len(work)} on {count} ranks"
        )
    heaviest = np.argsort(-work.reshape(blocks, BLOCK).sum(axis=1), kind="stable").reshape(-1, count)
    heaviest[1::2] = heaviest[1::2, ::-1]
    tokens = np.arange(BLOCK)
    return [(np.sort(mine)[:, None] * BLOCK + tokens).reshape(-1) for mine in heaviest.T]


def flex(record: Record, say: ranks.Say, workloads: Sequence[Workload] = ()) -> None:
    """A row for each workload and pass. workloads: instead of the suite's own.

    Raises what `process_group.process_group` raises, ValueError without GPUs.
    """
    import torch.distributed as dist

    with process_group.process_group(SUITE) as device:
        if device.type != "cuda":
            raise ValueError(f"bench {SUITE}: expected a GPU for each rank, found none; run bench parallel")
        record.set(ranks=dist.get_world_size(), samples=ranks.SAMPLES)
        for one in workloads or map(by_name, MASKS):
            problem = ranks.Problem(one, device)
            for timed, figures in _measured(problem).items():
                workload = f"{one.name}, {problem.ranks} ranks, {timed}"
                record.add(
                    workload=workload, system="all-gather and flex", figures=figures, **{"pass": "forward"}
                )
                if process_group.is_first():
                    say(f"{workload}: {figures}")


def _measured(problem: ranks.Problem) -> dict[str, dict[str, Any]]:
    """Figures of each pass. One kernel serves both: the forward pass, too, is measured with gradients wanted."""
    torch = library("torch")
    length = problem.mask.shape[0]
    more = -length % (BLOCK * problem.ranks)  # tokens that no row sees, where blocks do not go round
    dout, *given = (torch.nn.functional.pad(one, (0, 0, 0, more)) for one in (problem.dout, *problem.arrays))
    owned = dealt(np.append(row_work(problem.mask), np.zeros(more)), problem.ranks)
    mine, order = (
        torch.from_numpy(one).to(problem.device) for one in (owned[problem.rank], np.concatenate(owned))
    )
    dout, *arrays = (one.index_select(2, mine) for one in (dout, *given))
    why, kernels = "", []
    try:
        with time_limit(COMPILE_LIMIT_S):
            kernels.append(kernel := _kernel(problem, owned))
            every = (one.index_select(2, order) for one in given[1:])
            # Compiles; no rank waits for another one.
            torch_passes.forward_and_backward(kernel, [arrays[0], *every], dout)()
    except Exception as error:  # of a compiler: anything
        why = f"{type(error).__name__}: {error}".splitlines()[0]
    if problem.slowest(1.0 if why else 0.0):
        return {"forward+backward": {"ranks": problem.ranks, "problem": why or "on another rank"}}
    call, alone = _call(kernels[0]), ranks.ours_alone(problem)
    with torch.no_grad():
        expected = torch.nn.functional.pad(alone(*problem.arrays), (0, 0, 0, more)).index_select(2, mine)
        real = mine < length
    leaves = [one.detach().requires_grad_() for one in arrays]
    far = float(
        (call(*leaves).detach().float() - expected.float())[:, :, real].abs().max() / expected.abs().max()
    )
    found = {}
    for timed, times in (
        ("forward", torch_passes.forward),
        ("forward+backward", torch_passes.forward_and_backward),
    ):
        ours = problem.time(times(alone, problem.arrays, problem.dout))
        whole = problem.time(times(call, leaves, dout))
        found[timed] = {
            "ranks": problem.ranks,
            "assignment": "blocks by work",
            "one device, ms": round(ours, 4),
            "all ranks, ms": round(whole, 4),
            "efficiency": round(ours / whole / problem.ranks, 3),
            "right": problem.slowest(0.0 if far <= ranks.CLOSE else 1.0) == 0,
        }
    return found


def _kernel(problem: ranks.Problem, owned: list[NDArray[np.int64]]) -> Callable[..., Any]:
    """Attention of this rank's rows on all keys, which lie by rank."""
    torch, module = library("torch"), library("torch.nn.attention.flex_attention")
    torch._dynamo.reset()
    kernel = torch.compile(module.flex_attention, dynamic=False, fullgraph=True)
    rows, keys = (
        torch.from_numpy(one).to(problem.device) for one in (owned[problem.rank], np.concatenate(owned))
    )
    rule, last = peer_masks.mask_rule(problem.mask, "other"), problem.mask.shape[0] - 1

    def padded(b: Any, h: Any, q: Any, k: Any) -> Any:
        row, key = rows[q], keys[k]
        return rule(b, h, row.clamp(max=last), key.clamp(max=last)) & (row <= last) & (key <= last)

    made = module.create_block_mask(
        padded if len(keys) > last + 1 else lambda b, h, q, k: rule(b, h, rows[q], keys[k]),
        *(None, None, len(rows), len(keys)),
        device=problem.device,
        _compile=True,
    )
    options = {"block_mask": made, "enable_gqa": problem.workload.q_heads != problem.workload.kv_heads}
    return lambda q, k, v: kernel(q, k, v, **options)


def _call(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The same on gathered keys."""
    gathered = _gathering()

    def call(q: Any, k: Any, v: Any) -> Any:
        return kernel(q, gathered(k), gathered(v))

    return call


def _gathering() -> Callable[[Any], Any]:
    """What makes (batch, heads, keys of all ranks, columns) of a rank's keys, with gradients: a gather along the first
    axis, then a copy, as PyTorch's functional collective along another axis.
    """
    torch, dist = library("torch"), library("torch.distributed")
    count = dist.get_world_size()

    class Gathered(torch.autograd.Function):  # type: ignore[misc,name-defined]  # no types where torch is missing
        @staticmethod
        def forward(ctx: Any, own: Any) -> Any:
            every = own.new_empty((count * own.shape[0], *own.shape[1:]))
            dist.all_gather_into_tensor(every, own.contiguous())
            return torch.cat(every.chunk(count), 2)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            parts = torch.cat(grad.chunk(count, 2))
            mine = parts.new_empty((parts.shape[0] // count, *parts.shape[1:]))
            dist.reduce_scatter_tensor(mine, parts)
            return mine

    return Gathered.apply  # type: ignore[no-any-return]

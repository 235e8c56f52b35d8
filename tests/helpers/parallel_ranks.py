"""One rank of several gloo processes: python parallel_ranks.py WHAT RANK RANKS FOLDER; a name of JOBS is WHAT."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import processes
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

import omnicupy as oc
import omnicupy.parallel
import omnicupy.torch
from omnicupy.masks.mask import Mask
from omnicupy.parallel import Plan, overlap, plan
from omnicupy.parallel.prediction import Heads

SIZE = 48
CAP = 3.0  # of scores
WIDE = 12  # columns of v that is wider than k
WAYS: dict[str, Any] = {"overlapped": True, "again": True, "behind": False, "rows": "rows", "heads": [1, 1]}
TIMEOUT = 90  # seconds that a process waits for another


def masks() -> dict[str, tuple[Mask, Any]]:
    """Masks and who owns their rows (None: the plan's choice), for two ranks or more."""
    dense = np.random.default_rng(0).random((SIZE, SIZE)) < 0.1
    dense[5:9] = False
    dense[:, 20:30] = False
    return {
        "causal": (oc.causal(SIZE), None),
        "packed": (oc.segments([[("text", 9), ("image", 8)], [("image", 20), ("text", 11)]]), None),
        "apart": (oc.documents([SIZE // 2, SIZE // 2]), "contiguous"),
        "cross": (oc.ranges([(0, 9, 4, 13), (9, 30, 2, 60)], 33, 70), None),
        "bits": (oc.from_dense(dense), None),
        "idle rank": (oc.causal(SIZE), [0] * SIZE),
        "nothing": (oc.ranges([], SIZE, SIZE), None),
    }


def whole(mask: Mask, dtype: Any, heads: tuple[int, int] = (4, 2), columns: int = 8) -> list[Any]:
    """dout, dlse, q, k and v of all ranks; NaN in keys that nobody sees and rows that see nothing. columns: of v."""
    generator = torch.Generator().manual_seed(1)
    (q_len, k_len), dense = mask.shape, torch.from_numpy(mask.to_dense())
    shapes = [(2, heads[0], q_len, columns), (2, heads[0], q_len, 8)]
    shapes += [(2, heads[1], k_len, 8), (2, heads[1], k_len, columns)]
    dout, q, k, v = (torch.randn(one, generator=generator).to(dtype) for one in shapes)
    dlse = torch.randn((2, heads[0], q_len), generator=generator)
    for one, dead in ((q, ~dense.any(1)), (k, ~dense.any(0)), (v, ~dense.any(0))):
        one[:, :, dead] = torch.nan
    dlse[:, :, ~dense.any(1)] = 0
    return [dout, dlse.to(torch.promote_types(dtype, torch.float32)), q, k, v]


def sinks() -> Any:
    """Of the heads that `whole` makes."""
    return torch.tensor([0.5, -1.0, -torch.inf, 2.0])


def _other_layouts(q: Any, k: Any, v: Any) -> list[Any]:
    """q and k with tokens before heads; v in rows of odd length, from an odd place on."""
    tokens_first = [one.transpose(1, 2).contiguous().transpose(1, 2) for one in (q, k)]
    return [*tokens_first, torch.nn.functional.pad(v, (1, 2))[..., 1:-2]]


def results(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """out, lse and gradients of this rank for each mask and dtype; the second time of arrays that lie otherwise."""
    found = {}
    for name, (mask, rows) in masks().items():
        made = plan(mask, ranks, rows=rows)
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            dout, dlse, q, k, v = whole(mask, dtype)
            q, dout, dlse = (made.shard(one, rank, 2) for one in (q, dout, dlse))
            k, v = (made.shard(one, rank, keys=True) for one in (k, v))
            leaves = [one.requires_grad_() for one in (q, k, v)]
            call = partial(oc.parallel.attention, plan=made, return_lse=True, time_limit=TIMEOUT)
            for how in ("plain", "again", "checkpointed"):
                if how == "checkpointed":
                    out, lse = checkpoint(call, *leaves, use_reentrant=False)
                else:
                    out, lse = call(*(leaves if how == "plain" else _other_layouts(*leaves)))
                grads = torch.autograd.grad([out, lse], leaves, [dout, dlse])
                found[f"{name} {dtype} {how}"] = [one.detach() for one in (out, lse, *grads)]
    return found


def overlapped(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """out, lse and gradients, those of sinks too, by every way of WAYS; and how they overlapped.

    Scores are capped and have sinks, and v is wider than k. Block rows are of 4 rows, so that small problems have some.
    """
    overlap.BLOCK = 4
    found: dict[str, Any] = {}
    for name, (mask, rows) in masks().items():
        made = plan(mask, ranks, rows=rows)
        for dtype in (torch.float32, torch.bfloat16):
            dout, dlse, q, k, v = whole(mask, dtype, columns=WIDE)
            q, dout, dlse = (made.shard(one, rank, 2) for one in (q, dout, dlse))
            k, v = (made.shard(one, rank, keys=True) for one in (k, v))
            for how, way in WAYS.items():
                found[f"{name} {dtype} {how}"] = both(made, [dout, dlse, q, k, v, sinks()], way)
        steps = overlap.steps_of(made, rank, 0, 2, Heads(4, 2, 8), True)
        found[name] = (len(steps.groups), len(steps.pieces))
    return found


def both(made: Plan, given: list[Any], way: Any) -> list[Any]:
    """out, lse and all gradients. given: dout, dlse, q, k, v and sinks of a rank.  way: of overlap."""
    dout, dlse, *leaves = given
    leaves = [one.detach().requires_grad_() for one in leaves]
    out, lse = oc.parallel.attention(
        *leaves[:3],
        made,
        sink_logits=leaves[3],
        softcap=CAP,
        return_lse=True,
        overlap=way,
        time_limit=TIMEOUT,
    )
    return [out.detach(), lse.detach(), *torch.autograd.grad([out, lse], leaves, [dout, dlse])]


def _compiled(shards: list[Any], dout: Any, made: Any) -> list[Any]:
    """Result and gradients with torch.compile and without, in turn, and for how many reasons its graph broke."""

    def call(*x: Any) -> Any:
        return 2 * oc.parallel.attention(*(one + 1 for one in x), made, mask=1)

    found = []
    for run in (torch.compile(call, backend="aot_eager"), call):
        leaves = [one.clone().requires_grad_() for one in shards]
        out = run(*leaves)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, dout)])
    pairs = [one for pair in zip(*found, strict=True) for one in pair]
    return [*pairs, len(torch._dynamo.utils.counters["graph_break"])]


def wanted(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Gradients of some of q, k and v; no gradients at all; a group that is an axis of a mesh; a batch of masks."""
    mask = oc.random(SIZE, 3)
    made = plan([mask, oc.causal(SIZE)], ranks)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (ranks,), mesh_dim_names=("context",))
    dout, _, q, k, v = whole(oc.full(SIZE), torch.float32)
    shards = [made.shard(one, rank) for one in (q, k, v)]
    dout = made.shard(dout, rank)
    found: dict[str, Any] = {}
    for names in ("q", "k", "v", "qv", "kv"):
        leaves = [one.clone().requires_grad_(name in names) for name, one in zip("qkv", shards, strict=True)]
        out = oc.parallel.attention(*leaves, made, group=(mesh, "context"), mask=[0, 1])
        out.backward(dout)
        found[names] = [one.grad for one in leaves]
    found["none"] = [oc.parallel.attention(*shards, made, group=mesh, mask=[0, 1])]
    found["compiled"] = _compiled(shards, dout, made)
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = [oc.parallel.attention(*shards, made)]
    return found


def message(call: Callable[[], Any]) -> str:
    """What the call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def refused(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """The messages of calls that are refused."""
    mask = oc.causal(SIZE)
    made = plan(mask, ranks)
    q, k, v = (made.shard(one, rank) for one in whole(mask, torch.float32)[2:])

    other = plan(oc.full(SIZE) if rank == 1 else mask, ranks, rows="contiguous")
    mine = [other.shard(one, rank) for one in whole(oc.full(SIZE), torch.float32)[2:]]
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (ranks,), mesh_dim_names=("context",))
    found = {
        "ranks": message(lambda: oc.parallel.attention(q, k, v, plan(mask, ranks + 1))),
        "lengths": message(lambda: oc.parallel.attention(q[:, :, 1:], k, v, made)),
        "heads": message(lambda: oc.parallel.attention(q, k, v, plan(mask, ranks, heads=(8, 2, 8)))),
        "group": message(lambda: oc.parallel.attention(q, k, v, made, group="world")),
        "axis": message(lambda: oc.parallel.attention(q, k, v, made, group=(mesh, "data"))),
        "a mask": message(lambda: oc.parallel.attention(q, k, v, made, mask=mask)),
        "plans": message(lambda: oc.parallel.attention(*mine, other)),
        "groups": message(
            lambda: oc.parallel.attention(q, k, v, made, overlap=(1, 1) if rank == 1 else False)
        ),
        "widths": message(lambda: oc.parallel.attention(q, k, v[..., : 8 - 4 * (rank == 1)], made)),
        "dtypes": message(lambda: oc.parallel.attention(q, k, v.double(), made)),
        "negated": message(lambda: oc.parallel.attention(q, torch._neg_view(k), v, made)),
        "nested": message(lambda: oc.parallel.attention(q, torch.nested.as_nested_tensor(list(k)), v, made)),
        "heads in all": message(lambda: oc.parallel.attention(q, k, v, made, overlap=(1, 2))),
        "way": message(lambda: oc.parallel.attention(q, k, v, made, overlap="columns")),
        "arrays": message(lambda: oc.parallel.attention(q.numpy(), k, v, made)),
        "limit": message(lambda: oc.parallel.attention(q, k, v, made, time_limit=0)),
    }
    oc.parallel.attention(q, k, v, made)  # goes on after all of it
    third = plan(mask, ranks, rows="zigzag", node=1)
    mine = [third.shard(one, rank) for one in whole(mask, torch.float32)[2:]]
    if rank != 1:
        found["late plan"] = message(lambda: oc.parallel.attention(*mine, third, time_limit=1))
        found["late exchange"] = message(lambda: oc.parallel.attention(q, k, v, made, time_limit=1))
    else:  # until the others have given up
        for one in range(ranks):
            while one != 1 and not (folder / f"gave up {one}").exists():
                time.sleep(0.05)
    (folder / f"gave up {rank}").touch()
    return found


class Ends(torch.autograd.Function):
    """Hands no gradient on."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> None:
        return None


def derivatives(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Gradients where rank 0 hands none back; messages of derivatives that there are not, and of other masks."""
    mask = oc.causal(SIZE)
    made = plan(mask, ranks)
    q, k, v = (made.shard(one, rank) for one in whole(mask, torch.float32)[2:])
    call = partial(oc.parallel.attention, plan=made, time_limit=TIMEOUT)

    def once(names: str, squared: bool = False, **how: Any) -> None:
        q, k, v = (one.clone().requires_grad_(name in names) for name, one in zip("qkv", shards, strict=True))
        out = call(q, k, v, **how)
        needed = [one for one in (q, k, v) if one.requires_grad]
        grads = torch.autograd.grad(out.square().sum() if squared else out.sum(), needed, create_graph=True)
        sum((grad * one).sum() for grad, one in zip(grads, needed, strict=True)).backward()

    def dual() -> None:
        with torch.autograd.forward_ad.dual_level():
            call(torch.autograd.forward_ad.make_dual(q, q), k, v)

    def batched() -> None:
        x = q.clone().requires_grad_()
        out = call(x, k, v)
        torch.autograd.grad(out, x, torch.stack([out, out]).detach(), is_grads_batched=True)

    shards = [q, k, v]
    leaves = [one.clone().requires_grad_() for one in shards]
    out = call(*leaves)
    ((Ends.apply(out) if rank == 0 else out).sum() + 0 * leaves[0].sum()).backward()
    found: dict[str, Any] = {"ends": [one.grad for one in leaves]}
    call(q, k, v, mask=np.int64(0))
    found |= {
        f"second {names} {squared} {how}": message(partial(once, names, squared, overlap=how))
        for names in ("qkv", "q", "k", "v")
        for squared in (False, True)
        for how in (False, "rows", (1, 1))
    }
    return found | {
        "dual": message(dual),
        "batched": message(batched),
        "grad": message(lambda: torch.func.grad(lambda x: call(x, k, v).sum())(q)),
        "vmap": message(lambda: torch.vmap(lambda x: call(x, k, v))(q[None])),
        "masks": message(lambda: call(q, k, v, mask=[0])),
        **{f"limit {one!r}": message(lambda one=one: call(q, k, v, time_limit=one)) for one in LIMITS},
    }


LIMITS = (None, "5", timedelta(seconds=5), True)
JOBS: dict[str, Callable[[int, int, Path], dict[str, Any]]] = {
    "results": results,
    "wanted": wanted,
    "overlapped": overlapped,
    "refused": refused,
    "derivatives": derivatives,
}


def main(what: str, rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=TIMEOUT)
    )
    torch.save(JOBS[what](rank, ranks, folder), folder / f"{what}{rank}.pt")
    if what != "refused":  # whose connections have failed
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    processes.leave()

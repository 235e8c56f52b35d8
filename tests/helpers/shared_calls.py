"""One rank of calls that several share, on GPUs or on the CPU: python shared_calls.py WHAT RANK RANKS FOLDER.

WHAT is tensors (torch.distributed: NCCL where there are GPUs, else gloo; each case without overlap and by a way of it)
or arrays (CuPy arrays and its NCCL).
"""

from __future__ import annotations

import ctypes
import pickle
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import parallel_cases
import processes
import torch
import torch.distributed as dist

import omnicupy as oc
import omnicupy.parallel
from omnicupy.choose import pick
from omnicupy.masks.mask import Mask
from omnicupy.parallel import Plan, plan
from omnicupy.tools.random_arrays import DTYPES, random_bits, unsigned
from omnicupy.tools.verify.inputs import NAN_BITS

TIMEOUT = 60  # seconds that a process waits for another
MOST = 700  # rows and keys
KINDS = ("segments", "causal", "ranges", "from_dense", "from_tiles", "sliding_window", "documents", "random")
# dtype, head_dim, heads of queries and of keys, columns of v
SHAPES = (
    ("bfloat16", 64, 4, 2, 64),
    ("float16", 128, 6, 2, 128),
    ("bfloat16", 128, 4, 4, 128),
    ("bfloat16", 256, 2, 1, 256),
    ("bfloat16", 192, 4, 2, 128),
)
OVERLAPPED = " overlapped"  # behind the name of a case
NAMES = ("out", "lse", "dq", "dk", "dv")


@dataclass(frozen=True)
class Shared:
    """A plan with its mask, and the whole arrays as bits: dout, q, k and v; dlse in float32.

    NaN stands in keys that nobody sees and in rows that see nothing.
    """

    name: str
    made: Plan
    mask: Mask
    dtype: str
    bits: tuple[Any, Any, Any, Any]
    dlse: Any

    def arrays(self) -> list[Any]:
        """dout, q, k and v as NumPy arrays of their dtype."""
        return [one.view(DTYPES[self.dtype]) for one in self.bits]

    def shards(self, rank: int) -> list[Any]:
        """dout, q, k and v of a rank as bits, and dlse."""
        dout, q, k, v = self.bits
        given = [(dout, False), (q, False), (k, True), (v, True), (self.dlse, False)]
        return [self.made.shard(x, rank, 2, keys=keys) for x, keys in given]


def cases(ranks: int, count: int) -> Iterator[Shared]:
    """Random masks under random plans, ranks without rows and other owners of keys among them; then one of each."""
    rng = np.random.default_rng(5)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        mask = parallel_cases.case(rng, kind, MOST).mask
        made = parallel_cases.made(rng, mask)
        while made.ranks != ranks:
            made = parallel_cases.made(rng, mask, ranks)
        yield _with_arrays(f"{number} {kind}", made, mask, number)
    causal = oc.causal(300)
    fixed = {
        "idle rank": (causal, {"rows": [ranks - 1] * 300}),
        "no keys on a rank": (oc.full(100, 200), {"rows": [0] * 50 + [1] * 50, "keys": [0] * 200}),
        "more keys": (oc.ranges([(0, 90, 40, 513), (90, 200, 0, 600)], 201, 777), {}),
        "fewer keys": (oc.ranges([(5, 600, 3, 70)], 640, 75), {}),
        "nothing travels": (oc.documents([150] * ranks), {"rows": "contiguous"}),
        "nothing is seen": (oc.ranges([], 64, 64), {}),
    }
    for number, (name, (mask, options)) in enumerate(fixed.items()):
        yield _with_arrays(name, plan(mask, ranks, **options), mask, number)


def _with_arrays(name: str, made: Plan, mask: Mask, number: int) -> Shared:
    dtype, head_dim, heads, kv_heads, columns = SHAPES[number % len(SHAPES)]
    (q_len, k_len), dense = mask.shape, mask.to_dense()
    shapes = [(2, heads, q_len, columns), (2, heads, q_len, head_dim)]
    shapes += [(2, kv_heads, k_len, head_dim), (2, kv_heads, k_len, columns)]
    dout, q, k, v = (random_bits(shape, 7 * number + i, dtype, 1.0, np) for i, shape in enumerate(shapes))
    dlse = random_bits(shapes[0][:3], 7 * number + 5, "float32", 1.0, np).view(np.float32)
    for one, dead in ((dout, ~dense.any(1)), (q, ~dense.any(1)), (k, ~dense.any(0)), (v, ~dense.any(0))):
        one[:, :, dead] = NAN_BITS[dtype]
    dlse[:, :, ~dense.any(1)] = np.nan
    return Shared(f"{name}: {dtype} {head_dim}, {made!r}", made, mask, dtype, (dout, q, k, v), dlse)


def _way(number: int, kv_heads: int) -> Any:
    """How a case overlaps."""
    groups = (1, kv_heads - 1) if kv_heads > 1 else True
    return (True, "rows", groups, None)[number % 4]


def tensors(rank: int, ranks: int, folder: Path, count: int) -> dict[str, list[Any]]:
    """out, lse, dq, dk and dv of this rank as bits, of every case; asserts that they come again."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    store = dist.FileStore(str(folder / "store"), ranks)
    bound = {"device_id": device} if on_gpu else {}
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=TIMEOUT),
        **bound,
    )
    found = {}
    for number, case in enumerate(cases(ranks, count)):
        *bits, dlse = case.shards(rank)
        dout, *given = (_tensor(one, case.dtype, device) for one in bits)
        dlse = torch.from_numpy(np.ascontiguousarray(dlse)).to(device)
        for at, (said, way) in enumerate((("", False), (OVERLAPPED, _way(number, given[1].shape[1])))):
            both = partial(_both, case.made, way)
            # On GPUs of one host that is by NCCL, then by the kernel that writes to peers.
            turns = [[_bits(one) for one in both(given, dout, dlse, how)] for how in ("group", "auto")]
            for name, a, b in zip(NAMES, *turns, strict=True):
                assert np.array_equal(a, b), (
                    f"{case.name}{said}: rank {rank}: {name} has other bits the second time"
                )
            found[case.name + said] = turns[0]
            if on_gpu and at == number % 2:
                _check_replays(both, (given, dout, dlse), f"{case.name}{said}: rank {rank}")
    dist.barrier()
    dist.destroy_process_group()
    return found


def _both(made: Plan, way: Any, given: list[Any], dout: Any, dlse: Any, exchange: str = "auto") -> list[Any]:
    """out, lse, dq, dk and dv."""
    leaves = [one.detach().requires_grad_() for one in given]
    out, lse = oc.parallel.attention(
        *leaves, made, return_lse=True, overlap=way, exchange=exchange, time_limit=TIMEOUT
    )
    return [out.detach(), lse.detach(), *torch.autograd.grad([out, lse], leaves, [dout, dlse])]


def _check_replays(both: Any, inputs: tuple[list[Any], Any, Any], said: str) -> None:
    """Asserts that a captured call gives the bits of an eager one, on its inputs and then on others in their memory."""
    given, dout, dlse = [one.clone() for one in inputs[0]], inputs[1].clone(), inputs[2].clone()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's threads look at events
        kept = both(given, dout, dlse)
    for turn in range(2):
        expected = [_bits(one) for one in both(given, dout, dlse)]
        for one in kept:
            one.fill_(torch.nan)
        graph.replay()
        for name, a, b in zip(NAMES, expected, kept, strict=True):
            assert np.array_equal(a, _bits(b)), f"{said}: {name} has other bits in replay {turn}"
        for one in (*given, dout, dlse):
            one.copy_(one.flip(0))  # elements of the batch, whose NaN stand in the same places
    torch.cuda.synchronize()


def _tensor(bits: Any, dtype: str, device: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(bits).view(np.int16)).to(device).view(getattr(torch, dtype))


def _bits(tensor: Any) -> Any:
    host = tensor.detach().cpu().contiguous()
    return host.view(torch.int16 if host.element_size() == 2 else torch.int32).numpy()


def arrays(rank: int, ranks: int, folder: Path, count: int) -> dict[str, list[Any]]:
    """The same through CuPy, on the device of that number."""
    _load_nccl()
    import cupy
    from cupy.cuda import nccl  # not there before it is imported

    cupy.cuda.Device(rank).use()
    communicator = nccl.NcclCommunicator(ranks, _unique_id(rank, folder), rank)
    group = oc.parallel.NcclGroup(communicator)
    found = {}
    for case in cases(ranks, count):
        *bits, dlse = case.shards(rank)
        dout, *given = (cupy.asarray(np.ascontiguousarray(one)).view(DTYPES[case.dtype]) for one in bits)
        dlse = cupy.asarray(dlse)
        turns = []
        for _ in range(2):
            out, lse = oc.parallel.attention(
                *given, case.made, group=group, return_lse=True, time_limit=TIMEOUT
            )
            grads = oc.parallel.attention_backward(
                *(dout, *given, out, lse), plan=case.made, group=group, dlse=dlse
            )
            turns.append([_host_bits(one) for one in (out, lse, *grads)])
        for name, a, b in zip(NAMES, *turns, strict=True):
            assert np.array_equal(a, b), f"{case.name}: rank {rank}: {name} has other bits the second time"
        found[case.name] = turns[0]
    return found


def _host_bits(array: Any) -> Any:
    import cupy

    kind = unsigned("bfloat16" if array.dtype.itemsize == 2 else "float32")
    host = cupy.asnumpy(cupy.ascontiguousarray(array.view(kind)))
    return host.view(np.int16 if host.dtype.itemsize == 2 else np.int32)


def _load_nccl() -> None:
    """NCCL as its wheel brings it, where no system library is; CuPy then finds it by its name."""
    found = find_spec("nvidia.nccl")
    for folder in (found.submodule_search_locations or []) if found else []:
        for file in (Path(folder) / "lib").glob("libnccl.so*"):
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def _unique_id(rank: int, folder: Path) -> Any:
    """What rank 0 asked NCCL for, through a file."""
    from cupy.cuda import nccl

    file = folder / "nccl"
    if rank == 0:
        new = file.with_suffix(".new")
        new.write_bytes(pickle.dumps(nccl.get_unique_id()))  # a tuple or bytes, as CuPy's version has it
        new.rename(file)
    end = time.monotonic() + TIMEOUT
    while not file.exists():
        assert time.monotonic() < end, "rank 0 wrote no NCCL id"
        time.sleep(0.05)
    return pickle.loads(file.read_bytes())


JOBS = {"tensors": tensors, "arrays": arrays}


def main(what: str, rank: int, ranks: int, count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with pick.serve_every_kernel():  # as tests on a GPU do
        found = JOBS[what](rank, ranks, folder, count)
    torch.save(
        {name: [torch.from_numpy(one) for one in parts] for name, parts in found.items()},
        folder / f"{what}{rank}.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1], *(int(one) for one in sys.argv[2:5]), Path(sys.argv[5]))
    processes.leave()

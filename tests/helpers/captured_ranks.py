"""One rank of gloo processes whose calls are captured: python captured_ranks.py WHAT RANK RANKS FOLDER.

There is no CUDA graph on a CPU: a recording stands in for one. It does what a call has done again, in the same memory,
whatever has been written into its inputs meanwhile. A number that the host took from a tensor would be stale then, so
the recording refuses to give any.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parallel_ranks
import processes
import torch
from parallel_ranks import TIMEOUT, WIDE, both, sinks, whole
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import omnicupy as oc
import omnicupy.parallel
from omnicupy.masks.mask import Mask
from omnicupy.parallel import Plan, places, plan
from omnicupy.parallel.ranks import Pending, Ranks

READS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
WAYS: dict[str, Any] = {"behind": False, "rows": "rows", "heads": (1, 1)}
COLD = "UnsupportedError: attention of several ranks: the first call of its kind cannot be captured"


class Recording(TorchDispatchMode):
    """What is done inside, exchanges included, to be done again. steps: each does one thing again."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], Any]] = []
        self._exchange = Ranks.exchange

    def __enter__(self) -> Any:
        def exchange(ranks: Any, out: Any, given: Any, sizes: Any, limit: float, *, hides: bool) -> Pending:
            def again() -> None:
                with _disable_current_modes():
                    self._exchange(ranks, out, given, sizes, limit, hides=hides).wait()

            self.steps.append(again)
            again()
            return Pending(ranks, ranks.exchanges)

        Ranks.exchange = exchange  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Ranks.exchange = self._exchange  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in READS:
            raise RuntimeError(f"a number went from a tensor to the host: {function}")
        found = function(*args, **(kwargs or {}))
        self.steps.append(lambda: _write(found, function(*args, **(kwargs or {}))))
        return found

    def replay(self) -> None:
        with torch.no_grad():
            for step in self.steps:
                step()


def _write(to: Any, new: Any) -> None:
    for one, other in zip(*((x if isinstance(x, (list, tuple)) else [x]) for x in (to, new)), strict=True):
        if (
            isinstance(one, torch.Tensor)
            and one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
        ):
            one.detach().copy_(other.detach())


def _shards(made: Plan, rank: int, seed: int) -> list[Any]:
    """dout, dlse, q, k and v of this rank, and sinks; other ones for each seed."""
    dout, dlse, q, k, v = (one + seed for one in whole(made.masks[0], torch.float32, columns=WIDE))
    own = [made.shard(one, rank, 2) for one in (dout, dlse, q)]
    return [*own, *(made.shard(one, rank, keys=True) for one in (k, v)), sinks() + seed]


def replayed(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """For each mask and way pairs of results: of a call on other inputs, and of a replay on them."""
    found: dict[str, Any] = {}
    for name, (mask, rows) in parallel_ranks.masks().items():
        made = plan(mask, ranks, rows=rows)
        for how, way in WAYS.items():
            given, others = _shards(made, rank, 0), _shards(made, rank, 1)
            both(made, given, way)  # the first of its kind
            with Recording() as graph:
                kept = both(made, given, way)
            for one, other in zip(given, others, strict=True):
                one.copy_(other)
            graph.replay()
            found[f"{name} {how}"] = [*both(made, others, way), *kept]
    return found


def _causal(ranks: int) -> Plan:
    mask: Mask = oc.causal(parallel_ranks.SIZE)
    return plan(mask, ranks, rows="zigzag")  # whose keys go to several ranks


def refused(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """What first calls say in a capture, and whether warm ones give the same bits as outside of it."""
    made, say = _causal(ranks), parallel_ranks.message
    given = _shards(made, rank, 0)
    before = places.captures
    found: dict[str, Any] = {}

    def forward() -> Any:
        return oc.parallel.attention(*given[2:5], made, time_limit=TIMEOUT)

    def capture(call: Callable[[], Any]) -> Any:
        places.captures = lambda device: True
        try:
            return call()
        finally:
            places.captures = before

    found["first call"] = capture(lambda: say(forward))
    out = forward()
    found["forward"] = [out, capture(forward)]
    # The forward pass is known, and where the gradients of keys go is not.
    again = _shards(plan(made.masks[0], ranks, rows="zigzag"), rank, 0)
    trained = [one.requires_grad_() for one in again[2:5]]

    def backward() -> Any:
        out = oc.parallel.attention(*trained, made, time_limit=TIMEOUT)
        return [out.detach(), *torch.autograd.grad(out, trained, given[0])]

    found["first backward"] = capture(lambda: say(backward))
    expected = backward()
    found["both"] = [*expected, *capture(backward)]
    found["another shape"] = capture(
        lambda: say(lambda: oc.parallel.attention(*(x[:1] for x in given[2:5]), made))
    )
    return found


if __name__ == "__main__":
    parallel_ranks.JOBS |= {"replayed": replayed, "captured": refused}
    parallel_ranks.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    processes.leave()

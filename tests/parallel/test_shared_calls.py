"""Calls that processes share, each on a GPU of its own: within the budgets of float64, with the bits of CuPy's NCCL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

import shared_calls  # noqa: E402 - after what it needs
from shared_calls import NAMES, Shared  # noqa: E402

from omnicupy.api import attention, attention_backward  # noqa: E402
from omnicupy.reference import budget, gradient_budget  # noqa: E402
from omnicupy.tools.random_arrays import DTYPES  # noqa: E402

LIMIT = 240  # seconds, for all processes
ON_GPUS, ON_CPU = 24, 3  # random cases
# Of dk and dv each rank's part is rounded to 16 bits before the owner adds them.
MOST = {"out": 1.0, "lse": 1.0, "dq": 1.0, "dk": 2.0, "dv": 2.0}


def _of_ranks(what: str, ranks: int, count: int, folder: Path, devices: str) -> list[dict[str, Any]]:
    arguments = [[what, str(rank), str(ranks), str(count)] for rank in range(ranks)]
    (place := folder / what).mkdir()
    place = processes.run(shared_calls.__file__, arguments, place, LIMIT, devices)
    return [torch.load(place / f"{what}{rank}.pt") for rank in range(ranks)]


def _judged(case: Shared, found: list[Any], xp: Any) -> dict[str, float]:
    """Error over budget of out, lse and gradients. found: the whole arrays, as bits."""
    dtype = DTYPES[case.dtype]
    dout, q, k, v = (xp.asarray(one).view(dtype) for one in case.bits)
    dlse = xp.asarray(case.dlse)
    out, lse, *grads = (
        xp.asarray(one.numpy()).view(dtype if one.element_size() == 2 else np.float32) for one in found
    )
    with np.errstate(all="ignore"):
        expected = budget.budget(q, k, v, case.mask)
        ratios = {
            "out": budget.compare(out, None, expected).ratio,
            "lse": budget.compare(expected.out.astype(np.float32).astype(dtype), lse, expected).ratio,
        }
        wanted = gradient_budget.budget(dout, q, k, v, case.mask, out=out, lse=lse, dlse=dlse)
        for at, name in enumerate(("dq", "dk", "dv")):
            one: list[Any] = [None, None, None]
            one[at] = grads[at]
            ratios[name] = gradient_budget.compare(one, wanted).ratio
    return ratios


def _on_one_device(case: Shared, xp: Any) -> list[Any]:
    """The same case without a plan, as bits."""
    dtype = DTYPES[case.dtype]
    dout, q, k, v = (xp.asarray(one).view(dtype) for one in case.bits)
    out, lse = attention(q, k, v, case.mask, return_lse=True)
    grads = attention_backward(dout, q, k, v, out, lse, case.mask, dlse=xp.asarray(case.dlse))
    asnumpy = getattr(xp, "asnumpy", np.asarray)
    kinds = {2: np.int16, 4: np.int32}
    return [torch.from_numpy(asnumpy(one.view(kinds[one.dtype.itemsize]))) for one in (out, lse, *grads)]


def _check(found: list[dict[str, Any]], ranks: int, count: int, xp: Any) -> None:
    """Without overlap and with it. found: of each rank."""
    worst = dict.fromkeys(NAMES, 0.0)
    for case in shared_calls.cases(ranks, count):
        alone = _judged(case, _on_one_device(case, xp), xp)
        for said in ("", shared_calls.OVERLAPPED):
            parts = [one[case.name + said] for one in found]
            whole = [
                case.made.unshard([part[side] for part in parts], 2, keys=name in ("dk", "dv"))
                for side, name in enumerate(NAMES)
            ]
            for name, ratio in _judged(case, whole, xp).items():
                assert ratio <= MOST[name], (case.name, said, name, ratio, alone[name])
                assert alone[name] <= 1, (case.name, name, "on one device", alone[name])
                worst[name] = max(worst[name], ratio)
    print(f"{ranks} ranks, worst error/budget: {worst}")


def _devices() -> int:
    try:
        return int(torch.cuda.device_count())
    except RuntimeError:
        return 0


def test_processes_without_gpus(tmp_path: Path) -> None:
    _check(_of_ranks("tensors", 2, ON_CPU, tmp_path, ""), 2, ON_CPU, np)


@pytest.mark.gpu
def test_tensors_and_arrays_on_gpus(tmp_path: Path) -> None:
    """On two GPUs, or four where there are so many; both libraries at once, since each waits for its processes."""
    if _devices() < 2:
        pytest.skip("there is one GPU, and each rank needs its own")
    import cupy

    ranks = 4 if _devices() >= 4 else 2
    devices = ",".join(str(one) for one in range(ranks))
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(_of_ranks, what, ranks, ON_GPUS, tmp_path, devices) for what in ("tensors", "arrays")
        ]
    found, of_arrays = (one.result() for one in both)
    _check(found, ranks, ON_GPUS, cupy)
    for rank, parts in enumerate(of_arrays):
        for name, arrays in parts.items():
            for side, a, b in zip(NAMES, arrays, found[rank][name], strict=True):
                assert torch.equal(a, b), (name, rank, side)

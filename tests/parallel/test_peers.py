"""Keys that travel by the kernel for GPUs of one host: the bits of the group's exchange, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cuda_on_cpu
import processes
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)
if cuda_on_cpu.missing() is not None:
    pytest.skip(f"no kernels on this CPU: {cuda_on_cpu.missing()}", allow_module_level=True)

import parallel_ranks  # noqa: E402 - after what it needs
import peer_ranks  # noqa: E402


def _of_processes(what: str, ranks: int, folder: Path) -> list[dict[str, Any]]:
    return processes.results(peer_ranks.__file__, what, ranks, folder, 2 * parallel_ranks.TIMEOUT)


@pytest.mark.parametrize("ranks", [2, 3])
def test_results_have_the_bits_of_the_groups_exchange(ranks: int, tmp_path: Path) -> None:
    """Every form of mask, way of overlap and layout; also where rows go through the sender's memory."""
    found = _of_processes("same", ranks, tmp_path)
    for parts in found:
        for name, (*pairs, launches, travels) in parts.items():
            assert launches == travels * (3 if " heads " in name else 2), name
            for a, b in pairs:
                assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name

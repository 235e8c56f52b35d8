"""Calls of several ranks inside CUDA graphs, by stand-ins on the CPU: replays on other inputs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import processes
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

import captured_ranks  # noqa: E402 - after what it needs
import parallel_ranks  # noqa: E402


def _of_processes(what: str, ranks: int, folder: Path) -> list[dict[str, Any]]:
    return processes.results(captured_ranks.__file__, what, ranks, folder, 2 * parallel_ranks.TIMEOUT)


def test_a_replay_on_other_inputs_gives_the_bits_of_a_call(tmp_path: Path) -> None:
    """Both passes, by each way of overlap; ranks without rows among them."""
    for parts in _of_processes("replayed", 3, tmp_path):
        assert len(parts) == len(parallel_ranks.masks()) * len(captured_ranks.WAYS)
        for name, results in parts.items():
            half = len(results) // 2
            for side, (a, b) in enumerate(zip(results[:half], results[half:], strict=True)):
                assert torch.equal(a.view(torch.int32), b.view(torch.int32)), (name, side)


def test_first_calls_are_refused_in_a_capture(tmp_path: Path) -> None:
    for found in _of_processes("captured", 3, tmp_path):
        for what in ("first call", "first backward", "another shape"):
            assert captured_ranks.COLD in found[what], what
        for what in ("forward", "both"):
            half = len(found[what]) // 2
            for a, b in zip(found[what][:half], found[what][half:], strict=True):
                assert torch.equal(a, b), what

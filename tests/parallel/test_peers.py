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

import omnicupy as oc  # noqa: E402
import omnicupy.parallel  # noqa: E402


def _of_processes(what: str, ranks: int, folder: Path) -> list[dict[str, Any]]:
    return processes.results(peer_ranks.__file__, what, ranks, folder, 2 * parallel_ranks.TIMEOUT)


@pytest.mark.parametrize("ranks", [2, 3])
def test_results_have_the_bits_of_the_groups_exchange(ranks: int, tmp_path: Path) -> None:
    """Every form of mask, way of overlap and layout; rows that are sent in one part, and in several."""
    found = _of_processes("same", ranks, tmp_path)
    for parts in found:
        assert parts["left open"] == {
            "behind": 1,
            "rows": 0,
            "heads": 0,
        }  # beside launches the group's is faster
        for name, (*pairs, launches, sums, travels) in parts["pairs"].items():
            assert launches == travels * (3 if " heads " in name else 2), name
            assert sums <= (travels and "bfloat16" in name), (
                name
            )  # none on a rank to which nothing comes back
            for a, b in pairs:
                assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name


NEEDS = 'UnsupportedError: attention: exchange="peer" needs GPUs of one host that map each other\'s memory: '
REFUSED = {
    "cpu": NEEDS + "tensors are on cpu",
    "host": NEEDS + "rank 1 is on another host than rank 0",
    "memory": NEEDS + "rank 1: RuntimeError: no memory here;",
    "kernel": NEEDS + "rank 1: RuntimeError: no kernel here;",
    "map": NEEDS + "rank 1: RuntimeError: no handles here;",
    "reach": NEEDS + "rank 1: UnsupportedError: no access from device 1 to 0;",
    "width": NEEDS + "rows of k have 8 bytes, no multiple of 16",
    "size": NEEDS + "12582912 bytes travel at once, and memory for 2097152 is shared",
    "option": "ValueError: the call differs between ranks: rank 1 came with mask 0, batch 2, 8 and 8 columns of "
    'bfloat16, heads 2, exchange="peer"; rank 0 with mask 0, batch 2, 8 and 8 columns of bfloat16, heads 2; every rank',
}


def test_what_peers_cannot_do_is_said_by_all_of_them(tmp_path: Path) -> None:
    """Whichever rank is in the way; "auto" leaves the exchange to the group then."""
    for messages in _of_processes("refused by ranks", 2, tmp_path):
        for a, b in messages.pop("pairs"):
            assert torch.equal(a, b)
        assert set(messages) == set(REFUSED)
        for what, said in messages.items():
            assert said.startswith(REFUSED[what]), (what, said)


def test_memory_grows_on_all_ranks_and_is_closed_with_the_group(tmp_path: Path) -> None:
    """What there was before stays, for captured calls. A rank that does not come is named by the next call."""
    for rank, found in enumerate(_of_processes("kept", 2, tmp_path)):
        for a, b in found["pairs"]:
            assert torch.equal(a, b)
        sizes, addresses = zip(*found["memory"], strict=True)
        assert sizes[0] < sizes[1] == sizes[2] == sizes[3]
        assert addresses[0] != addresses[1] == addresses[2] == addresses[3]
        assert len(found["mapped"]) == 2
        assert found["unmapped"] == found["mapped"]
        if rank == 0:
            out, *messages = found["late"]
            assert out.isnan().any()
            for said in messages:
                assert said.startswith(
                    "RuntimeError: attention of 2 ranks: rank 1 did not take part in an exchange before this call"
                )


@pytest.mark.parametrize(("given", "error"), [("nccl", ValueError), (None, TypeError), (True, TypeError)])
def test_other_names_of_exchanges(given: Any, error: Any) -> None:
    made = oc.parallel.plan(oc.causal(8), 2)
    q = torch.zeros(1, 1, 4, 8)
    with pytest.raises(error, match=r"exchange must be one of \('auto', 'group', 'peer'\)"):
        oc.parallel.attention(q, q, q, made, exchange=given)

"""Ranks in processes of their own, over gloo: the bits of all ranks in one process, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import processes
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

import parallel_ranks  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
import omnicupy.parallel  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.parallel import Plan, attention_backward_of_ranks, attention_of_ranks, plan  # noqa: E402
from omnicupy.torch.tensors import on_host  # noqa: E402


def _of_processes(what: str, ranks: int, folder: Path) -> list[dict[str, Any]]:
    return processes.results(parallel_ranks.__file__, what, ranks, folder, 2 * parallel_ranks.TIMEOUT)


def _host(tensor: Any) -> Any:
    return np.ascontiguousarray(on_host("x", tensor))


def _of_one_process(made: Plan, given: list[Any], **scores: Any) -> list[list[Any]]:
    """out, lse and gradients of each rank, from one process. scores: sink_logits and softcap."""
    dout, dlse, q, k, v = given
    parts = [[_host(made.shard(one, rank, 2)) for rank in range(made.ranks)] for one in (dout, dlse, q)]
    keys = [[_host(made.shard(one, rank, keys=True)) for rank in range(made.ranks)] for one in (k, v)]
    outs, lses = attention_of_ranks(parts[2], *keys, made, return_lse=True, **scores)
    wanted = ("q", "k", "v", *(("sink_logits",) if scores else ()))
    grads = attention_backward_of_ranks(
        *(parts[0], parts[2], *keys, outs, lses), plan=made, dlse=parts[1], wanted=wanted, **scores
    )
    return [list(one) for one in zip(outs, lses, *grads, strict=True)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_processes_give_the_bits_of_one_process(ranks: int, tmp_path: Path) -> None:
    """Every form of mask, NaN that nobody sees, ranks without rows, other owners of keys, other layouts; checkpointed
    too.
    """
    found = _of_processes("results", ranks, tmp_path)
    for name, (mask, rows) in parallel_ranks.masks().items():
        made = plan(mask, ranks, rows=rows)
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            expected = _of_one_process(made, parallel_ranks.whole(mask, dtype))
            for rank in range(ranks):
                for how in ("plain", "again", "checkpointed"):
                    for a, b in zip(found[rank][f"{name} {dtype} {how}"], expected[rank], strict=True):
                        same = np.array_equal(_host(a).view(np.uint8), b.view(np.uint8))
                        assert same, (name, dtype, rank, how)
        _compare_with_one_device(made, [parts[f"{name} {torch.float64} plain"] for parts in found])


@pytest.mark.parametrize("ranks", [2, 3])
def test_overlap_changes_no_result(ranks: int, tmp_path: Path) -> None:
    """Rows that need not wait first, and heads in groups: the results of one exchange and one launch, which are the
    bits of one process; sinks and capped scores too.
    """
    found, ways = _of_processes("overlapped", ranks, tmp_path), set()
    for name, (mask, rows) in parallel_ranks.masks().items():
        made = plan(mask, ranks, rows=rows)
        for dtype in (torch.float32, torch.bfloat16):
            dout, dlse, *given = parallel_ranks.whole(mask, dtype, columns=parallel_ranks.WIDE)
            expected = _of_one_process(
                made,
                [dout, dlse, *given],
                sink_logits=parallel_ranks.sinks().numpy(),
                softcap=parallel_ranks.CAP,
            )
            for rank, parts in enumerate(found):
                groups, pieces = parts[name]
                ways.add((groups > 1, pieces > 1))
                for side, one in enumerate(expected[rank]):
                    mine, again, behind, rows_first, in_groups = (
                        parts[f"{name} {dtype} {how}"][side] for how in parallel_ranks.WAYS
                    )
                    assert np.array_equal(_host(behind).view(np.uint8), one.view(np.uint8)), (
                        name,
                        dtype,
                        side,
                    )
                    assert torch.equal(mine, again), (name, dtype, side)
                    near = 1e-5 if dtype == torch.float32 or side == 1 else 0.03
                    for one in (mine, rows_first):
                        assert torch.allclose(one.float(), behind.float(), near, near), (name, dtype, side)
                    assert torch.equal(in_groups, behind), (name, dtype, side)
                    if max(one[name][1] for one in found) <= 1:  # heads in groups: the same bits
                        assert torch.equal(mine, behind), (name, dtype, side)
    assert {(True, False), (False, True)} <= ways


def _compare_with_one_device(made: Plan, found: list[list[Any]]) -> None:
    """found: out, lse and gradients of each rank, float64."""
    dout, dlse, *leaves = parallel_ranks.whole(made.masks[0], torch.float64)
    for one in leaves:
        one.requires_grad_()
    out, lse = oc.torch.attention(*leaves, made.masks[0], return_lse=True)
    expected = [out, lse, *torch.autograd.grad([out, lse], leaves, [dout, dlse])]
    for side, whole in enumerate(expected):
        got = made.unshard([part[side] for part in found], 2, keys=side > 2)
        assert torch.allclose(got, whole, rtol=1e-12, atol=1e-12), (made, side)


def test_parts_of_the_gradients_meshes_batches_compilers_and_autocast(tmp_path: Path) -> None:
    found = _of_processes("wanted", 3, tmp_path)
    masks = [oc.random(parallel_ranks.SIZE, 3), oc.causal(parallel_ranks.SIZE)]
    made = plan(masks, 3)
    dout, _, *leaves = parallel_ranks.whole(oc.full(parallel_ranks.SIZE), torch.float32)
    for one in leaves:
        one.requires_grad_()
    out = oc.torch.attention(*leaves, masks)
    out.backward(dout)
    for rank in range(3):
        for names in ("q", "k", "v", "qv", "kv"):
            for name, leaf, grad in zip("qkv", leaves, found[rank][names], strict=True):
                assert (grad is None) == (name not in names)
                if grad is not None:
                    assert torch.allclose(grad, made.shard(leaf.grad, rank), atol=1e-5), (names, name)
        assert torch.allclose(found[rank]["none"][0], made.shard(out, rank), atol=1e-6)
        *pairs, reasons = found[rank]["compiled"]
        assert len(pairs) == 8
        assert all(torch.equal(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True))
        assert reasons == 1  # the call as a whole
        half = [one.detach().bfloat16() for one in leaves]
        wide = made.shard(oc.torch.attention(*half, masks[0]), rank)
        assert found[rank]["autocast"][0].dtype == torch.bfloat16
        assert torch.allclose(found[rank]["autocast"][0], wide, atol=0.02)


REFUSED = {
    "ranks": "ValueError: plan must be one for the 3 ranks of the group, got one for 4",
    "lengths": "ValueError: q must have the 16 rows of rank {rank} under this plan, got shape (2, 4, 15, 8)",
    "heads": "heads that the plan was made for, (8, 2, 8), got (4, 2, 8) on rank {rank}",
    "group": "TypeError: group must be a ProcessGroup, a DeviceMesh of one axis, (DeviceMesh, axis) or None, got str",
    "axis": "ValueError: group must name an axis of the DeviceMesh, whose axes are ('context',), got 'data'",
    "a mask": "TypeError: mask must name masks of the plan by their places, 0 for the first, got a Mask",
    "plans": "ValueError: plan differs between ranks: rank 1 came with another one than rank 0",
    "groups": "ValueError: the call differs between ranks: rank 1 came with mask 0, batch 2, 8 and 8 columns of "
    "float32, heads 1+1; rank 0 with mask 0, batch 2, 8 and 8 columns of float32, heads 2; every rank must",
    "widths": "ValueError: the call differs between ranks: rank 1 came with mask 0, batch 2, 8 and 4 columns",
    "dtypes": "TypeError: v must have the dtype of q (float32), got float64 on rank {rank}; cast it",
    "negated": "UnsupportedError: k is a negated view; pass k.resolve_neg()",
    "nested": "UnsupportedError: k is a nested tensor",
    "heads in all": "ValueError: overlap must be heads of keys in each exchange, 2 in all, got (1, 2)",
    "way": "TypeError: attention: overlap must be",
    "arrays": "TypeError: q must be a tensor or a CuPy array, got ndarray; attention_of_ranks takes lists",
    "limit": "ValueError: time_limit must be a positive number of seconds, got 0",
}
LATE = (
    "RuntimeError: attention of 3 ranks: rank 1 did not take part in {what} within 1 s (rank {rank} waited)"
)


def test_what_is_refused_and_who_is_late(tmp_path: Path) -> None:
    """Other plans, shapes and groups raise on every rank; a rank that does not come is named, not waited for."""
    for rank, messages in enumerate(_of_processes("refused", 3, tmp_path)):
        for what, expected in REFUSED.items():
            assert expected.format(rank=rank) in messages[what], what
        if rank != 1:
            assert LATE.format(what="plan 5", rank=rank) in messages["late plan"]
            assert LATE.format(what="exchange 2", rank=rank) in messages["late exchange"]


DERIVATIVES = {
    "second": "UnsupportedError: attention has no second derivative: a gradient of its gradient is asked for",
    "dual": "UnsupportedError: q carries a tangent, but attention has no derivative in forward mode",
    "batched": "UnsupportedError: attention of several ranks is served without transforms",
    "grad": "UnsupportedError: attention of several ranks is served without transforms",
    "vmap": "UnsupportedError: attention of several ranks is served without transforms",
    "masks": "ValueError: mask must be a place in the plan's masks, or one for each of 2 batch elements, got 1",
    "limit": "TypeError: attention: time_limit must be a number, got ",
}


def test_derivatives_that_there_are_not_raise_and_a_rank_that_hands_none_back_holds_nobody_up(
    tmp_path: Path,
) -> None:
    found = _of_processes("derivatives", 2, tmp_path)
    mask = oc.causal(parallel_ranks.SIZE)
    made = plan(mask, 2)
    leaves = [one.requires_grad_() for one in parallel_ranks.whole(mask, torch.float32)[2:]]
    rows = torch.from_numpy(made.positions(1))
    oc.torch.attention(*leaves, mask)[:, :, rows].sum().backward()
    for rank, messages in enumerate(found):
        for leaf, grad in zip(leaves, messages.pop("ends"), strict=True):
            assert torch.allclose(grad, made.shard(leaf.grad, rank), atol=1e-5)
        assert {one.split()[0] for one in messages} == set(DERIVATIVES)
        for what, message in messages.items():
            assert message.startswith(DERIVATIVES[what.split()[0]]), what


def test_without_a_process_group() -> None:
    made = plan(oc.causal(8), 2)
    q = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialised"):
        oc.parallel.attention(q, q, q, made)


def test_tensors_are_sharded_as_arrays_are() -> None:
    made = plan(oc.documents([30, 20]), 3)
    x = torch.randn(2, 50, 4)
    parts = [made.shard(x, rank) for rank in range(3)]
    assert torch.equal(parts[1], x[:, torch.from_numpy(made.positions(1))])
    assert torch.equal(made.unshard(parts), x)
    labels = torch.arange(50)[None]
    assert made.shift(labels, fill=-100)[0, [28, 29, 49]].tolist() == [29, -100, -100]
    assert labels[0, 0] == 0


def test_where_gradients_of_keys_can_be_made_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they have kernels of their own: not where one kernel makes all three."""
    from omnicupy.parallel import distributed

    hopper = SimpleNamespace(device_info=lambda device: SimpleNamespace(major=9, minor=0))
    monkeypatch.setitem(sys.modules, "omnicupy.gpu.device", hopper)
    for widths, deterministic, apart in (
        ((128, 128), True, False),
        ((64, 64), True, False),
        ((64, 64), False, False),
        ((256, 256), True, True),
        ((192, 128), False, True),
    ):
        distributed._apart_on_gpu.cache_clear()
        assert distributed._apart_on_gpu(0, "torch.bfloat16", widths, False, deterministic) is apart, widths
    distributed._apart_on_gpu.cache_clear()

"""omnicupy.torch on a PagedKV and append: tensors on the CPU, tensors of a fake device, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_tensor  # noqa: E402 - needs torch
from fake_tensor import cuda  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.jit.append_spec import AppendSpec  # noqa: E402
from omnicupy.jit.paged_spec import PagedSpec  # noqa: E402

BATCH, PAGES, SIZE, MOST = 3, 12, 16, 3
_zeros = torch.zeros


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_tensor.install(monkeypatch)


def _inputs(dtype: Any = torch.float32, lengths: Any = (0, 17, 48)) -> tuple[Any, oc.PagedKV]:
    torch.manual_seed(0)
    q = torch.randn(BATCH, 2, 4, 16, dtype=dtype).transpose(1, 2)
    memory = torch.randn(PAGES, SIZE, 2, 32, dtype=dtype)
    table = torch.randperm(PAGES)[: BATCH * MOST].reshape(BATCH, MOST).int()
    return q, oc.PagedKV(memory[..., :16], memory[..., 16:], table, torch.tensor(lengths, dtype=torch.int32))


def _whole(kv: oc.PagedKV) -> oc.CachedKV:
    k, v = (
        pool[kv.page_table.long()].reshape(BATCH, MOST * SIZE, 2, 16).transpose(1, 2).contiguous()
        for pool in (kv.k_pages, kv.v_pages)
    )
    return oc.CachedKV(k, v, kv.lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_on_the_cpu(dtype: Any) -> None:
    q, kv = _inputs(dtype)
    rule = oc.cached(window=9, sink=2)
    found = oc.torch.attention(q, kv, mask=rule, return_lse=True)
    wanted = oc.torch.attention(q, _whole(kv), mask=rule, return_lse=True)
    assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))
    out = torch.empty_like(found[0])
    assert oc.torch.attention(q, kv, mask=oc.torch.plan(q, kv, rule), out=out) is out
    assert torch.equal(out, found[0])
    oc.torch.prepare(q, kv, mask=rule, max_length=MOST * SIZE)


def test_values_of_another_width_and_score_changes_on_the_cpu() -> None:
    q, kv = _inputs()
    sinks = torch.tensor([-torch.inf, 0.0, 2.0, 30.0])
    options: dict[str, Any] = {"sink_logits": sinks, "softcap": 2.0, "split": 64, "return_lse": True}
    v_pages = kv.v_pages[..., :8]
    narrow = oc.PagedKV(kv.k_pages, v_pages, kv.page_table, kv.lengths)
    whole = _whole(kv)
    for paged, cached in ((kv, whole), (narrow, oc.CachedKV(whole.k, whole.v[..., :8], kv.lengths))):
        found = oc.torch.attention(q, paged, mask=oc.cached(), **options)
        wanted = oc.torch.attention(q, cached, mask=oc.cached(), **options)
        assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))
        step = oc.torch.plan(q, paged, oc.cached(), softcap=2.0, split=64)
        assert torch.equal(oc.torch.attention(q, paged, mask=step, sink_logits=sinks, softcap=2.0), found[0])
    assert found[0].shape == (BATCH, 4, 2, 8)
    oc.torch.append(narrow, torch.ones(BATCH, 2, 1, 16), torch.ones(BATCH, 2, 1, 8))
    assert (v_pages[kv.page_table[2, 2], 15] == 1).all()


def _cuda_inputs(size: int = SIZE, widths: tuple[int, int] = (64, 64)) -> tuple[Any, oc.PagedKV]:
    q = cuda(_zeros(BATCH, 1, 8, widths[0], dtype=torch.bfloat16).transpose(1, 2))
    k, v = (cuda(_zeros(PAGES, size, 2, width, dtype=torch.bfloat16)) for width in widths)
    numbers = (cuda(_zeros(BATCH, MOST, dtype=torch.int32)), cuda(_zeros(BATCH, dtype=torch.int32)))
    return q, oc.PagedKV(k, v, *numbers)


def test_tensors_of_a_device(device: Any) -> None:
    q, kv = _cuda_inputs()
    oc.torch.attention(q, kv, mask=oc.cached())
    launched = device.launches[-1]
    assert isinstance(launched["spec"], PagedSpec)
    params = launched["params"]
    assert [int(params[name]) for name in ("k", "v", "page_table")] == [
        one.data_ptr() for one in (kv.k_pages, kv.v_pages, kv.page_table)
    ]
    assert [int(params[name]) for name in ("page_next", "pages", "page_size")] == [MOST, PAGES, SIZE]
    made = len(device.kernels)
    oc.torch.attention(*_cuda_inputs(), mask=oc.cached())
    assert len(device.kernels) == made
    assert [oc.torch.plan(*_cuda_inputs(size), oc.cached()).kernel.page for size in (8, 6)] == [8, 1]


def test_values_of_another_width_and_score_changes_on_a_device(device: Any) -> None:
    q, kv = _cuda_inputs(widths=(192, 128))
    sinks = cuda(_zeros(8), 0)
    for mask in (oc.cached(), oc.torch.plan(q, kv, oc.cached(), softcap=50.0)):
        out = oc.torch.attention(q, kv, mask=mask, sink_logits=sinks, softcap=50.0)
        kernel = device.launches[-1]
        spec, params = kernel["spec"], kernel["params"]
        assert (spec.head_dim, spec.value_dim, spec.softcap) == (192, 128, True)
        assert int(params["sink_logits"]) == sinks.data_ptr()
        assert int(params["page_table"]) == kv.page_table.data_ptr()
        assert out.shape == (BATCH, 8, 1, 128)
    oc.torch.plan(q, kv, oc.cached(), split=384)
    assert device.launches[-1]["params"]["split_tiles"] > 0


@pytest.mark.parametrize("by_slots", [False, True])
def test_append_on_the_cpu(by_slots: bool) -> None:
    _, kv = _inputs(torch.bfloat16, (2, 17, 0))
    new = [torch.randn(BATCH, 2, 1, 16, dtype=torch.bfloat16) for _ in "kv"]
    version = kv.k_pages._version
    if by_slots:
        slots = torch.tensor([int(kv.page_table[0, 0]) * SIZE + 1, int(kv.page_table[1, 1]) * SIZE, -1])
        oc.torch.append(kv, *(one[:, :, 0] for one in new), slots)
    else:
        oc.torch.append(kv, *new)
    assert kv.k_pages._version > version
    for pool, one in zip((kv.k_pages, kv.v_pages), new, strict=True):
        assert torch.equal(pool[kv.page_table[0, 0], 1], one[0, :, 0])
        assert torch.equal(pool[kv.page_table[1, 1], 0], one[1, :, 0])


@pytest.mark.parametrize("by_slots", [False, True])
def test_append_on_a_device(by_slots: bool, device: Any) -> None:
    _, kv = _cuda_inputs()
    shape = (5, 2, 64) if by_slots else (BATCH, 2, 4, 64)
    new = [cuda(_zeros(*shape, dtype=torch.bfloat16)) for _ in "kv"]
    slots = cuda(_zeros(5, dtype=torch.int64)) if by_slots else None
    oc.torch.append(kv, *new, slots)
    (launched,) = device.launches
    assert isinstance(launched["spec"], AppendSpec)
    params = launched["params"]
    assert [int(params[name]) for name in ("k_new", "v_new", "k", "v")] == [
        one.data_ptr() for one in (*new, kv.k_pages, kv.v_pages)
    ]
    assert int(params["slots"]) == (slots.data_ptr() if by_slots else 0)
    assert [int(params[name]) for name in ("batch", "tokens", "wide_slots")] == (
        [1, 5, 1] if by_slots else [3, 4, 0]
    )
    assert params["k_new_strides"].tolist() == ([0, 64, 128] if by_slots else [512, 256, 64])
    assert params["k_strides"].tolist() == [SIZE * 128, 64, 128]
    tokens = 5 if by_slots else BATCH * 4
    assert launched["grid"] == (-(-tokens * 2 * 8 // 256), 1, 1)
    oc.torch.append(kv, *new, slots)
    assert len(device.kernels) == 1


def test_what_is_refused_by_name() -> None:
    q, kv = _inputs()
    with pytest.raises(TypeError, match=r"page_table must be a torch.Tensor like q, got list"):
        oc.torch.attention(q, oc.PagedKV(kv.k_pages, kv.v_pages, [[0]], kv.lengths), mask=oc.cached())
    wide = kv.page_table.long()
    with pytest.raises(TypeError, match=r"page_table must be int32, got torch\.int64"):
        oc.torch.attention(q, oc.PagedKV(kv.k_pages, kv.v_pages, wide, kv.lengths), mask=oc.cached())
    new = torch.zeros(BATCH, 2, 1, 16)
    with pytest.raises(TypeError, match=r"slots must be a torch\.Tensor, got list"):
        oc.torch.append(kv, new, new, [1])
    with pytest.raises(oc.UnsupportedError, match="append has no gradients"):
        oc.torch.append(kv, new.requires_grad_(), new)
    with pytest.raises(oc.UnsupportedError, match="append is served eagerly alone"):
        torch.func.vmap(lambda one: oc.torch.append(kv, one, one))(new.detach()[None])

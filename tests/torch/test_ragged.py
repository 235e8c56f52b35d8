"""omnicupy.torch on caches with numbers of rows for each sequence: tensors on the CPU and of a fake device."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_tensor  # noqa: E402 - needs torch
from fake_tensor import cuda  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.jit.ragged_spec import RaggedSpec  # noqa: E402

BATCH, CAPACITY = 3, 60
_zeros = torch.zeros


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_tensor.install(monkeypatch)


def _rows() -> Any:
    return torch.tensor([0, 3, 3, 8], dtype=torch.int32)


def test_tensors_on_the_cpu() -> None:
    torch.manual_seed(0)
    q, rows = torch.randn(9, 4, 16), _rows()
    kv = oc.CachedKV(*(torch.randn(BATCH, 2, CAPACITY, 16) for _ in "kv"), torch.tensor([5, 7, 60]).int())
    how: dict[str, Any] = {"rows": rows, "max_rows": 5}
    out, lse = oc.torch.attention(q, kv, mask=oc.cached(), return_lse=True, **how)
    host = oc.CachedKV(kv.k.numpy(), kv.v.numpy(), kv.lengths.numpy())
    given = {"rows": rows.numpy(), "max_rows": 5}
    wanted, of_lse = oc.attention(q.numpy(), host, mask=oc.cached(), return_lse=True, **given)
    assert torch.equal(out[:8], torch.from_numpy(wanted[:8]))
    assert torch.equal(lse[:, :8], torch.from_numpy(of_lse[:, :8]))
    step = oc.torch.plan(q, kv, oc.cached(), **how)
    for more in ({}, how):
        assert torch.equal(oc.torch.attention(q, kv, mask=step, **more)[:8], out[:8])
    oc.torch.prepare(q, kv, mask=oc.cached(), **how)
    with pytest.raises(ValueError, match="the step was made of another array of rows"):
        oc.torch.attention(q, kv, mask=step, rows=rows.clone())
    with pytest.raises(TypeError, match=r"rows must be a torch\.Tensor like q, got list"):
        oc.torch.attention(q, kv, mask=oc.cached(), rows=[0, 1], max_rows=5)
    with pytest.raises(TypeError, match=r"rows must be int32, got torch\.int64; cast it"):
        oc.torch.attention(q, kv, mask=oc.cached(), rows=rows.long(), max_rows=5)
    with pytest.raises(ValueError, match="max_rows must be given where rows is"):
        oc.torch.attention(q, kv, mask=oc.cached(), rows=rows)
    for function in (oc.torch.attention, oc.torch.prepare):
        with pytest.raises(ValueError, match="rows and max_rows go with a CachedKV or PagedKV"):
            function(q[None], q[None], q[None], rows=rows, max_rows=5)


def _cuda_inputs() -> tuple[Any, oc.CachedKV, dict[str, Any]]:
    q = cuda(_zeros(9, 8, 64, dtype=torch.bfloat16))
    k, v = (cuda(_zeros(BATCH, 2, CAPACITY, 64, dtype=torch.bfloat16)) for _ in "kv")
    rows = cuda(_zeros(BATCH + 1, dtype=torch.int32))
    return q, oc.CachedKV(k, v, cuda(_zeros(BATCH, dtype=torch.int32))), {"rows": rows, "max_rows": 5}


def test_tensors_of_a_device(device: Any) -> None:
    for _ in range(2):
        q, kv, how = _cuda_inputs()
        out, lse = oc.torch.attention(q, kv, mask=oc.cached(), return_lse=True, **how)
        assert (tuple(out.shape), tuple(lse.shape)) == ((9, 8, 64), (8, 9))
        planner, kernel = device.launches[-2:]
        assert isinstance(kernel["spec"], RaggedSpec)
        assert planner["params"]["row_starts"] == how["rows"].data_ptr()
    assert len(device.kernels) == 2
    step = oc.torch.plan(q, kv, oc.cached(), **how)
    oc.torch.attention(q, kv, mask=step)
    planned, launched = (one["params"] for one in device.launches[-2:])
    assert int(planned["row_ranges"]) == int(launched["row_ranges"])
    with pytest.raises(ValueError, match="rows must be given where max_rows is"):
        oc.torch.attention(q, kv, mask=oc.cached(), max_rows=5)

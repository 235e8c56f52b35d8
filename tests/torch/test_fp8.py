"""omnicupy.torch on caches of torch.float8_e4m3fn: the bits of caches that hold the numbers they mean."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_tensor  # noqa: E402
import fp8_caches  # noqa: E402
from fake_tensor import cuda  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.jit.append_spec import Fp8AppendSpec  # noqa: E402
from omnicupy.jit.few_rows_spec import FewRowsSpec  # noqa: E402
from omnicupy.jit.fp8_spec import Fp8Spec  # noqa: E402

LENGTHS = [40, 3, 0]


def _tensor(array: Any, dtype: Any = None) -> Any:
    if not hasattr(array, "shape"):
        return array
    tensor = torch.from_numpy(array)
    return tensor if dtype is None else tensor.view(dtype)


def _tensors(kv: Any, dtype: Any) -> Any:
    scales = {name: _tensor(getattr(kv, name)) for name in ("k_scale", "v_scale")}
    if isinstance(kv, oc.PagedKV):
        k, v = (_tensor(pool, dtype) for pool in (kv.k_pages, kv.v_pages))
        return oc.PagedKV(k, v, _tensor(kv.page_table), _tensor(kv.lengths), **scales)
    return oc.CachedKV(_tensor(kv.k, dtype), _tensor(kv.v, dtype), _tensor(kv.lengths), **scales)


@pytest.mark.parametrize("kind", fp8_caches.SCALES)
@pytest.mark.parametrize("page_size", [None, 16])
def test_tensors_on_the_cpu(kind: str, page_size: int | None) -> None:
    kv, numbers = fp8_caches.pair(LENGTHS, kind=kind, capacity=48)
    rule, q = oc.cached(window=9, sink=2), torch.randn(3, 4, 2, 64)
    plain = oc.CachedKV(*(_tensor(one) for one in (numbers.k, numbers.v, numbers.lengths)))
    wanted = oc.torch.attention(q, plain, mask=rule, return_lse=True)
    caches = kv if page_size is None else fp8_caches.in_pages(kv, page_size)
    for dtype in (torch.float8_e4m3fn, torch.uint8):
        mine = _tensors(caches, dtype)
        for mask in (rule, oc.torch.plan(q, mine, rule)):
            found = oc.torch.attention(q, mine, mask=mask, return_lse=True)
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        oc.torch.prepare(q, mine, mask=rule)


@pytest.mark.parametrize("kind", fp8_caches.SCALES)
def test_append_on_the_cpu(kind: str) -> None:
    kv, _ = fp8_caches.pair(LENGTHS, kind=kind, capacity=48)
    new = torch.randn(3, 2, 2, 64, dtype=torch.bfloat16)
    mine = _tensors(kv, torch.float8_e4m3fn)
    versions = [one._version for one in (mine.k, mine.v)]
    oc.torch.append(mine, new, new)
    assert all(one._version > before for one, before in zip((mine.k, mine.v), versions, strict=True))
    scale = mine.k_scale if kind != "token" else (new.float().abs().amax(-1) / 448)[0, :, 1]
    factor = scale[:, None] if getattr(scale, "shape", ()) else scale
    wanted = (new[0, :, 1].float() / factor).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(mine.k[0, :, 39].view(torch.uint8), wanted.view(torch.uint8))
    if kind == "token":
        assert torch.equal(mine.k_scale[0, 39], scale)


def _refused(error: type[Exception], message: str, **changes: Any) -> None:
    kv, _ = fp8_caches.pair(LENGTHS, kind="head", capacity=48)
    mine = _tensors(kv, torch.float8_e4m3fn)
    q = changes.pop("q", torch.randn(3, 4, 2, 64))
    for name, value in changes.items():
        setattr(mine, name, value)
    with pytest.raises(error, match=message):
        oc.torch.attention(q, mine, mask=oc.cached())


def test_what_is_refused() -> None:
    k = torch.zeros(3, 2, 48, 64)
    _refused(
        TypeError,
        "q must be float16, bfloat16, float32 or float64, got",
        q=k[:, :, :2].to(torch.float8_e4m3fn),
    )
    of_e5m2 = {name: k.to(torch.float8_e5m2) for name in "kv"}
    _refused(oc.UnsupportedError, "k must be float16, bfloat16 or float8_e4m3fn, got float8_e5m2", **of_e5m2)
    of_bytes = {name: k.to(torch.uint8) for name in "kv"}
    _refused(TypeError, "k must not be uint8 without scales", k_scale=None, **of_bytes)
    _refused(oc.UnsupportedError, "a CachedKV has no gradients", k_scale=torch.ones(2, requires_grad=True))
    _refused(TypeError, "k_scale must be float32, got float64", k_scale=torch.ones(2, dtype=torch.float64))
    _refused(ValueError, "v_scale must be on the device of the caches", v_scale=torch.ones(2, device="meta"))
    with pytest.raises(
        TypeError, match=r"must be float16, bfloat16, float32 or float64, got torch\.float8_e4m3fn"
    ):
        oc.torch.attention(*(k[:, :, :2].to(torch.float8_e4m3fn) for _ in range(3)), oc.full(2, 2))


@pytest.mark.parametrize(("rows", "kind"), [(4, FewRowsSpec), (5, Fp8Spec)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_tensors_of_a_device(dtype: Any, rows: int, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    device = fake_tensor.install(monkeypatch)
    q = cuda(torch.zeros(3, 8, rows, 64, dtype=torch.bfloat16), 0)
    pools = [cuda(torch.zeros(12, 8, 2, 64).to(dtype), 0) for _ in "kv"]
    table, lengths = (cuda(torch.zeros(shape, dtype=torch.int32), 0) for shape in ((3, 4), 3))
    scale = cuda(torch.ones(12, 8, 2), 0)
    kv = oc.PagedKV(*pools, table, lengths, k_scale=scale, v_scale=0.5)
    for mask in (oc.cached(), oc.torch.plan(q, kv, oc.cached())):
        oc.torch.attention(q, kv, mask=mask)
        spec, params = device.launches[-1]["spec"], device.launches[-1]["params"]
        assert (type(spec), spec.kernel) == (kind, "sm90")
        assert [int(params[name]) for name in ("k", "v", "k_scale", "v_scale")] == [
            *(one.data_ptr() for one in (*pools, scale)),
            0,
        ]
        assert params["k_strides"].tolist() == [8 * 128, 64, 128]
        assert params["k_scale_strides"].tolist() == [16, 1, 2]
        assert float(params["v_factor"]) == 0.5
    made = len(device.kernels)
    kv.k_scale = cuda(torch.ones(12, 8, 2), 0)
    oc.torch.attention(q, kv, mask=oc.cached())
    assert len(device.kernels) == made
    assert int(device.launches[-1]["params"]["k_scale"]) == kv.k_scale.data_ptr()
    new = cuda(torch.zeros(3, 2, 1, 64, dtype=torch.bfloat16), 0)
    oc.torch.append(kv, new, cuda(new.clone(), 0))
    launched = device.launches[-1]
    assert launched["spec"] == Fp8AppendSpec(arch="sm_90", dtype="bfloat16")
    assert int(launched["params"]["k_scale"]) == kv.k_scale.data_ptr()


def test_a_warm_call_looks_at_where_scales_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    device = fake_tensor.install(monkeypatch)
    q, out = (cuda(torch.zeros(3, 8, 1, 64, dtype=torch.bfloat16), 0) for _ in range(2))
    pools = [cuda(torch.zeros(3, 2, 48, 64).to(torch.float8_e4m3fn), 0) for _ in "kv"]
    scales = {"k_scale": cuda(torch.ones(3, 48, 2), 0), "v_scale": cuda(torch.ones(2), 0)}
    kv = oc.CachedKV(*pools, cuda(torch.zeros(3, dtype=torch.int32), 0), **scales)
    new = [cuda(torch.zeros(3, 2, 1, 64, dtype=torch.bfloat16), 0) for _ in "kv"]
    oc.torch.attention(q, kv, mask=oc.cached(), out=out)
    oc.torch.append(kv, *new)
    launches = len(device.launches)
    for name, scale in scales.items():
        at = scale.address
        scale.address = at + 2
        with pytest.raises(ValueError, match=f"{name} must lie on multiples of 4 bytes"):
            oc.torch.attention(q, kv, mask=oc.cached(), out=out)
        with pytest.raises(ValueError, match=f"{name} must lie on multiples of 4 bytes"):
            oc.torch.append(kv, *new)
        scale.address = out.address
        with pytest.raises(ValueError, match=f"out must not overlap {name}"):
            oc.torch.attention(q, kv, mask=oc.cached(), out=out)
        scale.address = pools[1].address
        with pytest.raises(ValueError, match=f"{name} must not overlap keys, values or other scales"):
            oc.torch.append(kv, *new)
        scale.address = at
    for place, message in ((new, "k_new must not overlap the caches"), (pools, "v must not overlap k")):
        at, place[0].address = place[0].address, pools[1].address
        with pytest.raises(ValueError, match=message):
            oc.torch.append(kv, *new)
        place[0].address = at
    assert len(device.launches) == launches

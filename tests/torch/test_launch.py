"""omnicupy.torch on CUDA tensors, on a fake device: addresses, streams, allocations, what a warm call does."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_tensor  # noqa: E402 - needs torch
from fake_tensor import cuda  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.gpu import attention as gpu_attention  # noqa: E402

BF16 = torch.bfloat16
_zeros = torch.zeros


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_tensor.install(monkeypatch)


def _inputs(index: int = 0, dtype: Any = BF16) -> list[Any]:
    """Transposed views of (batch, tokens, heads, head_dim) tensors."""
    shapes = [(2, 300, heads, 64) for heads in (4, 2, 2)]
    return [cuda(_zeros(shape, dtype=dtype).transpose(1, 2), index) for shape in shapes]


def test_the_kernel_gets_the_tensors_own_memory(device: Any) -> None:
    q, k, v = _inputs()
    out, lse = oc.torch.attention(q, k, v, oc.causal(300), return_lse=True)
    (launched,) = device.launches
    p = launched["params"]
    addresses = [x.data_ptr() for x in (q, k, v, out, lse)]
    assert [int(p[name]) for name in ("q", "k", "v", "out", "lse")] == addresses
    for name, tensor in (("q", q), ("k", k), ("v", v), ("out", out)):
        assert list(p[f"{name}_strides"]) == list(tensor.stride()[:3])
    cuda0 = torch.device("cuda", 0)
    assert device.empties == [((2, 4, 300, 64), BF16, cuda0), ((2, 4, 300), torch.float32, cuda0)]


def test_out_is_written_in_place(device: Any) -> None:
    q, k, v = _inputs()
    target = cuda(_zeros((2, 300, 4, 64), dtype=BF16).transpose(1, 2))
    before = target._version
    assert oc.torch.attention(q, k, v, out=target) is target
    assert target._version == before + 1
    assert device.launches[0]["params"]["out"] == target.data_ptr()
    assert device.empties == []


def test_values_of_another_width_make_the_output_as_wide(device: Any) -> None:
    shapes = [(2, 300, 4, 192), (2, 300, 2, 192), (2, 300, 2, 128)]
    tensors = [cuda(_zeros(shape, dtype=BF16).transpose(1, 2)) for shape in shapes]
    out = oc.torch.attention(*tensors, oc.causal(300))
    assert device.empties == [((2, 4, 300, 128), BF16, torch.device("cuda", 0))]
    assert out.is_contiguous()
    assert list(device.launches[0]["params"]["v_strides"]) == [300 * 256, 128, 256]
    target = cuda(_zeros((2, 300, 4, 128), dtype=BF16).transpose(1, 2))
    assert oc.torch.attention(*tensors, oc.causal(300), out=target) is target
    assert device.launches[1]["params"]["out"] == target.data_ptr()
    with pytest.raises(ValueError, match=r"^out must have the shape of q with the width of v \(128\)"):
        oc.torch.attention(*tensors, out=cuda(_zeros((2, 4, 300, 192), dtype=BF16)))
    wide = [cuda(_zeros((2, heads, 300, n), dtype=BF16)) for heads, n in ((4, 576), (2, 576), (2, 512))]
    with pytest.raises(oc.UnsupportedError, match="512 beside 576 of absorbed multi-head latent attention"):
        oc.torch.attention(*wide)
    assert len(device.launches) == 2


def test_it_runs_on_torch_s_stream(device: Any) -> None:
    mask = oc.causal(300)
    oc.torch.attention(*_inputs(), mask)
    device.torch_streams[0] = 8
    for _ in range(3):
        oc.torch.attention(*_inputs(), mask)
    assert [launched["stream"].ptr for launched in device.launches] == [7, 8, 8, 8]
    assert [stream.ptr for stream in device.made] == [7, 8]


def test_the_mask_is_uploaded_on_torch_s_stream(device: Any) -> None:
    mask = oc.causal(300)
    oc.torch.attention(*_inputs(), mask)
    (kept,) = mask._device.values()
    (blocks,) = kept.blocks.values()
    assert blocks.home is device.made[0]
    assert device.streams[0] is not device.made[0]
    device.torch_streams[0] = 8
    oc.torch.attention(*_inputs(), mask)
    assert len(device.made[1].waited) == 1


def test_tensors_run_on_their_own_device(device: Any) -> None:
    out = oc.torch.attention(*_inputs(1), oc.causal(300))
    assert out.device == torch.device("cuda", 1)
    (launched,) = device.launches
    assert (launched["device"], launched["stream"].ptr, device.current) == (1, 9, 0)


def test_a_warm_call_plans_nothing(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = oc.causal(300)
    oc.torch.attention(*_inputs(), mask)
    used = device.made[0].used
    monkeypatch.setattr(gpu_attention, "new_plan", None)
    monkeypatch.setattr(gpu_attention.check, "call", None)
    oc.torch.attention(*_inputs(), mask, return_lse=True)
    assert len(device.launches) == 2
    assert device.made[0].used == used > 0


def test_tensor_maps_are_made_of_the_tensors(device: Any) -> None:
    """In the call that plans and in a warm one at other addresses."""
    mask = oc.causal(300)
    for _ in range(2):
        tensors = _inputs()
        oc.torch.attention(*tensors, mask)
        params = device.launches[-1]["params"]
        for name, tensor in zip("qkv", tensors, strict=True):
            wanted = [tensor.data_ptr(), *tensor.shape, *(2 * stride for stride in tensor.stride())]
            assert params[f"{name}_map"].ravel()[:9].tolist() == wanted


def test_lists_of_one_mask_and_of_a_mask_that_nobody_keeps(device: Any) -> None:
    q, k, v = (cuda(_zeros((1, heads, 300, 64), dtype=BF16)) for heads in (4, 2, 2))
    mask = oc.causal(300)
    for masks in ([mask], (mask,), [oc.full(300)], mask):
        oc.torch.attention(q, k, v, masks)
    assert len(device.launches) == 4
    assert len(mask._device[()].plans) == 2  # of the mask, and of lists of it
    assert len(mask._device[()].blocks) == 1
    with pytest.raises(TypeError, match=r"mask\[0\] must be a Mask, got int"):
        oc.torch.attention(q, k, v, [1])
    with pytest.raises(TypeError, match="mask must be a Mask"):
        oc.torch.attention(q, k, v, "causal")


@pytest.mark.parametrize("options", [{"scale": [1.0]}, {"config": {}}])
def test_a_warm_mask_hides_no_bad_option(device: Any, options: dict[str, Any]) -> None:
    mask = oc.causal(300)
    oc.torch.attention(*_inputs(), mask)
    (name,) = options
    with pytest.raises(TypeError, match=f"^{name} must be"):
        oc.torch.attention(*_inputs(), mask, **options)


def test_a_warm_call_still_looks_at_addresses(device: Any) -> None:
    mask, (q, k, v) = oc.causal(300), _inputs()
    oc.torch.attention(q, k, v, mask)
    with pytest.raises(ValueError, match="k must"):
        oc.torch.attention(*_misaligned(), mask)
    target = cuda(_zeros((2, 4, 300, 64), dtype=BF16))
    oc.torch.attention(q, k, v, mask, out=target)
    target.address = q.address
    with pytest.raises(ValueError, match="out must not overlap q"):
        oc.torch.attention(q, k, v, mask, out=target)


def test_a_list_of_masks(device: Any) -> None:
    masks = [oc.causal(300), oc.full(300)]
    oc.torch.attention(*_inputs(), masks)
    oc.torch.attention(*_inputs(), list(masks))
    assert (len(device.kernels), device.launches[0]["params"]["mask_batch"]) == (1, 2)


def _misaligned() -> list[Any]:
    q, k, v = _inputs()
    k.address += 2
    return [q, k, v]


def _scattered() -> list[Any]:
    _, k, v = _inputs()
    return [cuda(_zeros((2, 4, 64, 300), dtype=BF16).transpose(2, 3)), k, v]


COPY = "copy it with .clone(memory_format=torch.contiguous_format)"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: _inputs(dtype=torch.float32),
            TypeError,
            "q must be float16 or bfloat16 on the GPU, got float32",
        ),
        (
            _scattered,
            ValueError,
            f"q must have a contiguous last axis (a stride of 2 bytes), got 600; {COPY}",
        ),
        (_misaligned, ValueError, COPY),
        (
            lambda: [*_inputs()[:2], _inputs(1)[2]],
            ValueError,
            "v must be on the device of q (cuda:0), got cuda:1; move it with v.to('cuda:0')",
        ),
        (
            lambda: [_inputs()[0], _zeros((2, 2, 300, 64)), _inputs()[2]],
            ValueError,
            "k must be on the device of q (cuda:0), got cpu; move it with k.to('cuda:0')",
        ),
    ],
)
def test_errors(device: Any, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        oc.torch.attention(*make(), oc.causal(300))
    assert message in str(raised.value)
    assert device.launches == []


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
def test_a_null_pointer_never_reaches_a_kernel(device: Any, name: str, warm: bool) -> None:
    given = dict(zip(("q", "k", "v"), _inputs(), strict=True)) | {
        "out": cuda(_zeros((2, 4, 300, 64), dtype=BF16))
    }
    if warm:
        oc.torch.attention(**given)
    launches = len(device.launches)
    given[name].address = 0
    for call in (oc.torch.attention, oc.torch.prepare):
        with pytest.raises(
            oc.UnsupportedError, match=f"^{name} holds no memory of its own, as a Cuda that wraps"
        ):
            call(**given)
    assert len(device.launches) == launches


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_negated_view_never_reaches_a_kernel(
    device: Any, name: str, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dict(zip(("q", "k", "v"), _inputs(), strict=True))
    if warm:
        oc.torch.attention(**given)
    launches = len(device.launches)
    monkeypatch.setattr(fake_tensor.Cuda, "is_neg", lambda self: self is given[name])
    with pytest.raises(oc.UnsupportedError, match=f"^{name} is a negated view; pass {name}.resolve_neg"):
        oc.torch.attention(**given)
    assert len(device.launches) == launches

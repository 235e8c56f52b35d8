"""Gradients of CUDA tensors, on a fake device: addresses, streams, devices, allocations, what is handed to the GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("cupy", reason="CuPy is not installed")

import fake_device  # noqa: E402
import fake_tensor  # noqa: E402 - needs torch
from fake_tensor import cuda  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.gpu import streams  # noqa: E402
from omnicupy.gpu.backward_plan import Addresses  # noqa: E402
from omnicupy.torch import backward  # noqa: E402

BF16 = torch.bfloat16


class Plan:
    """A plan that notes its launches."""

    scratch_bytes = 512

    def __init__(self, fake: Any) -> None:
        self.fake = fake

    def launch(self, at: Any, stream: Any, scratch: int) -> None:
        self.fake.backwards.append(
            {
                "at": Addresses(*at)._asdict(),
                "stream": stream.ptr,
                "device": self.fake.current,
                "scratch": scratch,
            }
        )


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """fake_tensor's device. `backwards` holds what was launched, `planned` what was planned for, and
    `prepared` what was to be prepared.
    """
    import cupy

    fake = fake_tensor.install(monkeypatch)
    fake.backwards, fake.planned, fake.prepared, plans = [], [], [], {}

    def make_plan(key: Any, given: Any, mask: Any, options: Any) -> Plan:
        names = ("dout", "q", "k", "v", "out", "lse")
        at = fake.streams[fake.current].ptr
        fake.planned.append(dict(zip(names, given, strict=True)) | options | {"mask": mask, "stream": at})
        return plans.setdefault((key, mask), Plan(fake))

    gpu = SimpleNamespace(
        prepare_backward=lambda *arrays, **given: fake.prepared.append(given | {"arrays": arrays}),
        find_plan=lambda key, mask: plans.get((key, mask)),
        make_plan=make_plan,
        cache=SimpleNamespace(epoch=0),
        external_stream=streams.external_stream,
        on_device=streams.on_device,
        using=streams.using,
        cupy=cupy,
    )
    monkeypatch.setattr(backward, "_gpu", gpu)
    return fake


def _tensors(index: int = 0) -> dict[str, Any]:
    """dout, q, k, v, out and lse; q, k and v as views of (batch, tokens, heads, head_dim) tensors."""
    shapes = {"q": (2, 300, 4, 64), "k": (2, 300, 2, 64), "v": (2, 300, 2, 64), "out": (2, 300, 4, 64)}
    made = {
        name: cuda(torch.zeros(shape, dtype=BF16).transpose(1, 2), index) for name, shape in shapes.items()
    }
    dout = cuda(torch.zeros((), dtype=BF16).expand(2, 4, 300, 64), index)  # as out.sum().backward() makes it
    return made | {"dout": dout, "lse": cuda(torch.zeros(2, 4, 300), index)}


def _gradients(
    given: dict[str, Any], wanted: Any = (True, True, True), dlse: Any = None, **options: Any
) -> Any:
    saved = *(given[name] for name in ("q", "k", "v", "out", "lse")), options.get("sink_logits")
    how = {"mask": None, "scale": None, "softcap": None, "deterministic": True} | options
    scores = how["scale"], how["softcap"]
    wanted = wanted if len(wanted) == 4 else (*wanted, False)
    found = backward.gradients(
        (given["dout"], dlse), saved, how["mask"], scores, wanted, how["deterministic"]
    )
    return found if wanted[3] else found[:3]


def _addresses(given: dict[str, Any], made: Any = (), dlse: Any = None) -> dict[str, int]:
    named = given | {"dlse": dlse, "sink_logits": given.get("sink_logits"), "dsink_logits": None}
    named |= dict(zip(("dq", "dk", "dv", "dsink_logits"), made, strict=False))
    return {name: 0 if x is None else x.data_ptr() for name, x in named.items()}


def test_values_of_another_width_have_gradients_as_wide(device: Any) -> None:
    shapes = {"q": (2, 300, 4, 192), "k": (2, 300, 2, 192), "v": (2, 300, 2, 128), "out": (2, 300, 4, 128)}
    given = {name: cuda(torch.zeros(shape, dtype=BF16).transpose(1, 2)) for name, shape in shapes.items()}
    given |= {"dout": cuda(torch.zeros((), dtype=BF16).expand(2, 4, 300, 128))}
    made = _gradients(given | {"lse": cuda(torch.zeros(2, 4, 300))}, mask=oc.causal(300))
    assert [tuple(one.shape) for one in made] == [tuple(given[name].shape) for name in "qkv"]
    (plan,) = device.planned
    assert plan["dout"].shape == (2, 4, 300, 128)


def test_the_gpu_gets_the_tensors_own_memory(device: Any) -> None:
    given, mask, dlse = _tensors(), oc.causal(300), cuda(torch.zeros(2, 4, 300))
    made = _gradients(given, mask=mask, scale=0.5, deterministic=False, dlse=dlse)
    (plan,), (launch,) = device.planned, device.backwards
    for name, tensor in (given | {"dlse": dlse}).items():
        array = plan[name]
        assert (array.data.ptr, array.shape) == (tensor.data_ptr(), tuple(tensor.shape)), name
        assert array.strides == tuple(array.dtype.itemsize * stride for stride in tensor.stride()), name
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch."), name
    assert (plan["mask"], plan["scale"], plan["deterministic"], plan["config"]) == (mask, 0.5, False, None)
    assert plan["wanted"] == ("q", "k", "v")
    assert launch["at"] == _addresses(given, made, dlse)
    assert launch["scratch"]
    assert [(tuple(x.shape), x.dtype) for x in made] == [(tuple(given[name].shape), BF16) for name in "qkv"]


def test_a_warm_call_plans_nothing_and_finds_nothing_else(device: Any) -> None:
    mask = oc.causal(300)
    for _ in range(3):
        given = _tensors()
        made = _gradients(given, mask=mask)
        assert device.backwards[-1]["at"] == _addresses(given, made)
    assert len(device.planned) == 1
    others: list[dict[str, Any]] = [
        {"mask": oc.full(300)},
        {"mask": mask, "scale": 0.3},
        {"mask": mask, "deterministic": False},
        {"mask": mask, "wanted": (True, False, True)},
        {"mask": mask, "dlse": cuda(torch.zeros(2, 4, 300))},
        {"mask": mask, "softcap": 20.0},
        {"mask": mask, "sink_logits": cuda(torch.zeros(4))},
        {"mask": mask, "sink_logits": cuda(torch.zeros(4)), "wanted": (True, True, True, True)},
        {"mask": None},
    ]
    for count, options in enumerate(others, 2):
        _gradients(_tensors(), **options)
        assert len(device.planned) == count, options
    dense = _tensors()
    dense["dout"] = cuda(torch.zeros(2, 4, 300, 64, dtype=BF16))
    _gradients(dense, mask=mask)
    assert len(device.planned) == len(others) + 2


def test_only_what_is_wanted_is_allocated(device: Any) -> None:
    dq, dk, dv = _gradients(_tensors(), (False, True, False))
    assert dq is dv is None
    (plan,), (launch,) = device.planned, device.backwards
    assert plan["wanted"] == ("k",)
    assert [launch["at"][name] for name in ("dq", "dk", "dv")] == [0, dk.data_ptr(), 0]
    assert [dtype for _, dtype, _ in device.empties] == [BF16, torch.uint8]  # dk, and work memory


def test_work_memory_of_the_stream_is_not_allocated(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "scratch_bytes", 0)
    _gradients(_tensors())
    assert device.backwards[0]["scratch"] == 0
    assert [dtype for _, dtype, _ in device.empties] == [BF16] * 3


def test_sinks_and_their_gradient_are_named_by_their_addresses(device: Any) -> None:
    sinks = cuda(torch.zeros(4))
    made = _gradients(_tensors(), (True, True, True, True), sink_logits=sinks, softcap=30.0)
    assert (made[3].shape, made[3].dtype) == ((4,), torch.float32)
    (plan,), (launch,) = device.planned, device.backwards
    assert (plan["softcap"], plan["wanted"]) == (30.0, ("q", "k", "v", "sink_logits"))
    assert plan["sink_logits"].data.ptr == sinks.data_ptr()
    at = launch["at"]
    assert (at["sink_logits"], at["dsink_logits"]) == (sinks.data_ptr(), made[3].data_ptr())


def test_it_runs_on_the_stream_and_the_device_of_the_calling_thread(device: Any) -> None:
    _gradients(_tensors())
    device.torch_streams[0] = 8
    _gradients(_tensors())
    _gradients(_tensors(1))
    assert [(call["device"], call["stream"]) for call in device.backwards] == [(0, 7), (0, 8), (1, 9)]
    assert device.current == 0


@pytest.mark.parametrize("name", ["lse", "dlse"])
def test_row_values_that_are_not_contiguous_are_copied(device: Any, name: str) -> None:
    given, dlse, mask = _tensors(), cuda(torch.zeros(2, 4, 300)), oc.causal(300)
    _gradients(given, mask=mask, dlse=dlse)
    strided = cuda(torch.zeros(2, 300, 4).transpose(1, 2))
    if name == "lse":
        made = _gradients(given | {"lse": strided}, mask=mask, dlse=dlse)
    else:
        made = _gradients(given, mask=mask, dlse=strided)
    at, wanted = dict(device.backwards[-1]["at"]), _addresses(given, made, dlse)
    assert at.pop(name) not in (0, strided.data_ptr(), wanted.pop(name))
    assert at == wanted
    assert len(device.planned) == 1  # the copies have the layout of a contiguous lse and dlse


@pytest.mark.parametrize("warm", [False, True])
def test_memory_that_is_none_is_named(device: Any, warm: bool) -> None:
    if warm:
        _gradients(_tensors())
    launches = len(device.backwards)
    for name in ("dout", "q", "k", "v", "out", "lse"):
        given = _tensors()
        given[name].address = 0
        with pytest.raises(oc.UnsupportedError, match=rf"^{name} holds no memory of its own"):
            _gradients(given)
    given = _tensors()
    given["out"] = _tensors(1)["out"]
    with pytest.raises(ValueError, match=r"^out must be on the device of q \(cuda:0\), got cuda:1"):
        _gradients(given)
    assert len(device.backwards) == launches


def test_prepare_prepares_the_gradients_as_well(device: Any) -> None:
    given, mask = _tensors(), oc.causal(300)
    inputs = [given[name] for name in "qkv"]
    oc.torch.prepare(*inputs, mask, scale=0.5)
    assert device.prepared == []
    oc.torch.prepare(*inputs, mask, scale=0.5, gradients=True)
    (call,) = device.prepared
    *arrays, last = call["arrays"]
    assert [array.data.ptr for array in arrays] == [x.data_ptr() for x in inputs]
    assert (last, call["scale"], call["config"]) == (mask, 0.5, None)


@pytest.mark.parametrize("index", [0, 1])
def test_plans_are_made_on_torch_s_stream_and_cupy_s_stays(device: Any, index: int) -> None:
    """The one that use() made current."""
    used = device.streams[index] = fake_device.Stream(48, index)
    given, mask = _tensors(index), oc.causal(300)
    _gradients(given, mask=mask)
    oc.torch.prepare(*(given[name] for name in "qkv"), mask, gradients=True)
    assert [plan["stream"] for plan in device.planned] == [device.torch_streams[index]]
    assert len(device.prepared) == 1
    assert device.streams[index] is used
    assert device.current == 0

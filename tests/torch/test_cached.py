"""omnicupy.torch on a CachedKV: tensors on the CPU, tensors of a fake device, and what is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_device  # noqa: E402
import fake_tensor  # noqa: E402 - needs torch
from fake_tensor import cuda  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.jit.plan_spec import PlanSpec  # noqa: E402

BATCH, CAPACITY = 3, 60
_zeros = torch.zeros


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_tensor.install(monkeypatch)


def _inputs(dtype: Any = torch.float32, lengths: Any = (0, 17, 60)) -> tuple[Any, oc.CachedKV]:
    torch.manual_seed(0)
    q = torch.randn(BATCH, 2, 4, 16, dtype=dtype).transpose(1, 2)
    k, v = (torch.randn(BATCH, 2, CAPACITY, 16, dtype=dtype) for _ in "kv")
    for b, keys in enumerate(lengths):
        k[b, :, keys:], v[b, :, keys:] = torch.nan, torch.nan
    return q, oc.CachedKV(k, v, torch.tensor(lengths, dtype=torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "rule", [oc.cached(), oc.cached(window=9, sink=2, tail=oc.full(2))], ids=["plain", "tail"]
)
def test_tensors_on_the_cpu(rule: oc.CachedRule, dtype: Any) -> None:
    q, kv = _inputs(dtype)
    out, lse = oc.torch.attention(q, kv, mask=rule, return_lse=True)
    wide = (q.double().numpy(), oc.CachedKV(kv.k.double().numpy(), kv.v.double().numpy(), kv.lengths.numpy()))
    wanted, wanted_lse = oc.attention(*wide, mask=rule, return_lse=True)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.double(), torch.from_numpy(wanted), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), torch.from_numpy(wanted_lse), rtol=1e-4, atol=1e-4)
    step = oc.torch.plan(q, kv, rule)
    target = torch.empty_like(out)
    assert oc.torch.attention(q, kv, mask=step, out=target) is target
    assert torch.equal(target, out)
    with pytest.raises(ValueError, match="the step was made of another array of lengths"):
        oc.torch.attention(q, oc.CachedKV(kv.k, kv.v, kv.lengths.clone()), mask=step)
    oc.torch.prepare(q, kv, mask=rule, max_length=CAPACITY)


def _cuda_inputs(index: int = 0) -> tuple[Any, oc.CachedKV]:
    dtype = torch.bfloat16
    q = cuda(_zeros(BATCH, 1, 8, 64, dtype=dtype).transpose(1, 2), index)
    k, v = (cuda(_zeros(BATCH, 2, CAPACITY, 64, dtype=dtype), index) for _ in "kv")
    return q, oc.CachedKV(k, v, cuda(_zeros(BATCH, dtype=torch.int32), index))


def test_tensors_of_a_device(device: Any) -> None:
    q, kv = _cuda_inputs()
    out, lse = oc.torch.attention(q, kv, mask=oc.cached(window=30), return_lse=True)
    planner, kernel = (launched["params"] for launched in device.launches)
    assert isinstance(device.launches[0]["spec"], PlanSpec)
    assert planner["lengths"] == kv.lengths.data_ptr()
    assert [int(kernel[name]) for name in ("q", "k", "v", "out", "lse")] == [
        x.data_ptr() for x in (q, kv.k, kv.v, out, lse)
    ]
    assert {launched["stream"].ptr for launched in device.launches} == {7}
    made = len(device.kernels)
    oc.torch.attention(*_cuda_inputs(), mask=oc.cached(window=30))
    assert (len(device.kernels), len(device.launches)) == (made, 4)


def test_a_step_of_a_device(device: Any) -> None:
    q, kv = _cuda_inputs()
    step = oc.torch.plan(q, kv, oc.cached())
    for _ in range(2):
        layer = _cuda_inputs()
        oc.torch.attention(layer[0], oc.CachedKV(layer[1].k, layer[1].v, kv.lengths), mask=step)
    planned, *layers = (launched["params"] for launched in device.launches)
    assert {int(params["entries"]) for params in layers} == {int(planned["entries"])}
    device.torch_streams[0] = 8
    with pytest.raises(ValueError, match="the step was made on another stream"):
        oc.torch.attention(q, kv, mask=step)


def test_a_tail_is_uploaded_on_torch_s_stream(device: Any) -> None:
    q, kv = _cuda_inputs()
    oc.torch.prepare(q, kv, mask=oc.cached(tail=oc.full(1)), max_length=CAPACITY)
    assert len(device.uploads) == 1
    assert device.launches == []
    with pytest.raises(ValueError, match="max_length must be from 1 to the capacity 60, got 61"):
        oc.torch.prepare(q, kv, mask=oc.cached(), max_length=CAPACITY + 1)


@pytest.mark.parametrize("index", [0, 1])
def test_cupy_s_stream_stays_what_it_was(device: Any, index: int) -> None:
    """While a tail is uploaded and lists get memory, both on torch's stream."""
    used = device.streams[index] = fake_device.Stream(48, index)
    q, kv = _cuda_inputs(index)
    rule = oc.cached(tail=oc.full(1))
    oc.torch.attention(q, kv, mask=oc.torch.plan(q, kv, rule))
    oc.torch.attention(q, kv, mask=rule)
    assert device.streams[index] is used
    assert device.current == 0
    assert {launched["stream"].ptr for launched in device.launches} == {device.torch_streams[index]}


def test_what_is_refused_by_name() -> None:
    q, kv = _inputs()
    with pytest.raises(oc.UnsupportedError, match=r"a CachedKV has no gradients; call under torch.no_grad"):
        oc.torch.attention(q.requires_grad_(), kv, mask=oc.cached())
    with torch.no_grad():
        assert oc.torch.attention(q, kv, mask=oc.cached()).shape == q.shape
    q = q.detach()
    with pytest.raises(TypeError, match=r"lengths must be a torch.Tensor like q, got list"):
        oc.torch.attention(q, oc.CachedKV(kv.k, kv.v, [1, 2, 3]), mask=oc.cached())
    with pytest.raises(TypeError, match=r"lengths must be int32, got torch.int64"):
        oc.torch.attention(q, oc.CachedKV(kv.k, kv.v, kv.lengths.long()), mask=oc.cached())
    with pytest.raises(
        TypeError, match=r"k must be a CachedKV or PagedKV where mask is a rule of cached\(\)"
    ):
        oc.torch.attention(q, kv.k, kv.v, oc.cached())
    with pytest.raises(TypeError, match=r"mask must be a rule of cached\(\) where k is a CachedKV"):
        oc.torch.attention(q, kv, mask=oc.full(2, CAPACITY))
    with pytest.raises(ValueError, match=r"lengths\[1\] must be from 0 to the capacity 60, got 61"):
        oc.torch.attention(
            q, oc.CachedKV(kv.k, kv.v, torch.tensor([1, 61, 2], dtype=torch.int32)), mask=oc.cached()
        )
    with pytest.raises(oc.UnsupportedError, match="has no gradients; drop gradients=True"):
        oc.torch.prepare(q, kv, mask=oc.cached(), gradients=True)
    with pytest.raises(oc.UnsupportedError, match="served eagerly alone"):
        torch.func.vmap(lambda one: oc.torch.attention(one, kv, mask=oc.cached()))(q[None])


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (torch._neg_view, "is a negated view"),
        (lambda x: x.to_sparse(), "is stored as torch.sparse_coo"),
        (lambda x: torch.nested.as_nested_tensor(list(x)), "is a nested tensor"),
    ],
)
def test_tensors_whose_elements_lie_elsewhere(name: str, make: Any, what: str) -> None:
    q, kv = _inputs()
    given = {"q": q, "k": kv.k, "v": kv.v}
    given[name] = make(given[name])
    with pytest.raises(oc.UnsupportedError, match=f"^{name} {what}"):
        oc.torch.attention(given["q"], oc.CachedKV(given["k"], given["v"], kv.lengths), mask=oc.cached())


def test_autocast_casts_q_alone() -> None:
    q, kv = _inputs(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = oc.torch.attention(q.float(), kv, mask=oc.cached())
    assert torch.equal(out, oc.torch.attention(q, kv, mask=oc.cached()))


def test_torch_compile_breaks_its_graph_or_refuses(compiler: Any) -> None:
    q, kv = _inputs()

    def layer(x: Any) -> Any:
        return oc.torch.attention(x * 2, kv, mask=oc.cached()) + 1

    broken = torch.compile(layer, backend="eager")
    assert torch.equal(broken(q), layer(q))
    torch.compiler.reset()
    with pytest.raises(Exception, match="served eagerly alone"):
        torch.compile(layer, backend="eager", fullgraph=True)(q)


def test_score_changes_on_the_cpu() -> None:
    q, kv = _inputs()
    sinks, rule = torch.tensor([-torch.inf, 0.0, 2.0, 30.0]), oc.cached(window=9)
    out, lse = oc.torch.attention(q, kv, mask=rule, sink_logits=sinks, softcap=2.0, split=64, return_lse=True)
    arrays = q.numpy(), oc.CachedKV(kv.k.numpy(), kv.v.numpy(), kv.lengths.numpy())
    scores: dict[str, Any] = {"sink_logits": sinks.numpy(), "softcap": 2.0}
    wanted = oc.attention(*arrays, mask=rule, **scores, return_lse=True)
    assert torch.equal(out, torch.from_numpy(wanted[0]))
    assert torch.equal(lse, torch.from_numpy(wanted[1]))
    step = oc.torch.plan(q, kv, rule, softcap=2.0, split=64)
    assert step.split == 64
    assert torch.equal(oc.torch.attention(q, kv, mask=step, sink_logits=sinks, softcap=2.0), out)
    oc.torch.prepare(q, kv, mask=rule, sink_logits=sinks, softcap=2.0, split=64)
    with pytest.raises(oc.UnsupportedError, match="a CachedKV has no gradients"):
        oc.torch.attention(q, kv, mask=rule, sink_logits=sinks.clone().requires_grad_())
    with pytest.raises(ValueError, match="sink_logits must be on the device of q"):
        oc.torch.attention(q, kv, mask=rule, sink_logits=sinks.to("meta"))
    with pytest.raises(TypeError, match=r"sink_logits must be a torch\.Tensor"):
        oc.torch.attention(q, kv, mask=rule, sink_logits=sinks.numpy())
    with pytest.raises(ValueError, match="split must be a multiple of 32 keys"):
        oc.torch.prepare(q, kv, mask=rule, split=65)


def test_score_changes_and_splits_reach_a_device(device: Any) -> None:
    q, kv = _cuda_inputs()
    sinks = cuda(_zeros(8), 0)
    options: dict[str, Any] = {"sink_logits": sinks, "softcap": 50.0}
    for mask in (oc.cached(), oc.torch.plan(q, kv, oc.cached(), softcap=50.0)):
        oc.torch.attention(q, kv, mask=mask, **options)
        kernel = device.launches[-1]
        assert kernel["spec"].softcap
        assert kernel["params"]["sink_logits"] == sinks.data_ptr()
    for other in (None, 20.0):
        step = oc.torch.plan(q, kv, oc.cached(), softcap=50.0)
        with pytest.raises(
            ValueError, match=rf"^softcap must be that of the step, 50.0, got {other}; name it in"
        ):
            oc.torch.attention(q, kv, mask=step, softcap=other)
    made = len(device.kernels)
    oc.torch.attention(q, kv, mask=oc.cached(), **options)
    oc.torch.attention(q, kv, mask=oc.cached(), softcap=50.0)
    assert len(device.kernels) == made
    assert device.launches[-1]["params"]["sink_logits"] == 0
    step = oc.torch.plan(q, kv, oc.cached(), split=384)
    assert device.launches[-1]["params"]["split_tiles"] > 0
    oc.torch.attention(q, kv, mask=step)
    with pytest.raises(ValueError, match="the step was made for another kernel, split or device"):
        oc.torch.attention(q, kv, mask=step, split=768)
    with pytest.raises(TypeError, match="sink_logits must be float32 where q is bfloat16"):
        oc.torch.attention(q, kv, mask=oc.cached(), sink_logits=cuda(_zeros(8, dtype=torch.bfloat16), 0))


@pytest.mark.parametrize("name", ["k", "v", "lengths", "k_new", "v_new"])
def test_append_names_what_is_no_tensor(name: str) -> None:
    for wrong, kind in ((None, "NoneType"), (np.zeros(2), "ndarray")):
        given = {one: torch.zeros(2, 1, 4, 8) for one in ("k", "v", "k_new", "v_new")}
        given |= {"lengths": torch.tensor([4, 4], dtype=torch.int32), name: wrong}
        new = given.pop("k_new"), given.pop("v_new")
        with pytest.raises(TypeError, match=f"^{name} must be a torch.Tensor, got {kind}$"):
            oc.torch.append(oc.CachedKV(**given), *new)

"""Memory of outputs and gradients: laid out as torch.empty does it, in torch's own words."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import omnicupy

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from omnicupy.torch import memory, pools  # noqa: E402 - needs torch

MAKERS = {
    "tensor",
    "as_tensor",
    "scalar_tensor",
    "arange",
    "eye",
    "linspace",
    "full",
    "ones",
    "zeros",
    "rand",
}
MAKERS |= {"randn", "randint", "randperm", "empty", "empty_strided"}


@pytest.mark.parametrize("shape", [(2, 3, 5, 64), (1, 1, 1, 1), (2, 0, 3, 64), (0,), (7,), (4, 1, 9)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_new_memory_is_laid_out_as_torch_s(
    shape: tuple[int, ...], dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tuple as of a torch.Size, which torch's own function refuses as it is."""
    on_cpu = getattr(torch._C._dynamo.guards, "_empty_strided_cpu", None)
    if on_cpu is None:
        pytest.skip("this PyTorch has no allocation past its dispatcher")
    monkeypatch.setattr(memory, "_empty_strided", on_cpu)
    wanted = torch.empty(shape, dtype=dtype)
    for given in (shape, wanted.shape):
        made = memory.new(given, dtype)
        assert type(made) is torch.Tensor
        assert (made.shape, made.stride(), made.dtype) == (wanted.shape, wanted.stride(), dtype)
        assert not made.requires_grad


def test_it_is_no_part_of_inference_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = getattr(torch._C._dynamo.guards, "_empty_strided_cpu", None)
    if on_cpu is None:
        pytest.skip("this PyTorch has no allocation past its dispatcher")
    monkeypatch.setattr(memory, "_empty_strided", on_cpu)
    assert not memory.new((2, 3), torch.float32).is_inference()
    with torch.inference_mode():
        assert memory.new((2, 3), torch.float32).is_inference()


def test_no_tensor_is_made_on_the_default_device() -> None:
    """Users set it to a GPU; what the library makes lies where its tensors do, or on the CPU, and says so."""
    found = []
    for path in sorted(Path(omnicupy.__file__).parent.glob("*/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in MAKERS
            ):
                of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
                if of_torch and "device" not in {one.arg for one in node.keywords}:
                    found.append(f"{path.name}:{node.lineno}")
    assert not found


def test_another_default_device_changes_no_dtype() -> None:
    numbers = torch.arange(3, dtype=torch.int32)
    with torch.device("meta"):
        assert pools.on_device("lengths", numbers).dtype == "int32"


@pytest.mark.gpu
def test_memory_is_the_current_device_s(torch_cuda: None) -> None:
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            made = memory.new((2, 3), torch.bfloat16)
        assert made.device == torch.device("cuda", index)

"""What a rank asks of CUDA for memory that its peers map; CUDA is stood in for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from omnicupy.gpu import peers
from omnicupy.gpu.device import DeviceInfo


class Runtime:
    """CUDA's runtime of a host with three devices, of which 0 reaches 1. asked: what was called, in order."""

    CUDARuntimeError = type("CUDARuntimeError", (RuntimeError,), {})
    cudaIpcMemLazyEnablePeerAccess = 1  # noqa: N815 - CUDA's name

    def __init__(self, refuses: str = "") -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._refuses = refuses

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> Any:
            self.asked.append((name, *given))
            if name == self._refuses:
                raise self.CUDARuntimeError(name)
            return {"malloc": 4096, "ipcGetMemHandle": b"\0handle", "ipcOpenMemHandle": 8192}.get(name)

        return call

    def deviceGetPCIBusId(self, device: int) -> str:  # noqa: N802
        return f"0000:0{device}:00.0"

    def deviceGetByPCIBusId(self, name: str) -> int:  # noqa: N802
        if name == "elsewhere":
            raise self.CUDARuntimeError("no such device")
        return int(name[6])

    def deviceCanAccessPeer(self, one: int, other: int) -> int:  # noqa: N802
        return int((one, other) == (0, 1))


def _device(monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> peers.Device:
    word = np.zeros(4, np.uint8)
    pinned = SimpleNamespace(ptr=word.ctypes.data)
    monkeypatch.setattr(peers, "_runtime", runtime)
    monkeypatch.setattr(peers, "device_info", lambda index: DeviceInfo(9, 0, 132, 1))
    monkeypatch.setattr(peers, "on_device", lambda index, call, *given: call(*given))
    monkeypatch.setattr(peers, "_pinned_word", lambda: (pinned, word.view(np.int32)))
    return peers.Device(0)


def test_memory_is_zero_before_its_handle_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    device = _device(monkeypatch, runtime)
    assert device.allocate(64) == (4096, b"\0handle")
    assert [one[0] for one in runtime.asked] == ["malloc", "memset", "deviceSynchronize", "ipcGetMemHandle"]
    assert runtime.asked[1] == ("memset", 4096, 0, 64)
    assert device.map(b"other") == 8192
    device.unmap(8192)
    assert runtime.asked[-2:] == [("ipcOpenMemHandle", b"other", 1), ("ipcCloseMemHandle", 8192)]


def test_memory_that_cannot_be_shared_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime("ipcGetMemHandle")
    with pytest.raises(RuntimeError, match="ipcGetMemHandle"):
        _device(monkeypatch, runtime).allocate(64)
    assert runtime.asked[-1] == ("free", 4096)


def test_who_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _device(monkeypatch, Runtime())
    assert device.name() == "0000:00:00.0"
    assert [device.reaches(f"0000:0{one}:00.0") for one in range(3)] == [True, True, False]
    assert device.reaches("elsewhere")  # hidden from this process: mapping its memory tells


def test_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    device = _device(monkeypatch, Runtime())
    found = SimpleNamespace(function=lambda *given: launched.append(given))
    monkeypatch.setattr(peers, "kernel", lambda spec, index: launched.append(spec) or found)
    monkeypatch.setattr(peers, "external_stream", lambda index, handle: (index, handle))
    device.load()
    device.launch(bytearray(8), 70, 5)
    spec, given = launched
    assert (spec.arch, spec.entry) == ("sm_90", "exchange_keys")
    assert given == ((70, 1, 1), (spec.threads, 1, 1), (bytearray(8),), spec.smem_bytes, (0, 5))
    assert device.late() == 0


def test_sums_have_a_kernel_for_each_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    launched: list[Any] = []
    device = _device(monkeypatch, Runtime())
    found = SimpleNamespace(function=lambda *given: launched.append(given))
    monkeypatch.setattr(peers, "kernel", lambda spec, index: asked.append(spec) or found)
    monkeypatch.setattr(peers, "external_stream", lambda index, handle: (index, handle))
    for dtype in ("bfloat16", "float16", "bfloat16"):
        device.add(bytearray(8), 9, 5, dtype)
    assert [(spec.entry, spec.dtype) for spec in asked] == [
        ("exchange_add", "bfloat16"),
        ("exchange_add", "float16"),
    ]
    assert launched == [((9, 1, 1), (asked[0].threads, 1, 1), (bytearray(8),), 0, (0, 5))] * 3

"""Memory of one device that other processes of the host map, and the kernel that moves rows between such memories.

Memory is shared by CUDA's interprocess handles (CUDA C++ Programming Guide, "Interprocess Communication").
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from omnicupy.gpu import bindings
from omnicupy.gpu.device import device_info
from omnicupy.gpu.modules import kernel
from omnicupy.gpu.streams import external_stream, on_device
from omnicupy.jit import archs
from omnicupy.jit.exchange_spec import ADD_THREADS, ExchangeAddSpec, ExchangeSpec

BOOT = Path("/proc/sys/kernel/random/boot_id")  # of the host, the same in its containers

_runtime = cupy.cuda.runtime


def host() -> str:
    """What processes of one host share, and no others."""
    return BOOT.read_text().strip() if BOOT.exists() else socket.gethostname()


class Device:
    """One device as the ranks of a call see it. index: of the device."""

    def __init__(self, index: int) -> None:
        self.index, self.sm_count = index, device_info(index).sm_count
        self._pinned, self._late = _pinned_word()
        self._late[...] = 0
        self.late_address = int(self._pinned.ptr)
        self._function: Any = None
        self._adds: dict[str, Any] = {}

    def late(self) -> int:
        """1 more than the rank that a kernel has waited for in vain; 0 for none."""
        return int(self._late[0])

    def name(self) -> str:
        """What `reaches` takes: the place of the device on the host's bus."""
        return str(_runtime.deviceGetPCIBusId(self.index))

    def reaches(self, name: str) -> bool:
        """Whether this device reads and writes the memory of another one, as far as this process can tell."""
        try:
            other = _runtime.deviceGetByPCIBusId(name)
        except _runtime.CUDARuntimeError:  # not visible here: mapping its memory tells
            return True
        return other == self.index or bool(_runtime.deviceCanAccessPeer(self.index, other))

    def allocate(self, size: int) -> tuple[int, bytes]:
        """Zeros, and a handle by which another process maps them. They live as long as this process: memory must not be
        given back before every other process has closed it, and when that is, none can tell.
        """
        return on_device(self.index, self._allocate, size)

    def _allocate(self, size: int) -> tuple[int, bytes]:
        address = int(_runtime.malloc(size))
        try:
            _runtime.memset(address, 0, size)
            _runtime.deviceSynchronize()
            return address, bytes(_runtime.ipcGetMemHandle(address))
        except _runtime.CUDARuntimeError:
            _runtime.free(address)
            raise

    def map(self, handle: bytes) -> int:
        """The address, here, of what another process has allocated. Raises cupy's CUDARuntimeError."""
        lazily = _runtime.cudaIpcMemLazyEnablePeerAccess
        return int(on_device(self.index, _runtime.ipcOpenMemHandle, handle, lazily))

    def unmap(self, address: int) -> None:
        """The reverse of `map`."""
        on_device(self.index, _runtime.ipcCloseMemHandle, address)

    def load(self, **options: int) -> None:
        """Compile and load the kernel. options: of ExchangeSpec. Raises what modules.kernel raises."""
        info = device_info(self.index)
        spec = ExchangeSpec(arch=archs.arch_of(info.major, info.minor), **options)
        self._function = on_device(self.index, kernel, spec, self.index).function
        self._threads, self._smem = spec.threads, spec.smem_bytes

    def launch(self, params: bytearray, blocks: int, stream: int) -> None:
        """params: of EXCHANGE_PARAMS.  stream: a handle."""
        on_device(
            self.index,
            self._function,
            (blocks, 1, 1),
            (self._threads, 1, 1),
            (params,),
            self._smem,
            external_stream(self.index, stream),
        )

    def capture(self, stream: int) -> int:
        """The number of the capture that a stream, by its handle, is part of; no other one of this process has it."""
        status, _, number = on_device(self.index, bindings.driver().cuStreamGetCaptureInfo, stream)[:3]
        bindings.check(status)
        return int(number)

    def add(self, params: bytearray, blocks: int, stream: int, dtype: str) -> None:
        """params: of EXCHANGE_ADD_PARAMS.  stream: a handle.  dtype: of the gradients. Compiles and loads the kernel at
        the first call; raises what modules.kernel raises.
        """
        function = self._adds.get(dtype)
        if function is None:
            info = device_info(self.index)
            spec = ExchangeAddSpec(arch=archs.arch_of(info.major, info.minor), dtype=dtype)
            function = self._adds[dtype] = on_device(self.index, kernel, spec, self.index).function
        on_device(
            self.index,
            function,
            (blocks, 1, 1),
            (ADD_THREADS, 1, 1),
            (params,),
            0,
            external_stream(self.index, stream),
        )


def _pinned_word() -> tuple[Any, Any]:
    """A word of the host that kernels write, and how the host reads it."""
    memory = cupy.cuda.alloc_pinned_memory(4)
    return memory, np.frombuffer(memory, np.int32, 1)

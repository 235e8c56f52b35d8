"""Ranks on a CPU that map each other's memory: files stand in for that of devices, and the kernel is its own source run
on the CPU.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import shutil
import threading
from pathlib import Path
from typing import Any

import cuda_on_cpu
import numpy as np

from omnicupy.jit.exchange_spec import ExchangeAddSpec, ExchangeSpec
from omnicupy.jit.params import EXCHANGE_ADD_PARAMS, EXCHANGE_PARAMS

SPEC = ExchangeSpec(arch="sm_80", threads=32)  # few, since they take turns
HOST = "this host"
_numbers = itertools.count()
_lock = threading.Lock()


class Device:
    """What omnicupy.gpu.peers.Device is. folder: of all ranks.  apart: for a thread of its own."""

    sm_count = 4

    def __init__(self, folder: Path, name: str, apart: bool = False) -> None:
        self._folder, self._name, self._held = folder, name, []
        self._word = np.zeros(1, np.int32)
        self.late_address = self._word.ctypes.data
        self.library = _library(folder, name) if apart else cuda_on_cpu.build(SPEC)
        self.unmapped: list[int] = []
        self.launches = self.sums = 0

    def late(self) -> int:
        return int(self._word[0])

    def name(self) -> str:
        return self._name

    def reaches(self, name: str) -> bool:
        return True

    def allocate(self, size: int) -> tuple[int, bytes]:
        path = self._folder / f"memory-{self._name}-{next(_numbers)}"
        path.write_bytes(bytes(size))
        return self.map(str(path).encode()), str(path).encode()

    def map(self, handle: bytes) -> int:
        with open(handle.decode(), "r+b") as file:
            shared = mmap.mmap(file.fileno(), 0)
        self._held.append(shared)
        return ctypes.addressof(ctypes.c_char.from_buffer(shared))

    def unmap(self, address: int) -> None:
        self.unmapped.append(address)

    def load(self) -> None:
        pass

    def launch(self, params: bytearray, blocks: int, stream: int) -> None:
        self.launches += 1
        record = np.frombuffer(bytes(params), EXCHANGE_PARAMS)[0]
        cuda_on_cpu.run(self.library, SPEC, record, (blocks, 1), (), late=False)

    def add(self, params: bytearray, blocks: int, stream: int, dtype: str) -> None:
        self.sums += 1
        spec = ExchangeAddSpec(arch="sm_80", dtype=dtype)
        record = np.frombuffer(bytes(params), EXCHANGE_ADD_PARAMS)[0]
        cuda_on_cpu.run(cuda_on_cpu.build(spec), spec, record, (blocks, 1), (), late=False)


def _library(folder: Path, name: str) -> Any:
    with _lock:
        built = cuda_on_cpu.build(SPEC)
    copy = folder / f"kernel-{name}.so"
    shutil.copy(built._name, copy)
    return ctypes.CDLL(str(copy))

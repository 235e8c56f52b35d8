"""Launches by the driver's own call, which costs less of the host than CuPy's and takes attributes: thread blocks that
come up while the kernel ahead of them in the stream still runs, or all at the same time.

CUDA calls the first programmatic dependent launch (CUDA C++ Programming Guide, "Programmatic Dependent Launch and
Synchronization"). The kernel takes its work items, reads their part of the block mask, and then waits for the kernel
ahead to end before it touches anything that others write (griddepcontrol.wait, wait_for_kernel_ahead() in
kernels/omni/sm90). On caches kernels write block masks, too, and it waits before it reads them. What that hides is the
launch itself, which shows where calls are short.

The second is a cooperative launch ("Grid Synchronization" there): it begins when all its thread blocks find a place, so
that they may wait for each other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ctypes import addressof, c_char
from typing import Any

import cupy

from omnicupy.gpu import bindings

MAX_CONFIGS = 256  # launch configurations that are kept: one a grid and stream
LEAST_DRIVER = 12030  # the first that keeps a launch that comes early in a graph it captures

OVERLAPPING, COOPERATIVE = "overlapping", "cooperative"  # attributes of a launch

# CUDA_ERROR_INVALID_CONTEXT: what a thread's first call of the driver may get. CUDA's runtime would set the context up.
INVALID_CONTEXT = 201

_POINTER = struct.Struct("@P")
_bytes_of = c_char.from_buffer
_runtime = cupy.cuda.runtime


class Launcher:
    """Launches one function as cupy.cuda.Function does, with attributes.

    function: the loaded function; it stays loaded with this.
    """

    def __init__(self, function: Any, attributes: tuple[str, ...] = ()) -> None:
        self._attributes = attributes
        self._driver = bindings.driver()
        self._function = function
        self._handle = self._driver.CUfunction(function.ptr)
        self._configs: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: tuple[bytearray],
        smem: int,
        stream: Any,
    ) -> None:
        """args: the kernel's one argument, a struct that is passed by value; the driver reads it in this call.

        Raises cupy.cuda.driver.CUDADriverError.
        """
        key = (grid, block, smem, stream.ptr)
        config = self._configs.get(key) or self._config_of(key)
        parameters = _POINTER.pack(addressof(_bytes_of(args[0])))
        (status,) = self._driver.cuLaunchKernelEx(config, self._handle, parameters, 0)
        if status:
            self._retry(status, config, parameters)

    def bind(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        argument: bytearray,
        smem: int,
        stream: Any,
    ) -> Callable[[], None]:
        """The same launch, to be made many times, each with what `argument` holds then; nobody may write to it
        meanwhile.

        What can be said once is said here: which configuration, and where the struct lies.
        """
        key = (grid, block, smem, stream.ptr)
        config = self._configs.get(key) or self._config_of(key)
        held = _bytes_of(argument)  # while this lives, the bytes stay where they are
        parameters = _POINTER.pack(addressof(held))
        launch, handle, retry = self._driver.cuLaunchKernelEx, self._handle, self._retry

        def start(held: Any = held) -> None:
            (status,) = launch(config, handle, parameters, 0)
            if status:
                retry(status, config, parameters)

        return start

    def _retry(self, status: Any, config: Any, parameters: bytes) -> None:
        """Launch once more where all that was missing is the context. Raises the error that remains."""
        if status == INVALID_CONTEXT:
            _runtime.setDevice(_runtime.getDevice())  # makes the device's context that of this thread
            (status,) = self._driver.cuLaunchKernelEx(config, self._handle, parameters, 0)
        bindings.check(status)

    def _config_of(self, key: tuple[Any, ...]) -> Any:
        grid, block, smem, stream = key
        driver = self._driver
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes = smem
        config.hStream = driver.CUstream(stream)
        config.attrs, config.numAttrs = (
            [_attribute(driver, name) for name in self._attributes],
            len(self._attributes),
        )
        if len(self._configs) >= MAX_CONFIGS:
            self._configs.clear()
        self._configs[key] = config
        return config


def _attribute(driver: Any, name: str) -> Any:
    attribute = driver.CUlaunchAttribute()
    if name == OVERLAPPING:
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
    else:
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        attribute.value.cooperative = 1
    return attribute

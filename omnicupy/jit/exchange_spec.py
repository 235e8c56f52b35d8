"""The kernels that move keys and values between the GPUs of one host, and add gradients that come back, as values."""

from __future__ import annotations

from dataclasses import dataclass

THREADS, ADD_THREADS = 512, 256
AT_ONCE, AT_ONCE_OF_SM_90 = 1, 4  # loads of a thread that registers hold
MOST_RANKS, CHANNELS, MOST_PARTS = 16, 64, 64  # as omni/exchange/params.cuh has them
HEADER_BYTES = 8192
CHUNK = 16  # bytes that a thread moves at once


@dataclass(frozen=True, kw_only=True)
class ExchangeSpec:
    """Equal specs are the same cubin. arch: the CUDA target.  threads: of one thread block.  at_once: loads of a thread
    that are on their way, 0 for as many as registers hold.
    """

    arch: str
    threads: int = THREADS
    at_once: int = 0

    @property
    def kernel(self) -> str:
        """Its kind."""
        return "exchange"

    @property
    def source(self) -> str:
        """Name of the kernel's source file in `kernels/`."""
        return "exchange_keys.cu"

    @property
    def entry(self) -> str:
        """Name of the `extern "C"` kernel."""
        return "exchange_keys"

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return "exchange"

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory: a number for each rank."""
        return 4 * MOST_RANKS

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        usual = AT_ONCE_OF_SM_90 if self.arch.startswith("sm_90") else AT_ONCE
        return {"OMNI_THREADS": self.threads, "OMNI_AT_ONCE": self.at_once or usual}


@dataclass(frozen=True, kw_only=True)
class ExchangeAddSpec:
    """Equal specs are the same cubin. arch: the CUDA target.  dtype: of gradients, "float16" or "bfloat16"."""

    arch: str
    dtype: str

    @property
    def kernel(self) -> str:
        """Its kind."""
        return "exchange_add"

    @property
    def source(self) -> str:
        """Name of the kernel's source file in `kernels/`."""
        return "exchange_add.cu"

    @property
    def entry(self) -> str:
        """Name of the `extern "C"` kernel."""
        return "exchange_add"

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return "exchange_add"

    @property
    def threads(self) -> int:
        """Threads of one thread block."""
        return ADD_THREADS

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory: none."""
        return 0

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        return {"OMNI_THREADS": ADD_THREADS, "OMNI_BF16": int(self.dtype == "bfloat16")}

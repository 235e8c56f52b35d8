"""The kernels that write new keys and values into caches, as values: one for each architecture, of e4m3 one a dtype."""

from __future__ import annotations

from dataclasses import dataclass

THREADS = 256


@dataclass(frozen=True, kw_only=True)
class AppendSpec:
    """Equal specs are the same cubin. arch: the CUDA target."""

    arch: str

    @property
    def kernel(self) -> str:
        """Its kind."""
        return "append"

    @property
    def source(self) -> str:
        """Name of the kernel's source file in `kernels/`."""
        return "cache_append.cu"

    @property
    def entry(self) -> str:
        """Name of the `extern "C"` kernel."""
        return "cache_append"

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return "append"

    @property
    def threads(self) -> int:
        """Threads of one thread block."""
        return THREADS

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory: none."""
        return 0

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        return {"OMNI_THREADS": THREADS}


@dataclass(frozen=True, kw_only=True)
class Fp8AppendSpec(AppendSpec):
    """The kernel for caches of e4m3. dtype: of new keys and values, "float16" or "bfloat16"."""

    dtype: str

    @property
    def source(self) -> str:
        """Name of the kernel's source file in `kernels/`."""
        return "cache_append_fp8.cu"

    @property
    def entry(self) -> str:
        """Name of the `extern "C"` kernel."""
        return "cache_append_fp8"

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return "append_fp8"

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        return {**super().defines(), "OMNI_BF16": int(self.dtype == "bfloat16")}

"""(spec, source) -> cubin, through NVRTC. Needs libnvrtc, but no GPU and no CUDA toolkit headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from omnicupy.errors import CompileError, UnsupportedError
from omnicupy.jit.params import params_bytes
from omnicupy.jit.source import Source
from omnicupy.jit.spec import KernelSpec

# Whose kernels were verified on a GPU, all cases (tests/attestation.json).
ATTESTED = ("12.9", "13.0")

_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
# ptxas reports a serialised wgmma pipeline (C7510 and neighbours) as an info line: slow code, not an error.
_WARNING = re.compile(r"\bwarning\b|\(C7\d{3}\)")


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel and what it costs.

    image: the ELF file.  registers: of one thread.  spill_bytes: spill stores plus loads of one thread.
    warnings: the log's warning lines, C75xx notes included.  log: all that NVRTC and ptxas said.
    """

    image: bytes
    registers: int
    spill_bytes: int
    warnings: tuple[str, ...]
    log: str


def options(spec: KernelSpec) -> tuple[str, ...]:
    """The NVRTC command line of a spec. All of it is part of the cache key."""
    defines = {**spec.defines(), "OMNI_PARAMS_BYTES": params_bytes(spec.params)}
    return (
        f"-arch={spec.arch}",
        "--std=c++17",
        "-default-device",  # constexpr helpers need no __device__
        "--ptxas-options=-v",
        *(f"-D{name}={value}" for name, value in defines.items()),
    )


def version() -> tuple[int, int]:
    """(major, minor) of the NVRTC library that compile() uses.

    Raises UnsupportedError when no NVRTC can be loaded.
    """
    return _library()[1]


def compile(spec: KernelSpec, source: Source) -> Cubin:
    """Compile `source` for `spec`. Safe to call from several threads.

    Raises CompileError with the spec in its first line and NVRTC's log, UnsupportedError without NVRTC.
    """
    nvrtc = _library()[0]
    arguments = [option.encode() for option in options(spec)]
    with _program(nvrtc, spec, source) as program:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
        log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        text = log.rstrip(b"\0\n").decode(errors="replace")
        if int(status):
            raise CompileError(str(spec), f"{_reason(nvrtc, status)}\n{text}")
        image = _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    return _report(image, text)


@lru_cache(maxsize=1)
def _library() -> tuple[Any, tuple[int, int]]:
    """cuda.bindings.nvrtc and its version, loaded at the first use: importing omnicupy needs no CUDA."""
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise UnsupportedError(
            "GPU kernels are compiled at run time by NVRTC, but no NVRTC library could be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}); "
            "in the checkout, pip install '.[cuda12]' or '.[cuda13]', or pass NumPy arrays for the CPU"
        ) from error
    if int(status):
        raise UnsupportedError(
            f"NVRTC does not tell its version ({status.name}); reinstall nvidia-cuda-nvrtc"
        )
    return nvrtc, (major, minor)


@contextmanager
def _program(nvrtc: Any, spec: KernelSpec, source: Source) -> Iterator[Any]:
    names = [name.encode() for name, _ in source.headers]
    texts = [text for _, text in source.headers]
    status, program = nvrtc.nvrtcCreateProgram(source.text, source.name.encode(), len(names), texts, names)
    if int(status):
        raise CompileError(str(spec), _reason(nvrtc, status))
    try:
        yield program
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _read(size_of: Any, read_into: Any, program: Any) -> bytes:
    """One of NVRTC's byte strings: its getters come in pairs, size and content."""
    status, size = size_of(program)
    buffer = bytearray(size)
    if not int(status) and size:
        (status,) = read_into(program, buffer)
    if int(status):
        raise RuntimeError(f"NVRTC gave no result after compiling ({status.name})")
    return bytes(buffer)


def _reason(nvrtc: Any, status: Any) -> str:
    return str(nvrtc.nvrtcGetErrorString(status)[1].decode())


def _report(image: bytes, log: str) -> Cubin:
    registers = max((int(count) for count in _REGISTERS.findall(log)), default=0)
    spills = sum(int(stores) + int(loads) for stores, loads in _SPILLS.findall(log))
    warnings = tuple(line.strip() for line in log.splitlines() if _WARNING.search(line))
    return Cubin(image, registers, spills, warnings, log)


def version_text(of: tuple[int, int] | None = None) -> str:
    """A version of NVRTC as "12.9": that which compiles here unless one is given; "" where there is none."""
    try:
        return ".".join(map(str, of or version()))
    except UnsupportedError:
        return ""


def unattested(text: str) -> str:
    """ "" for a version of `version_text` whose kernels were verified on a GPU, else a sentence that says so."""
    if not text or text in ATTESTED:
        return ""
    return (
        f"Kernels of NVRTC {text} were not verified for this release (those of {' and '.join(ATTESTED)} were): run "
        "`omnicupy verify` on this GPU before you rely on them."
    )

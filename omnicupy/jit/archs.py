"""Architectures: how much shared memory a thread block may have, and which code runs on which device."""

from __future__ import annotations

from omnicupy.errors import UnsupportedError

# Shared memory one thread block may use (opt-in limit), in bytes: CUDA C++ Programming Guide, table
# "Technical specifications per compute capability".
SMEM_LIMIT_BYTES = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_90a": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
}


ARCHES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


def arch_of(major: int, minor: int) -> str:
    """The newest target of ARCHES whose code runs on compute capability major.minor.

    A cubin runs on its own minor version and on later ones of the same major version.
    Raises UnsupportedError below 8.0 and for a major version that no kernel is compiled for.
    """
    capability = 10 * major + minor
    fitting = [arch for arch in ARCHES if _number(arch) // 10 == major and _number(arch) <= capability]
    if not fitting:
        need = "8.0 or later is needed" if major < 8 else f"kernels exist for {', '.join(ARCHES)}"
        raise UnsupportedError(
            f"compute capability {major}.{minor} is not supported: {need}; pass NumPy arrays for the CPU"
        )
    return max(fitting, key=_number)


def runs_on(arch: str, major: int, minor: int) -> bool:
    """True when code for `arch` runs on compute capability major.minor; "a" targets run on theirs alone."""
    number = _number(arch)
    if arch.endswith("a"):
        return number == 10 * major + minor
    return number // 10 == major and number <= 10 * major + minor


def _number(arch: str) -> int:
    return int(arch.removeprefix("sm_").rstrip("a"))

"""What this machine has: versions, devices and the kernel cache. Nothing here raises for what is missing."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from omnicupy.choose import saved
from omnicupy.jit import files, nvrtc

PACKAGES = ("numpy", "ml_dtypes", "cuda-bindings", "click", "torch", "triton", "matplotlib")
CUPY_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "cupy")


def has_gpu() -> bool:
    """True when CuPy is installed and sees a device that works."""
    try:
        import cupy

        return int(cupy.cuda.runtime.getDeviceCount()) > 0
    except Exception:  # CuPy wraps a missing driver, library or device in many error types
        return False


def package_versions() -> dict[str, str]:
    """Installed versions by distribution name; what is not installed is left out."""
    found = {}
    for name in (*CUPY_PACKAGES, *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> dict[str, Any]:
    """The current device: name, compute capability, multiprocessors, memory and driver. Needs a GPU."""
    import cupy

    handle = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(handle.id)
    return {
        "name": properties["name"].decode(),
        "compute_capability": handle.compute_capability,
        "multiprocessors": int(properties["multiProcessorCount"]),
        "memory_bytes": int(properties["totalGlobalMem"]),
        "driver": query_smi("driver_version") or str(cupy.cuda.runtime.driverGetVersion()),
        "cuda_runtime": str(cupy.cuda.runtime.runtimeGetVersion()),
    }


def query_smi(fields: str) -> str:
    """The first line that nvidia-smi prints for these fields; "" where it cannot be run."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return _first_line(command, None)


def commit() -> str:
    """The commit of the checkout that the package lies in, with "+" when files differ from it; "" outside
    one.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    found = _first_line(["git", "rev-parse", "HEAD"], folder)
    changed = _first_line(["git", "status", "--porcelain", "--untracked-files=no"], folder)
    return found + "+" if found and changed else found


def environment() -> dict[str, Any]:
    """Everything that `omnicupy env` prints."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "nvrtc": nvrtc.version_text() or None,
        "nvrtc_attested": nvrtc.version_text() in nvrtc.ATTESTED,
        "device": device() if has_gpu() else None,
        "cache": str(files.own_directory()),
        "cached_kernels": sum(1 for _ in files.own_directory().glob("*.cubin")),
        "tuned_choices": saved.count(),
        "commit": commit() or None,
    }


def _first_line(command: list[str], folder: Path | None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return lines[0].strip() if lines else ""

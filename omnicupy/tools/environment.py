"""What this machine has: versions, devices and the kernel cache. Nothing here raises for what is missing."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from omnicupy.choose import saved
from omnicupy.jit import files
from omnicupy.jit.nvrtc import ATTESTED, unattested, version_text

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
        "driver_cuda": driver_cuda(),
        "cuda_runtime": str(cupy.cuda.runtime.runtimeGetVersion()),
    }


def driver_cuda() -> str:
    """The newest CUDA that the driver serves, as "13.0". Needs a GPU."""
    import cupy

    number = int(cupy.cuda.runtime.driverGetVersion())
    return f"{number // 1000}.{number % 1000 // 10}"


def notes(nvrtc: str, driver: str, packages: Mapping[str, str]) -> list[str]:
    """What a user should know of the versions at hand, a sentence each; [] where all is as it was verified.

    nvrtc: the version whose kernels run, "" for none.  driver: as `driver_cuda`, "" without a GPU.
    packages: the versions of what is installed.
    """
    found = []
    bindings = packages.get("cuda-bindings", "")
    if _is_newer_major(bindings, driver):
        found.append(
            f"cuda-bindings {bindings} is made for a newer CUDA than the driver's, {driver}: update the driver, or "
            "pip install 'cuda-bindings<13'"
        )
    if _is_newer_major(nvrtc, driver):
        found.append(
            f"NVRTC {nvrtc} compiles for a newer CUDA than the driver's, {driver}, which may refuse its kernels: "
            "update the driver, or install '.[cuda12]' in an environment without a torch for CUDA 13"
        )
    elif note := unattested(nvrtc):
        found.append(note)
    if len(both := [name for name in CUPY_PACKAGES if name in packages]) > 1:
        found.append(f"{' and '.join(both)} overwrite each other: uninstall both, then install one")
    return found


def _is_newer_major(version: str, driver: str) -> bool:
    """True where both are known and a version is of a CUDA that comes after the driver's."""
    return bool(version and driver) and int(version.partition(".")[0]) > int(driver.partition(".")[0])


def query_smi(fields: str) -> str:
    """The first line that nvidia-smi prints for these fields; "" where it cannot be run."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return _first_line(command, None)


def commit(apart_from: Path | None = None) -> str:
    """The commit of the checkout that the package lies in, with "+" when files differ from it; "" outside
    one. apart_from: a file that may differ.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    found = _first_line(["git", "rev-parse", "HEAD"], folder)
    status = ["git", "status", "--porcelain", "--untracked-files=no"]
    if apart_from is not None and apart_from.resolve().is_relative_to(folder):
        status += ["--", ".", f":(exclude){apart_from.resolve().relative_to(folder).as_posix()}"]
    changed = _first_line(status, folder)
    return found + "+" if found and changed else found


def environment() -> dict[str, Any]:
    """Everything that `omnicupy env` prints."""
    packages, of = package_versions(), device() if has_gpu() else None
    nvrtc = version_text()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "nvrtc": nvrtc or None,
        "nvrtc_attested": nvrtc in ATTESTED,
        "device": of,
        "cache": str(files.own_directory()),
        "cached_kernels": sum(1 for _ in files.own_directory().glob("*.cubin")),
        "tuned_choices": saved.count(),
        "commit": commit() or None,
        "notes": notes(nvrtc, of["driver_cuda"] if of else "", packages),
    }


def of_child() -> dict[str, str]:
    """The environment of another Python process that imports this very package, whatever the current folder holds."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _first_line(command: list[str], folder: Path | None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return lines[0].strip() if lines else ""

"""Compiles translated CUDA sources for the host, each once for all tests and workers that share a kernel cache."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from omnicupy.jit import files as locks

HOST = Path(__file__).parent / "cpu_threads"
LIMIT_S = 300
FLAGS = (
    "-std=c++17",
    "-O1",
    "-w",
    "-Wno-psabi",
    "-pipe",
    "-fno-strict-aliasing",
    "-fPIC",
    "-fno-semantic-interposition",
)


def library(files: Mapping[str, str], macros: Mapping[str, object]) -> Path:
    """The shared library of files["main.cpp"], which includes cuda.h first and the other files by their names."""

    def make(folder: Path, target: Path) -> None:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        includes = [f"-I{of}" for of in (header.parent, HOST, folder)]
        defined = [f"-D{name}={value}" for name, value in macros.items()]
        sources = [str(folder / "main.cpp"), *map(str, parts)]
        _compile("-shared", *includes, *defined, *sources, "-o", str(target))

    header, parts = _header(), [_part("threads", "-O2"), _part("products", "-O3", *_vectors())]
    return _once("kernel.so", [dict(files), dict(macros)], make)


def _header() -> Path:
    """cuda.h, precompiled: parsing what it includes takes as long as compiling a kernel."""

    def make(_: Path, target: Path) -> None:
        _compile("-x", "c++-header", str(HOST / "cuda.h"), "-o", str(target))

    return _once("cuda.h.gch", ["header"], make)


def _part(name: str, *options: str) -> Path:
    """What is the same for every kernel, of a file of HOST."""

    def make(_: Path, target: Path) -> None:
        _compile(*options, "-c", str(HOST / f"{name}.cpp"), "-o", str(target))

    return _once(f"{name}.o", [name, *options], make)


@functools.cache
def _vectors() -> tuple[str, ...]:
    """Instructions that this processor has for products; their sums are the same without them, and take longer."""
    flags = Path("/proc/cpuinfo")
    has = set(flags.read_text().split()) if flags.exists() else set()
    return ("-ffp-contract=off", *(f"-m{name}" for name in ("avx2", "f16c") if {"avx2", "f16c"} <= has))


def _compile(*options: str) -> None:
    subprocess.run(["g++", *FLAGS, *options], check=True, timeout=LIMIT_S)


@functools.cache
def _compiler() -> list[str]:
    """What every result depends on: the compiler, its options, and the files beside which sources are compiled."""
    version = subprocess.run(
        ["g++", "-v"], check=True, capture_output=True, text=True, timeout=LIMIT_S
    ).stderr
    return [version, *FLAGS, *_vectors(), *(path.read_text() for path in sorted(HOST.iterdir()))]


def _once(name: str, of: list[object], make: Callable[[Path, Path], None]) -> Path:
    """The file `name` of a folder that is named after everything it is made of; made unless it is there."""
    digest = hashlib.sha256(json.dumps([_compiler(), name, of]).encode()).hexdigest()[:40]
    root = locks.directory() / "on_cpu"
    target = root / digest / name
    if target.exists():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with locks.held(root / f"{digest}.lock", LIMIT_S), tempfile.TemporaryDirectory() as folder:
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            made = target.with_name(f".{os.getpid()}.{name}")
            make(Path(folder), made)
            made.replace(target)
    return target

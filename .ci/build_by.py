"""Compiles kernels by another NVRTC than this environment's: `python .ci/build_by.py LIBRARIES OUT [OPTIONS]`

An attestation takes kernels of two versions of NVRTC, and an environment has one. LIBRARIES is a folder with
libnvrtc.so.* and libnvrtc-builtins.so.*, as the wheels of NVRTC hold them. OUT is what `cli.py verify` then takes as
`--cubins` or `--also-cubins`. The options go to `cli.py verify --build`, as `--source NAME`. Kernels that an earlier
run of the same version left in OMNICUPY_CACHE_DIR are not compiled again.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


class Status(int):
    """What a function of the library returned. name: in words."""

    name = ""


class Library:
    """The functions of `cuda.bindings.nvrtc` that compile kernels, from the library in a folder.

    Raises ValueError where the folder holds none, or several.
    """

    def __init__(self, folder: Path) -> None:
        builtins, (library,) = (self._found(folder, f"libnvrtc{part}.so.*") for part in ("-builtins", ""))
        for one in builtins:
            ctypes.CDLL(str(one), mode=ctypes.RTLD_GLOBAL)  # which the library looks for by name
        self._library = ctypes.CDLL(str(library))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    @staticmethod
    def _found(folder: Path, pattern: str) -> list[Path]:
        found = [one for one in sorted(folder.glob(pattern)) if ".alt." not in one.name]
        if len(found) != 1:
            raise ValueError(
                f"expected one {pattern} in {folder}, found {len(found)}; unpack one wheel of NVRTC there"
            )
        return found

    def _status(self, code: int) -> Status:
        found = Status(code)
        found.name = self.nvrtcGetErrorString(code)[1].decode()
        return found

    def nvrtcVersion(self) -> tuple[Status, int, int]:  # noqa: N802 - the library's own names
        major, minor = ctypes.c_int(), ctypes.c_int()
        status = self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return self._status(status), major.value, minor.value

    def nvrtcGetErrorString(self, code: int) -> tuple[Status, bytes]:  # noqa: N802
        return Status(0), self._library.nvrtcGetErrorString(int(code))

    def nvrtcCreateProgram(  # noqa: N802
        self, text: bytes, name: bytes, count: int, texts: list[bytes], names: list[bytes]
    ) -> tuple[Status, ctypes.c_void_p]:
        program = ctypes.c_void_p()
        headers = [(ctypes.c_char_p * count)(*of) for of in (texts, names)]
        status = self._library.nvrtcCreateProgram(ctypes.byref(program), text, name, count, *headers)
        return self._status(status), program

    def nvrtcCompileProgram(self, program: Any, count: int, options: list[bytes]) -> tuple[Status]:  # noqa: N802
        return (
            self._status(
                self._library.nvrtcCompileProgram(program, count, (ctypes.c_char_p * count)(*options))
            ),
        )

    def nvrtcDestroyProgram(self, program: Any) -> tuple[Status]:  # noqa: N802
        return (self._status(self._library.nvrtcDestroyProgram(ctypes.byref(program))),)

    def nvrtcGetProgramLogSize(self, program: Any) -> tuple[Status, int]:  # noqa: N802
        return self._size("nvrtcGetProgramLogSize", program)

    def nvrtcGetCUBINSize(self, program: Any) -> tuple[Status, int]:  # noqa: N802
        return self._size("nvrtcGetCUBINSize", program)

    def nvrtcGetProgramLog(self, program: Any, log: bytearray) -> tuple[Status]:  # noqa: N802
        return self._read("nvrtcGetProgramLog", program, log)

    def nvrtcGetCUBIN(self, program: Any, image: bytearray) -> tuple[Status]:  # noqa: N802
        return self._read("nvrtcGetCUBIN", program, image)

    def _size(self, function: str, program: Any) -> tuple[Status, int]:
        size = ctypes.c_size_t()
        status = getattr(self._library, function)(program, ctypes.byref(size))
        return self._status(status), size.value

    def _read(self, function: str, program: Any, target: bytearray) -> tuple[Status]:
        return (
            self._status(
                getattr(self._library, function)(program, (ctypes.c_char * len(target)).from_buffer(target))
            ),
        )


def use(folder: Path) -> tuple[int, int]:
    """Compile by the library in a folder from now on; its version."""
    from omnicupy.jit import nvrtc

    library = Library(folder)
    _, *version = library.nvrtcVersion()
    nvrtc._library = lambda: (library, tuple(version))  # type: ignore[assignment]
    return nvrtc.version()


def main(libraries: str, out: str, *options: str) -> None:
    from omnicupy.tools.cli.main import main as cli

    print("NVRTC {}.{}".format(*use(Path(libraries))), flush=True)
    cli(["verify", "--build", out, *options])


if __name__ == "__main__":
    from usage import words

    main(*words(__doc__, 2))

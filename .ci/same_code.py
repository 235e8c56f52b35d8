"""Compares the compiled code of two trees' kernels: `python .ci/same_code.py ../before sm90-128x128`

Both trees' `kernels/` are compiled for every row of the table, at each head_dim, architecture and dtype that it serves,
and for the plain kernel; table, options and NVRTC are this tree's. Words after the other tree choose among the kernels:
those whose name holds one of them. A line for each kernel that differs says where; the exit status is then 1.

Compared are, byte for byte, the instructions (and what Blackwell cubins say about them), the constants that they read,
the size of shared memory, and the kernel's attributes (registers, stack, barriers, parameters, where it may exit). Not
compared are names and numbers of symbols, what debuggers read, and the table of the sources' own constexpr variables
(.nv.constant4, .nv.global): they are folded into the instructions, none of which reads the table.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import cubin_code  # noqa: E402

from omnicupy.choose.table import every_spec  # noqa: E402
from omnicupy.errors import CompileError  # noqa: E402
from omnicupy.jit import archs, nvrtc, source  # noqa: E402
from omnicupy.jit.spec import DTYPES, AttnSpec  # noqa: E402

COMPARED = re.compile(r"\.(?:text|nv\.capmerc\.text|nv\.shared|nv\.info|nv\.constant[0-35-9])\.\w+")
SIZED = 4  # form of an attribute that gives its size
PARAM_CBANK = 10  # the attribute that begins with the number of a symbol
PLAIN_HEAD_DIMS = (64, 128, 256)

Parts = dict[str, tuple[int, bytes]]  # section -> (size, bytes)


def kernels() -> Iterator[AttnSpec]:
    """Every variant that is compared."""
    yield from every_spec()
    for arch in archs.ARCHES:
        for dtype in DTYPES:
            for head_dim in PLAIN_HEAD_DIMS:
                yield AttnSpec(arch=arch, kernel="naive", dtype=dtype, head_dim=head_dim, br=64, bc=64)


def name(spec: AttnSpec) -> str:
    """A variant in a word, such as sm90-128x128-s2-w12-sm_90a-float16-d64."""
    tile = f"{spec.br}x{spec.bc}-s{spec.stages}-w{spec.warps}"
    flags = ("-shared" if spec.share_kv else "") + ("" if spec.ping_pong else "-solo")
    flags += ("-packed" if spec.pack else "") + (f"-b{spec.blocks}" if spec.blocks > 1 else "")
    flags += "-scheduler" if spec.scheduler else ""
    width = "" if spec.value_dim == spec.head_dim else f"v{spec.value_dim}"
    return f"{spec.kernel}-{tile}{flags}-{spec.arch}-{spec.dtype}-d{spec.head_dim}{width}"


def compiled(tree: Path, spec: AttnSpec) -> Parts:
    """What is compared of a variant that is compiled from a tree's sources. Raises CompileError."""
    image = nvrtc.compile(spec, source.load(spec.source, tree / "kernels")).image
    found = {
        at: (size, _without_symbols(held) if at.startswith(".nv.info.") else held)
        for at, size, held in cubin_code.sections(image)
        if COMPARED.fullmatch(at)
    }
    code = f".text.{spec.entry}"
    if not found.get(code, (0, b""))[1]:
        raise ValueError(f"{name(spec)}: the cubin has no code in {code}")
    return found


def _without_symbols(attributes: bytes) -> bytes:
    """A kernel's attributes with zeros for the numbers of symbols."""
    found, at = bytearray(attributes), 0
    while at < len(found):
        form, kind, size = struct.unpack_from("<BBH", found, at)
        if form == SIZED and kind == PARAM_CBANK:
            found[at + 4 : at + 8] = bytes(4)
        at += 4 + (size if form == SIZED else 0)
    return bytes(found)


def difference(before: Parts, now: Parts) -> str:
    """Where two compiled kernels differ, "" where they do not."""
    said = []
    for section in [*before, *(one for one in now if one not in before)]:
        (old_size, old), (size, new) = before.get(section, (0, b"")), now.get(section, (0, b""))
        if old_size != size:
            said.append(f"{section}: {size} bytes, {old_size} in the other tree")
        elif old != new:
            at = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
            said.append(f"{section}: from byte {at} on")
    return "; ".join(said)


def main(other: str, *words: str) -> int:
    """Print a line for each kernel that differs, then how many were compared; 1 if any differs, or none was."""
    if not (Path(other) / "kernels").is_dir():
        raise SystemExit(f"same_code.py: expected another checkout, with a folder kernels, got {other}")
    chosen = [spec for spec in kernels() if not words or any(word in name(spec) for word in words)]

    def compare(spec: AttnSpec) -> str:
        try:
            return difference(compiled(Path(other).resolve(), spec), compiled(ROOT, spec))
        except CompileError as error:
            return next((line for line in str(error).splitlines() if ": error: " in line), str(error))

    with ThreadPoolExecutor() as pool:
        found = {}
        for spec, said in zip(chosen, pool.map(compare, chosen), strict=True):
            if said:
                found[spec] = said
                print(f"{name(spec)}: {said}", flush=True)
    print(f"NVRTC {'.'.join(map(str, nvrtc.version()))}: {len(chosen)} kernels compared, {len(found)} differ")
    return 1 if found or not chosen else 0


if __name__ == "__main__":
    from usage import words

    sys.exit(main(*words(__doc__, 1)))

"""What a compiled kernel holds, without a disassembler: the sections of a cubin, and the instructions in them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from omnicupy.jit import cache
from omnicupy.jit.spec import KernelSpec

SECTION = struct.Struct(
    "<IIQQQQ"
)  # name, type, flags, address, offset, size: an ELF section header begins so
NO_BYTES = 8  # type of a section that takes room on the device, none in the file
INSTRUCTION_BYTES = 16  # of Volta and later
REGISTERS_A_MULTIPROCESSOR = 65536
WARPSYNC = frozenset({0x348, 0x948})  # .COLLECTIVE and .ALL


def sections(image: bytes) -> Iterator[tuple[str, int, bytes]]:
    """(name, size, bytes) of each section of a cubin, in order; no bytes where the file holds none."""
    headers_at = struct.unpack_from("<Q", image, 0x28)[0]
    header_bytes, count, names_index = struct.unpack_from("<3H", image, 0x3A)
    headers = [SECTION.unpack_from(image, headers_at + i * header_bytes) for i in range(count)]
    names_at = headers[names_index][4]
    for name, kind, _, _, offset, size in headers:
        start = names_at + name
        stored = b"" if kind == NO_BYTES else image[offset : offset + size]
        yield image[start : image.index(b"\0", start)].decode(), size, stored


def opcodes(image: bytes, entry: str) -> Iterator[int]:
    """The opcode (the low 12 bits) of each instruction of a kernel, in order. Raises ValueError without it."""
    for name, size, code in sections(image):
        if name == f".text.{entry}":
            for at in range(0, size, INSTRUCTION_BYTES):
                yield int.from_bytes(code[at : at + 2], "little") & 0xFFF
            return
    raise ValueError(f"the cubin holds no code of {entry!r}")


def compiled_without_a_spill(kernel: KernelSpec) -> cache.Entry:
    """The compiled kernel, without a spill or a warning of ptxas, with registers that a multiprocessor has."""
    found = cache.entry(kernel)
    assert found.registers > 0, found.log
    assert found.spill_bytes == 0, found.log
    assert found.warnings == (), found.log
    assert found.registers * kernel.threads <= REGISTERS_A_MULTIPROCESSOR, found.log
    assert f"'{kernel.entry}'" in found.log
    return found

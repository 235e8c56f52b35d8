"""The instructions in a cubin, by their opcodes: what a compiled kernel holds, without a disassembler."""

from __future__ import annotations

import struct
from collections.abc import Iterator

SECTION = struct.Struct(
    "<IIQQQQ"
)  # name, type, flags, address, offset, size: the start of an ELF section header
INSTRUCTION_BYTES = 16  # of Volta and later
WARPSYNC = frozenset({0x348, 0x948})  # .COLLECTIVE and .ALL


def opcodes(image: bytes, entry: str) -> Iterator[int]:
    """The opcode (the low 12 bits) of each instruction of a kernel, in order. Raises ValueError without it."""
    headers_at = struct.unpack_from("<Q", image, 0x28)[0]
    header_bytes, count, names_index = struct.unpack_from("<3H", image, 0x3A)
    headers = [SECTION.unpack_from(image, headers_at + i * header_bytes) for i in range(count)]
    names_at = headers[names_index][4]
    for name, _, _, _, offset, size in headers:
        start = names_at + name
        if image[start : image.index(b"\0", start)].decode() == f".text.{entry}":
            for at in range(offset, offset + size, INSTRUCTION_BYTES):
                yield int.from_bytes(image[at : at + 2], "little") & 0xFFF
            return
    raise ValueError(f"the cubin holds no code of {entry!r}")

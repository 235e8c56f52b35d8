"""Kernel variants as words: "sm80-128x64-s2-w4", "sm80-64x64-s1-w4-shared", "...-plain" (no swizzle),
"sm90-64x64-s2-w8-b2" (two thread blocks a multiprocessor), "sm90-192x64-s3-w16-scheduler", "...-softcap", "naive",
"naive-softcap"; of the kernel for few rows, which no word asks for, "few-rows-w12-b1". Those of a backward pass: "sm90
dkdv 64x128-s4-w12, dq 128x128-s4-w12".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, TypeAlias

from omnicupy.jit.backward_kernel import MAKES_ALL, TileShape
from omnicupy.jit.backward_smem import WIDE_HEAD_DIM
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.spec import MAX_ONE_PIECE, AttnSpec
from omnicupy.jit.tile_checks import BLOCKS
from omnicupy.jit.widths import kernel_widths

_WORDS = re.compile(
    r"(?P<kernel>\w+)-(?P<br>\d+)x(?P<bc>\d+)-s(?P<stages>\d)-w(?P<warps>\d+)(?P<flags>(-\w+)*)"
)
_TILE_WORDS = re.compile(r"(\d+)x(\d+)-s(\d)-w(\d+)")

Variant: TypeAlias = AttnSpec | BackwardSpec  # of a forward pass, or of a backward pass

FEW_ROWS = "few-rows"  # what words of that kernel begin with
WIDTHS = tuple(range(32, 257, 32))  # keys of a tile
STAGES = (1, 2, 3, 4)
BACKWARD_STAGES = (*STAGES, 6, 8)  # the kernel of dQ has up to eight of few keys


def parse(text: str, arch: str, dtype: str, head_dim: int, value_dim: int | None = None) -> AttnSpec:
    """The spec that a word names, for tensors of `head_dim` columns, and values of `value_dim`, None for as many.

    Raises ValueError for a word of another form, and for a tile that is illegal or does not fit, UnsupportedError for
    widths that no kernel serves.
    """
    columns, of_values = kernel_widths(head_dim, value_dim or head_dim)
    if text in ("naive", "naive-softcap"):
        softcap = text != "naive"
        return AttnSpec(
            arch=arch,
            kernel="naive",
            dtype=dtype,
            head_dim=columns,
            br=64,
            bc=64,
            softcap=softcap,
            value_dim=of_values,
        )
    found = _WORDS.fullmatch(text)
    flags = set(found["flags"].split("-")[1:]) if found else set()
    blocks = {f"b{number}": number for number in BLOCKS if number > 1}
    if (
        found is None
        or flags - {"shared", "plain", "solo", "packed", "softcap", "scheduler", *blocks}
        or len(flags & set(blocks)) > 1
    ):
        raise ValueError(
            "config: expected naive or a name such as sm80-128x64-s2-w4 (rows x keys, stages, warps), maybe "
            f"with -shared, -plain, -solo, -packed, -b2, -b3, -scheduler or -softcap, got {text!r}"
        )
    return AttnSpec(
        arch=_target(arch, found["kernel"]),
        kernel=found["kernel"],
        dtype=dtype,
        head_dim=columns,
        br=int(found["br"]),
        bc=int(found["bc"]),
        stages=int(found["stages"]),
        warps=int(found["warps"]),
        share_kv="shared" in flags,
        swizzle="plain" not in flags,
        ping_pong="solo" not in flags,
        pack="packed" in flags,
        softcap="softcap" in flags,
        value_dim=of_values,
        blocks=next((blocks[flag] for flag in flags if flag in blocks), 1),
        scheduler="scheduler" in flags,
    )


def word(spec: Variant) -> str:
    """The word that names a spec; of a backward pass, words."""
    if isinstance(spec, BackwardSpec):
        tiles = {"dkdv": spec.dkdv, "dq": spec.dq, "fused": spec.fused, "ordered": spec.ordered}
        named = (f"{part} {tile_word(of)}" for part, of in tiles.items() if of is not None)
        return f"{spec.kernel} {', '.join(named)}" + (", softcap" if spec.softcap else "")
    softcap = "-softcap" if spec.softcap else ""
    if isinstance(spec, FewRowsSpec):
        return f"{FEW_ROWS}-w{spec.compute_warps}-b{spec.blocks}{softcap}"
    if spec.kernel == "naive":
        return f"naive{softcap}"
    flags = ("-shared" if spec.share_kv else "") + ("" if spec.swizzle else "-plain")
    flags += ("" if spec.ping_pong else "-solo") + ("-packed" if spec.pack else "")
    flags += (
        (f"-b{spec.blocks}" if spec.blocks > 1 else "") + ("-scheduler" if spec.scheduler else "") + softcap
    )
    return f"{spec.kernel}-{spec.br}x{spec.bc}-s{spec.stages}-w{spec.warps}{flags}"


def tile_word(tile: TileShape) -> str:
    """The word that names a tile of a backward pass: "64x128-s4-w12", queries x keys."""
    return f"{tile.br}x{tile.bc}-s{tile.stages}-w{tile.warps}"


def parsed_kernels(text: str) -> BackwardSpec:
    """The kernels of a backward pass that a record names, a BackwardSpec as text. Raises ValueError for other text."""
    words = text.split()
    fields: dict[str, Any] = dict(word.split("=") for word in words[4:] if "=" in word)
    if len(words) < 5 or words[0] != "bwd" or not {"head_dim", "dkdv", "dq"} <= set(fields):
        raise ValueError(f"config: expected the text of a BackwardSpec, got {text!r}")
    tiles = {
        name: TileShape(*map(int, fields[name].split("x")))
        for name in ("dkdv", "dq", "fused", "ordered")
        if name in fields
    }
    return BackwardSpec(
        kernel=words[1],
        arch=words[2],
        dtype=words[3],
        head_dim=int(fields["head_dim"]),
        value_dim=int(fields.get("value_dim", fields["head_dim"])),
        softcap="softcap" in words,
        **tiles,
    )


def parsed_tile(text: str) -> TileShape:
    """The tile of a backward pass that a word names, as `tile_word` names it. Raises ValueError for another word."""
    found = _TILE_WORDS.fullmatch(text)
    if found is None:
        raise ValueError(
            f"config: expected a tile such as 64x128-s4-w12 (queries x keys, stages, warps), got {text!r}"
        )
    return TileShape(*map(int, found.groups()))


def every(
    arch: str,
    dtype: str,
    head_dim: int,
    kernel: str = "sm80",
    *,
    plain: bool = False,
    group: int | None = None,
    value_dim: int | None = None,
    short: bool = False,
) -> Iterator[AttnSpec]:
    """All variants of a kernel that a tile search tries: legal ones that fit the architecture.

    group: query heads a head of keys; where given, also tiles that two or three of them share or all are packed into.
    plain: also those without swizzle, for the study of bank conflicts.  value_dim: columns of v, None for head_dim.
    short: also those for short block rows, with several thread blocks a multiprocessor or a scheduler beside three
    consumer warpgroups, which calls on caches do not have.
    """
    for spec in _every(arch, dtype, (head_dim, value_dim or head_dim), kernel, plain, group):
        yield spec
        if short and spec.kernel == "sm90" and spec.ping_pong and spec.heads == 1:
            yield from _for_short_rows(spec)


def _for_short_rows(spec: AttnSpec) -> Iterator[AttnSpec]:
    """The same tile with other numbers of thread blocks, as far as they are legal, or with a scheduler."""
    changes: list[dict[str, Any]] = [{"blocks": blocks} for blocks in BLOCKS if blocks != spec.blocks]
    for change in [*changes, {"scheduler": True}]:
        try:
            yield replace(spec, **change)
        except ValueError:
            continue


def _every(
    arch: str, dtype: str, widths: tuple[int, int], kernel: str, plain: bool, group: int | None
) -> Iterator[AttnSpec]:
    """Those of one thread block a multiprocessor. widths: of keys and of values."""
    columns, of_values = kernel_widths(*widths)
    tiles, switches = _shapes(kernel, widths[0], plain, group)
    for (br, warps), bc, stages in product(tiles, WIDTHS, STAGES):
        for share_kv, swizzle, ping_pong, pack in switches:
            if pack and warps != 8:
                continue
            try:
                spec = AttnSpec(
                    arch=_target(arch, kernel),
                    kernel=kernel,
                    dtype=dtype,
                    head_dim=columns,
                    br=br,
                    bc=bc,
                    stages=stages,
                    warps=warps,
                    share_kv=share_kv,
                    swizzle=swizzle,
                    ping_pong=ping_pong,
                    pack=pack,
                    value_dim=of_values,
                )
            except ValueError:
                continue
            if ping_pong or spec.rows > 64:  # a single consumer warpgroup has nobody to take turns with
                yield spec


def every_tile(base: BackwardSpec, part: str) -> Iterator[BackwardSpec]:
    """`base` with each other tile of one of its kernels that is legal and fits the architecture.

    part: "dkdv", "dq", "fused" or "ordered"; for the last two also without it, where `base` has one.
    """
    if part in MAKES_ALL and getattr(base, part) is not None:
        without: dict[str, Any] = {part: None}
        yield replace(base, **without)
    for owned, walked, stages in product(WIDTHS, WIDTHS, BACKWARD_STAGES):
        br, bc = (owned, walked) if part == "dq" else (walked, owned)
        for warps in _backward_warps(base, part, owned):
            tile: dict[str, Any] = {part: TileShape(br, bc, stages, warps)}
            try:
                spec = replace(base, **tile)
            except ValueError:
                continue
            if spec != base:
                yield spec


def _backward_warps(base: BackwardSpec, part: str, owned: int) -> Sequence[int]:
    """Warps of a thread block that owns so many tokens."""
    if base.kernel != "sm90":
        return (4, 8)
    widest = max(base.head_dim, base.value_dim)
    if part == "dkdv" and widest > WIDE_HEAD_DIM:
        return (12,)
    return (12, 16) if part in MAKES_ALL and owned == 128 else (4 + owned // 16,)


def _shapes(
    kernel: str, head_dim: int, plain: bool, group: int | None
) -> tuple[Sequence[tuple[int, int]], Sequence[tuple[bool, bool, bool, bool]]]:
    """(rows, warps) and (share_kv, swizzle, ping_pong, pack) to try."""
    if kernel == "sm90":
        shared = tuple((64, 4 + 4 * heads) for heads in (2, 3) if (group or 1) % heads == 0)
        packed = () if group is None else ((False, True, True, True),)
        turns = ((False, True, True, False), (False, True, False, False))
        return ((64, 8), (128, 12), (192, 16), *shared), (*turns, *packed)
    switches = [(False, True, True, False)]
    if head_dim <= MAX_ONE_PIECE:
        switches.append((True, True, True, False))
        switches += [(False, False, True, False), (True, False, True, False)] if plain else []
    return tuple((rows * warps, warps) for warps in (1, 2, 4, 8) for rows in (16, 32)), switches


def _target(arch: str, kernel: str) -> str:
    """The compilation target: wgmma exists only in architecture-specific code."""
    return "sm_90a" if kernel == "sm90" else arch

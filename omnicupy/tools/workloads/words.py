"""Masks and problems as words: what `--mask` takes on the command line, in any case."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omnicupy.jit.spec import MAX_HEAD_DIM
from omnicupy.masks.arguments import MAX_LENGTH
from omnicupy.masks.constructors import causal, full
from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import random, segments
from omnicupy.tools.workloads.workload import NAMED, Workload, by_name

FORMS = 'full, causal, random:SEED, a workload such as W4, or segments such as "text:120,image:729"'
TILE = 128  # rows and keys of the tiles that a mask's size is counted in
MOST_TILES = 2**26  # of a square of 1,048,576 tokens: seconds and gigabytes in the worst case
MOST = 2**30  # heads and batch elements
_NAMES = {name.lower(): name for name in NAMED}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a problem as given on a command line; None where an option was left out.

    heads, kv_heads: query heads and heads of keys.  length, kv_length: query rows and keys, in tokens.
    """

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    length: int | None = None
    kv_length: int | None = None
    batch: int | None = None

    def check(self) -> None:
        """Raises ValueError for a size below 1, and for heads or a batch above MOST."""
        for option, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"--{option.replace('_', '-')}: expected at least 1, got {value}")
            if value is not None and value > MOST and not option.endswith("length"):  # masks say so
                raise ValueError(f"--{option.replace('_', '-')}: expected at most {MOST}, got {value}")


@dataclass(frozen=True)
class Described:
    """What a mask's words say before anything is built. named: the workload, None where they name none.

    build: makes the mask.  shape: rows and keys, None where building alone tells.
    """

    named: Workload | None
    build: Callable[[], Mask]
    shape: tuple[int, int] | None

    def check_size(self, br: int = TILE, bc: int = TILE) -> None:
        """Raises ValueError, before the mask is built, when it has more tiles of (br, bc) than MOST_TILES."""
        if self.shape is None or max(self.shape) > MAX_LENGTH:  # which the mask's constructor refuses
            return
        rows, keys = self.shape
        if (tiles := -(-rows // max(1, br)) * -(-keys // max(1, bc))) > MOST_TILES:
            raise ValueError(
                f"--mask: expected at most {MOST_TILES:,} tiles, got {rows:,} rows x {keys:,} keys, which are "
                f"{tiles:,} tiles of {br} x {bc}; take a shorter mask"
            )


def problem_of(text: str, sizes: Sizes) -> Workload:
    """The workload that a mask's words and sizes describe, its mask shared by the batch.

    text: "full" or "causal" (of length x kv_length), "random:SEED", the name of a workload, or segments as
    `documents_of` takes them. A workload's own sizes stand where `sizes` leaves them out; elsewhere kv_heads
    defaults to heads, kv_length to length and batch to 1.

    Raises ValueError for other words, for sizes that are missing, below 1 or not those of the mask, for
    heads that kv_heads does not divide, and for a mask of too many tiles before it is built.
    """
    sizes.check()
    described = describe(text, sizes.length, sizes.kv_length)
    of = described.named
    heads = _given("--heads", sizes.heads, of.q_heads if of else None)
    kv_heads = sizes.kv_heads or (of.kv_heads if of and sizes.heads is None else heads)
    head_dim = _given("--head-dim", sizes.head_dim, of.head_dim if of else None)
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        raise ValueError(f"--head-dim: expected a multiple of 8, at most {MAX_HEAD_DIM}, got {head_dim}")
    if heads % kv_heads:
        raise ValueError(
            f"--kv-heads: expected a divisor of --heads {heads}, got {kv_heads}; query heads share key heads "
            "in equal groups"
        )
    batch = sizes.batch or (of.batch if of else 1)
    mask_of(text, described, sizes)  # raises
    name, note = (of.name, of.note) if of else (text.strip().lower(), text)
    return Workload(name, batch, (heads, kv_heads, head_dim), described.build, note)


def mask_of(text: str, described: Described, sizes: Sizes, br: int = TILE, bc: int = TILE) -> Mask:
    """The mask that `describe` found, built. br, bc: of the tiles that are counted first.

    Raises ValueError for sizes that are not the mask's and for a mask of too many tiles.
    """
    described.check_size(br, bc)
    mask = described.build()
    for option, wanted, found in zip(
        ("--length", "--kv-length"), (sizes.length, sizes.kv_length), mask.shape, strict=True
    ):
        if wanted is not None and wanted != found:
            raise ValueError(f"{option}: the mask {text!r} has {found}, got {wanted}; leave {option} out")
    return mask


def describe(
    text: str, length: int | None = None, kv_length: int | None = None, documents: int | None = None
) -> Described:
    """What a mask's words, in any case, and its sizes describe. documents: of a random mask, None for its default.

    Raises ValueError for other words and for a length that is missing.
    """
    word = text.strip().lower()
    if word in ("full", "causal"):
        rows = _given("--length", length, None)
        shape = rows, kv_length or rows
        return Described(None, lambda: (causal if word == "causal" else full)(*shape), shape)
    kind, colon, seed = word.partition(":")
    if kind == "random" and colon:
        if not _is_number(seed):
            raise ValueError(f"--mask: expected random:SEED, as in random:3, got {text!r}")
        tokens = _given("--length", length, None)
        return Described(None, lambda: random(tokens, int(seed), documents=documents), (tokens, tokens))
    if colon:
        parts = documents_of(word, "--mask")
        total = sum(count for document in parts for _, count in document)
        return Described(None, lambda: segments(parts), (total, total))
    try:
        of = named(word)
    except ValueError as error:
        raise ValueError(f"--mask: expected {FORMS}, got {text!r}") from error
    tokens_named = re.search(r"-s(\d+)(?:-|$)", of.name)
    return Described(of, of.mask, (int(tokens_named[1]),) * 2 if tokens_named else None)


def named(name: str) -> Workload:
    """The workload of a name in any case. Raises ValueError for other names."""
    return by_name(_NAMES.get(name.lower(), name.lower()))


def of_record(name: str, shape: Sequence[int]) -> Workload:
    """The workload of a row of a record, from its name and its (batch, heads, key heads, rows, keys, head_dim).

    Raises ValueError for a name that no workload and no mask of `describe` has.
    """
    if ":" not in name and name not in ("full", "causal"):
        return by_name(name)
    batch, heads, kv_heads, rows, keys, head_dim = shape
    described = describe(name, rows, keys)
    return Workload(name, batch, (heads, kv_heads, head_dim), described.build, name)


def documents_of(text: str, option: str) -> list[list[tuple[str, int]]]:
    """Segments as `segments` takes them: "text:120,image:729,noise:64"; a slash starts another document.

    option: named in the message. Raises ValueError for anything else.
    """
    return [[_segment(part, option) for part in document.split(",")] for document in text.split("/")]


def _segment(part: str, option: str) -> tuple[str, int]:
    kind, _, tokens = part.strip().partition(":")
    if not _is_number(tokens.strip()):
        raise ValueError(f'{option}: expected kind:length, as in text:120, got "{part}"')
    return kind.strip().lower(), int(tokens)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _given(option: str, value: int | None, known: int | None) -> int:
    found = value if value is not None else known
    if found is None:
        raise ValueError(f"{option}: expected a number, got none; the mask alone does not tell it")
    return found

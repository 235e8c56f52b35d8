"""Masks and problems as words: what `--mask` takes on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from omnicupy.jit.spec import MAX_HEAD_DIM
from omnicupy.masks.constructors import causal, full
from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import random, segments
from omnicupy.tools.workloads.workload import Workload, by_name

FORMS = 'full, causal, random:SEED, a workload such as W4, or segments such as "text:120,image:729"'


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


def problem_of(text: str, sizes: Sizes) -> Workload:
    """The workload that a mask's words and sizes describe, its mask shared by the batch.

    text: "full" or "causal" (of length x kv_length), "random:SEED", the name of a workload, or segments as
    `layout` takes them. A workload's own sizes stand where `sizes` leaves them out; elsewhere kv_heads
    defaults to heads, kv_length to length and batch to 1.

    Raises ValueError for other words, for sizes that are missing, below 1 or not those of the mask, and for
    heads that kv_heads does not divide.
    """
    for option, value in vars(sizes).items():
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')}: expected at least 1, got {value}")
    named, build = _builder(text, sizes)
    heads = _given("--heads", sizes.heads, named.q_heads if named else None)
    kv_heads = sizes.kv_heads or (named.kv_heads if named and sizes.heads is None else heads)
    head_dim = _given("--head-dim", sizes.head_dim, named.head_dim if named else None)
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        raise ValueError(f"--head-dim: expected a multiple of 8, at most {MAX_HEAD_DIM}, got {head_dim}")
    if heads % kv_heads:
        raise ValueError(
            f"--kv-heads: expected a divisor of --heads {heads}, got {kv_heads}; query heads share key heads "
            "in equal groups"
        )
    batch = sizes.batch or (named.batch if named else 1)
    mask = build()
    for option, wanted, found in zip(
        ("--length", "--kv-length"), (sizes.length, sizes.kv_length), mask.shape, strict=True
    ):
        if wanted is not None and wanted != found:
            raise ValueError(f"{option}: the mask {text!r} has {found}, got {wanted}; leave {option} out")
    return Workload(text, batch, (heads, kv_heads, head_dim), lambda: mask, named.note if named else text)


def layout(text: str, option: str) -> list[list[tuple[str, int]]]:
    """Segments as `segments` takes them: "text:120,image:729,noise:64"; a slash starts another document.

    option: named in the message. Raises ValueError for anything else.
    """
    return [[_segment(part, option) for part in document.split(",")] for document in text.split("/")]


def _segment(part: str, option: str) -> tuple[str, int]:
    kind, _, tokens = part.strip().partition(":")
    if not _is_number(tokens.strip()):
        raise ValueError(f'{option}: expected kind:length, as in text:120, got "{part}"')
    return kind, int(tokens)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _builder(text: str, sizes: Sizes) -> tuple[Workload | None, Callable[[], Mask]]:
    """The workload that the words name, None for others, and what builds the mask."""
    if text in ("full", "causal"):
        rows = _given("--length", sizes.length, None)
        keys = sizes.kv_length or rows
        return None, lambda: (causal if text == "causal" else full)(rows, keys)
    kind, colon, seed = text.partition(":")
    if kind == "random" and colon:
        if not _is_number(seed):
            raise ValueError(f"--mask: expected random:SEED, as in random:3, got {text!r}")
        tokens = _given("--length", sizes.length, None)
        return None, lambda: random(tokens, int(seed))
    if colon:
        parts = layout(text, "--mask")
        return None, lambda: segments(parts)
    try:
        named = by_name(text)
    except ValueError as error:
        raise ValueError(f"--mask: expected {FORMS}, got {text!r}") from error
    return named, named.mask


def _given(option: str, value: int | None, known: int | None) -> int:
    found = value if value is not None else known
    if found is None:
        raise ValueError(f"{option}: expected a number, got none; the mask alone does not tell it")
    return found

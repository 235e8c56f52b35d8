"""maskspec.py: the words of `--mask` give the masks that they name, and each wrong word its message."""

from __future__ import annotations

import re

import pytest

import omnicupy as oc
from omnicupy.tools.workloads.words import Sizes, problem_of
from omnicupy.tools.workloads.workload import by_name

SHAPE = Sizes(heads=8, head_dim=64, length=300)


@pytest.mark.parametrize(
    ("text", "sizes", "mask"),
    [
        ("full", SHAPE, oc.full(300)),
        ("full", Sizes(8, None, 64, 20, 300), oc.full(20, 300)),
        ("causal", SHAPE, oc.causal(300)),
        ("causal", Sizes(8, 2, 64, 20, 300), oc.causal(20, 300)),
        ("random:5", SHAPE, oc.random(300, 5)),
        ("text:100, image:160,noise:40", SHAPE, oc.segments([("text", 100), ("image", 160), ("noise", 40)])),
        ("text:9/image:7", Sizes(8, None, 64), oc.segments([[("text", 9)], [("image", 7)]])),
        ("W15", Sizes(8, None, 64, batch=1), by_name("W15").mask()),
    ],
)
def test_words_name_masks(text: str, sizes: Sizes, mask: oc.Mask) -> None:
    found = problem_of(text, sizes)
    assert found.mask() == mask
    assert found.mask() is not found.mask()  # `bench build` times masks that were never used
    assert (found.q_heads, found.head_dim, found.batch) == (8, 64, 1)
    assert found.kv_heads == (sizes.kv_heads or 8)


def test_a_workload_brings_its_sizes() -> None:
    named = by_name("W4")
    found = problem_of("W4", Sizes())
    assert (found.batch, found.sizes) == (named.batch, named.sizes)
    found = problem_of("W4", Sizes(heads=12, head_dim=64, batch=3))
    assert (found.batch, found.sizes) == (3, (12, 12, 64))
    assert problem_of("random-d64-s1024-seed2", Sizes()).mask() == by_name("random-d64-s1024-seed2").mask()


@pytest.mark.parametrize(
    ("text", "sizes", "message"),
    [
        (
            "full",
            Sizes(8, None, 64),
            "--length: expected a number, got none; the mask alone does not tell it",
        ),
        ("full", Sizes(length=9), "--heads: expected a number, got none"),
        ("full", Sizes(heads=8, length=9), "--head-dim: expected a number, got none"),
        ("full", Sizes(8, 3, 64, 9), "--kv-heads: expected a divisor of --heads 8, got 3"),
        ("full", Sizes(8, 0, 64, 9), "--kv-heads: expected at least 1, got 0"),
        ("full", Sizes(8, 8, 64, 9, batch=2**30 + 1), "--batch: expected at most 1073741824, got 1073741825"),
        ("full", Sizes(10**30, 8, 64, 9), "--heads: expected at most 1073741824, got 1000000"),
        ("random:x", SHAPE, "--mask: expected random:SEED, as in random:3, got 'random:x'"),
        ("random:1", Sizes(8, 8, 64, 300, 400), "--kv-length: the mask 'random:1' has 300, got 400"),
        ("text:9", SHAPE, "--length: the mask 'text:9' has 9, got 300; leave --length out"),
        ("text:", SHAPE, '--mask: expected kind:length, as in text:120, got "text:"'),
        ("audio:9", SHAPE, "kind must be one of text, image, noise"),
        ("window", SHAPE, "--mask: expected full, causal, random:SEED, a workload such as W4, or segments"),
    ],
)
def test_wrong_words_raise(text: str, sizes: Sizes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        problem_of(text, sizes)

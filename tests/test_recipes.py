"""One parity test for each row of the README's tables "Your model in one line" and "Coming from elsewhere".

A recipe is found by words of the row's first cell. `says` is code that the row must show: what the test runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import preset_oracles as oracle
import pytest

import omnicupy as oc
from omnicupy import presets

README = (Path(__file__).parents[1] / "README.md").read_text()
Pairs = list[tuple[Any, Any]]  # what the recipe gives, what the other side's rule says (boolean array)


def table(q_len: int, k_len: int, rule: Callable[[Any, Any], Any]) -> np.ndarray[Any, Any]:
    return np.broadcast_to(rule(np.arange(q_len)[:, None], np.arange(k_len)[None]), (q_len, k_len))


IMAGES = [(4, 8), (15, 5)]


def bagel() -> Pairs:
    given = [10, 5], [1, 4, 5, 5], ["causal", "full", "noise", "causal"]
    return [(presets.bagel(*given), oracle.bagel(*given))]


def transfusion() -> Pairs:
    return [
        (presets.transfusion(24, IMAGES), oracle.transfusion(24, IMAGES)),
        (presets.show_o2(24, IMAGES), oracle.transfusion(24, IMAGES)),
        (presets.hunyuan_image3(24, IMAGES), oracle.images(24, IMAGES)),
    ]


def show_o() -> Pairs:
    spans = [(9, 6)]
    return [
        (presets.show_o(20, task="t2i", pad_end=3, images=spans), oracle.show_o(20, "t2i", 3, 0, spans)),
        (presets.show_o(20, task="lm"), oracle.show_o(20, "lm", 0, 0, [])),
        (presets.show_o(20, task="mmu", prefix=4, images=spans), oracle.show_o(20, "mmu", 0, 4, spans)),
        (presets.show_o(20, task="lvg", pad_end=3, images=spans), oracle.show_o(20, "lvg", 3, 0, spans)),
    ]


def gemma3() -> Pairs:
    return [
        (presets.gemma3(24, IMAGES, window=6), oracle.gemma3(24, IMAGES, 6, "window_over_all")),
        (presets.gemma3(24, IMAGES), oracle.gemma3(24, IMAGES, None, "window_over_all")),
    ]


def gemma4() -> Pairs:
    """Images see themselves in layers with a window alone; global layers are causal."""
    return [
        (presets.gemma4(24, IMAGES, window=6), oracle.gemma3(24, IMAGES, 6, "window_over_all")),
        (presets.gemma4(24, IMAGES), table(24, 24, lambda q, k: k <= q)),
    ]


def paligemma() -> Pairs:
    return [(presets.paligemma(7, 20), oracle.paligemma(7, 20))]


def mllama() -> Pairs:
    return [(presets.mllama(14, [(2, 1), (6, 3)], 3, 4), oracle.mllama(14, [(2, 1), (6, 3)], 3, 4))]


def towers() -> Pairs:
    lengths = [5, 3, 8]
    return [
        (presets.varlen([0, 5, 8, 16]), oracle.documents(lengths, False)),
        (presets.packed(lengths, causal=False), oracle.documents(lengths, False)),
        (presets.packed(lengths), oracle.documents(lengths, True)),
    ]


def self_forcing() -> Pairs:
    return [
        (presets.self_forcing(7, 2, 3), oracle.self_forcing(7, 2, 3, None, 0)),
        (presets.self_forcing(7, 2, 3, teacher_forcing=True), oracle.streams(14, 6, "clean noisy")),
    ]


def magi_1() -> Pairs:
    return [(presets.magi(5, 3, 2), oracle.magi(5, 3, [2] * 5))]


def bd3lm() -> Pairs:
    samples = [oracle.streams(n, 2, "noisy clean") for n in (5, 7)]
    return [
        (presets.bd3lm(11, 4), oracle.streams(11, 4, "noisy clean")),
        (presets.bd3lm(lengths=[5, 7], block=2), oracle.block_diagonal(samples)),
    ]


def streaming() -> Pairs:
    return [(presets.streaming(20, 3, 5), oracle.streaming(20, 3, 5))]


def tree() -> Pairs:
    return [(presets.tree(6, [-1, 0, 0, 1, 3]), oracle.tree(6, [-1, 0, 0, 1, 3]))]


def janus() -> Pairs:
    return [(presets.janus_cfg(12, 5, cond), oracle.janus_cfg(12, 5, cond)) for cond in (True, False)]


def padding() -> Pairs:
    mask = oc.causal(9)
    made = presets.padding(mask, [9, 4], [9, 4])
    return [
        (one, oracle.padding(mask.to_dense(), n, n, "right")) for one, n in zip(made, (9, 4), strict=True)
    ]


def block_causal() -> Pairs:
    return [(presets.block_causal(20, 4, prompt=6), oracle.block_causal(20, 4, 6, False))]


def one_label() -> Pairs:
    return [(presets.one_label(24, IMAGES), oracle.one_label(24, IMAGES))]


def chunks() -> Pairs:
    return [(presets.chunks(24, 4, 2), oracle.chunks(24, 4, 2))]


def mask_mod() -> Pairs:
    """As FlexAttention evaluates it: with b, h, q_idx and kv_idx of one pair."""
    document = np.repeat([[0, 1], [1, 2]], [8, 12], axis=1)

    def rule(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (document[b, q_idx] == document[b, kv_idx]) & (kv_idx <= q_idx)

    made = oc.from_predicate(rule, 20, batch=2)
    return [(made[b], oracle.table(20, 20, lambda q, k, b=b: rule(b, 0, q, k))) for b in (0, 1)]  # type: ignore[misc]


def dense_mask() -> Pairs:
    dense = np.random.default_rng(0).random((20, 24)) < 0.5
    return [(oc.from_dense(dense), dense)]


def cu_seqlens() -> Pairs:
    """FlashAttention's varlen: causal from the bottom right corner of each sequence."""
    rows, keys = [3, 0, 6], [5, 4, 2]
    of_row, of_key = np.repeat([0, 1, 2], rows), np.repeat([0, 1, 2], keys)
    q_place = np.concatenate([np.arange(n) for n in rows]) + np.subtract(keys, rows)[of_row]
    k_place = np.concatenate([np.arange(n) for n in keys])
    cross = (of_row[:, None] == of_key) & (k_place <= q_place[:, None])
    return [
        (presets.varlen([0, 5, 8, 16], causal=True), oracle.documents([5, 3, 8], True)),
        (presets.varlen([0, 3, 3, 9], causal=True, cu_seqlens_k=[0, 5, 9, 11]), cross),
    ]


def magi_slices() -> Pairs:
    """MagiAttention: each slice is aligned at its own corners, wherever it lies."""
    q_ranges, k_ranges, types = (
        [(0, 4), (4, 10), (10, 16), (2, 9)],
        [(6, 10), (0, 6), (0, 16), (8, 16)],
        [1, 1, 0, 3],
    )
    given = [(*q, *k, kind) for q, k, kind in zip(q_ranges, k_ranges, types, strict=True)]
    return [(presets.slices(given, 16), oracle.slices(given, 16, 16))]


def additive() -> Pairs:
    seen = np.random.default_rng(1).random((20, 24)) < 0.5
    mask = np.where(seen, 0.0, -np.inf)
    return [(oc.from_dense(mask == 0), seen)]


def key_blocks() -> Pairs:
    """Block-sparse attention: the lists of each block of rows, blocks at the edges cut."""
    lists = [[0, 2], [], [1, 2, 3]]
    dense = np.zeros((3 * 8, 4 * 32), np.bool_)
    for row, blocks in enumerate(lists):
        for block in blocks:
            dense[8 * row : 8 * row + 8, 32 * block : 32 * block + 32] = True
    return [(oc.from_tiles(lists, 20, 110, 8, 32), dense[:20, :110])]


class Recipe(NamedTuple):
    """words: of the first cell.  says: code that the row shows.  pairs: both sides, by another formulation each."""

    words: str
    says: tuple[str, ...]
    pairs: Callable[[], Pairs]


RECIPES = [
    Recipe("BAGEL", ("presets.bagel(",), bagel),
    Recipe("Transfusion", ("presets.transfusion(", "presets.show_o2(", "presets.hunyuan_image3("), transfusion),
    Recipe(r"Show-o\b(?!2)", ("presets.show_o(", "t2i", "lm", "mmu", "lvg"), show_o),
    Recipe("Gemma 3", ("presets.gemma3(",), gemma3),
    Recipe("Gemma 4", ("presets.gemma4(",), gemma4),
    Recipe("PaliGemma", ("presets.paligemma(",), paligemma),
    Recipe("Llama 3.2 Vision", ("presets.mllama(",), mllama),
    Recipe("NaViT", ("presets.varlen(", "presets.packed("), towers),
    Recipe("Self-Forcing", ("presets.self_forcing(", "teacher_forcing=True"), self_forcing),
    Recipe("MAGI-1", ("presets.magi(",), magi_1),
    Recipe("BD3-LM", ("presets.bd3lm(",), bd3lm),
    Recipe("StreamingLLM", ("presets.streaming(",), streaming),
    Recipe("EAGLE", ("presets.tree(",), tree),
    Recipe("JanusFlow", ("presets.janus_cfg(",), janus),
    Recipe("padding", ("presets.padding(",), padding),
    Recipe("block diffusion.*inference|DiffusionGemma", ("presets.block_causal(",), block_causal),
    Recipe("Molmo2", ("presets.one_label(",), one_label),
    Recipe("[Ss]treaming speech|Nemotron", ("presets.chunks(",), chunks),
    Recipe("mask_mod", ("from_predicate", "omnicupy.torch.from_mask_mod"), mask_mod),
    Recipe("dense boolean mask", ("from_dense",), dense_mask),
    Recipe("cu_seqlens", ("presets.varlen(",), cu_seqlens),
    Recipe("MagiAttention", ("presets.slices(",), magi_slices),
    Recipe("lists of key blocks", ("from_tiles(lists, q_len, k_len, br, bc)",), key_blocks),
    Recipe("additive mask", ("from_dense(additive == 0)",), additive),
]  # fmt: skip


def rows() -> list[tuple[str, str]]:
    """Cells of the two tables."""
    found = []
    for head in (r"\| your model \| write \|", r"\| you have \| write \|"):
        match = re.search(rf"^{head}\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
        assert match, head
        found += [tuple(line.strip("|").split("|", 1)) for line in match[1].splitlines()]
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.pairs.__name__)
def test_the_recipe_is_the_rule(recipe: Recipe) -> None:
    for mask, dense in recipe.pairs():
        assert np.array_equal(mask.to_dense(), dense)


def test_every_row_has_a_recipe() -> None:
    for what, how in rows():
        if "JAX" in what:  # of arrays, not of a mask: tests/test_dlpack.py and tests/test_examples.py
            assert "examples/jax_arrays.py" in how
            continue
        if "score_mod" in what:  # of scores, not of a mask: the test below
            assert all(code in how for code in ("softcap=", "sink_logits=", "scale=", "1 / sqrt(head_dim)"))
            continue
        assert any(re.search(recipe.words, what) for recipe in RECIPES), what


@pytest.mark.parametrize("options", [{}, {"scale": 0.3, "softcap": 2.0, "sink_logits": True}], ids=str)
def test_what_changes_scores_is_an_option(options: dict[str, Any]) -> None:
    """Of more query heads than key heads: a score_mod of a soft cap, and a logit more in each row's softmax."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, heads, 12, 8)) for heads in (4, 2, 2))
    sinks = rng.standard_normal(4) if options else np.full(4, -np.inf)
    mask = oc.segments([("text", 3), ("image", 6), ("text", 3)])
    scores = options.get("scale", 8**-0.5) * q @ np.repeat(k, 2, axis=1).swapaxes(2, 3)
    if options:
        scores = 2.0 * np.tanh(scores / 2.0)
        options = options | {"sink_logits": sinks}
    weights = np.where(mask.to_dense(), np.exp(scores), 0)
    wanted = weights / (weights.sum(-1) + np.exp(sinks)[:, None])[..., None] @ np.repeat(v, 2, axis=1)
    np.testing.assert_allclose(oc.attention(q, k, v, mask, **options), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.pairs.__name__)
def test_the_row_shows_what_is_tested(recipe: Recipe) -> None:
    shown = [how for what, how in rows() if re.search(recipe.words, what)]
    for code in recipe.says:
        assert any(code in how for how in shown), f"a row on {recipe.words} must show {code}"

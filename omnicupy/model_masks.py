"""The masks of the named workloads: the rules of real models, with the lengths of real samples, in tokens."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from omnicupy.layouts import causal, documents, from_dense, ranges, segments, sink, sliding_window
from omnicupy.masks import Mask

Layout = list[tuple[str, int]]


def edit_sample(
    first: tuple[int, int], turns: list[tuple[int, int, int, int]], last: tuple[int, int]
) -> Layout:
    """An image-editing sample of BAGEL: an image as VAE and ViT tokens, then per turn text, the noised target
    and the clean target twice; the last turn ends with its noised target.

    first: (VAE, ViT) tokens.  turns: (text, noise, VAE, ViT).  last: (text, noise).
    """
    layout = [("image", first[0]), ("image", first[1])]
    for text, noise, vae, vit in turns:
        layout += [("text", text), ("noise", noise), ("image", vae), ("image", vit)]
    return [*layout, ("text", last[0]), ("noise", last[1])]


def _generate(text: int, noise: int) -> Layout:
    return [("text", text), ("noise", noise)]


def _understand(first: int, second: int, text: int) -> Layout:
    return [("image", first), ("image", second), ("text", text)]


def bagel_pack() -> list[Layout]:
    """The samples of W1."""
    return [
        edit_sample((1940, 752), [(33, 2042, 2042, 622)], (16, 3138)),
        _generate(125, 3137),
        _understand(1570, 2900, 332),
        edit_sample((1674, 1190), [(44, 2657, 2657, 677)], (34, 1367)),
        _generate(99, 2076),
        _understand(2459, 1838, 471),
        [("text", 972)],
    ]


def bagel_sft() -> Mask:
    """Three samples of a BAGEL fine-tuning pack."""
    return segments(
        [edit_sample((2546, 386), [(40, 1314, 1314, 886)], (41, 2459)), _generate(58, 1847), [("text", 629)]]
    )


def bagel_turns() -> Layout:
    """One BAGEL sample of four edits."""
    return edit_sample((1602, 786), [(48, 1602, 1602, 786)] * 3, (48, 1602))


def text_skips_vae() -> Mask:
    """W3 where text rows do not see clean VAE tokens (Mogao)."""
    layout = bagel_turns()
    stops = list(accumulate(length for _, length in layout))
    spans = [(kind, length, stop - length, stop) for (kind, length), stop in zip(layout, stops, strict=True)]
    hidden = [
        (q0, q1, k0, k1)
        for text, _, q0, q1 in spans
        for image, length, k0, k1 in spans
        if text == "text" and image == "image" and length == 1602
    ]
    return segments(layout) & ~ranges(hidden, stops[-1])


def _padded(layout: Layout, total: int) -> Layout:
    return [*layout, ("text", total - sum(length for _, length in layout))]


def show_o2() -> Mask:
    """Show-o2: six images of 729 tokens in 5,120 tokens."""
    return segments(_padded([("text", 120), ("image", 729), *[("text", 90), ("image", 729)] * 5], 5120))


def transfusion() -> Mask:
    """Transfusion: nine images of 256 tokens in 4,096 tokens."""
    texts = (150, 180, 40, 120, 60, 190, 30, 160, 110)
    return segments(_padded([part for text in texts for part in (("text", text), ("image", 256))], 4096))


def hunyuan() -> Mask:
    """HunyuanImage 3: the prefill of an edit."""
    return segments([("text", 400), ("image", 5120), ("text", 260), ("image", 4096), ("text", 1)])


def hunyuan_step() -> Mask:
    """HunyuanImage 3: the rows of one denoising step against the whole sequence."""
    return ranges([(0, 1, 0, 5780), (1, 4097, 0, 9876)], 4097, 9877)


def gemma_global(images: int, size: int, period: int) -> Mask:
    """Causal text of 16,384 tokens with bidirectional images of `size` tokens at 100, 100 + period, ..."""
    layout: Layout = [("text", 100)]
    for _ in range(images):
        layout += [("image", size), ("text", period - size)]
    total = sum(length for _, length in layout)
    layout[-1] = ("text", layout[-1][1] + 16384 - total)
    return segments(layout)


def gemma_local(images: int, size: int, period: int) -> Mask:
    """The images of gemma_global, cut to a window of 1,024 tokens."""
    # A token sees nothing 1,024 or more tokens back, not even of its own image.
    return gemma_global(images, size, period) & sliding_window(16384, left=1023, right=16384)


# Image sizes in cells of 2 x 2 patches; a window is 4 x 4 cells.
GRIDS = ((36, 36), (28, 42), (22, 30), (45, 33), (18, 26), (40, 24), (30, 30), (26, 38))


def vit_windows() -> Mask:
    """The windows of Qwen2.5-VL's vision tower over eight images."""
    windows = [
        4 * min(4, rows - r) * min(4, columns - c)
        for rows, columns in GRIDS
        for r in range(0, rows, 4)
        for c in range(0, columns, 4)
    ]
    return documents(windows, causal=False)


def vit_images() -> Mask:
    """The same images, each whole."""
    return documents([4 * rows * columns for rows, columns in GRIDS], causal=False)


def mllama() -> Mask:
    """Text of Llama 3.2 Vision against four images."""
    # Images of up to 4 tiles of 1,601 tokens; the second and the third come together and end together.
    shown = ((20, 700, 4), (700, 2200, 2), (701, 2200, 4), (2200, 4096, 1))
    return ranges(
        [(q0, q1, i * 6404, i * 6404 + 1601 * n) for i, (q0, q1, n) in enumerate(shown)], 4096, 4 * 6404
    )


def block_causal() -> Mask:
    """Seven blocks of three video frames; each block sees itself and the earlier ones."""
    block = 3 * 1560
    return ranges([(b * block, (b + 1) * block, 0, (b + 1) * block) for b in range(7)], 7 * block)


def dual_stream(blocks: int, block: int, clean_first: bool) -> Mask:
    """Two copies of one sequence, clean and noisy: a clean block sees the clean blocks up to itself, a noisy
    one itself and the clean blocks before it. clean_first: the order of the copies.
    """
    half = blocks * block
    clean, noisy = (0, half) if clean_first else (half, 0)
    rectangles = []
    for b in range(blocks):
        first, stop = b * block, (b + 1) * block
        rectangles.append((clean + first, clean + stop, clean, clean + stop))
        rectangles.append((noisy + first, noisy + stop, noisy + first, noisy + stop))
        if b:
            rectangles.append((noisy + first, noisy + stop, clean, clean + first))
    return ranges(rectangles, 2 * half)


def interleaved_streams() -> Mask:
    """Teacher forcing with the noisy and the clean block of each step side by side."""
    return segments([("noise", 4680), ("image", 4680)] * 7)


PACKED = (
    *(4096, 300, 1500, 700, 6000, 250, 900, 2100, 512, 3300),
    *(128, 1800, 420, 2600, 1000, 90, 3900, 640, 1532, 1000),
)


def sink_window() -> Mask:
    """Four sink tokens and a causal window of 2,000 tokens."""
    return (sliding_window(32768, left=1999) | sink(32768, 4)) & causal(32768)


def draft_tree() -> Mask:
    """64 draft tokens after 8,192 tokens of context: each sees the context and its ancestors."""
    sees = np.eye(64, dtype=np.bool_)
    for i in range(1, 64):
        sees[i] |= sees[max(0, i - 1 - (7 * i) % 8)]
    return from_dense(np.concatenate([np.ones((64, 8192), np.bool_), sees], axis=1))

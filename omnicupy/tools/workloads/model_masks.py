"""The masks of the named workloads: the presets of real models, with the lengths of real samples, in tokens."""

from __future__ import annotations

from itertools import accumulate

from omnicupy import presets
from omnicupy.masks.constructors import ranges
from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import segments

Document = list[tuple[str, int]]


def edit_sample(
    first: tuple[int, int], turns: list[tuple[int, int, int, int]], last: tuple[int, int]
) -> Document:
    """An image-editing sample of BAGEL: an image as VAE and ViT tokens, then per turn text, the noised target
    and the clean target twice; the last turn ends with its noised target.

    first: (VAE, ViT) tokens.  turns: (text, noise, VAE, ViT).  last: (text, noise).
    """
    listed = [("image", first[0]), ("image", first[1])]
    for text, noise, vae, vit in turns:
        listed += [("text", text), ("noise", noise), ("image", vae), ("image", vit)]
    return [*listed, ("text", last[0]), ("noise", last[1])]


def _generate(text: int, noise: int) -> Document:
    return [("text", text), ("noise", noise)]


def _understand(first: int, second: int, text: int) -> Document:
    return [("image", first), ("image", second), ("text", text)]


def bagel_pack() -> list[Document]:
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


def bagel_turns() -> Document:
    """One BAGEL sample of four edits."""
    return edit_sample((1602, 786), [(48, 1602, 1602, 786)] * 3, (48, 1602))


def text_skips_vae() -> Mask:
    """W3 where text rows do not see clean VAE tokens (Mogao)."""
    turns = bagel_turns()
    stops = list(accumulate(length for _, length in turns))
    spans = [(kind, length, stop - length, stop) for (kind, length), stop in zip(turns, stops, strict=True)]
    hidden = [
        (q0, q1, k0, k1)
        for text, _, q0, q1 in spans
        for image, length, k0, k1 in spans
        if text == "text" and image == "image" and length == 1602
    ]
    return segments(turns) & ~ranges(hidden, stops[-1])


def _after(texts: tuple[int, ...], size: int) -> list[tuple[int, int]]:
    """Images of `size` tokens, each after so many tokens of text."""
    return [(stop - size, size) for stop in accumulate(text + size for text in texts)]


def show_o2() -> Mask:
    """Show-o2: six images of 729 tokens in 5,120 tokens."""
    return presets.show_o2(5120, _after((120, 90, 90, 90, 90, 90), 729))


def transfusion() -> Mask:
    """Transfusion: nine images of 256 tokens in 4,096 tokens."""
    return presets.transfusion(4096, _after((150, 180, 40, 120, 60, 190, 30, 160, 110), 256))


def hunyuan() -> Mask:
    """HunyuanImage 3: the prefill of an edit."""
    return presets.hunyuan_image3(9877, [(400, 5120), (5780, 4096)])


def hunyuan_step() -> Mask:
    """HunyuanImage 3: the rows of one denoising step (timestep and image) against the whole sequence."""
    return hunyuan().rows(5779, 9876)


def gemma(images: int, size: int, period: int, window: int | None) -> Mask:
    """Gemma: text of 16,384 tokens with images of `size` tokens at 100, 100 + period, ..."""
    return presets.gemma3(16384, [(100 + period * i, size) for i in range(images)], window)


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
    return presets.varlen([0, *accumulate(windows)])


def vit_images() -> Mask:
    """The same images, each whole."""
    return presets.packed([4 * rows * columns for rows, columns in GRIDS], causal=False)


def mllama() -> Mask:
    """Text of Llama 3.2 Vision against four images; the second and the third come together."""
    return presets.mllama(4096, [(20, 4), (700, 2), (701, 4), (2200, 1)])


def video(teacher_forcing: bool, layout: str = "split") -> Mask:
    """Self-Forcing: seven blocks of three frames of 1,560 tokens."""
    return presets.self_forcing(21, 1560, 3, teacher_forcing, layout=layout)


PACKED = (
    *(4096, 300, 1500, 700, 6000, 250, 900, 2100, 512, 3300),
    *(128, 1800, 420, 2600, 1000, 90, 3900, 640, 1532, 1000),
)


def draft_tree() -> Mask:
    """64 draft tokens after 8,192 tokens of context: each sees the context and its ancestors."""
    return presets.tree(8192, [-1, *(max(0, i - 1 - (7 * i) % 8) for i in range(1, 64))])

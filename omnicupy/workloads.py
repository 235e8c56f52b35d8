"""The named workloads of the benchmarks: masks and shapes of real models, dense baselines and random layouts.

W1 to W15 are laid out as the models lay them out; every mask is exact. Lengths are in tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from omnicupy import model_masks as rules
from omnicupy import presets
from omnicupy.layouts import causal, full, random, segments
from omnicupy.masks import Mask

QWEN = (28, 4, 128)  # query heads, heads of keys, columns of a head
LLAMA = (32, 8, 128)


@dataclass(frozen=True)
class Workload:
    """One attention problem: q (batch, q_heads, q_len, head_dim), k and v (batch, kv_heads, k_len, head_dim).

    sizes: (q_heads, kv_heads, head_dim).  mask: builds the mask, shared by the batch.  note: what it is.
    """

    name: str
    batch: int
    sizes: tuple[int, int, int]
    mask: Callable[[], Mask]
    note: str

    @property
    def q_heads(self) -> int:
        """Query heads."""
        return self.sizes[0]

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.sizes[1]

    @property
    def head_dim(self) -> int:
        """Columns of a head."""
        return self.sizes[2]

    def flops(self, pairs: int) -> float:
        """Floating-point operations of the forward pass over `pairs` (query, key) pairs of each head."""
        return 4.0 * self.head_dim * pairs * self.q_heads * self.batch


_LISTED = (
    Workload("W1", 1, QWEN, lambda: segments(rules.bagel_pack()), "BAGEL pre-training pack"),
    Workload("W2", 1, QWEN, rules.bagel_sft, "BAGEL fine-tuning pack"),
    Workload("W3", 1, QWEN, lambda: segments(rules.bagel_turns()), "BAGEL, one sample of four edits"),
    Workload("W3m", 1, QWEN, rules.text_skips_vae, "W3, text blind to VAE tokens (Mogao)"),
    Workload("W4", 2, QWEN, rules.show_o2, "Show-o2, mixed modalities"),
    Workload("W5", 4, (32, 32, 128), rules.transfusion, "Transfusion 7B"),
    Workload("W6", 2, LLAMA, rules.hunyuan, "HunyuanImage 3, edit prefill"),
    Workload("W6b", 2, LLAMA, rules.hunyuan_step, "HunyuanImage 3, one denoising step"),
    Workload("W7", 1, (8, 4, 256), lambda: rules.gemma(16, 256, 1000, 1024), "Gemma 3 4B, local layer"),
    Workload("W7g", 1, (8, 4, 256), lambda: rules.gemma(16, 256, 1000, None), "Gemma 3 4B, global layer"),
    Workload(
        "W7c", 1, (8, 4, 256), lambda: rules.gemma(8, 1120, 2000, 1024), "Gemma 4, local layer, large images"
    ),
    Workload("W8", 1, (16, 16, 80), rules.vit_windows, "Qwen2.5-VL vision tower, windowed layer"),
    Workload("W8f", 1, (16, 16, 80), rules.vit_images, "packed images of any size (NaViT)"),
    Workload("W9", 2, LLAMA, rules.mllama, "Llama 3.2 Vision, cross-attention"),
    Workload("W10", 1, (12, 12, 128), lambda: rules.video(False), "Self-Forcing, block-causal video"),
    Workload("W10t", 1, (12, 12, 128), lambda: rules.video(True), "W10, teacher forcing"),
    Workload(
        "W10i",
        1,
        (12, 12, 128),
        lambda: rules.video(True, "interleaved"),
        "W10t with its streams interleaved",
    ),
    Workload(
        "W11",
        1,
        (32, 32, 128),
        lambda: presets.bd3lm(4096, 32),
        "block diffusion (BD3-LM)",
    ),
    Workload("W12", 1, LLAMA, lambda: presets.packed(rules.PACKED), "packed causal documents"),
    Workload("W13", 1, LLAMA, lambda: presets.streaming(32768, 4, 2000), "attention sink and window"),
    Workload("W14", 8, LLAMA, rules.draft_tree, "speculative tree verification"),
    Workload("W15", 8, (8, 1, 256), lambda: presets.paligemma(1088, 1152), "PaliGemma, prefix-LM"),
)
NAMED = {workload.name: workload for workload in _LISTED}


def dense(length: int, head_dim: int, is_causal: bool) -> Workload:
    """Full or causal attention of `length` tokens: at least 16,384 tokens in all, a hidden size of 2,048."""
    heads = 2048 // head_dim
    kind = "causal" if is_causal else "full"

    def mask() -> Mask:
        return causal(length) if is_causal else full(length)

    sizes = (heads, heads, head_dim)
    return Workload(f"{kind}-d{head_dim}-s{length}", max(1, 16384 // length), sizes, mask, kind)


def interleaved(length: int, seed: int, sizes: tuple[int, int, int], batch: int) -> Workload:
    """A `random` mask with the generator's defaults and one document per 4,096 tokens.

    sizes: query heads, heads of keys, head_dim.
    """

    def mask() -> Mask:
        return random(length, seed, documents=max(1, length // 4096))

    q_heads, kv_heads, head_dim = sizes
    name = f"random-d{head_dim}-s{length}-seed{seed}-h{q_heads}-k{kv_heads}-b{batch}"
    return Workload(name, batch, sizes, mask, "random text, image and noise segments")


def by_name(name: str) -> Workload:
    """The workload of a name: W1 ..., full-d128-s4096, causal-d64-s16384, random-d64-s1024-seed0.

    A `random` name may go on with its heads and batch, as in random-d128-s1024-seed0-h28-k4-b4.
    Raises ValueError for other names.
    """
    if name in NAMED:
        return NAMED[name]
    kind, *rest = name.split("-")
    try:
        sizes = dict(_numbered(part) for part in rest)
        d, s = sizes.pop("d"), sizes.pop("s")
        if kind in ("full", "causal") and not sizes:
            return dense(s, d, kind == "causal")
        if kind == "random" and set(sizes) <= {"seed", "h", "k", "b"}:
            heads = sizes.get("h", 2048 // d)
            batch = sizes.get("b", max(1, 16384 // s))
            return interleaved(s, sizes.get("seed", 0), (heads, sizes.get("k", heads), d), batch)
    except (KeyError, ValueError, ZeroDivisionError):
        pass
    raise ValueError(
        f"workload: expected one of {', '.join(NAMED)}, or a name such as full-d128-s4096, "
        f"causal-d64-s16384 or random-d64-s1024-seed0, got {name!r}"
    )


def _numbered(part: str) -> tuple[str, int]:
    letters = part.rstrip("0123456789")
    return letters, int(part[len(letters) :])

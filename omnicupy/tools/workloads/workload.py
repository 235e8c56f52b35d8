"""The named workloads of the benchmarks: masks and shapes of real models, dense baselines and random ones.

W1 to W15 are laid out as the models lay them out; every mask is exact. Lengths are in tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from omnicupy import presets
from omnicupy.call.problem import Problem
from omnicupy.masks.constructors import causal, full
from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import random, segments
from omnicupy.tools.workloads import model_masks

QWEN = (28, 4, 128)  # query heads, heads of keys, columns of a head
LLAMA = (32, 8, 128)
FRONTS = 32  # lengths of an image in front that `sparse_layout` tries

Documents: TypeAlias = list[list[tuple[str, int]]]


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

    def problem(self, mask: Mask, dtype: str) -> Problem:
        """The sizes of a call under `mask`, this workload's, with inputs of a dtype."""
        return Problem(self.batch, self.q_heads, self.kv_heads, *mask.shape, self.head_dim, dtype)

    def flops(self, pairs: int) -> float:
        """Floating-point operations of the forward pass over `pairs` (query, key) pairs of each head."""
        return 4.0 * self.head_dim * pairs * self.q_heads * self.batch


_LISTED = (
    Workload("W1", 1, QWEN, lambda: segments(model_masks.bagel_pack()), "BAGEL pre-training pack"),
    Workload("W2", 1, QWEN, model_masks.bagel_sft, "BAGEL fine-tuning pack"),
    Workload("W3", 1, QWEN, lambda: segments(model_masks.bagel_turns()), "BAGEL, one sample of four edits"),
    Workload("W3m", 1, QWEN, model_masks.text_skips_vae, "W3, text blind to VAE tokens (Mogao)"),
    Workload("W4", 2, QWEN, model_masks.show_o2, "Show-o2, mixed modalities"),
    Workload("W5", 4, (32, 32, 128), model_masks.transfusion, "Transfusion 7B"),
    Workload("W6", 2, LLAMA, model_masks.hunyuan, "HunyuanImage 3, edit prefill"),
    Workload("W6b", 2, LLAMA, model_masks.hunyuan_step, "HunyuanImage 3, one denoising step"),
    Workload("W7", 1, (8, 4, 256), lambda: model_masks.gemma(16, 256, 1000, 1024), "Gemma 3 4B, local layer"),
    Workload(
        "W7g", 1, (8, 4, 256), lambda: model_masks.gemma(16, 256, 1000, None), "Gemma 3 4B, global layer"
    ),
    Workload(
        "W7c",
        1,
        (8, 4, 256),
        lambda: model_masks.gemma(8, 1120, 2000, 1024),
        "Gemma 4, local layer, large images",
    ),
    Workload("W8", 1, (16, 16, 80), model_masks.vit_windows, "Qwen2.5-VL vision tower, windowed layer"),
    Workload("W8f", 1, (16, 16, 80), model_masks.vit_images, "packed images of any size (NaViT)"),
    Workload("W9", 2, LLAMA, model_masks.mllama, "Llama 3.2 Vision, cross-attention"),
    Workload("W10", 1, (12, 12, 128), lambda: model_masks.video(False), "Self-Forcing, block-causal video"),
    Workload("W10t", 1, (12, 12, 128), lambda: model_masks.video(True), "W10, teacher forcing"),
    Workload(
        "W10i",
        1,
        (12, 12, 128),
        lambda: model_masks.video(True, "interleaved"),
        "W10t with its streams interleaved",
    ),
    Workload(
        "W11",
        1,
        (32, 32, 128),
        lambda: presets.bd3lm(4096, 32),
        "block diffusion (BD3-LM)",
    ),
    Workload("W12", 1, LLAMA, lambda: presets.packed(model_masks.PACKED), "packed causal documents"),
    Workload("W13", 1, LLAMA, lambda: presets.streaming(32768, 4, 2000), "attention sink and window"),
    Workload("W14", 8, LLAMA, model_masks.draft_tree, "EAGLE, verifying a draft tree"),
    Workload("W15", 8, (8, 1, 256), lambda: presets.paligemma(1088, 1152), "PaliGemma, prefix-LM"),
)
MASKS: dict[str, Callable[[int], Mask]] = {"full": full, "causal": causal}
NAMED = {workload.name: workload for workload in _LISTED}


def dense(length: int, kind: str, sizes: tuple[int, int, int], batch: int) -> Workload:
    """Attention of `length` tokens with the mask of a kind of MASKS. sizes: query heads, heads of keys, head_dim."""
    return Workload(f"{kind}-d{sizes[2]}-s{length}", batch, sizes, lambda: MASKS[kind](length), kind)


def decode(rows: int, keys: int, sizes: tuple[int, int, int], batch: int) -> Workload:
    """A few query rows at the end of `keys` keys, causal. sizes: query heads, heads of keys, head_dim."""
    name = f"decode-d{sizes[2]}-s{keys}-q{rows}"
    return Workload(name, batch, sizes, lambda: causal(rows, keys), "decoding")


def sparse(length: int, per_mille: int, seed: int, sizes: tuple[int, int, int], batch: int) -> Workload:
    """A random interleaved mask of about a density, in thousandths: see `sparse_layout`."""
    name = f"sparse-d{sizes[2]}-s{length}-p{per_mille}-seed{seed}"
    return Workload(
        name, batch, sizes, lambda: segments(sparse_layout(length, per_mille, seed)), "random, of a density"
    )


@cache
def sparse_layout(length: int, per_mille: int, seed: int) -> Documents:
    """Seeded random documents of text, image and noise whose mask allows about per_mille / 1000 of all pairs.

    Dense ones begin with a long image (the whole row at 1000), sparse ones are cut into documents of about equal
    lengths: of several lengths of that image and numbers of documents, those whose density is nearest. A fifth of
    the other images is noise. Raises ValueError for per_mille outside [1, 1000].
    """
    if not 1 <= per_mille <= 1000:
        raise ValueError(f"density: expected 1 to 1000 thousandths, got {per_mille}")
    wanted = per_mille / 1000 * length * length
    tries = [
        (length * step // (FRONTS * count), count) for count in (1, 2) for step in range(FRONTS + 2 - count)
    ]
    tries += [(0, count) for count in range(3, min(length // 64, 2000 // per_mille) + 1)]
    made = [_documents(length, front, count, seed) for front, count in tries]
    return min(made, key=lambda documents: abs(segments(documents).pairs - wanted))


def _documents(length: int, front: int, count: int, seed: int) -> Documents:
    rng = np.random.default_rng([seed, count, length])
    jitter = rng.uniform(-0.2, 0.2, count - 1)
    bounds = [0, *np.rint((np.arange(1, count) + jitter) * length / count).astype(int).tolist(), length]
    documents = []
    for first, stop in pairwise(bounds):
        whole = 0 if first else min(front, stop)
        document = [("image", whole)] if whole else []
        left = stop - first - whole
        while left:
            is_text = len(document) % 2 == (1 if whole else 0)
            tokens = min(left, int(rng.integers(*((32, 256) if is_text else (256, 1024)), endpoint=True)))
            document.append(("text" if is_text else "noise" if rng.random() < 0.2 else "image", tokens))
            left -= tokens
        documents.append(document)
    return documents


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
    """The workload of a name: W1 ..., full-d128-s4096, causal-d64-s16384, random-d64-s1024-seed0,
    sparse-d128-s16384-p250-seed0 (a density of about 0.25), or decode-d128-s8192-q4-h32-k8-b16 (4 query rows).

    A name may go on with its heads and batch, as in random-d128-s1024-seed0-h28-k4-b1; else the hidden size is
    2,048 and the batch holds 16,384 tokens. Raises ValueError for other names.
    """
    if name in NAMED:
        return NAMED[name]
    kind, *rest = name.split("-")
    try:
        given = dict(_numbered(part) for part in rest)
        d, s = given.pop("d"), given.pop("s")
        heads = given.pop("h", 2048 // d)
        sizes, batch = (heads, given.pop("k", heads), d), given.pop("b", max(1, 16384 // s))
        if kind in MASKS and not given:
            made = dense(s, kind, sizes, batch)
        elif kind == "decode" and set(given) <= {"q"}:
            made = decode(given.get("q", 1), s, sizes, batch)
        elif kind == "random" and set(given) <= {"seed"}:
            made = interleaved(s, given.get("seed", 0), sizes, batch)
        elif kind == "sparse" and "p" in given and set(given) <= {"seed", "p"}:
            made = sparse(s, given["p"], given.get("seed", 0), sizes, batch)
        else:
            raise ValueError(kind)
        return replace(made, name=name)
    except (KeyError, ValueError, ZeroDivisionError):
        pass
    raise ValueError(
        f"workload: expected one of {', '.join(NAMED)}, or a name such as full-d128-s4096, causal-d64-s16384, "
        f"random-d64-s1024-seed0 or sparse-d128-s16384-p250-seed0, got {name!r}"
    )


def _numbered(part: str) -> tuple[str, int]:
    letters = part.rstrip("0123456789")
    return letters, int(part[len(letters) :])

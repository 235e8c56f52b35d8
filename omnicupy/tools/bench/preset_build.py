"""The presets at 36,864 tokens, of one or two intervals a key: how long the mask takes, and its tiles."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import numpy as np

from omnicupy import presets
from omnicupy.masks.mask import Mask
from omnicupy.presets.images import MODES
from omnicupy.tools.bench import host
from omnicupy.tools.bench.mask_build import timed
from omnicupy.tools.bench.records import Record
from omnicupy.tools.workloads import model_masks

TOKENS = 36864
BR, BC = 128, 128
TURNS = 25

_MODE_OF = {kind: mode for mode, kind in MODES.items()}
_IMAGES = [(100 + 1100 * i, 1024) for i in range(33)]  # (offset, length)


def _bagel() -> Mask:
    """The pack of W1."""
    pack = model_masks.bagel_pack()
    splits = [split for sample in pack for split in sample]
    lengths = [sum(length for _, length in sample) for sample in pack]
    return presets.bagel(lengths, [length for _, length in splits], [_MODE_OF[kind] for kind, _ in splits])


def _with_guidance() -> Mask:
    mask = presets.janus_cfg(TOKENS, 600, False)
    assert isinstance(mask, Mask)  # a list of them for a list of conditions
    return mask


# Keys of 36,864 tokens; janus_cfg and padding can make several masks, here one.
LAYOUTS: dict[str, Callable[[], Mask]] = {
    "bagel": _bagel,
    "transfusion": lambda: presets.transfusion(TOKENS, _IMAGES),
    "show_o2": lambda: presets.show_o2(TOKENS, _IMAGES),
    "hunyuan_image3": lambda: presets.hunyuan_image3(TOKENS, _IMAGES),
    "show_o, t2i": lambda: presets.show_o(TOKENS, "t2i", pad_end=90, images=_IMAGES),
    "gemma3, window over all": lambda: presets.gemma3(TOKENS, _IMAGES, 1024),
    "gemma3, window over causal": lambda: presets.gemma3(TOKENS, _IMAGES, 1024, "window_over_causal"),
    "gemma4": lambda: presets.gemma4(TOKENS, _IMAGES, 1024),
    "one_label": lambda: presets.one_label(TOKENS, _IMAGES[:2]),
    "slices": lambda: presets.slices(
        [(512 * i, 512 * i + 512, 0, 512 * i + 512, 1) for i in range(72)], TOKENS
    ),
    "chunks": lambda: presets.chunks(TOKENS, 14, 5),
    "block_causal": lambda: presets.block_causal(TOKENS, 32, prompt=4096),
    "paligemma": lambda: presets.paligemma(4096, TOKENS),
    "mllama": lambda: presets.mllama(4096, [(20 + 600 * i, 3) for i in range(6)], 1536),
    "packed": lambda: presets.packed([576] * 64),
    "varlen": lambda: presets.varlen(np.arange(0, TOKENS + 1, 64)),
    "self_forcing": lambda: presets.self_forcing(24, 1536, 3),
    "self_forcing, teacher forcing": lambda: presets.self_forcing(12, 1536, 3, True),
    "self_forcing, local": lambda: presets.self_forcing(24, 1536, 3, local_frames=9, sink_frames=1),
    "magi": lambda: presets.magi(8, 4608, [5, 5, 4, 4, 3, 2, 1, 1]),
    "bd3lm": lambda: presets.bd3lm(TOKENS // 2, 32),
    "bd3lm, packed": lambda: presets.bd3lm(lengths=[576] * 32, block=32),
    "streaming": lambda: presets.streaming(TOKENS, 4, 2000),
    "janus_cfg": _with_guidance,
    "padding": lambda: presets.padding(presets.streaming(TOKENS, 4, 2000), [30000], [30000])[0],
}


def building(record: Record, say: host.Say) -> None:
    """Milliseconds of each preset and of its tiles with their payloads, on one core: medians after a first time."""
    for name, build in LAYOUTS.items():
        build().blocks(BR, BC)
        took = []
        for _ in range(TURNS):
            mask, mask_ms = timed(build)
            blocks, cut_ms = timed(partial(mask.blocks, BR, BC))
            took.append((mask_ms, cut_ms))
        figures = {
            "mask_ms": round(statistics.median(one for one, _ in took), 3),
            "cut_ms": round(statistics.median(one for _, one in took), 3),
            "ms": round(statistics.median(map(sum, took)), 3),
            "tiles": int(blocks.tiles.sum()),
        }
        host.add(record, say, f"{name}, {TOKENS:,} tokens", figures)

"""Masks of real models, one call each.

    mask = omnicupy.presets.transfusion(4096, [(150, 256), (586, 256)])

Each function cites the code whose rule it states, in terms of row q and key k. All are built in time proportional
to the tokens (and, `show_o` with "lvg" and `one_label`, to the images); none looks at single pairs. Lengths and
positions are in tokens; NumPy integers and arrays pass wherever integers and lists do.
"""

from omnicupy.presets.block_causal import bd3lm, magi, self_forcing
from omnicupy.presets.chunked import block_causal, chunks
from omnicupy.presets.images import (
    bagel,
    gemma3,
    gemma4,
    hunyuan_image3,
    janus_cfg,
    paligemma,
    show_o2,
    transfusion,
)
from omnicupy.presets.sequences import mllama, packed, padding, streaming, tree, varlen
from omnicupy.presets.show_o import show_o
from omnicupy.presets.slices import one_label, slices

__all__ = [
    "bagel",
    "bd3lm",
    "block_causal",
    "chunks",
    "gemma3",
    "gemma4",
    "hunyuan_image3",
    "janus_cfg",
    "magi",
    "mllama",
    "one_label",
    "packed",
    "padding",
    "paligemma",
    "self_forcing",
    "show_o",
    "show_o2",
    "slices",
    "streaming",
    "transfusion",
    "tree",
    "varlen",
]

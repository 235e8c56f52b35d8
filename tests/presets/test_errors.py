"""Bad calls of the presets: each a bad argument and the exact message it raises."""
# ruff: noqa: E501  (a message is one line, as the user reads it)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import omnicupy as oc
from omnicupy import presets

CAUSAL = oc.causal(4)
BAD_CALLS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: presets.bagel([4], [1, 2], ["causal", "full"]), ValueError, 'bagel: sample_lens and split_lens must add up to the same, got 4 and 3 tokens; pass the splits of all samples'),
    (lambda: presets.bagel([2, 2], [1, 2, 1], ["causal", "full", "noise"]), ValueError, 'bagel: a sample must end where a split ends, but sample_lens[0] ends at token 2, inside split_lens[1] of tokens [1, 3); make the splits of each sample add up to it'),
    (lambda: presets.bagel([4], [4], ["causal", "full"]), ValueError, 'bagel: attn_modes must have one mode for each split, got 2 for 1 splits; give both lists over all samples'),
    (lambda: presets.bagel([4], [4], ["text"]), ValueError, "bagel: attn_modes[0] must be one of causal, full, noise, got 'text'; name one of these"),
    (lambda: presets.bagel([4], [4], "causal"), TypeError, "bagel: attn_modes must be a list of modes, got str 'causal'; make it a list"),
    (lambda: presets.bagel([4], [4], [None]), ValueError, 'bagel: attn_modes[0] must be one of causal, full, noise, got None; name one of these'),
    (lambda: presets.bagel(4, [4], ["causal"]), TypeError, 'bagel: sample_lens must be a list or an array, got int 4; make it a list'),
    (lambda: presets.bagel([], [4], ["causal"]), ValueError, 'bagel: sample_lens must hold at least one number, got none; pass the number of tokens of each'),
    (lambda: presets.bagel([4], [5, -1], ["causal", "full"]), ValueError, 'bagel: split_lens[1] must be from 0 to 1073741824, got -1; pass the number of tokens of each'),
    (lambda: presets.bagel([0], [0], ["causal"]), ValueError, 'bagel: sample_lens must hold at least one token, got 0 tokens; drop the empty pack'),
    (lambda: presets.bagel([4.0], [4], ["causal"]), TypeError, 'bagel: sample_lens[0] must be an integer, got float 4.0; pass a whole number'),
    (lambda: presets.bagel(np.array([4.0]), [4], ["causal"]), TypeError, 'bagel: sample_lens must hold integers, got an array of float64; convert it'),
    (lambda: presets.bagel([2**30, 1], [2**30, 1], ["full", "full"]), ValueError, 'bagel: sample_lens must make at most 1073741824 tokens, got 1073741825; split the sequence'),
    (lambda: presets.transfusion(0, []), ValueError, 'transfusion: length must be from 1 to 1073741824 tokens, got 0; pass a length in that range'),
    (lambda: presets.transfusion(8.5, []), TypeError, 'transfusion: length must be an integer, got float 8.5; pass a whole number'),
    (lambda: presets.transfusion(8, [(6, 3)]), ValueError, 'transfusion: spans[0] must hold some of the tokens [0, 8) and no other, got offset 6 and length 3; give (offset, length) in tokens'),
    (lambda: presets.transfusion(8, [(1, 2), (-1, 1)]), ValueError, 'transfusion: spans[1] must hold some of the tokens [0, 8) and no other, got offset -1 and length 1; give (offset, length) in tokens'),
    (lambda: presets.transfusion(8, [(1, -1)]), ValueError, 'transfusion: spans[0] must hold some of the tokens [0, 8) and no other, got offset 1 and length -1; give (offset, length) in tokens'),
    (lambda: presets.transfusion(8, [(4, 2), (0, 2), (1, 2)]), ValueError, 'transfusion: spans must not overlap, but spans[1]=(0, 2) and spans[2]=(1, 2) (offset, length) do; merge or shorten them'),
    (lambda: presets.transfusion(8, [(1, 2, 3)]), TypeError, 'transfusion: spans[0] must be a pair (offset, length), got (1, 2, 3); give two integers'),
    (lambda: presets.transfusion(8, [3, 4]), TypeError, 'transfusion: spans[0] must be a pair (offset, length), got 3; give two integers'),
    (lambda: presets.transfusion(8, [(1, 2.0)]), TypeError, 'transfusion: spans[0] must be an integer, got float 2.0; pass a whole number'),
    (lambda: presets.transfusion(8, {1: 2}), TypeError, 'transfusion: spans must be a list or an array, got dict {1: 2}; make it a list'),
    (lambda: presets.transfusion(8, np.ones((1, 2))), TypeError, 'transfusion: spans must hold integers, got an array of float64; convert it'),
    (lambda: presets.show_o2(8, [(8, 1)]), ValueError, 'show_o2: spans[0] must hold some of the tokens [0, 8) and no other, got offset 8 and length 1; give (offset, length) in tokens'),
    (lambda: presets.hunyuan_image3(8, [(0, 2), (1, 1)]), ValueError, 'hunyuan_image3: spans must not overlap, but spans[0]=(0, 2) and spans[1]=(1, 1) (offset, length) do; merge or shorten them'),
    (lambda: presets.show_o(8, "edit"), ValueError, "show_o: task must be one of t2i, lm, mmu, lvg, got 'edit'; name one of these"),
    (lambda: presets.show_o(8, "t2i", pad_end=9), ValueError, 'show_o: pad_end must be from 0 to 8, got 9; pass a number in that range'),
    (lambda: presets.show_o(8, "t2i", pad_end=3, images=[(2, 2)]), ValueError, 'show_o: images[0] must hold some of the tokens [3, 8) and no other, got offset 2 and length 2; give (offset, length) in tokens'),
    (lambda: presets.show_o(8, "t2i", prefix=2), ValueError, "show_o: task 't2i' takes pad_end and images, got prefix=2; drop it or name another task"),
    (lambda: presets.show_o(8, "lm", images=[(2, 2)]), ValueError, "show_o: task 'lm' takes the length alone, got images=[(2, 4)]; drop it or name another task"),
    (lambda: presets.show_o(8, "mmu", pad_end=1), ValueError, "show_o: task 'mmu' takes prefix and images, got pad_end=1; drop it or name another task"),
    (lambda: presets.show_o(8, "lvg", prefix=1), ValueError, "show_o: task 'lvg' takes pad_end and images, got prefix=1; drop it or name another task"),
    (lambda: presets.gemma3(8, [(1, 9)]), ValueError, 'gemma3: image_spans[0] must hold some of the tokens [0, 8) and no other, got offset 1 and length 9; give (offset, length) in tokens'),
    (lambda: presets.gemma3(8, [], window=0), ValueError, 'gemma3: window must be at least 1, got 0; pass a positive number'),
    (lambda: presets.gemma3(8, [], window=2.5), TypeError, 'gemma3: window must be an integer, got float 2.5; pass a whole number'),
    (lambda: presets.gemma3(8, [], 4, "and"), ValueError, "gemma3: compose must be one of window_over_all, window_over_causal, got 'and'; name one of these"),
    (lambda: presets.gemma3(8, [], 4, None), ValueError, 'gemma3: compose must be one of window_over_all, window_over_causal, got None; name one of these'),
    (lambda: presets.paligemma(9, 8), ValueError, 'paligemma: prefix must be from 0 to 8, got 9; the prefix comes first: paligemma(prefix, length)'),
    (lambda: presets.paligemma(True, 8), TypeError, 'paligemma: prefix must be an integer, got bool True; pass a whole number'),
    (lambda: presets.mllama(8, []), ValueError, 'mllama: images must hold at least one image, got none; skip the cross-attention'),
    (lambda: presets.mllama(8, [(8, 1)]), ValueError, 'mllama: images[0] must be at a place from 0 to 7 (the text has 8 tokens, positions ascend), got 8; give the images in the order of the text'),
    (lambda: presets.mllama(8, [(3, 1), (3, 2)]), ValueError, 'mllama: images[0] must be at a place from 0 to 2 (the text has 8 tokens, positions ascend), got 3; give the images in the order of the text'),
    (lambda: presets.mllama(8, [(3, 5)]), ValueError, 'mllama: images[0] must have from 0 to max_tiles=4 tiles, got 5; raise max_tiles'),
    (lambda: presets.mllama(8, [(3, -1)]), ValueError, 'mllama: images[0] must have from 0 to max_tiles=4 tiles, got -1; raise max_tiles'),
    (lambda: presets.mllama(8, [(3, 1)], tile_tokens=0), ValueError, 'mllama: tile_tokens must be from 1 to 1073741824 tokens, got 0; pass a length in that range'),
    (lambda: presets.mllama(8, [3]), TypeError, 'mllama: images[0] must be a pair (position, tiles), got 3; give two integers'),
    (lambda: presets.packed([]), ValueError, 'packed: lengths must hold at least one number, got none; pass the number of tokens of each sequence'),
    (lambda: presets.packed([3, -1]), ValueError, 'packed: lengths[1] must be from 0 to 1073741824, got -1; pass the number of tokens of each sequence'),
    (lambda: presets.packed(np.ones((2, 2), int)), ValueError, 'packed: lengths must have one axis, got shape (2, 2); reshape it'),
    (lambda: presets.packed([3], causal="no"), TypeError, "packed: causal must be True or False, got str 'no'; pass a bool"),
    (lambda: presets.varlen([1, 3]), ValueError, 'varlen: cu_seqlens must start at 0, got 1; pass 0 and the running sums of the lengths'),
    (lambda: presets.varlen([0, 3, 2]), ValueError, 'varlen: cu_seqlens must not descend, got 3 and 2 at places 1 and 2; pass 0 and the running sums of the lengths'),
    (lambda: presets.varlen([0]), ValueError, 'varlen: cu_seqlens must hold at least one token, got an end of 0; pass 0 and the running sums of the lengths'),
    (lambda: presets.varlen(np.array([])), ValueError, 'varlen: cu_seqlens must hold at least one number, got none; pass 0 and the running sums of the lengths'),
    (lambda: presets.varlen("012"), TypeError, "varlen: cu_seqlens must be a list or an array, got str '012'; make it a list"),
    (lambda: presets.self_forcing(0, 4, 1), ValueError, 'self_forcing: frames must be at least 1, got 0; pass a positive number'),
    (lambda: presets.self_forcing(3, 4, None), TypeError, 'self_forcing: frames_per_block must be an integer, got NoneType None; pass a whole number'),
    (lambda: presets.self_forcing(3, 4, 1, layout="both"), ValueError, "self_forcing: layout must be one of split, interleaved, got 'both'; name one of these"),
    (lambda: presets.self_forcing(3, 4, 1, local_frames=0), ValueError, 'self_forcing: local_frames must be at least 1, got 0; pass a positive number'),
    (lambda: presets.self_forcing(3, 4, 1, sink_frames=-1), ValueError, 'self_forcing: sink_frames must be at least 0, got -1; pass a number in that range'),
    (lambda: presets.self_forcing(3, 4, 1, True, local_frames=2), ValueError, 'self_forcing: teacher_forcing must come without local_frames and sink_frames, got local_frames=2 and sink_frames=0; combine masks by & for such a rule'),
    (lambda: presets.self_forcing(3, 4, 1, 1), TypeError, 'self_forcing: teacher_forcing must be True or False, got int 1; pass a bool'),
    (lambda: presets.self_forcing(2**20, 2**20, 1), ValueError, 'self_forcing: frames must make at most 1073741824 tokens, got 1099511627776; split the sequence'),
    (lambda: presets.magi(3, 4, [1, 2]), ValueError, 'magi: reach must have one number for each of the 3 chunks, got 2; pass one number for all or one for each'),
    (lambda: presets.magi(3, 4, [1, 2, 0]), ValueError, 'magi: reach[2] must be from 1 to 1073741824, got 0; give the number of chunks that each chunk sees'),
    (lambda: presets.magi(3, 4, 0), ValueError, 'magi: reach must be at least 1, got 0; pass a positive number'),
    (lambda: presets.magi(3, 4, 1.5), TypeError, 'magi: reach must be a list or an array, got float 1.5; make it a list'),
    (lambda: presets.bd3lm(8, 0), ValueError, 'bd3lm: block must be at least 1, got 0; pass a positive number'),
    (lambda: presets.bd3lm(2**30, 4), ValueError, 'bd3lm: length must make at most 1073741824 tokens, got 2147483648; split the sequence'),
    (lambda: presets.magi(2**40, 2, 3), ValueError, 'magi: chunks must make at most 1073741824 tokens, got 2199023255552; split the sequence'),
    (lambda: presets.magi(3, 4, True), TypeError, 'magi: reach must be an integer, got bool True; pass a whole number'),
    (lambda: presets.mllama(8, [(3, 1)], max_tiles=0), ValueError, 'mllama: max_tiles must be at least 1, got 0; pass a positive number'),
    (lambda: presets.mllama(8, [(3, 1)], 2**20, 2**20), ValueError, 'mllama: images must make at most 1073741824 tokens, got 1099511627776; split the sequence'),
    (lambda: presets.packed([2**30, 1]), ValueError, 'packed: lengths must make at most 1073741824 tokens, got 1073741825; split the sequence'),
    (lambda: presets.tree(2**30, [-1]), ValueError, 'tree: context and parents must make at most 1073741824 tokens, got 1073741825; split the sequence'),
    (lambda: presets.bd3lm(8, 2, "halves"), ValueError, "bd3lm: layout must be one of split, interleaved, got 'halves'; name one of these"),
    (lambda: presets.streaming(8, -1, 4), ValueError, 'streaming: sink must be at least 0, got -1; pass a number in that range'),
    (lambda: presets.streaming(8, 4, 0), ValueError, 'streaming: window must be at least 1, got 0; pass a positive number'),
    (lambda: presets.tree(-1, [-1]), ValueError, 'tree: context must be at least 0, got -1; pass a number in that range'),
    (lambda: presets.tree(4, []), ValueError, 'tree: parents must hold at least one number, got none; give each draft the index of its parent, -1 for a root'),
    (lambda: presets.tree(4, [-1, 1]), ValueError, 'tree: parents[1] must be from -1 to 0, got 1; sort parents before their children'),
    (lambda: presets.tree(4, [-2]), ValueError, 'tree: parents[0] must be from -1 to 1073741824, got -2; give each draft the index of its parent, -1 for a root'),
    (lambda: presets.janus_cfg(8, 9, True), ValueError, 'janus_cfg: prompt must be from 0 to 8, got 9; pass a number in that range'),
    (lambda: presets.janus_cfg(8, 4, []), ValueError, 'janus_cfg: cond must hold at least one bool, got none; give one a batch element'),
    (lambda: presets.janus_cfg(8, 4, [True, 1]), TypeError, 'janus_cfg: cond[1] must be True or False, got int 1; pass a bool'),
    (lambda: presets.janus_cfg(8, 4, 1), TypeError, 'janus_cfg: cond must be a bool or a list of bools, got int 1; pass True for the conditional half'),
    (lambda: presets.padding(CAUSAL.to_dense(), [4], [4]), TypeError, 'padding: mask must be a Mask, got ndarray; build one first'),
    (lambda: presets.padding(CAUSAL, [4, 5], [4, 4]), ValueError, 'padding: query_lengths[1] must be from 0 to 4, the length of the mask, got 5; build a longer mask'),
    (lambda: presets.padding(CAUSAL, [4], [4, 4]), ValueError, 'padding: query_lengths and key_lengths must have one length, got 1 and 2; give one length a batch element'),
    (lambda: presets.padding(CAUSAL, [4], [-1]), ValueError, 'padding: key_lengths[0] must be from 0 to 1073741824, got -1; give one length a batch element'),
    (lambda: presets.padding(CAUSAL, 4, [4]), TypeError, 'padding: query_lengths must be a list or an array, got int 4; make it a list'),
    (lambda: presets.padding(CAUSAL, [4], [4], side="top"), ValueError, "padding: side must be one of right, left, got 'top'; name one of these"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD_CALLS)))
def test_bad_call(number: int) -> None:
    call, kind, message = BAD_CALLS[number]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert (caught.type, str(caught.value)) == (kind, message)

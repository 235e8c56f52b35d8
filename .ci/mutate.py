"""Faults put into the code on purpose, each of which a test must find: `python .ci/mutate.py [word [jobs]]`

Run by hand, after larger changes. Each fault of the list below is put into a copy of the tree, and the tests that are
named beside it must fail there. word: only faults whose file or text has it. jobs: how many are tried at once, each in
a copy of its own; as many as there are cores unless given. The exit status is the number of faults that no test found.
No GPU is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("omnicupy", "tests", "kernels", "pyproject.toml", "cli.py")
LIMIT_S = 300


@dataclass(frozen=True)
class Fault:
    """A text of a file, which stands there once, and what it becomes. file: from omnicupy/ on.  tests: what must fail,
    as pytest takes it.
    """

    file: str
    old: str
    new: str
    tests: str


CALLS = [
    Fault(
        "gpu/planning.py",
        "q.dtype.itemsize) if out is None else out.strides",
        "q.dtype.itemsize)",
        "tests/gpu/test_given_out.py",
    ),
    Fault(
        "gpu/attention.py",
        "(out.shape, out.strides, out.dtype, target.device_id)",
        "(out.shape, out.dtype, target.device_id)",
        "tests/gpu/test_given_out.py",
    ),
    Fault(
        "gpu/plan.py",
        "k0 < k - out < k1 or v0 < v - out < v1)",
        "k0 < k - out < k1)",
        "tests/gpu/test_given_out.py",
    ),
    Fault(
        "gpu/ranges.py",
        "return sum(step for step in steps if step < 0), last",
        "return 0, last",
        "tests/gpu/test_given_out.py",
    ),
    Fault(
        "gpu/cached_plan.py",
        "of_v and of_v[0] < v < of_v[1]",
        "False",
        "tests/gpu/test_warm_calls.py",
    ),
    Fault(
        "gpu/cached_plan.py",
        "        if (k | v) % 4:\n            return False\n",
        "",
        "tests/gpu/test_warm_calls.py",
    ),
    Fault(
        "gpu/cached_planning.py",
        '"most_entries": lists.most_entries',
        '"most_entries": lists.most_partial',
        "tests/gpu/test_cached.py",
    ),
    Fault(
        "gpu/cached_planning.py",
        "grid.tile_heads if side_by_side else grid.section(lists.rows)",
        "grid.section(lists.most_parts)",
        "tests/gpu/test_cached.py",
    ),
    Fault(
        "gpu/cached.py",
        "numbers = scale, type(scale), softcap, type(softcap), split, type(split)",
        "numbers = scale, softcap, split",
        "tests/gpu/test_warm_calls.py",
    ),
    Fault(
        "gpu/append.py",
        "if low < at[one] - at[other] < high and at[one] - at[other] not in apart:",
        "if False:",
        "tests/gpu/test_warm_calls.py",
    ),
    Fault(
        "gpu/append.py",
        "                apart.add(at[one] - at[other])",
        "                pass",
        "tests/gpu/test_append.py",
    ),
    Fault(
        "gpu/append.py",
        "        if slots % self._slot_bytes:\n            return False\n",
        "",
        "tests/gpu/test_warm_calls.py",
    ),
    Fault(
        "call/check_append.py",
        "*(s for _, s in scales[:i] if check_fp8.has_token_scales(s))",
        "",
        "tests/serving/test_fp8_on_cpu.py",
    ),
    Fault(
        "call/arrays.py",
        "except np.exceptions.TooHardError:\n        return True",
        "except np.exceptions.TooHardError:\n        return False",
        "tests/call/test_arrays.py",
    ),
    Fault(
        "cpu/attention.py",
        "np.log2(np.where(empty, 1, total), dtype=np.float64)",
        "np.log2(np.where(empty, 1, total))",
        "tests/cpu/test_lse.py",
    ),
    Fault(
        "schedule/parts.py",
        "if 0 < slots <= workers.split_slots and",
        "if 0 < slots and",
        "tests/schedule/test_limits.py",
    ),
    Fault(
        "parallel/nccl.py",
        "whole = hashlib.sha256(said).digest()",
        "whole = hashlib.sha256(said[:MOST_SAID]).digest()",
        "tests/parallel/test_array_calls.py",
    ),
    Fault(
        "schedule/parts.py",
        "    if workers.ordered_sums:",
        "    if workers.side_by_side:",
        "tests/schedule/test_parts.py",
    ),
    Fault(
        "schedule/parts.py",
        "if 1 < parts <= workers.split_slots and",
        "if 1 < parts and",
        "tests/schedule/test_limits.py",
    ),
    Fault(
        "schedule/pieces.py",
        "cuts = np.sort(np.concatenate([before, begins, lazy,",
        "cuts = np.sort(np.concatenate([before, begins,",
        "tests/schedule/test_pieces.py",
    ),
    Fault(
        "schedule/grid.py",
        "slots = MOST_PARTIAL_BYTES // (all_heads * part_bytes(spec, problem)) if",
        "slots = MOST_PARTIAL_BYTES // part_bytes(spec, problem) if",
        "tests/schedule/test_limits.py",
    ),
    Fault(
        "schedule/order.py",
        "    if (of_entry & DEAD).any():\n        some = some[of_entry & DEAD == 0]\n",
        "",
        "tests/schedule/test_order.py",
    ),
    Fault(
        "schedule/order.py",
        "not GROUP_ROWS < block.br <= 3 * GROUP_ROWS",
        "not GROUP_ROWS < block.br",
        "tests/schedule/test_order.py",
    ),
    Fault(
        "schedule/order.py",
        "starts = start if stop.all() else np.where(stop == 0, np.int32(block.q_len), start)",
        "starts = start",
        "tests/schedule/test_limits.py",
    ),
    Fault(
        "masks/cut.py",
        "np.int32 if max(last, step * count) < 1 << 31 else np.int64",
        "np.int32",
        "tests/masks/test_wide_codes.py",
    ),
    Fault(
        "masks/mask.py",
        '{"diagonal": self.diagonal, "segments": rows.segments or self.segments}',
        '{"diagonal": 0, "segments": rows.segments or self.segments}',
        "tests/masks/test_extend_blocks.py",
    ),
    Fault(
        "choose/paged.py",
        "and split is None and (of_few",
        "and (of_few",
        "tests/gpu/test_few_rows.py",
    ),
    Fault(
        "choose/paged.py",
        "problem.batch * problem.kv_heads < sm_count]",
        "problem.batch < sm_count]",
        "tests/gpu/test_few_rows.py",
    ),
    Fault(
        "choose/paged.py",
        "keys >= _ENOUGH_KEYS[spec.head_dim] * sm_count",
        "keys >= _ENOUGH_KEYS[spec.head_dim]",
        "tests/gpu/test_few_rows.py",
    ),
    Fault(
        "choose/paged.py",
        "or MOST_PARTS * heads < _REACHED * sm_count",
        "or False",
        "tests/choose/test_cached_sizes.py",
    ),
    Fault(
        "choose/paged.py",
        "round_up(k_len, MOST_PAGE)",
        "k_len",
        "tests/choose/test_cached_sizes.py",
    ),
    Fault(
        "choose/paged.py",
        "of_few = () if split is not None else few_rows(spec, problem, e4m3=False)\n    heads = problem.batch * "
        "problem.kv_heads\n    if not of_few or MOST_PARTS",
        "of_few = few_rows(spec, problem, e4m3=False)\n    heads = problem.batch * problem.kv_heads\n    if not of_few "
        "or MOST_PARTS",
        "tests/gpu/test_few_rows.py",
    ),
    Fault(
        "choose/paged.py",
        "or rows > few_rows_spec.ROWS",
        "or problem.q_len > few_rows_spec.ROWS",
        "tests/gpu/test_few_rows.py",
    ),
    Fault(
        "choose/paged.py",
        "if rows <= few_rows_spec.FEWER_ROWS",
        "if rows < few_rows_spec.FEWER_ROWS",
        "tests/gpu/test_few_rows.py",
    ),
    Fault(
        "jit/few_rows_spec.py",
        "if heads * tokens > self.most_rows or head_dim",
        "if head_dim",
        "tests/jit/test_few_rows_spec.py",
    ),
    Fault(
        "jit/few_rows_spec.py",
        "ring = max(stages * (tile + 128), round_up(out, 128))",
        "ring = stages * tile",
        "tests/jit/test_compile_few_rows.py",
    ),
    Fault(
        "jit/few_rows_spec.py",
        "2 * of_item",
        "of_item",
        "tests/jit/test_compile_few_rows.py",
    ),
    Fault(
        "schedule/grid.py",
        "sm_count *= spec.blocks",
        "pass",
        "tests/jit/test_few_rows_spec.py",
    ),
]

MEMORY = [
    Fault(
        "gpu/workspace.py",
        "return self.partial_bytes <= other.partial_bytes and self.arrivals <= other.arrivals",
        "return self.partial_bytes <= other.partial_bytes",
        "tests/gpu/test_workspace.py",
    ),
    Fault(
        "gpu/workspace.py",
        "                stream.wait_event(last)\n",
        "",
        "tests/gpu/test_workspace.py tests/gpu/test_stream_memory.py",
    ),
    Fault(
        "gpu/workspace.py",
        "            if last is None and fits(one):",
        "            if fits(one):",
        "tests/gpu/test_workspace.py",
    ),
    Fault(
        "gpu/workspace.py",
        "            self._workspaces.remove(surplus)",
        "            pass",
        "tests/gpu/test_workspace.py tests/gpu/test_stream_memory.py",
    ),
    Fault(
        "gpu/workspace.py",
        "    with allowing_unsafe_calls(), using(_own_stream()) as stream:",
        "    with using(_own_stream()) as stream:",
        "tests/gpu/test_workspace.py",
    ),
    Fault(
        "gpu/stream_memory.py",
        "    elif stream.is_capturing():\n        return _captured",
        "    elif False:\n        return _captured",
        "tests/gpu/test_stream_memory.py tests/gpu/test_captures.py",
    ),
    Fault(
        "gpu/stream_memory.py",
        "            found = capture.memory.get(place)\n            if found is None:",
        "            found = next(iter(capture.memory.values()), None)\n            if found is None:",
        "tests/gpu/test_stream_memory.py",
    ),
    Fault(
        "gpu/stream_memory.py",
        "            blocks.wait_for_copy()\n",
        "",
        "tests/gpu/test_captures.py",
    ),
    Fault(
        "gpu/stream_memory.py",
        "            self._blocks[id(blocks)] = blocks\n",
        "            self._blocks[id(blocks)] = None\n",
        "tests/gpu/test_captures.py",
    ),
    Fault(
        "gpu/stream_memory.py",
        "        self.memory.clear()  # they name this\n",
        "",
        "tests/gpu/test_stream_memory.py",
    ),
    Fault(
        "gpu/stream_memory.py",
        "            self.closed = True\n",
        "",
        "tests/gpu/test_stream_memory.py",
    ),
    Fault(
        "gpu/stream_memory.py",
        "next((pair for pair in others if not pair[1].is_busy()), (0, None))",
        "others[0]",
        "tests/gpu/test_stream_memory.py",
    ),
    Fault(
        "gpu/stream_memory.py",
        "        with using(stream), allowing_unsafe_calls():",
        "        with stream, allowing_unsafe_calls():",
        "tests/gpu/test_current_stream.py",
    ),
    Fault(
        "gpu/streams.py",
        "            on_device(self._device, before.use)",
        "            before.use()",
        "tests/gpu/test_current_stream.py",
    ),
    Fault(
        "gpu/streams.py",
        "on_device(device, foreign_stream, handle)",
        "foreign_stream(handle)",
        "tests/gpu/test_current_stream.py",
    ),
    Fault(
        "gpu/streams.py",
        "    status, number = bindings.driver().cuStreamGetId(handle)\n    if status:",
        "    status, number = 0, handle\n    if status:",
        "tests/gpu/test_stream_memory.py",
    ),
    Fault(
        "gpu/device_blocks.py",
        "    if any(map(is_unusable, streams)):\n        return False\n",
        "",
        "tests/gpu/test_device_blocks.py",
    ),
    Fault(
        "gpu/device_blocks.py",
        "        stream.wait_event(self._uploaded)\n",
        "",
        "tests/gpu/test_device_blocks.py",
    ),
    Fault(
        "gpu/graph_end.py",
        "        if not self._over and _locks()",
        "        if _locks()",
        "tests/gpu/test_graph_end.py",
    ),
    Fault(
        "gpu/mask_cache.py",
        "            kept.plans.pop(key, None)\n",
        "            pass\n",
        "tests/gpu/test_device_blocks.py",
    ),
]

FILES = [
    Fault(
        "jit/cache.py",
        "        if os.getpid() == process:",
        "        if True:",
        "tests/jit/test_cache_folders.py",
    ),
    Fault(
        "jit/cache.py",
        "    if not from_anyone and not trust.is_ours(folder):\n        return None\n",
        "",
        "tests/jit/test_trust.py",
    ),
    Fault(
        "jit/trust.py",
        '    | getattr(os, "O_NOFOLLOW", 0)\n',
        "",
        "tests/jit/test_trust.py",
    ),
    Fault(
        "jit/trust.py",
        "        if not from_anyone and not _is_ours(found):\n",
        "        if False:\n",
        "tests/jit/test_trust.py",
    ),
    Fault(
        "jit/trust.py",
        "    if len(content) > MAX_BYTES:\n",
        "    if False:\n",
        "tests/jit/test_trust.py",
    ),
    Fault(
        "jit/trust.py",
        "    except RecursionError:\n",
        "    except MemoryError:\n",
        "tests/jit/test_trust_json.py",
    ),
    Fault("jit/trust.py", ", parse_float=_finite)", ")", "tests/jit/test_trust_json.py"),
    Fault("jit/trust.py", "    if not is_ours(folder):\n", "    if False:\n", "tests/jit/test_trust.py"),
    Fault("jit/files.py", " | os.O_NOFOLLOW | os.O_NONBLOCK", "", "tests/jit/test_trust.py"),
    Fault(
        "jit/files.py",
        "                fcntl.flock(file, fcntl.LOCK_UN)\n",
        "                pass\n",
        "tests/jit/test_cache.py",
    ),
    Fault(
        "cpu/blas.py",
        "        self._holders = {me: self._holders[me]} if me in self._holders else {}\n",
        "",
        "tests/cpu/test_fork.py",
    ),
    Fault(
        "cpu/blas.py",
        "{me: self._holders[me]} if me in self._holders else {}",
        "{}",
        "tests/cpu/test_fork.py",
    ),
]

GRADIENTS = [
    Fault(
        "masks/transpose.py",
        "(4, 0x0F0F0F0F)",
        "(4, 0x0F0F0F0E)",
        "tests/masks/test_transpose.py",
    ),
    Fault(
        "masks/transpose.py",
        "first[causal] - block.diagonal",
        "first[causal]",
        "tests/masks/test_transpose.py",
    ),
    Fault(
        "masks/transpose.py",
        "stop = first - (-entries[:, 3] // np.int32(block.bc))",
        "stop = first + 1",
        "tests/masks/test_transpose.py",
    ),
    Fault(
        "masks/transpose.py",
        "np.minimum(turned[:, 3], np.int32(block.q_len), out=turned[:, 3])",
        "turned[:, 3] += 0",
        "tests/masks/test_transpose.py",
    ),
    Fault(
        "masks/key_cut.py",
        "np.where(row == q_len, 2 * q_blocks, stop)",
        "stop",
        "tests/masks/test_key_cut.py",
    ),
    Fault(
        "masks/key_cut.py",
        "lowest.take(block) >= np.minimum(row * br + br, q_len)",
        "lowest.take(block) >= 0",
        "tests/masks/test_key_cut.py",
    ),
    Fault(
        "masks/stretches.py",
        "goes_on[:, 1:] &= used[:, 1:] == used[:, :-1]",
        "goes_on[:, :1] = False",
        "tests/masks/test_key_cut.py",
    ),
    Fault(
        "schedule/ranks.py",
        "(self.walked + self.query) * repeats",
        "self.walked * repeats",
        "tests/schedule/test_ranks.py",
    ),
    Fault(
        "schedule/key_lists.py",
        "np.where(entries[:, 1] >= 0, entries[:, 1] + first, entries[:, 1])",
        "entries[:, 1]",
        "tests/schedule/test_key_lists.py",
    ),
    Fault(
        "schedule/block_lists.py",
        "[one[1:] + np.int32(first) for one, first",
        "[one[1:] for one, first",
        "tests/schedule/test_key_lists.py",
    ),
    Fault(
        "schedule/key_lists.py",
        "fill_parts(lists, work, cut, first.bc)",
        "fill_parts(lists, work, cut, first.br)",
        "tests/schedule/test_key_lists.py",
    ),
    Fault(
        "schedule/key_lists.py",
        "[one.dead_rows for one in turned]",
        "[first.dead_rows for one in turned]",
        "tests/schedule/test_key_lists.py",
    ),
    Fault(
        "schedule/key_lists.py",
        " * workers.repeats",
        "",
        "tests/schedule/test_key_lists.py",
    ),
    Fault(
        "schedule/backward_grid.py",
        "if copies_keys:",
        "if not copies_keys:",
        "tests/schedule/test_backward_grid.py",
    ),
    Fault(
        "schedule/backward_grid.py",
        "group * max(1, min(-(-enough // group), fit))",
        "max(1, min(enough, fit))",
        "tests/schedule/test_backward_grid.py",
    ),
    Fault(
        "gpu/backward.py",
        "not given[0].data.ptr & ALIGN_MASK,",
        "True,",
        "tests/gpu/test_backward_keys.py",
    ),
    Fault(
        "gpu/backward.py",
        "tuple(wanted),",
        "len(wanted),",
        "tests/gpu/test_backward_keys.py",
    ),
    Fault(
        "gpu/backward.py",
        '_targets_key(given[1:4], options.get("out_grads")),',
        "None,",
        "tests/gpu/test_backward_keys.py",
    ),
    Fault(
        "gpu/backward.py",
        "if any(begin < stop and first < end for begin, end in taken):",
        "if False:",
        "tests/gpu/test_backward_keys.py",
    ),
    Fault(
        "gpu/backward.py",
        "if name not in wanted or to.data.ptr & ALIGN_MASK:",
        "if to.data.ptr & ALIGN_MASK:",
        "tests/gpu/test_backward_keys.py",
    ),
    Fault(
        "gpu/backward.py",
        "if sinks is not None and sinks.data.ptr % _LSE_BYTES:",
        "if False:",
        "tests/gpu/test_backward_keys.py",
    ),
    Fault(
        "gpu/backward.py",
        "if is_capturing(stream):",
        "if False:",
        "tests/gpu/test_backward.py",
    ),
    Fault(
        "gpu/backward.py",
        '(scale, type(scale), softcap, type(softcap), deterministic, options.get("config"), cache.epoch)',
        '(scale, type(scale), softcap, type(softcap), options.get("config"), cache.epoch)',
        "tests/gpu/test_backward_keys.py",
    ),
    Fault(
        "gpu/backward_planning.py",
        '"q": dead_rows or not mapped(layouts.q)',
        '"q": not mapped(layouts.q)',
        "tests/gpu/test_backward_copies.py",
    ),
    Fault(
        "gpu/backward_planning.py",
        '"v": dead_keys or not mapped(layouts.v)',
        '"v": not mapped(layouts.v)',
        "tests/gpu/test_backward_copies.py",
    ),
    Fault(
        "gpu/backward_planning.py",
        "plain = layouts.dout_aligned and dout[1][3] == ITEM_BYTES",
        "plain = dout[1][3] == ITEM_BYTES",
        "tests/gpu/test_backward_copies.py",
    ),
    Fault(
        "gpu/backward_planning.py",
        'early = spec.kernel == "sm90" and len(launches) == 2',
        'early = spec.kernel == "sm90"',
        "tests/gpu/test_backward.py",
    ),
    Fault(
        "gpu/backward_plan.py",
        "one.place(argument, arrivals if one.own_counters else counters, rest)",
        "one.place(argument, counters, rest)",
        "tests/gpu/test_backward.py",
    ),
    Fault(
        "gpu/backward_plan.py",
        "arrivals + 4 * _COUNTERS, base",
        "arrivals, base",
        "tests/gpu/test_backward.py",
    ),
    Fault(
        "gpu/backward_plan.py",
        "bound.named != (kept.number, scratch, memory.counters)",
        "bound.named is None",
        "tests/gpu/test_backward_copies.py",
    ),
    Fault(
        "gpu/backward_plan.py",
        "            if copies_left and one.reads_copies:",
        "            if copies_left:",
        "tests/gpu/test_backward_copies.py",
    ),
    Fault(
        "gpu/backward_plan.py",
        "(space.zeroed, space.partials - space.zeroed)",
        "(space.zeroed, space.partials)",
        "tests/gpu/test_backward_fused.py",
    ),
    Fault(
        "schedule/ordered_lists.py",
        "n_ranks=max(1, sum(map(_tiles_of, blocks)))",
        "n_ranks=sum(map(_tiles_of, blocks))",
        "tests/schedule/test_ordered_lists.py",
    ),
    Fault(
        "schedule/ordered_lists.py",
        "OVERLAPPING, PLAYED_SECTIONS = 1.75, 4",
        "OVERLAPPING, PLAYED_SECTIONS = 1.75, 1",
        "tests/choose/test_backward_waits.py",
    ),
    Fault(
        "jit/backward_smem.py",
        "ring = 3 if of.warpgroups == 3 or of.has_dq_apart else 2",
        "ring = 3 if of.warpgroups == 3 else 2",
        "tests/kernels/test_backward_sm90_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/backward/rows_ahead.cuh",
        "return row + thread % kOfRow * kRows + thread % 32 / kOfRow;",
        "return row + thread % kOfRow + thread % 32 / kOfRow;",
        "tests/kernels/test_backward_sm90_on_cpu.py",
    ),
    Fault(
        "schedule/ordered_lists.py",
        'lists.array("entries")[n_entries:, 3] += n_ranks',
        'lists.array("entries")[n_entries:, 3] += 0',
        "tests/schedule/test_early_heads.py",
    ),
    Fault(
        "jit/paged_spec.py",
        "return page_size % LEAST_BOX == 0",
        "return page_size % 4 == 0",
        "tests/gpu/test_paged.py",
    ),
    Fault(
        "choose/pick.py",
        "and share <= row.most_density",
        "",
        "tests/choose/test_pick_short.py",
    ),
    Fault(
        "choose/pick.py",
        "_block_rows(problem, spec) < ENOUGH_ROWS * sm_count",
        "not problem.k_len",
        "tests/choose/test_pick_short.py",
    ),
    Fault(
        "jit/cached_spec.py",
        "if not self.serves_caches:",
        "if self.blocks != 1:",
        "tests/jit/test_spec.py",
    ),
    Fault(
        "jit/paged_spec.py",
        "spec.warps == 16 or spec.source == PACKED",
        "spec.source == PACKED",
        "tests/gpu/test_paged.py",
    ),
]

RANKS = [
    Fault(
        "parallel/pieces.py",
        "jumps |= step.view(np.uint32) > 1",
        "jumps |= step > 1",
        "tests/parallel/test_pieces.py",
    ),
    Fault(
        "parallel/pieces.py",
        "low = np.maximum(np.maximum(low, before), begin + 1)",
        "low = np.maximum(low, begin + 1)",
        "tests/parallel/test_pieces.py",
    ),
    Fault(
        "parallel/pieces.py",
        "ahead = np.array([0, 1])",
        "ahead = np.array([0, 0])",
        "tests/parallel/test_pieces.py",
    ),
    Fault(
        "parallel/prediction.py",
        "return self._sums(near), self._sums(self.keys - near)",
        "return self._sums(self.keys), self._sums(self.keys - near)",
        "tests/parallel/test_exchange.py",
    ),
    Fault(
        "parallel/make.py",
        "still = [(0.0, weight)",
        "still = [(1.0, weight)",
        "tests/parallel/test_pieces.py",
    ),
    Fault(
        "parallel/local.py",
        "masks_intervals.canonical(*rows.below(rank, bounds))",
        "tuple(rows.below(rank, bounds))",
        "tests/parallel/test_plan.py tests/parallel/test_one_process.py",
    ),
    Fault(
        "parallel/exchange.py",
        'found[np.argsort(self.owner[found], kind="stable")]',
        "found",
        "tests/parallel/test_plan.py",
    ),
    Fault(
        "parallel/one_process.py",
        "if target != rank and part is not None",
        "if target > rank and part is not None",
        "tests/parallel/test_one_process.py",
    ),
    Fault(
        "parallel/seen.py",
        "(until[here - a - 1] <= here) & (since[here - a] >= here)",
        "until[here - a - 1] <= here",
        "tests/parallel/test_plan.py",
    ),
    Fault(
        "parallel/seen.py",
        "first[new], latest[new] = a, b - 1",
        "first[new], latest[new] = a, a",
        "tests/parallel/test_plan.py",
    ),
    Fault(
        "parallel/one_process.py",
        '_check_results(plan, q, v, {"dout": dout, "out": out, "lse": lse, "dlse": dlse})',
        '_check_results(plan, q, v, {"out": out, "lse": lse, "dlse": dlse})',
        "tests/parallel/test_errors.py",
    ),
    Fault(
        "serving/rule.py",
        "return (None, 0) if rule.window is None or rule.window >= keys else",
        "return (None, 0) if rule.window is None else",
        "tests/serving/test_rule.py",
    ),
    Fault(
        "call/check_cached.py",
        '"page_table": pools_of(kv)[2], "rows": rows}',
        '"rows": rows}',
        "tests/serving/test_errors.py",
    ),
    Fault(
        "call/check_append.py",
        '"page_table": pools_of(kv)[2]} if slots is None else {"slots": slots}',
        '"page_table": pools_of(kv)[2]} if slots is None else {}',
        "tests/serving/test_errors.py",
    ),
    Fault(
        "masks/segment_masks.py",
        "segments=described, growing=bool(described))",
        "segments=described, growing=True)",
        "tests/masks/test_extend.py",
    ),
    Fault(
        "parallel/plan.py",
        "fill, self._documents_of(one))",
        "fill, self.documents)",
        "tests/parallel/test_plan.py",
    ),
    Fault(
        "parallel/few.py",
        "first = stop - skipped - kept if turned else first + skipped",
        "first = first + skipped",
        "tests/parallel/test_exchange.py",
    ),
    Fault(
        "parallel/distributed.py",
        "        check_captured(q.device)\n",
        "",
        "tests/parallel/test_captured_calls.py",
    ),
    Fault(
        "parallel/trip.py",
        "front[within] if isinstance(within, slice)",
        "front[: sum(self.sent)] if isinstance(within, slice)",
        "tests/parallel/test_distributed.py",
    ),
    Fault(
        "../kernels/exchange_keys.cu",
        "call_ % 2 * p_.slot_bytes",
        "0 * p_.slot_bytes",
        "tests/kernels/test_exchange_on_cpu.py",
    ),
    Fault(
        "../kernels/exchange_add.cu",
        "Eight sum(*g_sum);",
        "Eight sum(make_uint4(0, 0, 0, 0));",
        "tests/kernels/test_exchange_add_on_cpu.py",
    ),
    Fault(
        "../kernels/exchange_keys.cu",
        "return call_ > 1 ? 1 : 0;",
        "return 0;",
        "tests/kernels/test_exchange_on_cpu.py",
    ),
    Fault(
        "../kernels/exchange_keys.cu",
        "part(p_.received[peer], step).count > 0 ? step + 1 : 0",
        "part(p_.received[peer], step).count > 0 ? 1 : 0",
        "tests/kernels/test_exchange_on_cpu.py",
    ),
    Fault(
        "parallel/peers.py",
        "(asked == AUTO and trip.overlaps)",
        "False",
        "tests/parallel/test_peers.py",
    ),
    Fault(
        "parallel/peer_memory.py",
        "or slot_bytes <= self.slot_bytes:",
        "or self.slot_bytes:",
        "tests/parallel/test_peers.py",
    ),
    Fault(
        "parallel/peer_trip.py",
        "last = last if of == capture else None",
        "last = None",
        "tests/parallel/test_peer_order.py",
    ),
    Fault(
        "schedule/even_tiers.py",
        "return found if end <= MOST else tiers",
        "return tiers",
        "tests/schedule/test_even_tiers.py",
    ),
    Fault(
        "parallel/nodes.py",
        "return length if light else 0",
        "return length",
        "tests/parallel/test_middle_pieces.py",
    ),
    Fault(
        "parallel/peer_trip.py",
        "        self._memory.check()\n",
        "",
        "tests/parallel/test_peers.py",
    ),
]

VERIFYING = [
    Fault(
        "tools/verify/serving_judge.py",
        "problem = problem or self._as_plain(one, found, config)",
        "problem = problem or str()",
        "tests/tools/verify/test_serving_cases.py",
    ),
    Fault(
        "tools/verify/serving_judge.py",
        "problem or self._left_alone(one, found[0]) or",
        "problem or",
        "tests/tools/verify/test_serving_cases.py",
    ),
    Fault(
        "tools/verify/serving_kernels.py",
        "        return paged.for_e4m3(spec)",
        "        return spec",
        "tests/tools/verify/test_serving_cases.py",
    ),
    Fault(
        "tools/verify/on_gpu.py",
        "if found and isinstance(case, BackwardCase):",
        "if found and isinstance(case, BackwardCase) and case.group == 'special':",
        "tests/tools/verify/test_build.py",
    ),
    Fault(
        "tools/verify/on_gpu.py",
        "partial(attention, config=forward_spec(case, masks, target.arch))",
        "attention",
        "tests/tools/verify/test_build.py",
    ),
    Fault(
        "tools/verify/on_gpu.py",
        "if self.any_size and not",
        "if not self.any_size and not",
        "tests/tools/verify/test_build.py",
    ),
    Fault(
        "reference/budget.py",
        "xp.maximum(out_error, _of_rounded_weights(name, keys, spread))",
        "out_error",
        "tests/reference/test_attention.py",
    ),
    Fault(
        "reference/attention.py",
        "xp.where(total[..., 0] < 1 + OUTWEIGHED, 0.0, found)",
        "found",
        "tests/reference/test_attention.py",
    ),
    Fault(
        "reference/budget.py",
        "keys > EXACT_KEYS",
        "keys > 0",
        "tests/reference/test_attention.py",
    ),
    Fault(
        "tools/verify/append_cases.py",
        "pools = [xp.array(",
        "pools = [xp.asarray(",
        "tests/tools/verify/test_append_cases.py",
    ),
    Fault(
        "tools/verify/append_cases.py",
        "byte = byte + (tie & (byte % 2 == 1))",
        "byte = byte + (tie & (byte % 2 == 0))",
        "tests/tools/verify/test_append_cases.py",
    ),
    Fault(
        "tools/verify/plan.py",
        "return on_caches | {case.id for case in CACHED_CASES}",
        "return on_caches",
        "tests/tools/verify/test_attestation.py",
    ),
]

# Steps of continuous batching that are replayed, and layers of a step behind its first one.
STEPS = [
    Fault(
        "transformers/graphs.py",
        "layer <= found.layer",
        "layer < found.layer",
        "tests/transformers/test_graph_steps.py",
    ),
    Fault(
        "transformers/graphs.py",
        "min(keys, int(longest) + rows)",
        "min(keys, int(longest) - rows)",
        "tests/transformers/test_graph_steps.py",
    ),
    Fault(
        "transformers/graphs.py",
        "of_rows.clone()",
        "of_rows",
        "tests/transformers/test_graph_steps.py",
    ),
    Fault(
        "transformers/graphs.py",
        "cached(window=window)",
        "cached()",
        "tests/transformers/test_graph_steps.py",
    ),
    Fault(
        "torch/next_layers.py",
        "(step.rows is not None and torch.are_deterministic_algorithms_enabled())",
        "False",
        "tests/torch/test_next_layers.py",
    ),
    Fault(
        "torch/next_layers.py",
        "if kv.k_scale is not None or kv.v_scale is not None or kept.epoch",
        "if kept.epoch",
        "tests/torch/test_next_layers.py",
    ),
    Fault(
        "torch/next_layers.py",
        "table is not kept.table or ",
        "",
        "tests/torch/test_next_layers.py",
    ),
    Fault(
        "torch/call.py",
        "if state.tracer() is not None:\n        return untraced(cached.attention)(",
        "if False:\n        return untraced(cached.attention)(",
        "tests/torch/test_next_layers.py",
    ),
]

# Steps of decoding whose keys a table names: hidden keys, other sequences, plans and masks that are made in vain.
TABLES = [
    Fault(
        "torch/key_tables.py",
        "counts[:, -1:], counts * seen)",
        "counts[:, -1:], counts * 1)",
        "tests/transformers/test_steps.py",
    ),
    Fault(
        "torch/key_tables.py",
        "table.view(-1, shape[2])[:, 1:]",
        "table.view(-1, shape[2])[:, :-1]",
        "tests/torch/test_key_tables.py",
    ),
    Fault(
        "torch/key_tables.py",
        "torch.full(shape, -1,",
        "torch.full(shape, 0,",
        "tests/torch/test_key_tables.py",
    ),
    Fault(
        "torch/key_tables.py",
        "apart=sinks is None",
        "apart=True",
        "tests/torch/test_key_tables.py",
    ),
    Fault(
        "torch/key_layout.py",
        "self.steps == dense",
        "True",
        "tests/transformers/test_steps.py",
    ),
    Fault(
        "torch/key_layout.py",
        "(last // POOL + 1) * POOL",
        "last + 1",
        "tests/torch/test_key_tables.py",
    ),
    Fault(
        "transformers/on_device.py",
        "row >= stop - 1",
        "row >= stop - 2",
        "tests/transformers/test_steps.py",
    ),
    Fault(
        "torch/key_tables.py",
        "q.stride(0) != q.shape[1] * q.stride(1)",
        "q.stride(0) == 0",
        "tests/torch/test_key_tables.py",
    ),
    Fault(
        "torch/key_tables.py",
        "if index != self._index:",
        "if index is None:",
        "tests/torch/test_key_tables.py",
    ),
    Fault(
        "torch/key_tables.py",
        "k.get_device() == index == v.get_device()",
        "k.is_cuda and v.is_cuda",
        "tests/torch/test_key_tables.py",
    ),
    Fault(
        "transformers/mask_tensor.py",
        "keys=keys, source=held)",
        "keys=keys)",
        "tests/transformers/test_steps.py",
    ),
    Fault(
        "transformers/on_device.py",
        "attention_mask.ndim != 2 or ",
        "",
        "tests/transformers/test_steps.py",
    ),
    Fault(
        "transformers/on_device.py",
        "dtype=torch.bool)",
        "dtype=torch.int64)",
        "tests/transformers/test_steps.py",
    ),
]

# Suites that compare a training step: other masks, other samples or another ratio.
BENCHES = [
    Fault(
        "tools/bench/step_stacks.py",
        "left=reach, right=self.tokens)",
        "left=reach + 1, right=self.tokens)",
        "tests/tools/bench/test_step.py",
    ),
    Fault(
        "tools/bench/step_stacks.py",
        "size = min(left, int(rng.integers(self.longest // 4,",
        "size = min(left, int(rng.integers(self.longest // 8,",
        "tests/tools/bench/test_step.py",
    ),
    Fault(
        "tools/bench/step.py",
        "round(figures[name] / theirs[name], 3)",
        "round(theirs[name] / figures[name], 3)",
        "tests/tools/bench/test_step.py",
    ),
    Fault(
        "tools/bench/step.py",
        "off <= CLOSE",
        "off <= 100",
        "tests/tools/bench/test_step.py",
    ),
    Fault(
        "tools/bench/step_masks.py",
        "found &= rows < bounds.stop",
        "found &= rows <= bounds.stop",
        "tests/transformers/test_benches.py",
    ),
    Fault(
        "tools/bench/step_masks.py",
        "return (q >= start[k]) & (q < stop[k])",
        "return (q >= start[k]) & (q <= stop[k])",
        "tests/transformers/test_benches.py",
    ),
    Fault(
        "tools/bench/step_process.py",
        "training.step(packs, SEED + i)",
        "training.step(packs, SEED)",
        "tests/transformers/test_benches.py",
    ),
    Fault(
        "tools/bench/decode_steps.py",
        "= best / took.median_ms",
        "= took.median_ms / best",
        "tests/tools/bench/test_decode_steps.py",
    ),
    Fault(
        "tools/bench/decode_steps.py",
        'if steps[name].known["correct"]}',
        "if name}",
        "tests/tools/bench/test_decode_steps.py",
    ),
    Fault(
        "tools/bench/layer_steps.py",
        "shared.q, shared.k, shared.v = q, k, v",
        "shared.q, shared.k, shared.v = q, k, k",
        "tests/transformers/test_benches.py",
    ),
    Fault(
        "tools/report/steps.py",
        "goal.value(row) if _right(row) else None",
        "goal.value(row)",
        "tests/tools/report/test_steps.py",
    ),
    Fault(
        "tools/bench/captured.py",
        "self.lengths += 1",
        "self.lengths += 0",
        "tests/transformers/test_benches.py",
    ),
]

# Packed tiles that two warpgroups share: parts of other rows, of none and of earlier ones, and keys that nobody sees.
PACKED = [
    Fault(
        "../kernels/omni/sm90/packed/merge.cuh",
        "bool const exists = first + n < split.z && row < rows.live;",
        "bool const exists = row < rows.live;",
        "tests/kernels/test_packed_pair_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/packed/merge.cuh",
        "      scale(sums[i], share(sums[i].row_max, top));\n",
        "",
        "tests/kernels/test_packed_pair_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/packed/merge.cuh",
        "      if (last) *arrivals = 0;\n",
        "",
        "tests/kernels/test_packed_pair_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/packed/loop.cuh",
        "void last_values(WorkSlot const& work) {\n"
        "    if (consumer.state.dead_tile_k0 >= 0) consumer.zero_dead_values(work);\n",
        "void last_values(WorkSlot const& work) {\n",
        "tests/kernels/test_packed_pair_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/packed/loop.cuh",
        "weighing = uniform(consumer.row0) >= live",
        "weighing = uniform(consumer.row0) + 16 >= live",
        "tests/kernels/test_packed_pair_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/packed/loop.cuh",
        "few = kHalves && uniform(consumer.row0) + 8 >= live",
        "few = kHalves && uniform(consumer.row0) + 16 >= live",
        "tests/kernels/test_packed_pair_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/packed/merge.cuh",
        "      if (before & one) atomicAdd(arrivals, 0u - 2 * one);\n",
        "",
        "tests/kernels/test_packed_pair_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/packed/merge.cuh",
        "float const* const g_out = part(1 - split.y);",
        "float const* const g_out = part(split.y);",
        "tests/kernels/test_packed_pair_on_cpu.py",
    ),
]

# Few rows as columns of products: masks of other keys and queries.
FEW_ROWS = [
    Fault(
        "../kernels/omni/sm90/few_rows/eight_rows.cuh",
        "seen[h] = word >> 16 * (lane_id() / 4 % 2);",
        "seen[h] = word >> 16 * (lane_id() % 2);",
        "tests/kernels/test_few_rows_masks_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/few_rows/eight_rows.cuh",
        "found.bits[0][0], 4 * row(h) + lane_id() / 8);",
        "found.bits[0][0], 4 * row(0) + lane_id() / 8);",
        "tests/kernels/test_few_rows_masks_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/few_rows/eight_rows.cuh",
        "return (~small & 0x11111111u << lane_id() % 4) == 0;",
        "return true;",
        "tests/kernels/test_few_rows_on_cpu.py",
    ),
]

# Prompts on caches in pages: lists of another item, and keys and values of another page.
PAGES = [
    Fault(
        "../kernels/omni/sm90/paged/page_warps.cuh",
        "this->smem.walks[this->slot.stage()]",
        "this->smem.walks[0]",
        "tests/kernels/test_ragged_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/forward/producer.cuh",
        "smem.v[stage], &args.v_map, &smem.v_full[stage], kv_head, box, Cfg::kBc / Cfg::kPage);",
        "smem.v[stage], &args.k_map, &smem.v_full[stage], kv_head, box, Cfg::kBc / Cfg::kPage);",
        "tests/kernels/test_ragged_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/forward/pages.cuh",
        "box.page = table.page_of(sequence, tile.first + key, box.row);",
        "box.page = table.page_of(sequence, tile.first, box.row);",
        "tests/kernels/test_ragged_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/paged/key_warps.cuh",
        "      row -= size;\n",
        "",
        "tests/kernels/test_paged_forward_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/paged/key_warps.cuh",
        "found = exists && table.has(entries[w]);",
        "found = exists;",
        "tests/kernels/test_paged_forward_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/paged/key_warps.cuh",
        "whole = whole && found;",
        "whole = whole && exists;",
        "tests/kernels/test_paged_forward_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/paged/triple_key_warps.cuh",
        "pair.row[n] + 16 * chunk, bytes);",
        "pair.row[0] + 16 * chunk, bytes);",
        "tests/kernels/test_paged_forward_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/paged/triple_key_warps.cuh",
        "none[w] = __ballot_sync(0xffffffffu, exists && !found);",
        "none[w] = __ballot_sync(0xffffffffu, exists && w != 0 && !found);",
        "tests/kernels/test_paged_forward_on_cpu.py",
    ),
    Fault(
        "../kernels/omni/sm90/paged/triple_key_warps.cuh",
        "by_page.quotient(tile.first + min(32 * w + lane_id(), last))",
        "by_page.quotient(tile.first + min(lane_id(), last))",
        "tests/kernels/test_paged_forward_on_cpu.py",
    ),
]

ODD_TENSORS = [
    Fault(
        "torch/appending.py",
        "    if not tensors.lie_in_memory(*held.values()):\n",
        "    if not tensors.lie_in_memory(k, v):\n",
        "tests/torch/test_odd_tensors.py",
    ),
    Fault(
        "torch/cached.py",
        "lie_in_memory(q, k, v, out, sink_logits, *numbers.values())",
        "lie_in_memory(q, k, v, out, sink_logits)",
        "tests/torch/test_odd_tensors.py",
    ),
    Fault(
        "torch/operator.py",
        "    check_scores.check_kinds(scale, softcap)  # of other kinds the dispatcher would make numbers\n",
        "",
        "tests/torch/test_odd_tensors.py",
    ),
    Fault(
        "torch/autograd.py",
        "    check_scores.check_kinds(*scores)\n",
        "",
        "tests/torch/test_odd_tensors.py",
    ),
    Fault(
        "call/check_cached.py",
        "if step.softcap is not None and (mine is None or",
        "if step.softcap is not None and (",
        "tests/serving/test_cached_on_cpu.py",
    ),
]
FAULTS = (
    CALLS
    + MEMORY
    + FILES
    + GRADIENTS
    + RANKS
    + VERIFYING
    + STEPS
    + TABLES
    + BENCHES
    + PACKED
    + FEW_ROWS
    + PAGES
    + ODD_TENSORS
)


def text_with(fault: Fault, root: Path = ROOT) -> str:
    """The file with the fault in it. Raises ValueError where the text to change does not stand there once."""
    text = (root / "omnicupy" / fault.file).read_text()
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.file} has {text.count(fault.old)} times, expected 1:\n{fault.old}")
    return text.replace(fault.old, fault.new)


def is_found(fault: Fault, copy: Path) -> bool:
    """Whether the tests fail in a copy of the tree with the fault."""
    path = copy / "omnicupy" / fault.file
    before = path.read_text()
    path.write_text(text_with(fault, copy))
    try:
        return _failed(copy, fault.tests.split())
    finally:
        path.write_text(before)


def _failed(copy: Path, tests: Sequence[str]) -> bool:
    options = ("-q", "-x", "-p", "no:cacheprovider", "-n", "0", "--every-case")
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, 1):
        raise RuntimeError(
            f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.returncode == 1


def copy_of_tree(copy: Path) -> Path:
    """What the tests need, in a new folder."""
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    return copy


def survivors_of(faults: Sequence[Fault], folder: Path, jobs: int) -> int:
    """Try faults, `jobs` at once, and print a line for each, in their order; returns how many were not found.

    Raises RuntimeError where a test fails without any fault.
    """
    copies: SimpleQueue[Path] = SimpleQueue()
    for number in range(jobs):
        copies.put(copy_of_tree(folder / str(number)))

    def in_a_copy(call: Callable[[Path], bool]) -> bool:
        copy = copies.get()  # there are as many as threads
        try:
            return call(copy)
        finally:
            copies.put(copy)

    tests = sorted({test for fault in faults for test in fault.tests.split()})
    shares = [tests[number::jobs] for number in range(min(jobs, len(tests)))]
    survivors = 0
    with ThreadPoolExecutor(jobs) as pool:
        if any(pool.map(lambda share: in_a_copy(lambda copy: _failed(copy, share)), shares)):
            raise RuntimeError("the tests fail already without any fault")
        results = pool.map(lambda fault: in_a_copy(lambda copy: is_found(fault, copy)), faults)
        for fault, found in zip(faults, results, strict=True):
            survivors += not found
            line = fault.old.strip().splitlines()[0]
            print(f"{'found' if found else 'SURVIVES':9} {fault.file:24} {line}", flush=True)
    return survivors


def main(word: str = "", jobs: str = "") -> int:
    """Try all faults whose file or text has the word; returns how many were not found."""
    chosen = [fault for fault in FAULTS if word in f"{fault.file}\n{fault.old}"]
    if not chosen:
        raise SystemExit(
            f"mutate.py: expected a word of a fault's file or text, got {word!r}, which none has"
        )
    with tempfile.TemporaryDirectory() as folder:
        survivors = survivors_of(chosen, Path(folder), int(jobs or os.cpu_count() or 1))
    print(f"{len(chosen) - survivors} of {len(chosen)} faults were found")
    return survivors


if __name__ == "__main__":
    from usage import words

    sys.exit(main(*words(__doc__)))

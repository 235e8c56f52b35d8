"""Studies of tiles: all of a kernel, or those that are worth a look beside the table's choice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from omnicupy.choose import backward_table, pick, variants
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.build import Compiled, Spec, compile_all
from omnicupy.jit.spec import AttnSpec
from omnicupy.tools.bench.gradients import ANY_ORDER, SPLIT
from omnicupy.tools.bench.measure import Session, measure
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.watchdog import Watchdog
from omnicupy.tools.workloads.workload import Workload

TILE_SAMPLES = 10  # at most, of each of hundreds of tiles
CHECKED = 2  # batch elements whose gradients are held against the reference, of each of them
HANG_S = 240.0  # without a word from a study of tiles, after which the process ends and names the last one
LEAST_WALKED, MOST_WALKED = 32, 128  # tokens of a tile that a thread block of a backward pass walks over


def measure_tiles(kernel: str) -> Callable[[Session, Workload, Sequence[str]], None]:
    """What measures every tile of a kernel of the forward pass."""

    def run_one(session: Session, workload: Workload, systems: Sequence[str]) -> None:
        _watched(session, workload, systems or every_tile(session, workload.head_dim, kernel))

    return run_one


def measure_choice(session: Session, workload: Workload, systems: Sequence[str]) -> None:
    """The table's choice beside the tiles that are worth a look, of the session's pass."""
    likely = likely_gradients if session.timed.has_gradients else likely_tiles
    _watched(session, workload, systems or likely(session, workload))


def every_tile(session: Session, head_dim: int, kernel: str) -> list[str]:
    """Every tile of a kernel that compiles without spills, as system names.

    Without swizzle (every tile is several times slower so) only those that the comparison needs.
    """
    found = variants.every(session.arch, session.dtype, head_dim, kernel, plain=True)
    return _compiled(
        session,
        [spec for spec in found if spec.br >= 64 and (spec.swizzle or (spec.bc == 64 and spec.stages < 3))],
    )


def likely_tiles(session: Session, workload: Workload) -> list[str]:
    """What a call of a workload gets, and the tiles of the wgmma kernel that have won anywhere: warpgroups that take
    turns, 64 keys up to twice the rows, the deepest ring of up to three stages; with several thread blocks a
    multiprocessor 32 keys and four stages, too.
    """
    mask = workload.mask()
    picked = pick.pick(session.arch, workload.problem(mask, session.dtype), (mask,), session.sm_count)
    every = variants.every(session.arch, session.dtype, workload.head_dim, "sm90", short=True)
    likely = [
        spec
        for spec in every
        if spec.ping_pong
        and (32 if spec.blocks > 1 else 64) <= spec.bc <= 2 * spec.br
        and 2 <= spec.stages <= (4 if spec.blocks > 1 else 3)
    ]
    deepest = {
        (spec.br, spec.bc, spec.blocks, spec.scheduler): spec
        for spec in sorted(likely, key=lambda one: one.stages)
    }
    others = [spec for spec in deepest.values() if spec != picked]
    return [OURS, *_compiled(session, others)]


def likely_gradients(session: Session, workload: Workload) -> list[str]:
    """The forms of a workload's backward pass, in one order and in any, and other tiles of each of its kernels.

    A tile is worth a look if it is not what calls get and walks over LEAST_WALKED to MOST_WALKED tokens at a time, with
    the deepest ring that fits. dK and dV are made beside the table's dQ and the other way round: which tile is the
    best of one does not depend on the other.
    """
    mask = workload.mask()
    problem = workload.problem(mask, session.dtype)
    table = backward_table.pick(session.arch, session.dtype, problem.head_dim)
    forms = [
        OURS,
        *([f"{OURS}:{ANY_ORDER}"] if table.fused else []),
        *([f"{OURS}:{SPLIT}"] if table.ordered else []),
    ]
    named: dict[str, BackwardSpec] = {}
    in_any, in_one = (
        backward_table.chosen_for(session.arch, problem, (mask,), deterministic=order)
        for order in (False, True)
    )
    got = {"dkdv": table.dkdv, "dq": table.dq, "fused": in_any.fused, "ordered": in_one.ordered}
    for part, own in got.items():
        for spec in _deepest(table, part, own):
            named[f"{OURS}:{part}-{variants.tile_word(getattr(spec, part))}"] = spec
    kernels = {name: spec.part(name.partition(":")[2].partition("-")[0]) for name, spec in named.items()}
    good = {one.spec: one.problem for one in _compile_all(session, list(dict.fromkeys(kernels.values())))}
    for name, kernel in kernels.items():
        if good[kernel]:
            session.say(f"left out: {name}: {good[kernel].splitlines()[0]}")
    return [*forms, *(name for name, kernel in kernels.items() if not good[kernel])]


def _deepest(table: BackwardSpec, part: str, own: TileShape | None) -> Iterator[BackwardSpec]:
    """The table's kernels with other tiles of one of them; none where the table has no such kernel. own: what calls
    get, None where they get no such kernel.
    """
    if getattr(table, part) is None:
        return
    others = variants.every_tile(table, part)
    legal: list[Any] = [table, *(spec for spec in others if getattr(spec, part) is not None)]
    left_out = [_kind(spec, part) for spec in legal if getattr(spec, part) == own]
    deepest: dict[Any, BackwardSpec] = {}
    for spec in sorted(legal, key=lambda one: int(getattr(one, part).stages)):
        tile: TileShape = getattr(spec, part)
        walked = tile.bc if part == "dq" else tile.br
        if LEAST_WALKED <= walked <= MOST_WALKED and _kind(spec, part) not in left_out:
            deepest[_kind(spec, part)] = spec
    yield from deepest.values()


def _kind(spec: BackwardSpec, part: str) -> tuple[int, int, int, bool]:
    """What tiles of one kernel differ in but for the depth of their ring: rows, keys, warps, and the way of dQ."""
    tile: TileShape = getattr(spec, part)
    return tile.br, tile.bc, tile.warps, spec.part(part).is_staged


def _compile_all(session: Session, specs: Sequence[Spec]) -> list[Compiled[Spec]]:
    """Compile; where another process may be timing, by threads that leave its launches the cores."""
    if not session.turns.is_shared:
        return compile_all(specs)
    # Threads are as nice as the one that starts them.
    with ThreadPoolExecutor(1, initializer=os.nice, initargs=(19,)) as pool:
        return pool.submit(compile_all, specs).result()


def _compiled(session: Session, specs: Sequence[AttnSpec]) -> list[str]:
    """Those that compile without spills, as system names; says which do not."""
    good = set()
    for one in _compile_all(session, specs):
        if one.problem:
            session.say(f"left out: {variants.word(one.spec)}: {one.problem.splitlines()[0]}")
        else:
            good.add(one.spec)
    return [f"{OURS}:{variants.word(spec)}" for spec in specs if spec in good]


def _watched(session: Session, workload: Workload, systems: Sequence[str]) -> None:
    """Measure tiles that nobody else runs: among hundreds of them one may hang."""
    with Watchdog(HANG_S) as watchdog:

        def say(line: str) -> None:
            watchdog.step(line)
            session.say(line)

        if session.turns.is_shared:
            session.turns.around_waits = watchdog.waiting
        few = min(session.samples, TILE_SAMPLES)
        measure(replace(session, samples=few, host=False, say=say), workload, systems, CHECKED)

"""What stands behind `tune`: the search on the current GPU, its table, the choice that is kept, a row for the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from itertools import chain
from typing import Any

from omnicupy.api import attention
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, classes, pick, saved, variants
from omnicupy.choose import table as choose_table
from omnicupy.choose.classes import BACKWARD, FORWARD, ProblemClass
from omnicupy.choose.saved import Machine
from omnicupy.jit import archs
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.build import Track, silent
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.mask import Mask
from omnicupy.reference import checked_rows
from omnicupy.tools import environment
from omnicupy.tools.bench import measure, timing
from omnicupy.tools.bench.gradients import PASSES
from omnicupy.tools.tune import backward, search
from omnicupy.tools.tune.caches import Cache, CacheTrial
from omnicupy.tools.tune.search import Entry, Found
from omnicupy.tools.watchdog import Watchdog
from omnicupy.tools.workloads.workload import Workload

MOST_LINES = 20  # of the printed ranking
HANG_S = 120.0  # after which a variant that does not end is named and the process ended


class GpuTrial:
    """A workload's inputs on the current GPU, as search.Trial. step: told of each variant before it runs."""

    def __init__(self, workload: Workload, mask: Mask, dtype: str, step: Callable[[str], None]) -> None:
        import cupy

        self._mask, self._step = mask, step
        self._arrays = measure.make_inputs(workload, mask, dtype)
        self._judge = checked_rows.CheckedRows(self._arrays, mask)
        self._clock = timing.Clock(cupy)

    def error(self, spec: AttnSpec) -> float:
        """The largest error of checked rows over that of the same-precision reference."""
        return self._judge.error(self._call(spec))

    def sample(self, spec: AttnSpec) -> float:
        """Milliseconds of one call, from a cold L2 cache."""
        return self._clock.sample(lambda: self._call(spec))

    def _call(self, spec: AttnSpec) -> Any:
        self._step(variants.word(spec))
        return attention(*self._arrays, self._mask, config=spec)


@dataclass(frozen=True)
class Tuned:
    """A finished search and what it was of. arch: the device's.  flops: of one pass."""

    workload: Workload
    problem: Problem
    arch: str
    machine: Machine
    problem_class: ProblemClass
    flops: float
    found: Found

    def as_json(self) -> dict[str, Any]:
        """All figures, for programs."""
        return {
            "machine": asdict(self.machine),
            "problem": asdict(self.problem),
            "mask": self.workload.name,
            "class": asdict(self.problem_class),
            "builtin": variants.word(self.found.builtin),
            "winner": variants.word(self.found.winner),
            "gain": round(self.found.gain, 4),
            "ranking": [self._line(entry) for entry in self.found.ranking],
            "dropped": {variants.word(spec): reason for spec, reason in self.found.dropped},
        }

    def _line(self, entry: Entry) -> dict[str, Any]:
        return {
            "variant": variants.word(entry.spec),
            "ms": round(entry.ms, 5),
            "tflops": round(self.flops / entry.ms / 1e9, 1),
            "rounds_ms": [round(ms, 5) for ms in entry.rounds_ms],
            "error": round(entry.error, 3),
        }


def run(
    workload: Workload,
    dtype: str,
    kernels: Sequence[str] = (),
    settings: search.Settings | None = None,
    track: Track = silent,
    *,
    passed: str = FORWARD,
    deterministic: bool = True,
    cache: Cache | None = None,
) -> Tuned:
    """Search the legal variants of `kernels` (() for all that serve the device) for a workload on this GPU.

    dtype: "bfloat16" or "float16".  passed: FORWARD or BACKWARD, of which () is the kernel that calls get.
    deterministic: False for backward passes whose sums may have any order.  cache: where keys and values are, None for
    arrays of their own.

    Raises ValueError without a GPU and for a workload that a cache does not have, UnsupportedError when no kernel
    serves the problem, and what search.search raises.
    A variant that hangs ends the process, which names it.
    """
    if not environment.has_gpu():
        raise ValueError("tune: a GPU is needed, and there is none here")
    import cupy

    from omnicupy.gpu.device import device_info

    info = device_info(cupy.cuda.Device().id)
    arch = archs.arch_of(info.major, info.minor)
    mask = workload.mask()
    problem = workload.problem(mask, dtype)
    measure.check_memory(workload, mask)
    if cache is not None:
        cache.check(workload, mask)
    of_class: dict[str, Any] = {"passed": passed, "deterministic": deterministic}
    of_class["cache"] = classes.NONE if cache is None else cache.kind
    problem_class = classes.class_of(problem, (mask,), info.sm_count, **of_class)
    with pick.serve_every_kernel(), Watchdog(HANG_S) as watchdog:

        def watched(items: Iterable[Any], label: str, length: int) -> Iterator[Any]:
            for item in track(items, label, length):
                watchdog.step(label)
                yield item

        what = (workload, mask, dtype, watchdog.step)
        if passed == BACKWARD:
            found = _backward(arch, problem, kernels, (settings, watched), what, deterministic=deterministic)
        else:
            found = _forward(
                arch, problem, kernels, (settings, watched), what, cache=cache, sm_count=info.sm_count
            )
    flops = workload.flops(mask.pairs) * (PASSES["bwd"].flops if passed == BACKWARD else 1)
    return Tuned(workload, problem, arch, saved.current_machine(), problem_class, flops, found)


def _forward(
    arch: str,
    problem: Problem,
    kernels: Sequence[str],
    how: tuple[search.Settings | None, Track],
    what: tuple[Workload, Mask, str, Callable[[str], None]],
    *,
    cache: Cache | None,
    sm_count: int,
) -> Found:
    """The search of a forward pass. how, what: as below."""
    sizes: dict[str, Any] = {"group": problem.group, "value_dim": problem.value_dim, "short": cache is None}
    kinds = kernels or ("sm90", "sm80")
    specs = search.candidates(arch, problem.dtype, problem.head_dim, problem.q_len, kinds, **sizes)
    if cache is None:
        builtin = pick.pick(arch, problem, (what[1],), sm_count)
        return search.search(specs, builtin, GpuTrial(*what), *how)
    builtin = cache.builtin(arch, problem, what[1], sm_count)
    specs = [spec for spec in specs if cache.serves(spec)]
    return search.search(specs, builtin, CacheTrial(*what, cache), *how, cache.compile_specs)


def _backward(
    arch: str,
    problem: Problem,
    kernels: Sequence[str],
    how: tuple[search.Settings | None, Track],
    what: tuple[Workload, Mask, str, Callable[[str], None]],
    *,
    deterministic: bool,
) -> Found:
    """The search of a backward pass. how: settings and display.  what: the arguments of the trial."""
    builtin = backward_table.chosen_for(arch, problem, (what[1],), deterministic=deterministic)
    specs = backward.candidates(arch, problem, kernels, deterministic=deterministic)
    trial = backward.GradientTrial(*what, deterministic=deterministic)
    more = backward.combined
    return search.search(specs, builtin, trial, *how, backward.compile_specs, more=more)


def keep(result: Tuned) -> str:
    """Keep the winner for later calls of its class; returns a sentence that says what was done.

    Where the table's choice stays, one that was kept before is dropped. Raises OSError when the file cannot be
    written.
    """
    found = result.found
    if found.winner == found.builtin:
        saved.drop(result.machine, result.problem_class)
        return "The table's choice stays: no other variant won both rounds."
    winner = found.entry(found.winner)
    measured = {
        "ms": winner.ms,
        "table": variants.word(found.builtin),
        "table_ms": found.entry(found.builtin).ms,
    }
    path = saved.keep(result.machine, result.problem_class, found.winner, measured)
    text = f"Kept {variants.word(found.winner)} ({found.gain:.1%} faster) in {path}, for {describe(result)}."
    if isinstance(found.winner, BackwardSpec):
        text += " Calls do not use kept choices of the backward pass yet: pass it as config."
    elif found.winner.kernel not in pick.SERVED:
        text += f" Calls use it once kernel {found.winner.kernel!r} is attested."
    return text


def describe(result: Tuned) -> str:
    """The class of problems in words."""
    of = result.problem_class
    widths = f"head_dim {of.head_dim}" + (f" and {of.value_dim}" if of.value_dim != of.head_dim else "")
    text = f"{of.dtype}, {widths}, mask {of.mask}, {of.shape}" + (f", cache: {of.cache}" if of.cache else "")
    if of.passed == FORWARD:
        return text
    return f"{of.passed} pass, {text}" + ("" if of.deterministic else ", sums in any order")


def table(result: Tuned) -> str:
    """The ranking as text, a variant a line, and how many were left out why."""
    words = [variants.word(entry.spec) for entry in result.found.ranking]
    width = max(28, *(len(word) + 1 for word in words))
    lines = [f"{'':4}{'variant':{width}}{'ms':>10}{'TFLOP/s':>10}{'vs table':>10}"]
    table_ms = result.found.entry(result.found.builtin).ms
    for place, entry in enumerate(result.found.ranking, 1):
        mark = "  the table's" if entry.spec == result.found.builtin else ""
        if place > MOST_LINES and not mark:
            continue
        rate, name = result.flops / entry.ms / 1e9, words[place - 1]
        lines.append(f"{place:<4}{name:{width}}{entry.ms:10.4f}{rate:10.0f}{table_ms / entry.ms:9.3f}x{mark}")
    hidden = len(result.found.ranking) - len(lines) + 1
    if hidden:
        lines.append(f"... and {hidden} slower ones")
    if result.found.dropped:
        lines.append(f"left out: {len(result.found.dropped)} that do not compile cleanly, fail or are wrong")
    return "\n".join(lines)


def _origin(result: Tuned, winner: AttnSpec) -> choose_table.Row:
    """The row that the table's choice is of. Where another variant had taken that one's place on a cache, the first row
    of the winner's kind.
    """
    of = result.arch, result.problem.dtype, winner.head_dim, winner.value_dim
    rows = [row for row in choose_table.TABLE if row.serves(*of)]
    named = (row for row in rows if row.spec(*of) == result.found.builtin)
    alike = (row for row in rows if (row.kernel, row.pack) == (winner.kernel, winner.pack))
    return next(chain(named, alike))


def proposed_row(result: Tuned) -> str:
    """The winner as a line for its pass's table, for these widths, architecture and the kind of problem it was found
    on.
    """
    found = result.found
    if isinstance(found.winner, BackwardSpec):
        return backward.proposed_row(result.arch, found.winner)
    if isinstance(found.winner, FewRowsSpec):
        return f"# {variants.word(found.winner)} stays: choose/paged.py names it, no row of the table does"
    head_dim, value_dim = found.winner.head_dim, found.winner.value_dim
    origin = _origin(result, found.winner)
    of_spec = {
        one.name: getattr(found.winner, one.name)
        for one in fields(choose_table.Row)
        if hasattr(found.winner, one.name)
    }
    of_spec["value_dim"] = None if value_dim == head_dim else value_dim
    if origin.shape == "shared" and found.winner.heads == 1:
        of_spec["shape"] = "small"
    row = replace(origin, **of_spec, head_dims=(head_dim, head_dim), archs=(result.arch,), competes=False)
    shown = ", ".join(
        f"{one.name}={getattr(row, one.name)!r}"
        for one in fields(row)
        if one.default is MISSING or getattr(row, one.name) != one.default
    )
    return f"Row({shown}),"

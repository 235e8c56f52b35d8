"""The search behind `tune`: every legal variant for one problem, held against the reference, timed, ranked.

A GPU's times move by a few per cent between calls and drift with its temperature. So variants are sampled in turn,
in an order that is drawn anew each time, and a variant is only taken instead of the table's when it wins two
rounds that share no sample.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from omnicupy.choose import variants
from omnicupy.choose.variants import Variant
from omnicupy.errors import UnsupportedError
from omnicupy.jit.build import Compiled, Track, compile_all, silent
from omnicupy.jit.spec import AttnSpec
from omnicupy.reference import checked_rows
from omnicupy.tools.bench import measure

ROUNDS = 2
SHORT_ROWS = 64  # problems of more query rows are not tried on tiles of fewer
HOPELESS = 2.0  # times the best screening time, after which a variant gets no further sample


@dataclass(frozen=True)
class Settings:
    """screening: samples of every variant.  finalists: how many of the quickest enter the rounds.  samples: of each
    finalist in each round.  margin: share of the table's time by which a winner must be faster.  turns: share of a
    round's turns in which it must be faster at all.  tie: share of the best time within which a variant has won too.
    """

    screening: int = 3
    finalists: int = 8
    samples: int = 20
    margin: float = 0.01
    turns: float = 0.75
    tie: float = 0.005


class Trial(Protocol):
    """A problem on a device. error: the largest error over that of the same-precision reference.  sample: time
    of one call in milliseconds. Both raise what the call raises.
    """

    def error(self, spec: Any) -> float: ...

    def sample(self, spec: Any) -> float: ...


@dataclass
class Entry:
    """A variant that runs and is right. screened_ms: its median in the screening.  rounds_ms: its medians in the
    rounds, [] for one that did not reach them.
    """

    spec: Variant
    error: float
    screened_ms: float = 0.0
    rounds_ms: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """The time that it is ranked by: the mean of its rounds, else that of the screening."""
        return statistics.mean(self.rounds_ms) if self.rounds_ms else self.screened_ms


@dataclass(frozen=True)
class Found:
    """What a search found. builtin: the table's choice.  winner: what calls should get; builtin unless another
    variant won both rounds.  ranking: finalists by their time, then the others by theirs.  dropped: variants that
    do not compile without spills, fail or are wrong, and why.
    """

    builtin: Variant
    winner: Variant
    ranking: tuple[Entry, ...]
    dropped: tuple[tuple[Variant, str], ...]

    def entry(self, spec: Variant) -> Entry:
        """The entry of a variant that was ranked. Raises KeyError for another."""
        for entry in self.ranking:
            if entry.spec == spec:
                return entry
        raise KeyError(spec)

    @property
    def gain(self) -> float:
        """How much longer the table's choice takes than the winner, as a share; 0 where it stays."""
        return self.entry(self.builtin).ms / self.entry(self.winner).ms - 1


def candidates(
    arch: str,
    dtype: str,
    head_dim: int,
    q_len: int,
    kernels: Sequence[str],
    *,
    group: int = 1,
    value_dim: int | None = None,
    short: bool = False,
) -> list[AttnSpec]:
    """The legal variants of `kernels` that are worth compiling for a problem of `q_len` rows and `group` query heads a
    head of keys. value_dim: columns of v, None for head_dim.  short: also those for short block rows, for calls that
    are on no cache.
    """
    more: dict[str, Any] = {"group": group, "value_dim": value_dim, "short": short}
    found = [
        spec
        for kernel in kernels
        if kernel != "sm90" or arch == "sm_90"
        for spec in variants.every(arch, dtype, head_dim, kernel, **more)
    ]
    return [
        spec
        for spec in found
        if q_len <= SHORT_ROWS or (spec.br >= SHORT_ROWS and spec.heads == 1 and not spec.pack)
    ]


def search(
    specs: Sequence[Variant],
    builtin: Variant,
    trial: Trial,
    settings: Settings | None = None,
    track: Track = silent,
    build: Callable[[Any, Track], list[Compiled[Any]]] = compile_all,
    *,
    more: Callable[[Sequence[Entry]], Sequence[Variant]] = lambda entries: (),
) -> Found:
    """Compile, check, screen and rank `specs` and the table's choice `builtin` on a trial.

    more: given the screened entries, the quickest first, it names further variants that are worth a look.
    Raises UnsupportedError when builtin itself does not compile, fails or is wrong: then no comparison holds.
    """
    settings = settings or Settings()
    dropped: list[tuple[Variant, str]] = []

    def screened(wanted: Sequence[Variant]) -> list[Entry]:
        compiled = build(list(dict.fromkeys(wanted)), track)
        dropped.extend((one.spec, one.problem.splitlines()[0]) for one in compiled if one.problem)
        found = _checked([one.spec for one in compiled if not one.problem], trial, dropped, track)
        return _screened(found, trial, settings, dropped, track)

    entries = sorted(screened((builtin, *specs)), key=lambda entry: entry.screened_ms)
    if builtin not in {entry.spec for entry in entries}:
        reason = dict(dropped)[builtin]
        raise UnsupportedError(
            f"the table's choice {variants.word(builtin)} cannot be compared with: {reason}"
        )
    if further := more(entries):
        entries += screened(further)
    entries.sort(key=lambda entry: entry.screened_ms)
    final = entries[: settings.finalists]
    final += [entry for entry in entries if entry.spec == builtin and entry not in final]
    winners = set(range(len(final)))
    table = next(place for place, entry in enumerate(final) if entry.spec == builtin)
    for number in range(ROUNDS):
        samples = _round(final, trial, settings.samples, track, number)
        for entry, times in zip(final, samples, strict=True):
            entry.rounds_ms.append(float(np.median(times)))
        winners &= _winners(samples, table, settings)
    won = [final[i] for i in winners]
    winner = min(won, key=lambda entry: entry.ms).spec if won else builtin
    ranked = sorted(entries, key=lambda entry: (not entry.rounds_ms, entry.ms))
    return Found(builtin, winner, tuple(ranked), tuple(dropped))


def _checked(
    specs: Sequence[Variant], trial: Trial, dropped: list[tuple[Variant, str]], track: Track
) -> list[Entry]:
    """The variants whose checked rows are right, before anything is timed."""
    entries = []
    for spec in track(specs, "checking", len(specs)):
        try:
            error = trial.error(spec)
        except Exception as failure:  # whatever a launch raises is this variant's result
            dropped.append((spec, measure.reason(failure)))
            continue
        if error <= checked_rows.TOLERANCE:
            entries.append(Entry(spec, error))
        else:
            dropped.append(
                (spec, f"wrong: error {error:.3g} of the reference's, allowed {checked_rows.TOLERANCE}")
            )
    return entries


def _screened(
    entries: list[Entry], trial: Trial, settings: Settings, dropped: list[tuple[Variant, str]], track: Track
) -> list[Entry]:
    """A few samples of each, in turn; those that are hopeless after the first one get no more."""
    samples: dict[Variant, list[float]] = {}
    left = list(entries)
    turns = [(turn, entry) for turn in range(settings.screening) for entry in entries]
    for turn, entry in track(turns, "screening", len(turns)):
        so_far = samples.get(entry.spec, [])
        best = min((found[0] for found in samples.values()), default=float("inf"))
        if entry not in left or (turn and so_far[0] > HOPELESS * best):
            continue
        try:
            if not turn:
                trial.sample(entry.spec)  # warm: modules are loaded, lists are on the device
            samples.setdefault(entry.spec, []).append(trial.sample(entry.spec))
        except Exception as failure:
            samples.pop(entry.spec, None)
            left.remove(entry)
            dropped.append((entry.spec, measure.reason(failure)))
    for entry in left:
        entry.screened_ms = statistics.median(samples[entry.spec])
    return left


def _round(
    final: Sequence[Entry], trial: Trial, samples: int, track: Track, number: int
) -> NDArray[np.float64]:
    """Times of each finalist (finalists, samples), taken in turn in an order that is drawn anew for each turn."""
    found = np.zeros((len(final), samples))
    draw = np.random.default_rng(number)
    for turn in track(range(samples), f"round {number + 1}", samples):
        for place in draw.permutation(len(final)).tolist():
            found[place, turn] = trial.sample(final[place].spec)
    return found


def _winners(samples: NDArray[np.float64], table: int, settings: Settings) -> set[int]:
    """Places of those that won a round: near the best, clearly faster than the table's choice, and faster than it
    in most turns, whose two samples are neighbours in time.
    """
    medians = np.median(samples, axis=1)
    limit = min(medians.min() * (1 + settings.tie), medians[table] * (1 - settings.margin))
    often = (samples < samples[table]).mean(axis=1) >= settings.turns
    return set(np.flatnonzero((medians <= limit) & often).tolist())

"""The tile search on a stand-in GPU whose times are known but noisy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from noisy_gpu import BUILTIN, SPECS, Noisy, clean

from omnicupy.choose import table
from omnicupy.errors import UnsupportedError
from omnicupy.jit.build import Compiled
from omnicupy.jit.spec import AttnSpec
from omnicupy.reference import checked_rows
from omnicupy.tools.tune import search


def _search(trial: Noisy, **options: Any) -> search.Found:
    return search.search(SPECS, BUILTIN, trial, build=clean, **options)


@pytest.mark.parametrize("seed", range(5))
def test_the_fastest_wins_through_noise_and_drift(seed: int) -> None:
    trial = Noisy({BUILTIN: 1.1, SPECS[2]: 1.0, SPECS[9]: 1.04}, seed=seed)
    found = _search(trial)
    assert found.winner == SPECS[2]
    assert found.gain == pytest.approx(0.1, abs=0.03)
    assert [entry.spec for entry in found.ranking[:3]] == [SPECS[2], SPECS[9], BUILTIN]
    assert all(len(entry.rounds_ms) == 2 for entry in found.ranking[:8])
    assert found.dropped == ()


@pytest.mark.parametrize("seed", range(20))
def test_the_table_s_choice_stays_when_nothing_is_clearly_faster(seed: int) -> None:
    trial = Noisy(dict.fromkeys(SPECS, 1.0) | {SPECS[3]: 0.995}, seed=seed)
    found = _search(trial)
    assert (found.winner, found.gain) == (BUILTIN, 0.0)


def test_a_winner_must_win_both_rounds() -> None:
    class Fickle(Noisy):
        """SPECS[1] is the fastest in the first round, SPECS[2] in the second."""

        def sample(self, spec: AttnSpec) -> float:
            super().sample(spec)
            second = len(self.sampled) > switch
            return {SPECS[1]: 0.95 if second else 0.5, SPECS[2]: 0.5 if second else 0.95}.get(spec, 1.0)

    screening = len(SPECS) * 4
    switch = screening + 8 * 20
    assert _search(Fickle({})).winner == BUILTIN
    switch = 10**9
    assert _search(Fickle({})).winner == SPECS[1]


def test_near_ties_do_not_hide_a_clear_gain() -> None:
    for seed in range(5):
        found = _search(Noisy({SPECS[0]: 1.0, SPECS[1]: 1.0, BUILTIN: 1.2}, noise=0.001, seed=seed))
        assert found.winner in SPECS[:2]


def test_samples_are_interleaved_in_drawn_orders() -> None:
    trial = Noisy({})
    _search(trial, settings=search.Settings(finalists=4, samples=6))
    assert trial.sampled[:4] == [SPECS[5], SPECS[5], SPECS[0], SPECS[0]]  # a warm call first
    rounds = trial.sampled[4 * len(SPECS) :]
    final = set(rounds[:5])
    assert len(final) == 5  # four, and the table's
    turns = [rounds[i : i + 5] for i in range(0, len(rounds), 5)]
    assert len(turns) == 12
    assert all(set(turn) == final for turn in turns)
    assert len({tuple(map(str, turn)) for turn in turns}) > 6


def test_hopeless_variants_are_sampled_once_and_finalists_always_hold_the_table_s() -> None:
    slow = SPECS[7]
    trial = Noisy({slow: 9.0, BUILTIN: 3.0})
    found = _search(trial, settings=search.Settings(finalists=3))
    assert trial.sampled.count(slow) == 2  # a warm call and a sample
    assert len(found.entry(BUILTIN).rounds_ms) == 2
    assert found.ranking[-1].spec == slow


def test_wrong_and_failing_variants_are_dropped_before_any_timing() -> None:
    trial = Noisy({SPECS[0]: 0.1, SPECS[1]: 0.1})
    trial.wrong[SPECS[0]] = checked_rows.TOLERANCE * 1.01
    trial.wrong[SPECS[3]] = float("nan")
    trial.failing.add(SPECS[1])

    def build(specs: Sequence[AttnSpec], _: Any) -> list[Compiled]:
        return [Compiled(spec, 9, "8 bytes of spills\n" if spec == SPECS[2] else "") for spec in specs]

    found = search.search(SPECS, BUILTIN, trial, build=build)
    assert dict(found.dropped) == {
        SPECS[2]: "8 bytes of spills",
        SPECS[0]: "wrong: error 4.04 of the reference's, allowed 4.0",
        SPECS[1]: "ValueError: no such tile",
        SPECS[3]: "wrong: error nan of the reference's, allowed 4.0",
    }
    assert not {SPECS[0], SPECS[1], SPECS[2], SPECS[3]} & set(trial.sampled)
    with pytest.raises(KeyError):
        found.entry(SPECS[0])


def test_a_variant_that_fails_when_timed_is_dropped() -> None:
    class Breaks(Noisy):
        def sample(self, spec: AttnSpec) -> float:
            if spec == SPECS[4]:
                raise RuntimeError("launch failed")
            return super().sample(spec)

    found = _search(Breaks({}))
    assert dict(found.dropped) == {SPECS[4]: "RuntimeError: launch failed"}


def test_a_table_s_choice_that_is_wrong_ends_the_search() -> None:
    trial = Noisy({})
    trial.wrong[BUILTIN] = 100.0
    with pytest.raises(
        UnsupportedError, match=r"the table's choice sm90-.* cannot be compared with: wrong: error 100"
    ):
        _search(trial)


def test_candidates_are_those_of_the_problem() -> None:
    both = search.candidates("sm_90", "bfloat16", 128, 4096, ("sm90", "sm80"))
    assert {spec.kernel for spec in both} == {"sm80", "sm90"}
    assert min(spec.br for spec in both) == 64
    assert {spec.ping_pong for spec in both if spec.kernel == "sm90" and spec.br > 64} == {True, False}
    assert min(spec.br for spec in search.candidates("sm_90", "bfloat16", 128, 16, ("sm80",))) == 16
    assert {spec.kernel for spec in search.candidates("sm_80", "float16", 128, 4096, ("sm90", "sm80"))} == {
        "sm80"
    }
    assert all(spec.swizzle for spec in both)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_variants_for_short_block_rows_are_searched_but_for_caches(head_dim: int) -> None:
    plain, short = (
        search.candidates("sm_90", "bfloat16", head_dim, 4096, ("sm90", "sm80"), short=one)
        for one in (False, True)
    )
    assert all(spec.serves_caches for spec in plain)
    assert [spec for spec in short if spec.serves_caches] == plain
    more = [spec for spec in short if not spec.serves_caches]
    assert len(more) == len(set(more))
    assert all(spec.kernel == "sm90" and spec.ping_pong and spec.heads == 1 for spec in more)
    blocks = {64: {1, 2, 3}, 96: {1, 2, 3}, 128: {1, 2}, 256: {1}}[head_dim]
    assert {spec.blocks for spec in more} == blocks
    assert {spec.warps for spec in more if spec.scheduler} == {16}
    of_table = {
        row.spec("sm_90", "bfloat16", head_dim)
        for row in table.TABLE
        if row.shape == "short" and row.serves("sm_90", "bfloat16", head_dim)
    }
    assert of_table <= set(more)


def test_heads_share_tiles_in_the_search_where_they_fill_them() -> None:
    def heads(group: int, q_len: int = 64) -> set[int]:
        return {
            spec.heads
            for spec in search.candidates("sm_90", "bfloat16", 128, q_len, ("sm90", "sm80"), group=group)
        }

    assert [heads(group) for group in (1, 2, 3, 4, 6, 7)] == [{1}, {1, 2}, {1, 3}, {1, 2}, {1, 2, 3}, {1}]
    assert heads(6, 4096) == {1}

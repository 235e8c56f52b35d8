"""Cases that take turns: each has one, and the commit says whose it is."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import turns

LETTERS, OF = "abcdefghijklmnopqrstuvwxyz", 4


@pytest.mark.in_turn(OF)
@pytest.mark.parametrize("letter", [*LETTERS, pytest.param("always", marks=pytest.mark.in_turn(1))])
def test_letters(letter: str) -> None:
    """Those that the test below looks for."""


@pytest.fixture
def items(request: pytest.FixtureRequest) -> list[pytest.Item]:
    """All that this run has collected, with a turn or without."""
    return request.config.stash[turns.EVERY_ITEM]


def _letters(items: list[Any], turn: int, *named: str, **options: Any) -> set[str]:
    """The letters that a run with these options has."""
    left_out: list[Any] = []
    config: Any = SimpleNamespace(
        args=["tests/test_turns.py", *named],
        stash={},
        getoption={"--every-case": False, "--turn": turn, "--one-in": 1, **options}.get,
        hook=SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items)),
    )
    run = [item for item in items if item.originalname == "test_letters"]
    every = list(run)
    turns.leave_out(config, run)
    assert config.stash[turns.EVERY_ITEM] == every
    assert sorted(map(id, (*run, *left_out))) == sorted(map(id, every))
    return {item.callspec.id for item in run}


def test_every_case_that_was_collected_has_a_turn(items: list[Any]) -> None:
    """Of all tests where all were collected; no run leaves out what is not marked."""
    marked = [item for item in items if item.get_closest_marker("in_turn")]
    periods = {mark.args[0] for item in marked for mark in item.iter_markers("in_turn")}
    assert all(isinstance(period, int) and period >= 1 for period in periods)
    left = set(marked)
    for turn in range(math.lcm(*periods)):
        left = {item for item in left if not turns.runs(item, turn)}
    assert not left
    assert all(turns.runs(item, 0) for item in set(items) - set(marked))


def test_each_run_has_its_share(items: list[Any]) -> None:
    shares = [_letters(items, turn) - {"always"} for turn in range(OF)]
    assert set.union(*shares) == set(LETTERS)
    assert sum(map(len, shares)) == len(LETTERS)
    assert max(map(len, shares)) < len(LETTERS) / 2
    for turn, share in enumerate(shares):
        assert _letters(items, turn + 3 * OF) == share | {"always"}


@pytest.mark.parametrize("one_in", [2, 3, OF, 6])
def test_all_tests_take_turns_where_one_in_some_is_asked_for(items: list[Any], one_in: int) -> None:
    of = max(one_in, OF)
    shares = [_letters(items, turn, **{"--one-in": one_in}) for turn in range(math.lcm(of, one_in))]
    assert set.union(*shares) == {*LETTERS, "always"}
    for letter, period in {**dict.fromkeys(LETTERS, of), "always": one_in}.items():
        assert [letter in share for share in shares].count(True) == len(shares) / period


def test_all_run_where_they_are_asked_for(items: list[Any]) -> None:
    assert _letters(items, 0, **{"--every-case": True}) == {*LETTERS, "always"}
    assert _letters(items, 0, "tests/test_turns.py::test_letters[a]") == {*LETTERS, "always"}


def test_cases_that_are_alike_share_the_turns() -> None:
    kinds = {"x": range(10), "y": range(10, 13), "z": range(13, 14)}
    cases = turns.in_turn([*range(14), 0], 5, lambda i: next(kind for kind in kinds if i in kinds[kind]))
    assert [one.values[0] for one in cases] == [*range(14)]
    assert turns.every_turn(cases) == range(math.lcm(5, 3, 1))
    for turn in turns.every_turn(cases):
        run = turns.of_turn(cases, turn)
        assert [len([i for i in run if i in kind]) for kind in kinds.values()] == [2, 1, 1]
    assert {i for turn in range(15) for i in turns.of_turn(cases, turn)} == {*range(14)}


def test_each_commit_has_the_next_turn(tmp_path: Path) -> None:
    assert turns.of_commit(tmp_path) == dt.date.today().toordinal()
    by = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True, timeout=60)
    for turn in (1, 2):
        command = ["git", *by, "commit", "--quiet", "--allow-empty", "--no-verify", "-m", "One"]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
        assert turns.of_commit(tmp_path) == turn


def test_a_part_of_ci_that_runs_at_every_second_commit_has_every_second_turn() -> None:
    """Its cases would be the same half each time, else."""
    text = (turns.ROOT / ".ci" / "run").read_text()
    assert "turn=$(git rev-list --count HEAD " in text
    assert "if ((turn % 2)); then\n  last='vllm tests/vllm --require-vllm'\nelse\n" in text
    assert 'last="between --turn $((turn / 2)) --one-in 4 ' in text

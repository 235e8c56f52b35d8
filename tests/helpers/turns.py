"""Cases that take turns: of those that are marked in_turn(n) a run has one in n, and the commit says which."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EVERY_ITEM = pytest.StashKey[list[pytest.Item]]()  # those that have no turn, too


def of_commit(checkout: Path = ROOT) -> int:
    """How many commits led here, so that each commit has the next turn; without git, how many days."""
    try:
        done = subprocess.run(
            ["git", "rev-list", "--count", "HEAD"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return dt.date.today().toordinal()
    return int(done.stdout)


def has_turn(marks: Iterable[pytest.Mark], name: str, turn: int) -> bool:
    """Whether a case runs: of several marks the one that lets it run most often holds.

    A case has the place in its turns that `at` of its mark says, or else one made from its name.
    """
    mark = min(marks, key=lambda one: one.args[0], default=None)
    return mark is None or (mark.kwargs.get("at", zlib.crc32(name.encode())) - turn) % mark.args[0] == 0


def runs(item: pytest.Item, turn: int, one_in: int = 1) -> bool:
    """Whether a collected test runs: one in `one_in`, or fewer where its mark says so.

    Cases of one name run together, whatever test they are of: they may share what is slow.
    """
    marks = list(item.iter_markers("in_turn"))
    if one_in > min((mark.args[0] for mark in marks), default=1):
        return (zlib.crc32(item.nodeid.encode()) - turn) % one_in == 0
    parameters = getattr(item, "callspec", None)
    return has_turn(marks, item.name if parameters is None else parameters.id, turn)


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Removes cases that have no turn, unless tests are named on the command line."""
    config.stash[EVERY_ITEM] = list(items)
    if config.getoption("--every-case") or any("::" in named for named in config.args):
        return
    turn, one_in = config.getoption("--turn"), config.getoption("--one-in")
    run = [item for item in items if runs(item, turn, one_in)]
    kept = set(run)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = run


def in_turn(cases: Iterable[Any], of: int, alike: Callable[[Any], Any] = type) -> list[Any]:
    """Each case once, as a parameter of a test: every run has one in `of` of those that are alike, and at least one."""
    groups: dict[Any, list[Any]] = {}
    for one in dict.fromkeys(cases):
        groups.setdefault(alike(one), []).append(one)
    return [
        pytest.param(one, marks=pytest.mark.in_turn(min(of, len(group)), at=first + i))
        for first, group in enumerate(groups.values())
        for i, one in enumerate(group)
    ]


def of_turn(parameters: Iterable[Any], turn: int) -> list[Any]:
    """Of parameters that `in_turn` made, the cases that a run with this turn has."""
    return [one.values[0] for one in parameters if has_turn((mark.mark for mark in one.marks), "", turn)]


def every_turn(parameters: Iterable[Any]) -> range:
    """Turns after which all begins anew."""
    return range(math.lcm(*(mark.args[0] for one in parameters for mark in one.marks)))

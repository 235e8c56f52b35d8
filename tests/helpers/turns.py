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
from each_source import CASES

ROOT = Path(__file__).parents[2]
EVERY_ITEM = pytest.StashKey[list[pytest.Item]]()  # those that have no turn, too
PLACE = pytest.StashKey[int]()
IN_EACH_RUN = frozenset(CASES.values())


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


def has_turn(marks: Iterable[pytest.Mark], place: int, turn: int) -> bool:
    """Whether a case runs: of several marks the one that lets it run most often holds.

    A case has the place in its turns that `at` of its mark says, or else this one.
    """
    mark = min(marks, key=lambda one: one.args[0], default=None)
    return mark is None or (mark.kwargs.get("at", place) - turn) % mark.args[0] == 0


def give_places(items: Iterable[pytest.Item]) -> None:
    """The place of each case whose mark does not say it, made from the case's name: cases of one name run together,
    whatever test they are of, as they may share what is slow. Where parameters `by` of the mark say which kernel is
    compiled, cases of a file with the same ones run together, and the next kernel's in the next run.
    """
    kernels: dict[Path, dict[str, int]] = {}
    for item in items:
        case = getattr(item, "callspec", None)
        by = {name for mark in item.iter_markers("in_turn") for name in mark.kwargs.get("by", ())}
        kernel = [value for name, value in case.params.items() if name in by] if case else []
        if kernel:
            of_file = kernels.setdefault(item.path, {})
            at = of_file.setdefault(str(kernel), len(of_file)) + zlib.crc32(item.path.name.encode())
        else:
            at = zlib.crc32((case.id if case else item.name).encode())
        item.stash[PLACE] = at


def runs(item: pytest.Item, turn: int, one_in: int = 1) -> bool:
    """Whether a collected test runs: one in `one_in`, or fewer where its mark says so."""
    marks = list(item.iter_markers("in_turn"))
    if one_in > min((mark.args[0] for mark in marks), default=1):
        return (zlib.crc32(item.nodeid.encode()) - turn) % one_in == 0
    return item.nodeid in IN_EACH_RUN or has_turn(marks, item.stash[PLACE], turn)


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Removes cases that have no turn, unless tests are named on the command line."""
    config.stash[EVERY_ITEM] = list(items)
    give_places(items)
    if config.getoption("--every-case") or any("::" in named for named in config.args):
        return
    turn, one_in, files = (config.getoption(name) for name in ("--turn", "--one-in", "--files-one-in"))
    run = [item for item in items if runs(item, turn // files, one_in)]
    if files > 1:
        has_turn_now = files_of_turn({item.path for item in items}, turn, files)
        run = [item for item in run if item.path in has_turn_now]
    kept = set(run)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = run


def files_of_turn(files: Iterable[Path], turn: int, one_in: int) -> set[Path]:
    """One file in `one_in`."""
    return set(sorted(files)[turn % one_in :: one_in])


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
    return [one.values[0] for one in parameters if has_turn((mark.mark for mark in one.marks), 0, turn)]


def every_turn(parameters: Iterable[Any]) -> range:
    """Turns after which all begins anew."""
    return range(math.lcm(*(mark.args[0] for one in parameters for mark in one.marks)))

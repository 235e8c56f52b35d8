"""Cases that take turns: each has one, and the commit says whose it is."""

from __future__ import annotations

import datetime as dt
import math
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import turns
from each_source import CASES

from omnicupy.jit.source import kernels_dir

LETTERS, OF = "abcdefghijklmnopqrstuvwxyz", 4
FILES = 3  # test files of which .ci/run lets one have its turn


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
        getoption={"--every-case": False, "--turn": turn, "--one-in": 1, "--files-one-in": 1, **options}.get,
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
    for files in (1, FILES):
        left, every = set(marked), {item.path for item in items}
        for turn in range(files * math.lcm(*periods)):
            if not left:
                break
            here = turns.files_of_turn(every, turn, files)
            left = {item for item in left if item.path not in here or not turns.runs(item, turn // files)}
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


def test_files_take_turns(items: list[Any]) -> None:
    """Each third run has a file, and with it the next turn of its cases; -1 as Python counts."""
    files = [Path(f"test_{i}.py") for i in range(7)]
    for turn in range(-FILES, FILES):
        here = [turns.files_of_turn(files, turn + i, FILES) for i in range(FILES)]
        assert sorted(path for of_turn in here for path in of_turn) == files
        assert {len(of_turn) for of_turn in here} == {2, 3}
    shares = [_letters(items, turn, **{"--files-one-in": FILES}) for turn in range(FILES * OF)]
    run = [share for share in shares if share]
    assert run == [_letters(items, turn) for turn in range(OF)]
    assert [bool(share) for share in shares] == [turn % FILES == 0 for turn in range(FILES * OF)]


def test_each_source_of_a_kernel_has_a_case_in_every_run(
    items: list[Any], pytestconfig: pytest.Config
) -> None:
    """tests/kernels/conftest.py sees that the case runs it."""
    assert set(CASES) == {path.name for path in kernels_dir().glob("*.cu")}
    collected = {item.nodeid: item for item in items}
    files = {item.nodeid.split("::")[0] for item in items}
    for case in set(CASES.values()):
        if case in collected:
            assert all(turns.runs(collected[case], turn) for turn in range(8))
        elif not any("::" in named for named in pytestconfig.args):
            assert case.split("::")[0] not in files


@pytest.fixture
def kernels_of_a_file(request: pytest.FixtureRequest) -> list[Any]:
    """Stand-ins for cases of four kernels, with two values of another parameter."""
    mark = pytest.mark.in_turn(3, by=("name",)).mark
    return [
        SimpleNamespace(
            name=f"test[{name}-{size}]",
            nodeid=f"tests/test_one.py::test[{name}-{size}]",
            path=Path("test_one.py"),
            callspec=SimpleNamespace(params={"size": size, "name": name}, id=f"{name}-{size}"),
            stash={},
            iter_markers=lambda _: iter([mark]),
        )
        for size in (1, 2)
        for name in "abcd"
    ]


def test_cases_of_one_kernel_run_together(kernels_of_a_file: list[Any]) -> None:
    turns.give_places(kernels_of_a_file)
    found = []
    for turn in range(3):
        run = [one.callspec.id for one in kernels_of_a_file if turns.runs(one, turn)]
        found.append({name for name, _, _ in run})
        assert sorted(run) == sorted(f"{name}-{size}" for name in found[-1] for size in (1, 2))
    assert sorted(map(sorted, found)) == [["a", "d"], ["b"], ["c"]]


def _lists_of_ci(turn: int) -> tuple[str, str]:
    """What .ci/run installs beside the newest libraries, and its last part, at a commit with this turn."""
    text = (turns.ROOT / ".ci" / "run").read_text()
    of_turn = [
        found.group(0) for found in re.finditer(r"^ *case .*?^ *esac$", text, re.DOTALL | re.MULTILINE)
    ]
    script = f"turn={turn}\nextend() {{ echo $2; }}\n" + "\n".join(of_turn) + '\necho "$last"\n'
    done = subprocess.run(
        ["bash", "-c", script], cwd=turns.ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    installed, last = done.stdout.splitlines()
    return installed, last


def test_a_part_of_ci_that_runs_at_every_third_commit_has_every_third_turn() -> None:
    """Its cases would be the same third each time, else; and it has the environment that was made for it."""
    text = (turns.ROOT / ".ci" / "run").read_text()
    assert "turn=$(git rev-list --count HEAD " in text
    assert f"\nnewest --files-one-in {FILES} tests/transformers\n" in text
    names = []
    for turn in range(1170, 1173):
        installed, last = _lists_of_ci(turn)
        name, option, of_part = last.split()[:3]
        assert (installed, option, of_part) == (name, "--turn", str(turn // FILES))
        names.append(name)
    assert sorted(names) == ["between", "oldest", "vllm"]

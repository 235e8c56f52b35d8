"""Measures this tree beside another one: `python .ci/compare.py ../before 5 --mask W1 --system omnicupy`

The arguments after the other tree and the number of rounds are those of `cli.py bench`, which checks results before it
times them. It runs in each tree by turns, because chips get warm, and which of them begins changes from round to round;
a line a figure says how the medians over the rounds compare.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from omnicupy.tools.bench import records

Figures = dict[tuple[str, str, str], float]  # by workload, system and name


def measured(tree: Path, arguments: list[str]) -> Figures:
    """Every number that `bench` finds in a tree."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        command = [sys.executable, "cli.py", "bench", *arguments, "--out", str(out)]
        path = {**os.environ, "PYTHONPATH": str(tree)}
        subprocess.run(command, cwd=tree, env=path, check=True, stdout=subprocess.DEVNULL)
        rows = records.load(out)["rows"]
    return {
        (row["workload"], row["system"], name): value
        for row in rows
        for name, value in {"ms": row.get("ms"), **row.get("figures", {})}.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def main(other: str, rounds: str, *arguments: str) -> None:
    """Print the other tree's figures, this one's, and the first over the second, as medians over the rounds."""
    trees = (Path(other).resolve(), Path(__file__).resolve().parent.parent)
    if not (trees[0] / "cli.py").is_file():
        raise SystemExit(f"compare.py: expected another checkout, with a cli.py, got {other}")
    found: tuple[list[Figures], list[Figures]] = ([], [])
    for turn in range(int(rounds)):
        for place in (0, 1) if turn % 2 == 0 else (1, 0):
            found[place].append(measured(trees[place], list(arguments)))
    print(f"{'other':>12} {'this':>12} {'other/this':>10}")
    for key in found[1][0]:
        if all(key in run for runs in found for run in runs):
            before, now = (statistics.median(run[key] for run in runs) for runs in found)
            ratio = f"{before / now:10.3f}" if now else " " * 10
            print(f"{before:12.4g} {now:12.4g} {ratio} {', '.join(key)}")


if __name__ == "__main__":
    from usage import words

    main(*words(__doc__, 2))

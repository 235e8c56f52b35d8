"""Attests on a GPU by several processes at once: `python .ci/attest.py FILE JOBS SECONDS -- VERIFY-OPTIONS`

Verifying is bound by Python, so that a dozen processes on one GPU are several times as fast as one. Each takes a part
of the cases that FILE lacks and writes a file of its own; these are joined into FILE, also after SECONDS are over. Then
one process alone takes what is left, as cases that need most of the GPU's memory fail beside others. The options behind
`--` go to `cli.py verify`: `--commit SHA`, `--cubins FOLDER`, `--source NAME`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from omnicupy.tools.verify import attestation

ROOT = Path(__file__).resolve().parent.parent


def command(target: Path, options: Sequence[str]) -> list[str]:
    """The command line that adds to an attestation what it lacks."""
    return [
        *(sys.executable, str(ROOT / "cli.py"), "verify", "--attest", str(target)),
        *("--resume", "--no-timing", *options),
    ]


def run(commands: Sequence[tuple[Path, list[str]]], until: float) -> list[int]:
    """Run all at once, their output to files of those names; the exit statuses, -9 for those that ran out of time."""
    with ExitStack() as logs:
        running = [
            subprocess.Popen(
                line, cwd=ROOT, stdout=logs.enter_context(log.open("w")), stderr=subprocess.STDOUT
            )
            for log, line in commands
        ]
        for one in running:
            try:
                one.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
        return [one.returncode for one in running]


def main(file: str, jobs: str, seconds: str, *options: str) -> int:
    """Attest by `jobs` processes, then by one. The exit status of the last."""
    target, count = Path(file).resolve(), int(jobs)
    options = tuple(one for one in options if one != "--")
    until = time.monotonic() + float(seconds)
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{number}.json" for number in range(1, count + 1)]
        for part in parts:
            if target.exists():
                shutil.copyfile(target, part)
        commands = [
            (part.with_suffix(".txt"), command(part, ["--part", f"{number}/{count}", *options]))
            for number, part in enumerate(parts, 1)
        ]
        for (log, _), status in zip(commands, run(commands, until), strict=True):
            print(f"{log.stem}: exit status {status}: {_last_line(log)}")
        attestation.join(target, [part for part in parts if part.exists()])
        alone = Path(folder) / "alone.txt"
        status = run([(alone, command(target, options))], until)[0]
        print(alone.read_text())
    return status


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

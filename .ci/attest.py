"""Attests on GPUs by several processes at once: `python .ci/attest.py FILE JOBS SECONDS [--gpus N] [--mps] -- OPTIONS`

Verifying is bound by Python, so that a dozen processes on one GPU are faster than one. First all kernels are compiled,
on all cores. Then each process takes a part of the cases that FILE lacks and writes a file of its own; these are joined
into FILE, also when the time is over. Last, one process alone takes what is left, as the cases that need most of the
GPU's memory. All of it ends within SECONDS. Every half a minute a line says how far the parts are.

The options behind `--` go to `cli.py verify`: `--commit SHA`, `--cubins FOLDER`, `--also-cubins FOLDER`, `--source
NAME`. With `--mps` the processes share the GPU through NVIDIA's Multi-Process Service, where its programs are
installed, so that kernels run side by side, not in turns; one that breaks the device then ends all of them. With
`--gpus N` they are dealt out to N GPUs.

CuPy compiles what the references are made of once for each machine, into CUPY_CACHE_DIR: a folder that an earlier run
filled saves each process that time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from omnicupy.tools.verify import attestation

ROOT = Path(__file__).resolve().parent.parent
RESERVE_S = 12.0  # to join what the parts wrote
LEAST_ALONE_S = 20.0  # less is not worth a start
SAY_S = 30.0
MPS = "nvidia-cuda-mps-control"
# Reductions of CuPy by CUB take seconds each to compile, in every process that comes to them at the same time.
SETTINGS = {"CUPY_ACCELERATORS": ""}


def command(target: Path, options: Sequence[str]) -> list[str]:
    """The command line that adds to an attestation what it lacks."""
    return [
        *(sys.executable, str(ROOT / "cli.py"), "verify", "--attest", str(target)),
        *("--resume", "--no-timing", *options),
    ]


def compiling(folder: Path, options: Sequence[str]) -> list[str] | None:
    """The command line that compiles what the parts will need; None where they take cubins."""
    if "--cubins" in options:
        return None
    sources = [word for name, value in pairwise(options) if name == "--source" for word in (name, value)]
    return [sys.executable, str(ROOT / "cli.py"), "verify", "--build", str(folder / "kernels"), *sources]


def run(commands: Sequence[tuple[Path, list[str]]], until: float) -> list[int]:
    """Run all at once, their output to files of those names; the exit statuses, -9 for those that ran out of time."""
    begin, said = time.monotonic(), 0.0
    with ExitStack() as logs:
        running = [
            subprocess.Popen(
                line,
                cwd=ROOT,
                env=SETTINGS | os.environ,
                stdout=logs.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            for log, line in commands
        ]
        while any(one.poll() is None for one in running):
            now = time.monotonic()
            if now > until:
                for one in running:
                    one.kill()
            if now > begin + said + SAY_S:
                said = now - begin
                print(f"{said:.0f} s: {_progress([log for log, _ in commands])}", flush=True)
            time.sleep(0.1)
        return [one.wait() for one in running]


def _progress(logs: Sequence[Path]) -> str:
    """For each process how many cases its file holds, of each version, and its last line."""
    found = []
    for log in logs:
        file = log.with_suffix(".json")
        versions = re.findall(r'"(\d+\.\d+)": [-\d.e]+', file.read_text()) if file.exists() else []
        counts = "+".join(str(versions.count(one)) for one in sorted(set(versions)))
        found.append(f"{log.stem}: {counts}" if counts else f"{log.stem}: {_last_line(log)}")
    return ", ".join(found)


@contextmanager
def multi_process_service(wanted: bool, folder: Path) -> Iterator[None]:
    """Runs NVIDIA's Multi-Process Service for the processes that are started inside."""
    found = shutil.which(MPS) if wanted else None
    if wanted and not found:
        print(f"{MPS} is not installed: the processes take turns on the GPU")
    if not found:
        yield
        return
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "log")}
    for path in own.values():
        Path(path).mkdir(parents=True)
    os.environ.update(own)
    started = subprocess.run([found, "-d"], check=False, timeout=30)
    print(f"{MPS} -d: exit status {started.returncode}")
    try:
        yield
    finally:
        subprocess.run([found], input="quit\n", text=True, check=False, timeout=30)
        for name in own:
            del os.environ[name]


def main(file: str, jobs: str, seconds: str, *given: str) -> int:
    """Attest by `jobs` processes, then by one. The exit status of the last; 1 where the time was over before.

    Raises ValueError without `--`.
    """
    target, count = Path(file).resolve(), int(jobs)
    until = time.monotonic() + float(seconds) - RESERVE_S
    if "--" not in given:
        raise ValueError(f"attest.py: expected -- ahead of verify's options, got {' '.join(given)!r}; add it")
    own, options = given[: given.index("--")], given[given.index("--") + 1 :]
    mps, gpus = "--mps" in own, int(own[own.index("--gpus") + 1]) if "--gpus" in own else 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if line := compiling(folder, options):
            begin, log = time.monotonic(), folder / "compile.txt"
            status = run([(log, line)], until)[0]
            took = time.monotonic() - begin
            print(f"compiling: exit status {status} in {took:.0f} s: {_last_line(log)}", flush=True)
        with multi_process_service(mps, folder / "mps"):
            _parts(target, folder, (count, gpus), options, until)
        left = until - time.monotonic()
        if left < LEAST_ALONE_S:
            print(f"{left:.0f} s are left: what needs the GPU alone is not run")
            return 1
        alone = folder / "alone.txt"
        status = run([(alone, command(target, options))], until)[0]
        print(alone.read_text())
    return status


def on_gpu(line: list[str], number: int, gpus: int) -> list[str]:
    """A command line for one of so many GPUs, 0: for whichever is there. number: of the process, from 1."""
    return [*("env", f"CUDA_VISIBLE_DEVICES={(number - 1) % gpus}"), *line] if gpus else line


def _parts(target: Path, folder: Path, counts: tuple[int, int], options: Sequence[str], until: float) -> None:
    """Processes beside each other, whose files are joined. counts: of processes, and of GPUs or 0."""
    count, gpus = counts
    parts = [folder / f"{number}.json" for number in range(1, count + 1)]
    for part in parts:
        if target.exists():
            shutil.copyfile(target, part)
    commands = [
        (
            part.with_suffix(".txt"),
            on_gpu(command(part, ["--part", f"{number}/{count}", "--beside", *options]), number, gpus),
        )
        for number, part in enumerate(parts, 1)
    ]
    for (log, _), status in zip(commands, run(commands, until), strict=True):
        print(f"{log.stem}: exit status {status}: {_last_line(log)}", flush=True)
        for line in log.read_text().splitlines():
            if line.startswith(("FAIL", "Error")):
                print(f"  {line}")
    attestation.join(target, [part for part in parts if part.exists()])


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


if __name__ == "__main__":
    from usage import words

    sys.exit(main(*words(__doc__, 3)))

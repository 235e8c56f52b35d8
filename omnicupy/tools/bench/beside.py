"""One benchmark run by several processes on one GPU, each with workloads of its own, and their records as one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from omnicupy.tools import environment
from omnicupy.tools.bench import records
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.records import Record
from omnicupy.tools.bench.suites import GPU_SUITES

# Of suites that time calls on the device, and no whole ones from the host.
KINDS = ("measure", "choices", "forms", "tiles", "tiles90")
# By each process; the first one's are kept.
MEASURED = ("gemm", "gemm_tflops", "copy_tbps", "clocks_before", "clocks_after", "commit")
BEGUN = "gemm_tflops"  # the last field that a process gives its record before it measures
POLL_S = 1.0


def check(options: bench_run.Options) -> None:
    """Raises ValueError for what several processes would disturb, or what one would refuse."""
    bench_run.check(options)
    serve = [name for name, suite in GPU_SUITES.items() if all(part.kind in KINDS for part in suite.parts)]
    for name in options.suites:
        if name not in serve:
            raise ValueError(
                f"--jobs: expected suites that time calls on the device, {', '.join(serve)}, got {name}; leave --jobs "
                "out"
            )
    for names in (*_planned(options), options.systems):
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(
                f"--jobs: expected each workload and system once, got {twice} again; leave one out"
            )


def command(words: Sequence[str]) -> list[str]:
    """What runs `bench` with the given words."""
    return [sys.executable, "-m", "omnicupy", "bench", *words]


def run(
    options: bench_run.Options, words: Sequence[str], jobs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """The record of a run by up to `jobs` processes, which `words` give the options; written to `options.out` as rows
    come.

    Raises ValueError where one of them fails, once the others are done: their rows are kept. Whatever ends the run
    early, and where the file cannot be written, what each process measured stays in a folder that is named.
    """
    out, order = options.out, list(dict.fromkeys(chain.from_iterable(_planned(options))))
    jobs = min(jobs, len(order))
    Record(out, {"suites": list(options.suites)})  # where it cannot be written, nothing is measured
    folder = Path(tempfile.mkdtemp(prefix="omnicupy-bench-"))
    shares = _Shares([folder / f"{number}.json" for number in range(jobs)], order, out)
    started: list[subprocess.Popen[bytes]] = []
    try:
        with _ended_by_signals():
            try:
                for file in shares.files:
                    child = command(["--turns", str(folder), "--out", str(file), *words])
                    how: dict[str, Any] = {"stdout": subprocess.DEVNULL, "env": environment.of_child()}
                    started.append(subprocess.Popen(child, **how))
                while any(process.poll() is None for process in started):
                    shares.join()
                    time.sleep(POLL_S)
            finally:
                for process in started:
                    process.kill()
                    process.wait()
                shares.join(last=True)
    except BaseException:
        say(f"what each process measured is in {folder}")
        raise
    content = shares.content
    statuses = [process.returncode for process in started if process.returncode]
    rows = content.get("rows", [])
    if out or not statuses:
        shutil.rmtree(folder)
    if statuses:
        left = sorted(set(order) - {row["workload"] for row in rows}, key=order.index)
        without = f"; without rows: {', '.join(left)}" if left else ""
        kept = f", {len(rows)} rows are in {out or folder}"
        ended = ", ".join(map(str, statuses))
        raise ValueError(
            f"--jobs: {len(statuses)} of {jobs} processes failed (exit status {ended}){kept}{without}"
        )
    say(f"{len(rows)} rows of {jobs} processes")
    return content


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A signal that asks this process to end raises SystemExit, so that it ends the others first."""

    def end(number: int, _: Any) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, end) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _planned(options: bench_run.Options) -> list[list[str]]:
    """The names of each suite's workloads, as they are planned."""
    suites = [GPU_SUITES[name] for name in options.suites] or [bench_run.NO_SUITE]
    given = [[one for one, _, _ in bench_run.planned(suite, options)] for suite in suites]
    return [[one if isinstance(one, str) else one.name for one in of_suite] for of_suite in given]


class _Shares:
    """The records that processes write, as one. order: of workloads.  out: where that is written."""

    def __init__(self, files: Sequence[Path], order: Sequence[str], out: Path | None) -> None:
        self.files, self._order, self._out = files, order, out
        self.content: dict[str, Any] = {}
        self._written = self.content

    def join(self, *, last: bool = False) -> None:
        """What there is now. last: nothing will come. Raises what joined and records.write do then; before, headers may
        differ for a while, and a disk may be full.
        """
        files = [file for file in self.files if file.exists()]
        parts = [part for part in map(records.load, files) if BEGUN in part]
        try:
            self.content = joined(parts, len(self.files), self._order)
            if self._out is not None and self.content != self._written:
                records.write(self._out, self.content)
                self._written = self.content
        except (ValueError, OSError):
            if last:
                raise


def joined(parts: Sequence[dict[str, Any]], jobs: int, order: Sequence[str]) -> dict[str, Any]:
    """The record of processes that measured a share each; {} for none. order: of workloads."""
    parts = sorted(parts, key=lambda part: str(part["started"]))
    if not parts:
        return {}
    kept = {name: parts[0][name] for name in MEASURED if name in parts[0]}
    if absent := {name: why for part in parts for name, why in part.get("missing", {}).items()}:
        kept["missing"] = absent
    rest = [{key: value for key, value in part.items() if key not in MEASURED} | kept for part in parts]
    found = records.joined(rest, order)
    rows = found.pop("rows")
    return {**found, "jobs": jobs, "rows": rows}

"""One benchmark run by several processes on one GPU, each with workloads of its own, and their records as one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from omnicupy.tools import environment
from omnicupy.tools.bench import records
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.suites import GPU_SUITES

# Of suites that time calls on the device, and no whole ones from the host.
KINDS = ("measure", "choices", "forms", "tiles", "tiles90")
# By each process; the first one's are kept.
MEASURED = ("gemm", "gemm_tflops", "copy_tbps", "clocks_before", "clocks_after", "commit")
BEGUN = "gemm_tflops"  # the last field that a process gives its record before it measures
POLL_S = 1.0


def check(options: bench_run.Options) -> None:
    """Raises ValueError for what several processes would disturb, or what one would refuse."""
    serve = [name for name, suite in GPU_SUITES.items() if all(part.kind in KINDS for part in suite.parts)]
    for name in options.suites:
        if name not in serve:
            raise ValueError(
                f"--jobs: expected suites that time calls on the device, {', '.join(serve)}, got {name}; leave --jobs "
                "out"
            )
    bench_run.check(options)
    for names in _planned(options):
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"--jobs: expected each workload once, got {twice} again; leave one out")


def command(words: Sequence[str]) -> list[str]:
    """What runs `bench` with the given words."""
    return [sys.executable, "-m", "omnicupy", "bench", *words]


def run(
    options: bench_run.Options, words: Sequence[str], jobs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """The record of a run by `jobs` processes, which `words` give the options; written to `options.out` as rows come.

    Raises ValueError where one of them fails, once the others are done: their rows are kept.
    """
    out, order = options.out, list(dict.fromkeys(chain.from_iterable(_planned(options))))
    with tempfile.TemporaryDirectory(prefix="omnicupy-bench-") as name:
        folder = Path(name)
        files = [folder / f"{number}.json" for number in range(jobs)]
        started: list[subprocess.Popen[bytes]] = []
        try:
            for file in files:
                child = command(["--turns", str(folder), "--out", str(file), *words])
                started.append(subprocess.Popen(child, stdout=subprocess.DEVNULL, env=environment.of_child()))
            content = _watched(started, files, order, out)
        finally:
            for process in started:
                process.kill()
                process.wait()
        failed = sum(process.returncode != 0 for process in started)
        rows = content.get("rows", [])
        if failed:
            left = sorted(set(order) - {row["workload"] for row in rows}, key=order.index)
            without = f"; without rows: {', '.join(left)}" if left else ""
            kept = f", {len(rows)} rows are in {out}" if out else ""
            raise ValueError(f"--jobs: {failed} of {jobs} processes failed, as said above{kept}{without}")
        say(f"{len(rows)} rows of {jobs} processes")
        return content


def _planned(options: bench_run.Options) -> list[list[str]]:
    """The names of each suite's workloads, as they are planned."""
    suites = [GPU_SUITES[name] for name in options.suites] or [bench_run.NO_SUITE]
    given = [[one for one, _, _ in bench_run.planned(suite, options)] for suite in suites]
    return [[one if isinstance(one, str) else one.name for one in of_suite] for of_suite in given]


def _watched(
    started: Sequence[subprocess.Popen[bytes]], files: Sequence[Path], order: Sequence[str], out: Path | None
) -> dict[str, Any]:
    """The joined record once all processes have ended."""
    content: dict[str, Any] = {}
    while True:
        running = any(process.poll() is None for process in started)
        parts = [part for file in files if file.exists() and BEGUN in (part := records.load(file))]
        try:
            found = joined(parts, len(files), order)
        except ValueError:  # while they go on their headers may differ
            if not running:
                raise
            found = content
        if found != content:
            content = found
            if out is not None:
                records.write(out, content)
        if not running:
            return content
        time.sleep(POLL_S)


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

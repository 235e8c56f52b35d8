"""bench step, step-gemma: training steps of some layers of a model, with FlexAttention, ours and SDPA.

Each attention has a process of its own, so that memory and compiled code of one are not another's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from omnicupy.tools import environment
from omnicupy.tools.bench.records import Record
from omnicupy.tools.bench.step_masks import FLEX, SYSTEMS
from omnicupy.tools.bench.step_stacks import STACKS

MODULE = "omnicupy.tools.bench.step_process"
TOTAL_S, PROCESS_S = 240.0, 120.0  # of a suite, and of one of its processes at the most
LEAST_S = 8.0  # in which no process is done
CLOSE = 0.1  # relative difference of results in bfloat16 after some layers; of another mask it is about 1
RATIOS = {
    "tokens a second": "tokens a second over FlexAttention",
    "peak_bytes": "peak memory over FlexAttention",
}

Say = Callable[[str], None]


def suite(stack: str) -> Callable[[Record, Say], None]:
    """The suite of a stack, by its name in STACKS."""

    def run(record: Record, say: Say) -> None:
        deadline = time.monotonic() + TOTAL_S
        first: dict[str, Any] = {}
        for system in SYSTEMS:
            try:
                found = _process(stack, system, deadline, say)
            except RuntimeError as error:  # a system that fails is its row
                say(f"{system}: {error}")
                found = {"rows": {workload: {"problem": str(error)} for workload in _workloads(stack)}}
            first = found if system == FLEX else first
            for row in rows(system, found, first):
                record.add(**row)

    return run


def rows(system: str, found: dict[str, Any], first: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a record from what a system's process printed. first: what FlexAttention's did, {} before."""
    made = []
    for workload, figures in found["rows"].items():
        theirs = first.get("rows", {}).get(workload, {})
        more: dict[str, Any] = {
            word: round(figures[name] / theirs[name], 3)
            for name, word in RATIOS.items()
            if system != FLEX and figures.get(name) and theirs.get(name)
        }
        if system != FLEX and "sample" in found and "sample" in first:
            off = difference(found["sample"], first["sample"])
            more |= (
                {"difference to FlexAttention": round(off, 5)} if np.isfinite(off) else {}
            )  # no JSON has it
            more["correct"] = off <= CLOSE
        made.append({"workload": workload, "system": system, "pass": "forward", "figures": figures | more})
    return made


def difference(these: list[float], those: list[float]) -> float:
    """Root mean square of the differences over that of the second ones; infinite for NaN."""
    a, b = np.array(these), np.array(those)
    off = float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))
    return off if np.isfinite(off) else float("inf")


def _workloads(stack: str) -> list[str]:
    return [STACKS[stack].workload(packs) for packs in STACKS[stack].packs]


def _process(stack: str, system: str, deadline: float, say: Say) -> dict[str, Any]:
    """What a process of the system measured; its other lines are said. Rows that it did not come to say why.

    Raises RuntimeError with the last line that it printed where it measured nothing, or where no time was left.
    """
    limit = min(PROCESS_S, deadline - time.monotonic())
    if limit < LEAST_S:
        raise RuntimeError(f"no time was left of {TOTAL_S:.0f} s")
    surroundings = {**environment.of_child(), "PYTHONUNBUFFERED": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", MODULE, stack, system],
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    late = threading.Timer(limit, _end, [running])
    late.start()
    lines: list[str] = []
    try:
        assert running.stdout is not None
        for line in running.stdout:
            lines.append(line.rstrip())
            if not line.startswith("{"):
                say(f"{system}: {lines[-1]}")
        status = running.wait()
    finally:
        late.cancel()
        _end(running)
    figures = [line for line in lines if line.startswith("{")]
    why = "" if not status else f"over {limit:.0f} s" if status < 0 else "".join(lines[-1:])[-300:]
    if not figures:
        raise RuntimeError(why or "its process printed no figures")
    found: dict[str, Any] = json.loads(figures[-1])
    for workload in _workloads(stack):
        found["rows"].setdefault(workload, {"problem": why or "no time was left"})
    return found


def _end(running: subprocess.Popen[str]) -> None:
    """End a process and those that it started: workers that compile would hold its output open."""
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)

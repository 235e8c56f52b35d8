"""Several processes of a script, waited for together: the first one that fails ends the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]


# What gloo says where a busy machine refused its first connection, or where its threads outlive the interpreter.
# Neither has to do with what is tested.
OF_GLOO = ("connectFullMesh failed", "terminate called without an active exception")
ATTEMPTS = 3
STILL_RUNNING = "still running when the time was over"


def results(script: str, what: str, ranks: int, folder: Path, limit: float) -> list[dict[str, Any]]:
    """What each rank found. script: is given what, rank and ranks, and saves it as WHATRANK.pt.  limit: as of run."""
    import torch

    place = run(script, [[what, str(rank), str(ranks)] for rank in range(ranks)], folder, limit)
    return [torch.load(place / f"{what}{rank}.pt") for rank in range(ranks)]


def run(
    script: str, arguments: Sequence[Sequence[str]], folder: Path, limit: float, devices: str = ""
) -> Path:
    """Start the script once for each of the arguments, to which a folder is added; the folder that they had.

    Raises AssertionError with what they printed where one fails, or where they hang twice; of a first time a warning
    says where they stood. limit: seconds, for all.  devices: GPUs that they see.
    """
    hung = False
    for attempt in range(ATTEMPTS):
        (place := folder / str(attempt)).mkdir()
        printed = _once(script, arguments, place, limit, devices)
        if printed is None:
            return place
        hangs = STILL_RUNNING in printed
        if (hangs and hung) or not (hangs or any(said in printed for said in OF_GLOO)):
            break
        if hangs:
            hung = True
            warnings.warn(f"tried again: {printed}", stacklevel=2)
    raise AssertionError(printed)


def leave() -> NoReturn:
    """End this process, whose work is done and on disk, without waiting for gloo's threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _once(
    script: str, arguments: Sequence[Sequence[str]], folder: Path, limit: float, devices: str
) -> str | None:
    """Returns None, or what they printed where one failed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": devices}
    env["PYTHONFAULTHANDLER"] = "1"  # where they stand when they are aborted
    logs = [(folder / f"log{number}").open("w+") for number in range(len(arguments))]
    started = [
        subprocess.Popen(
            [sys.executable, script, *given, str(folder)], env=env, stdout=log, stderr=subprocess.STDOUT
        )
        for given, log in zip(arguments, logs, strict=True)
    ]
    deadline, over = time.monotonic() + limit, ""
    try:
        while (codes := {one.poll() for one in started}) & {None} and codes <= {None, 0}:
            if time.monotonic() > deadline:
                over = f"{script}: {STILL_RUNNING}\n"
                for process in started:
                    process.send_signal(signal.SIGABRT)
                time.sleep(1)
                break
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
            process.wait()
    for log in logs:
        log.seek(0)
    return None if codes == {0} else over + "\n".join(log.read() for log in logs)

"""Several processes of a script, waited for together: the first one that fails ends the others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]


# What gloo says where a busy machine refused its first connection, or where its threads outlive the interpreter.
# Neither has to do with what is tested.
OF_GLOO = ("connectFullMesh failed", "terminate called without an active exception")
ATTEMPTS = 3


def run(
    script: str, arguments: Sequence[Sequence[str]], folder: Path, limit: float, devices: str = ""
) -> Path:
    """Start the script once for each of the arguments, to which a folder is added; the folder that they had.

    Raises AssertionError with what they printed where one fails. limit: seconds, for all.  devices: GPUs that they see.
    """
    for attempt in range(ATTEMPTS):
        (place := folder / str(attempt)).mkdir()
        printed = _once(script, arguments, place, limit, devices)
        if printed is None:
            return place
        if not any(said in printed for said in OF_GLOO):
            break
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
    logs = [(folder / f"log{number}").open("w+") for number in range(len(arguments))]
    started = [
        subprocess.Popen(
            [sys.executable, script, *given, str(folder)], env=env, stdout=log, stderr=subprocess.STDOUT
        )
        for given, log in zip(arguments, logs, strict=True)
    ]
    deadline = time.monotonic() + limit
    try:
        while (codes := {one.poll() for one in started}) & {None} and codes <= {None, 0}:
            assert time.monotonic() < deadline, f"{script}: still running"
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
            process.wait()
    for log in logs:
        log.seek(0)
    return None if codes == {0} else "\n".join(log.read() for log in logs)

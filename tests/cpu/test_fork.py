"""blas.py: children that are forked from busy threads have all of BLAS, and do not hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# Each child says by its exit status what it found; 20 of them, since it depends on where the threads are.
BUSY = """
import json, os, signal, sys, threading, warnings
import numpy as np
import omnicupy as oc
from omnicupy.cpu.blas import BLAS

warnings.simplefilter("ignore")  # Python warns of forks beside threads, which is what this is about
get, put = BLAS._pair
put(2)
q, mask = np.zeros((1, 4, 300, 32), np.float32), oc.causal(300)
wanted = oc.attention(q, q, q, mask)
stop = threading.Event()

def work():
    while not stop.is_set():
        oc.attention(q, q, q, mask)

def child():
    signal.alarm(20)
    if get() != 2:
        return 3
    with BLAS.single() as count:
        if (count, get()) != (2, 1):
            return 4
    if get() != 2:
        return 5
    return 0 if np.array_equal(oc.attention(q, q, q, mask), wanted) else 6

def forked(then):
    process = os.fork()
    if process == 0:
        status = 9
        try:
            status = then()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
found = [forked(child) for _ in range(20)]
with BLAS.single():
    inside = forked(lambda: 0 if get() == 1 else 7)
stop.set()
for thread in threads:
    thread.join()
json.dump([found, inside, get()], sys.stdout)
"""


def _blas_is_known() -> bool:
    from omnicupy.cpu.blas import BLAS

    return BLAS.known


@pytest.mark.skipif(not _blas_is_known(), reason="the BLAS of this NumPy has no switch for threads")
def test_children_of_busy_threads_have_all_of_blas() -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", BUSY],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, inside, after = json.loads(done.stdout)
    assert found == [0] * 20
    assert inside == 0, "the block of the thread that forked goes on in the child"
    assert after == 2

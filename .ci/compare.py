"""Times this tree's kernels beside another tree's: `python .ci/compare.py ../before W1 random-d64-s1024-seed0:sm80 ...`

Each tree's calls run in a process of their own, by turns, because chips get warm; twice each. A workload runs on the
kernel that it gets, or on the best tile of the one named after a colon; after another colon, "row", a hundred whole
calls in a row are timed instead of the device. Outputs are compared between the trees, and must hold no NaN.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 2
CHILD = """
import json, sys, cupy, numpy as np
from omnicupy import launch, tune, workloads
from omnicupy.bench import timing
from omnicupy.bench.measure import make_inputs
folder, words, found = sys.argv[1], sys.argv[2:], {}
clock, synchronize = timing.Clock(cupy), cupy.cuda.Device().synchronize
with tune.every_kernel():
    for word in words:
        name, kernel, how = (word.split(":") + ["", ""])[:3]
        workload = workloads.by_name(name)
        mask = workload.mask()
        problem, info = workload.problem(mask, "bfloat16"), launch.device_info(0)
        arch = tune.arch_of(info.major, info.minor)
        spec = tune.pick(arch, problem, (mask,), info.sm_count, mappable=kernel != "sm80")
        arrays = make_inputs(workload, mask, "bfloat16")
        out = cupy.full(arrays[0].shape, np.nan, arrays[0].dtype)
        plan = launch.plan_of(*arrays, mask, scale=None, out=out, config=spec, stream=None)
        call = lambda: plan.launch(*arrays, out, False)
        whole = lambda: launch.attention(*arrays, mask, out=out, config=spec)
        if how == "row":
            us = float(np.median([timing.latency_us(whole, synchronize)[0] for _ in range(4)]))
        else:
            us = 1e3 * clock.interleaved({"": call}, 20)[""].median_ms
        assert not bool(cupy.isnan(out.astype(np.float32)).any()), word
        made = cupy.asnumpy(out.astype(np.float32).ravel()[::7])
        file = f"{folder}/{word.replace(':', '+')}.npy"
        try:
            before = np.load(file)
        except FileNotFoundError:
            np.save(file, made)
            before = made
        apart = float(np.linalg.norm(made - before) / np.linalg.norm(before))
        found[word] = (us, apart)
print(json.dumps(found))
"""


def measured(tree: Path, folder: str, words: list[str]) -> dict[str, tuple[float, float]]:
    """Microseconds of each workload, and how far its result is from the first tree's."""
    command = [sys.executable, "-c", CHILD, folder, *words]
    done = subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, tuple[float, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(other: str, *words: str) -> None:
    """Print a line a workload: the other tree's time, this one's, how they compare, and how results differ."""
    trees = {"other": Path(other).resolve(), "this": Path(__file__).resolve().parent.parent}
    took: dict[str, dict[str, list[float]]] = {name: {word: [] for word in words} for name in trees}
    apart = dict.fromkeys(words, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for name, tree in trees.items():
                for word, (us, error) in measured(tree, folder, list(words)).items():
                    took[name][word].append(us)
                    apart[word] = max(apart[word], error)
    print(f"{'':44} {'other, us':>10} {'this, us':>10} {'other/this':>10} {'apart':>8}")
    for word in words:
        before, now = (statistics.median(took[name][word]) for name in trees)
        print(f"{word:44} {before:10.1f} {now:10.1f} {before / now:10.3f} {apart[word]:8.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])

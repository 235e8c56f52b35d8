"""Hardware counters of calls, by NVIDIA Nsight Compute: `python .ci/counters.py OUT.json W1 full-d64-s4096:sm80 ...`

Profiles one warm call of each workload (on the kernel that it gets, or the best tile of the kernel named after the
colon) and writes a record like those of `bench`, suite "counters". `--from FOLDER` reads ncu's CSV files
(ncu-WORKLOAD-KERNEL.csv) instead of running it. Needs `ncu` and the right to read counters.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

from omnicupy.jit import nvrtc
from omnicupy.tools import environment
from omnicupy.tools.bench.records import Record

# name in the record -> ncu's metric; shares of the peak in percent of the whole launch
METRICS = {
    "tensor cores, %": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "exponentials (xu), %": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_elapsed",
    "issue slots, %": "smsp__issue_active.avg.pct_of_peak_sustained_elapsed",
    "L2, %": "lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
    "L2 hits, %": "lts__t_sector_hit_rate.pct",
    "memory, %": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "active": "sm__cycles_active.avg",
    "elapsed": "sm__cycles_elapsed.max",
    "ns": "gpu__time_duration.sum",
}
STALL = "smsp__average_warps_issue_stalled_"
CALL = """
import sys, cupy
from omnicupy.api import attention
from omnicupy.choose import pick
from omnicupy.gpu.device import device_info
from omnicupy.jit.archs import arch_of
from omnicupy.tools.bench.measure import make_inputs
from omnicupy.tools.workloads.workload import by_name
workload = by_name(sys.argv[1])
mask = workload.mask()
problem, info = workload.problem(mask, "bfloat16"), device_info(0)
with pick.serve_every_kernel():
    arch = arch_of(info.major, info.minor)
    spec = pick.pick(arch, problem, (mask,), info.sm_count, mappable=sys.argv[2] != "sm80")
    arrays = make_inputs(workload, mask, "bfloat16")
    for _ in range(3):
        attention(*arrays, mask, config=spec)
cupy.cuda.Device().synchronize()
"""


def profiled(workload: str, kernel: str) -> str:
    """ncu's CSV of the third call."""
    command = ["ncu", "--clock-control", "none", "-k", "regex:attention_", "--launch-skip", "2", "-c", "1"]
    command += [
        "--metrics",
        ",".join(METRICS.values()),
        "--section",
        "WarpStateStats",
        "--csv",
        "--page",
        "raw",
    ]
    command += ["--print-units", "base", sys.executable, "-c", CALL, workload, kernel]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def table(text: str) -> dict[str, str]:
    """The columns of ncu's CSV, of its one kernel."""
    rows = [row for row in csv.reader(text.splitlines()) if len(row) > 10]
    return dict(zip(rows[0], rows[2], strict=False))


def figures(text: str) -> dict[str, float]:
    """The metrics of ncu's CSV: shares, microseconds, and where warps wait most, in percent of their time."""
    values = {name: value.replace(",", "") for name, value in table(text).items()}
    found = {name: float(values[metric]) for name, metric in METRICS.items()}
    active = found.pop("active") / found.pop("elapsed")
    made = {"us": round(found.pop("ns") / 1e3, 1)} | {name: round(one, 1) for name, one in found.items()}
    made["multiprocessors at work, %"] = round(100 * active, 1)
    stalls = {
        name.removeprefix(STALL).partition("_per_")[0].replace("_", " "): float(value)
        for name, value in values.items()
        if name.startswith(STALL) and value
    }
    whole = sum(stalls.values())
    for name in ("wait", "barrier", "long scoreboard", "no instruction"):
        made[f"warps: {name}, %"] = round(100 * stalls[name] / whole, 1)
    return made


def read(folder: Path) -> tuple[dict[str, object], dict[tuple[str, str], str]]:
    """What is known of a run whose CSV files are in a folder, and these by workload and kernel."""
    texts = {}
    paths = sorted(folder.glob("ncu-*.csv"))
    for path in paths:
        workload, _, kernel = path.stem.removeprefix("ncu-").rpartition("-")
        texts[workload, kernel] = path.read_text()
    device = table(paths[0].read_text())["device__attribute_display_name"]
    return {"device": device, "started": _stamp(min(path.stat().st_mtime for path in paths))}, texts


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def main(out: str, *words: str) -> None:
    """Write the record."""
    if words[0] == "--from":
        header, texts = read(Path(words[1]))
    else:
        described = environment.device()
        header = {
            "device": described.get("name"),
            "driver": described.get("driver"),
            "nvrtc": nvrtc.version_text() or None,
            "commit": environment.commit() or None,
            "started": _stamp(time.time()),
        }
        pairs = [(word.partition(":")[0], word.partition(":")[2] or "sm90") for word in words]
        texts = {pair: profiled(*pair) for pair in pairs}
    record = Record(Path(out), {**header, "suites": ["counters"]})
    for (workload, _), text in texts.items():
        kernel = table(text)["Kernel Name"].rpartition("_")[2]
        record.add(suite="counters", workload=workload, system=f"omnicupy:{kernel}", figures=figures(text))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Hardware counters of calls, by NVIDIA Nsight Compute: `python .ci/counters.py OUT.json W1 full-d64-s4096:sm80 ...`

Profiles one warm call of each workload (on the kernel that it gets, or the best tile of the kernel named after the
colon) and writes a record like those of `bench`, suite "counters". After the colon `bwd` stands for the backward pass,
`bwd_any_order`, `bwd_split` and the like for its forms by the words of `bench`: each kernel that makes gradients is a
row. The calls of a workload share a process. `--from FOLDER` reads ncu's CSV files
(ncu-WORKLOAD-KERNEL.csv) instead of running it. Needs `ncu` and the right to read counters.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from omnicupy.jit import nvrtc
from omnicupy.tools import environment
from omnicupy.tools.bench.gradients import PASSES
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
# The same of kernels of gradients, where this ncu and GPU have them.
MORE = {
    "adders of L2, %": "lts__d_atomic_input_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "shared memory by threads, %": "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
    "banks read, %": "l1tex__data_bank_reads.avg.pct_of_peak_sustained_elapsed",
    "banks written, %": "l1tex__data_bank_writes.avg.pct_of_peak_sustained_elapsed",
    "reductions": "lts__t_sectors_op_red.sum",
    "read": "lts__t_sectors_op_read.sum",
}
SECTOR_BYTES = 32
STALL = "smsp__average_warps_issue_stalled_"
STALLS = ("wait", "barrier", "long scoreboard", "no instruction")
MORE_STALLS = ("short scoreboard", "gmma", "membar", "sleeping", "branch resolve", "dispatch stall")
BACKWARD = "bwd"
# Those of the forward pass, the kernels that make gradients without what stands around them, and the one that CALL
# launches behind each call.
MARK = "attention_next"
NAMES = f"regex:{MARK}|attention_(fwd|naive)|attention_bwd_(sm90|dkdv_sm90|dq_sm90|sm80|fused_sm80)"
CALL = """
import sys, traceback, cupy
from omnicupy.api import attention
from omnicupy.choose import pick
from omnicupy.gpu.device import device_info
from omnicupy.jit.archs import arch_of
from omnicupy.tools.bench.gradients import PASSES, Gradients, asked
from omnicupy.tools.bench.measure import make_inputs
from omnicupy.tools.workloads.workload import by_name
workload = by_name(sys.argv[1])
mask, info = workload.mask(), device_info(0)
problem, arch = workload.problem(mask, "bfloat16"), arch_of(info.major, info.minor)
arrays = make_inputs(workload, mask, "bfloat16")
mark = cupy.RawKernel('extern "C" __global__ void attention_next() {}', "attention_next")
wait = cupy.cuda.Device().synchronize

def call_of(kernel):
    if kernel.startswith("bwd"):
        wanted = asked(kernel[4:].replace("_", "-"))
        of = Gradients(workload, mask, arrays, "bfloat16")
        config = of.spec(arch, wanted) if wanted.needs_config else None
        return of.call(PASSES["bwd"], mask, config, wanted)
    config = pick.pick(arch, problem, (mask,), info.sm_count, mappable=kernel != "sm80")
    return lambda: attention(*arrays, mask, config=config)

with pick.serve_every_kernel():
    for kernel in sys.argv[2:]:
        try:
            call = call_of(kernel)
            for _ in range(2):
                call()
            wait()
            cupy.cuda.profiler.start()
            call()
        except Exception:
            traceback.print_exc()
            cupy.cuda.profiler.start()
        mark((1,), (1,), ())
        wait()
        cupy.cuda.profiler.stop()
"""


def supported() -> set[str]:
    """The names of metrics that ncu has for this GPU, without what follows the dot."""
    listed = subprocess.run(["ncu", "--query-metrics"], check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in listed.splitlines() if line.strip()}


def profiled(workload: str, kernels: Sequence[str], more: Sequence[str]) -> str:
    """ncu's CSV of a call of each kernel, with the marks between. more: metrics beside METRICS."""
    command = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "-k", NAMES]
    command += ["--metrics", ",".join((*METRICS.values(), *more)), "--section", "WarpStateStats"]
    command += ["--csv", "--page", "raw", "--print-units", "base"]
    command += [sys.executable, "-c", CALL, workload, *kernels]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return done.stdout


def tables(text: str) -> list[dict[str, str]]:
    """The columns of ncu's CSV, of each kernel."""
    rows = [row for row in csv.reader(text.splitlines()) if len(row) > 10]
    if len(rows) < 3:
        raise RuntimeError(
            f"counters: expected rows of kernels from ncu, it printed {text.splitlines()[-3:]}"
        )
    return [dict(zip(rows[0], row, strict=False)) for row in rows[2:]]


def figures(columns: dict[str, str]) -> dict[str, float]:
    """The metrics of a kernel: shares, microseconds, and where warps wait most, in percent of their time."""
    values = {name: value.replace(",", "") for name, value in columns.items()}
    found = {name: float(values[metric]) for name, metric in METRICS.items()}
    if "_bwd_" in columns["Kernel Name"]:
        found |= {name: float(values[metric]) for name, metric in MORE.items() if values.get(metric)}
    active, ns = found.pop("active") / found.pop("elapsed"), found.pop("ns")
    rates = {
        name: SECTOR_BYTES * found.pop(name) / ns / 1e3 for name in ("reductions", "read") if name in found
    }
    made = {"us": round(ns / 1e3, 1)} | {name: round(one, 1) for name, one in found.items()}
    made |= {f"L2, {name}, TB/s": round(rate, 2) for name, rate in rates.items()}
    made["multiprocessors at work, %"] = round(100 * active, 1)
    stalls = {
        name.removeprefix(STALL).partition("_per_")[0].replace("_", " "): float(value)
        for name, value in values.items()
        if name.startswith(STALL) and value
    }
    whole = sum(stalls.values())
    backward = "_bwd_" in columns["Kernel Name"]
    for name in (*STALLS, *(one for one in MORE_STALLS if backward and one in stalls)):
        made[f"warps: {name}, %"] = round(100 * stalls[name] / whole, 1)
    return made


def rows(workload: str, kernels: Sequence[str], text: str) -> list[dict[str, object]]:
    """The rows of a workload's calls in a record, one a kernel."""
    made, left = [], list(kernels)
    for columns in tables(text):
        name = columns["Kernel Name"].partition("(")[0]
        if name == MARK:
            left = left[1:]
            continue
        row: dict[str, object] = {"suite": "counters", "workload": workload, "figures": figures(columns)}
        part = name.partition("_bwd_")[2].replace("_", " ")
        if part:
            form = left[0][len(BACKWARD) + 1 :].replace("_", "-") or "default"
            made.append(row | {"system": f"omnicupy:{part}, {form}", "pass": PASSES[BACKWARD].name})
        else:
            made.append(row | {"system": f"omnicupy:{name.rpartition('_')[2]}"})
    return made


def read(folder: Path) -> tuple[dict[str, object], list[tuple[str, list[str], str]]]:
    """What is known of a run whose CSV files are in a folder, and workload, kernels and text of each."""
    texts = []
    paths = sorted(folder.glob("ncu-*.csv"))
    for path in paths:
        workload, _, kernel = path.stem.removeprefix("ncu-").rpartition("-")
        texts.append((workload, [kernel], path.read_text()))
    device = tables(paths[0].read_text())[0]["device__attribute_display_name"]
    return {"device": device, "started": _stamp(min(path.stat().st_mtime for path in paths))}, texts


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def main(out: str, *words: str) -> None:
    """Write the record."""
    texts: Iterable[tuple[str, list[str], str]]
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
        texts = run(pairs)
    record = Record(Path(out), {**header, "suites": ["counters"]})
    for one in texts:
        try:
            found = rows(*one)
        except RuntimeError as error:  # the other workloads go on
            print(error, file=sys.stderr)
            continue
        for row in found:
            record.add(**row)


def run(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[str], str]]:
    """Each workload with its kernels and ncu's CSV of them."""
    known: set[str] = set()
    for workload in dict.fromkeys(name for name, _ in pairs):
        kernels = [kernel for name, kernel in pairs if name == workload]
        backward = any(kernel.startswith(BACKWARD) for kernel in kernels)
        known = known or (supported() if backward else set())
        more = [metric for metric in MORE.values() if backward and metric.partition(".")[0] in known]
        yield workload, kernels, profiled(workload, kernels, more)


if __name__ == "__main__":
    from usage import words

    main(*words(__doc__, 2))

"""Made-up records of every suite, for tests of tables and plots: our times are the cost model's, rivals' are rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from made_ceilings import BACKWARD

from omnicupy.call.problem import Problem
from omnicupy.choose import backward_prediction, backward_table, prediction, variants
from omnicupy.choose import ceilings as choose_ceilings
from omnicupy.jit.spec import AttnSpec
from omnicupy.tools.bench.decoding import copy_share
from omnicupy.tools.bench.gradients import asked
from omnicupy.tools.bench.records import Record
from omnicupy.tools.bench.suites import GPU_SUITES
from omnicupy.tools.workloads.workload import by_name

CEILINGS = {
    kernel: choose_ceilings.nearest(choose_ceilings.load(), None, kernel)[0] for kernel in ("sm80", "sm90")
}
HEADER = {
    "device": "Made H100",
    "driver": "580.0",
    "nvrtc": "12.9",
    "commit": "0" * 40,
    "started": "2026-01-02T03:04:05Z",
    "arch": "sm_90",
    "dtype": "bfloat16",
    "multiprocessors": 132,
    "l2_bytes": 50 << 20,
    "gemm_tflops": 750.0,
    "copy_tbps": 2.9,
    "clocks_before": {"clocks.sm": "1980"},
}
# Useful TFLOP/s of a rival where it is at its best, and the milliseconds of a launch.
SPEED = {
    "sdpa-cudnn": (640.0, 0.02),
    "sdpa-flash": (350.0, 0.02),
    "sdpa-efficient": (180.0, 0.02),
    "flex": (430.0, 0.05),
    "flex-flash": (560.0, 0.08),
    "fa4": (660.0, 0.06),
    "cudnn-flex": (620.0, 0.15),
}
MASKED = ("flex", "flex-flash", "cudnn-flex", "sdpa-efficient")


def record(*suites: str, only: tuple[str, ...] = (), **header: Any) -> dict[str, Any]:
    """The content of a record of these suites. only: parts of workload names, () for all."""
    made = Record(None, {**HEADER, "suites": list(suites), **header})
    for name in suites:
        made.suite = name
        for part in GPU_SUITES[name].parts:
            for workload in part.workloads:
                if not only or any(one in workload for one in only):
                    _add(made, workload, part.systems, part.kind)
    return made.content


def _add_forms(made: Record, name: str, systems: tuple[str, ...]) -> None:
    """Rows of the backward pass."""
    workload = by_name(name)
    mask = workload.mask()
    problem = workload.problem(mask, "bfloat16")
    shape = [workload.batch, workload.q_heads, workload.kv_heads, *mask.shape, workload.head_dim]
    device = choose_ceilings.Device("Made H100", HEADER["multiprocessors"], HEADER["l2_bytes"])
    for system in systems:
        of = asked(system.partition(":")[2])
        spec = backward_table.pick("sm_90", "bfloat16", workload.head_dim)
        spec = replace(spec, fused=None, ordered=None) if of.two else spec
        how = {"deterministic": not of.free, "wanted": of.wanted}
        work = backward_prediction.work_of(spec, problem, mask, device, **how)
        ms = backward_prediction.predict(work, BACKWARD).us / 1e3
        known = {"workload": name, "pass": "backward", "shape": shape, "system": system}
        made.add(**known, ms=ms, tflops=100.0, correct=True, error=1.0, spec=str(spec))


def _add(made: Record, name: str, systems: tuple[str, ...], kind: str) -> None:
    if kind == "forms":
        _add_forms(made, name, systems)
        return
    workload = by_name(name)
    mask = workload.mask()
    q_len, k_len = mask.shape
    sizes = (workload.batch, workload.q_heads, workload.kv_heads, q_len, k_len, workload.head_dim)
    draw = np.random.default_rng(list(name.encode()))
    density = mask.pairs / (q_len * k_len)
    known = {"workload": name, "pass": "forward", "shape": list(sizes), "density": density}
    tiles = (f"omnicupy:{word}" for word in TILE_WORDS.get(kind, ()))
    for system in systems or (("omnicupy",) if kind == "choices" else ()) + tuple(tiles):
        ours = system.partition(":")[0] == "omnicupy"
        try:
            spec = _spec(system, sizes) if ours else None
        except ValueError:  # a tile that does not fit
            continue
        if not ours and density < 1 and system not in MASKED and not name.startswith("causal"):
            made.add(**known, system=system, problem="no interleaved masks")
            continue
        ms = _our_ms(spec, sizes, mask) if spec else _their_ms(system, workload, mask, density)
        ms *= 1 + 0.01 * abs(draw.standard_normal())
        if kind in ("build", "memory", "latency", "calls"):
            made.add(
                workload=name,
                system=system,
                figures=_figures(kind, ms, sizes, ours, draw),
                **{"pass": "forward"},
            )
            continue
        row = {
            "ms": ms,
            "tflops": workload.flops(mask.pairs) / ms / 1e9,
            "correct": True,
            "error": 1.0,
            "host_us": 12.0,
        }
        if spec:
            executed = mask.stats(spec.tokens(workload.q_heads // workload.kv_heads), spec.bc).executed
            row |= {"spec": variants.word(spec), "useful": mask.pairs / executed}
            row["executed_tflops"] = workload.flops(executed) / ms / 1e9
        row |= copy_share(workload, mask.shape, ms, HEADER["copy_tbps"])
        if kind == "steps":
            row["figures"] = _layer_figures(ms, ours=ours)
            row = {
                key: value for key, value in row.items() if key not in ("spec", "useful", "executed_tflops")
            }
        made.add(**known, system=system, **row)


TILE_WORDS = {
    "tiles": [
        f"sm80-{br}x{bc}-s{stages}-w{warps}{flags}"
        for br, warps in ((64, 4), (128, 4), (128, 8))
        for bc in (32, 64, 96, 128)
        for stages in (1, 2)
        for flags in (("", "-shared", "-plain", "-shared-plain") if stages == 1 and bc == 64 else ("",))
    ],
    "tiles90": [
        f"sm90-{br}x{bc}-s{stages}-w{br // 16 + 4}"
        for br in (64, 128, 192)
        for bc in (32, 64, 96, 128)
        for stages in (1, 2, 3)
    ],
    "choices": ["sm90-128x64-s2-w12", "sm90-128x96-s2-w12"],
}


def of_caches(device: str) -> dict[str, dict[str, Any]]:
    """Records of caches in pages and of e4m3, and of changed scores, by their names: a row without these each."""
    row = {"workload": "w", "system": "omnicupy:contiguous", "pass": "forward", "ms": 1.0, "correct": True}
    suites = ("paged", "prompts", "e4m3")
    of = {suite: {"suites": [suite], "rows": [row | {"suite": suite}]} for suite in suites}
    of["scores"] = {"suites": ["scores"], "rows": [row | {"suite": "scores", "system": "omnicupy:none"}]}
    return {f"{suite}.json": {**HEADER, "device": device, **content} for suite, content in of.items()}


def _spec(system: str, sizes: tuple[int, ...]) -> AttnSpec:
    word = system.partition(":")[2]
    problem = Problem(*sizes, "bfloat16")  # type: ignore[arg-type]
    if word in (
        "",
        "torch",
        "torch-any-order",
        "nomask",
        "image",
        "ones",
        "contiguous",
        "planned",
        "cached",
        "e4m3",
    ) or word.startswith("page"):
        from omnicupy.choose import pick
        from omnicupy.masks.constructors import full

        return pick.pick("sm_90", problem, (full(sizes[3], sizes[4]),), 132)
    return variants.parse(word, "sm_90", "bfloat16", sizes[5])


def _our_ms(spec: AttnSpec, sizes: tuple[int, ...], mask: Any) -> float:
    if spec.kernel == "naive":
        return float(4 * sizes[5] * mask.pairs * sizes[0] * sizes[1] / 1e9 / 2.0)
    ceilings = CEILINGS[spec.kernel]
    problem = Problem(*sizes, "bfloat16")  # type: ignore[arg-type]
    blocks = mask.blocks(spec.tokens(problem.group), spec.bc)
    work = prediction.work_of(spec, problem, blocks, ceilings.device)
    us = prediction.predict(work, ceilings.at(spec.kernel, spec.head_dim, spec.rows)).us
    slow = (
        (4 if not spec.swizzle else 1)
        * (1.15 if spec.share_kv else 1)
        * (1 + 2 / spec.bc)
        * (1.1 if spec.warps == 8 else 1)
    )
    return us / 1e3 * slow


def _their_ms(system: str, workload: Any, mask: Any, density: float) -> float:
    rate, launch = SPEED[system]
    pairs = mask.shape[0] * mask.shape[1] if system == "sdpa-efficient" else mask.stats(128, 128).executed
    return float(workload.flops(pairs)) / (rate * workload.head_dim / (workload.head_dim + 32)) / 1e9 + launch


def _layer_figures(ms: float, *, ours: bool) -> dict[str, float]:
    """Of a layer of a captured step."""
    found = {"layers": 8, "bytes": 10**8, "a layer, us": 1e3 * ms}
    found |= {"an equal copy, us": 900 * ms, "share of an equal copy": 0.9}
    return found | ({"as fast as the best other": 1.1} if ours else {})


def _figures(kind: str, ms: float, sizes: tuple[int, ...], ours: bool, draw: Any) -> dict[str, float]:
    if kind in ("latency", "calls"):
        us = 1e3 * ms
        return {
            "us_of_100_in_a_row": us + 5,
            "us_alone": us + (15 if ours else 60),
            "host_us": 12.0 if ours else 50.0,
        }
    if kind == "memory":
        output = 2 * sizes[0] * sizes[1] * sizes[3] * sizes[5]
        kept = 200_000 if ours else int(draw.integers(1, 50)) * 2**20
        return {
            "output_bytes": output,
            "call_bytes": 0 if ours else output // 64,
            "first_bytes": kept * (1 if ours else 4),
            "kept_bytes": kept,
            "taken_bytes": kept + output,
        }
    if ours:
        return {"mask_ms": 0.3, "cut_ms": 0.2, "new_mask_call_ms": ms + 0.5, "same_mask_call_ms": ms}
    return {"build_ms": 20.0 + ms, "first_call_s": 2.0}


def shapes_of_instructions() -> list[dict[str, Any]]:
    """Rows of the suite atoms: one of each study and pass."""
    tile, sizes = "sm90-128x128-s2-w12", [4, 16, 16, 4096, 4096, 128]
    known = {"suite": "atoms", "workload": "full-d128-s4096", "shape": sizes, "ms": 2.0, "tflops": 550.0}
    known |= {
        "system": f"omnicupy:{tile}",
        "base": f"omnicupy:{tile}",
        "tile": tile,
        "atom": [64, 128, 128, 16],
    }
    known |= {"registers": {"forward": 168}, "flaws": {}}
    return [known | {"study": study, "pass": name} for study in "knm" for name in ("forward", "backward")]

"""What decoding takes where models do it: a row of layers, each with a cache of its own, captured in a CUDA graph.

Unlike calls by themselves after a flush (the suite `decode`), launches of neighbouring layers may overlap, and no dirty
lines of a flush lie in L2: what a layer finds there is left by the layers before it, whose caches are others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omnicupy.reference.checked_rows import TOLERANCE
from omnicupy.tools.bench import decoding, layer_steps, torch_inputs
from omnicupy.tools.bench.layer_steps import Stack, Step
from omnicupy.tools.bench.measure import Session, add_row, reason, rounded
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.bench.timing import Call, Timing
from omnicupy.tools.workloads.workload import Workload

SUITE = "decode-steps"
PLANNED, CACHED, E4M3 = f"{OURS}:planned", f"{OURS}:cached", f"{OURS}:e4m3"
PEERS = ("sdpa-flash", "sdpa-cudnn", "flex")
SYSTEMS = (PLANNED, CACHED, *PEERS)
FORMS: dict[str, Callable[[Stack], Step]] = {
    PLANNED: layer_steps.planned,
    CACHED: layer_steps.by_lengths,
    E4M3: layer_steps.of_e4m3,
}
# Also with caches of e4m3, which no rival takes.
OF_E4M3 = (
    "decode-d128-s131072-h32-k8-b1",
    "decode-d128-s131072-h28-k4-b1",
    "decode-d128-s8192-h32-k8-b16",
    "decode-d128-s8192-h28-k4-b16",
    "decode-d128-s4096-h32-k8-b64",
)
LEAST_LAYERS, MOST_LAYERS = 4, 32
TIMES_L2 = 8  # all caches together, over the L2 cache, as far as MOST_LAYERS go
CACHES_BYTES = 8 * 10**9  # of all layers together, unless LEAST_LAYERS have more


def parts() -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The workloads of the suite `decode`, and on which systems."""
    names = decoding.workloads()
    with_e4m3 = tuple(name for name in names if name in OF_E4M3)
    others = tuple(name for name in names if name not in OF_E4M3)
    return [(with_e4m3, (*SYSTEMS, E4M3)), (others, SYSTEMS)]


def layers_of(cache_bytes: int, l2_bytes: int) -> int:
    """How many layers of caches of so many bytes a step has."""
    wanted = max(CACHES_BYTES // cache_bytes, -(-TIMES_L2 * l2_bytes // cache_bytes))
    return min(MOST_LAYERS, max(LEAST_LAYERS, wanted))


def measure(session: Session, workload: Workload, systems: Sequence[str]) -> None:
    """Add a row per system to the record: time of a layer in a captured step. What cannot be captured, cannot run or
    is wrong gets a row that says why.
    """
    l2_bytes = int(session.record.content.get("l2_bytes") or 0)
    _measure(Stack(session, workload, lambda cache_bytes: layers_of(cache_bytes, l2_bytes)), systems)
    torch_inputs.free_memory()


def made(stack: Stack, name: str) -> Step:
    """The step of a system, captured, and held against the reference. Raises whatever its library raises, and
    ValueError for a system that the suite does not have.
    """
    if name not in (*FORMS, *PEERS):
        raise ValueError(f"{name}: the suite has {', '.join((*FORMS, *PEERS))}")
    step = FORMS[name](stack) if name in FORMS else layer_steps.theirs(stack, name)
    error = stack.error(step)
    step.known |= {"error": error, "correct": bool(error <= TOLERANCE)}
    return step


def _measure(stack: Stack, systems: Sequence[str]) -> None:
    session, workload = stack.session, stack.workload
    steps: dict[str, Step] = {}
    for name in systems:
        session.say(f"{workload.name}: {name}")
        try:
            steps[name] = made(stack, name)
        except Exception as error:  # whatever a library raises is its result here
            add_row(session, workload, stack.mask, name, {"problem": reason(error)})
    if not steps:
        return
    try:
        times = layer_steps.in_turns(_replays(stack, steps), session.samples)
    except Exception as error:  # one broke the device: nothing after it can be trusted
        for name in steps:
            add_row(session, workload, stack.mask, name, {"problem": reason(error)})
        return
    _add_rows(stack, steps, times)


def _replays(stack: Stack, steps: Mapping[str, Step]) -> dict[str, Call]:
    """The steps, then copies of each size of caches, whose names end in it."""
    found = {name: step.replay for name, step in steps.items()}
    for size in {step.cache_bytes: None for step in steps.values()}:
        try:
            copies = layer_steps.copies(stack, size)
        except Exception as error:  # two figures less
            stack.session.say(f"{stack.workload.name}: {_copy_name('copies', size)} bytes: {reason(error)}")
        else:
            found |= {_copy_name(way, size): copy for way, copy in copies.items()}
    return found


def _copy_name(way: str, size: int) -> str:
    return f"{way} of {size}"


def _add_rows(stack: Stack, steps: Mapping[str, Step], times: Mapping[str, Timing]) -> None:
    """A row a system. The better way to copy counts; a system whose result is wrong is no one's rival."""
    count = len(stack.layers)
    right = {name: times[name].median_ms for name in steps if steps[name].known["correct"]}
    best = min((right[name] for name in PEERS if name in right), default=None)
    copy = stack.session.record.content.get("copy_tbps")
    for name, step in steps.items():
        took, size = times[name], step.cache_bytes
        ms = took.median_ms / count
        copies = [one.median_ms for way, one in times.items() if way.endswith(_copy_name("", size))]
        shown: dict[str, Any] = {"layers": count, "bytes": size, "a layer, us": 1e3 * ms}
        if copies:
            shown["an equal copy, us"] = 1e3 * min(copies) / count
            shown["share of an equal copy"] = min(copies) / took.median_ms
        if best and name.startswith(OURS) and size == stack.cache_bytes:
            shown["as fast as the best other"] = best / took.median_ms
        figures: dict[str, Any] = {"ms": ms, "p10_ms": took.p10_ms / count, "p90_ms": took.p90_ms / count}
        figures |= {"samples": took.samples, "tflops": stack.workload.flops(stack.mask.pairs) / ms / 1e9}
        figures |= {"copy_share": size / ms / 1e9 / copy} if copy else {}
        known = dict(step.known)
        shown |= {"kernel": known.pop("kernel")} if "kernel" in known else {}
        figures |= known | {"figures": rounded(shown)}
        rate = f"{1e3 * ms:.1f} us a layer, {figures.get('copy_share', 0):.2f} of the copy"
        add_row(stack.session, stack.workload, stack.mask, name, figures, rate)

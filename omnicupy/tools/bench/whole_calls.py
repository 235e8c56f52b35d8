"""Whole calls from Python, host included: of one workload on several systems in turns."""

from __future__ import annotations

from collections.abc import Sequence

from omnicupy.tools.bench import timing
from omnicupy.tools.bench.measure import Session, prepared, rounded
from omnicupy.tools.workloads.workload import Workload


def latency(session: Session, workload: Workload, systems: Sequence[str]) -> None:
    """Add each system's time of a whole call, nothing flushed, to the record."""
    _add(session, workload, systems)


def of_seeds(session: Session, workload: Workload, systems: Sequence[str]) -> None:
    """The same in less time, for workloads of which the mean counts: one batch element is checked."""
    _add(session, workload, systems, turns=3, alone=30, batch=1)


def _add(
    session: Session,
    workload: Workload,
    systems: Sequence[str],
    turns: int = timing.TURNS,
    alone: int = timing.ALONE,
    batch: int | None = None,
) -> None:
    """turns, alone: of timing.latencies_us.  batch: as in `prepared`."""
    import cupy

    synchronize = cupy.cuda.Device().synchronize
    ready = prepared(session, workload, workload.mask(), systems, batch)
    calls = {name: system.call for name, system in ready.items()}
    times = timing.latencies_us(calls, synchronize, turns, alone)
    for name, system in ready.items():
        together, once = times[name]
        host = timing.host_us(system.call, synchronize, alone)
        figures = {"us_of_100_in_a_row": together, "us_alone": once, "host_us": host, **system.known}
        known = {"workload": workload.name, "system": name, "pass": session.timed.name}
        session.record.add(**known, figures=rounded(figures))
        session.say(f"{workload.name}: {name}: {together:.1f} us in a row, {once:.1f} us alone")

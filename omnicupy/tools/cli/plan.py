"""The command `plan`."""

from __future__ import annotations

from typing import Any

import click

from omnicupy.parallel import Plan
from omnicupy.parallel import plan as make_plan
from omnicupy.parallel.make import NAMES, OF_GROUPS
from omnicupy.parallel.overlap import steps_of
from omnicupy.parallel.statistics import MOST_SHOWN
from omnicupy.tools.cli.console import JSON, print_json, say
from omnicupy.tools.cli.options import MASK, PNG, picture_file, problem_options, sizes


@click.command()
@MASK
@sizes
@click.option("--ranks", type=click.IntRange(min=1), required=True, help="Ranks (GPUs) that share a call.")
@click.option(
    "--node",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Ranks of a node, which fast links join.",
)
@PNG
@JSON
def plan(text: str, ranks: int, node: int, png: str | None, as_json: bool, **options: Any) -> None:
    """Share a mask among ranks (GPUs): who owns what, at which cost.

    Shows what travels and the predicted time, for each assignment of rows to ranks and for the one that is predicted
    fastest, without overlap. The last lines are for calls with overlap=None: so many rows are computed first, while
    keys travel, or heads of keys travel in groups, as 2+2 of 4, each while the one before is computed. Needs no GPU.
    """
    picture = picture_file("--png", png)
    workload = problem_options(text, options)
    mask, heads = workload.mask(), (workload.q_heads, workload.kv_heads, workload.head_dim)
    chosen = make_plan(mask, ranks, node=node, heads=heads)
    names = [name for name in NAMES if ranks <= node or name not in OF_GROUPS]
    plans = {name: make_plan(mask, ranks, node=node, heads=heads, rows=name) for name in names}
    if as_json:
        print_json(_content(chosen, plans))
    else:
        click.echo(
            f"{'assignment':14}{'balance':>9}{'received MB':>13}{'across nodes':>14}{'efficiency':>12}"
        )
        for name, one in plans.items():
            click.echo(_row(name, one))
        click.echo(str(chosen))
        for steps, of in _overlaps(chosen, workload.batch).items():
            click.echo(f"overlap of rank {of}: {steps}")
    if picture:
        chosen.plot(picture)
        say(f"saved {picture}")


def _overlaps(plan: Plan, batch: int) -> dict[str, str]:
    """What ranks compute while keys travel, and which ranks do."""
    found: dict[str, list[int]] = {}
    for rank in range(min(plan.ranks, MOST_SHOWN)):
        steps = steps_of(plan, rank, 0, batch, plan.setting.heads, None)
        found.setdefault(str(steps), []).append(rank)
    return {steps: ", ".join(map(str, of)) for steps, of in found.items()}


def _row(name: str, plan: Plan) -> str:
    stats = plan.stats()
    return (
        f"{name:14}{stats.balance:9.3f}{stats.received.max() / 1e6:13.2f}{stats.far_received.max() / 1e6:14.2f}"
        f"{stats.efficiency:12.3f}"
    )


def _content(chosen: Plan, plans: dict[str, Plan]) -> dict[str, Any]:
    stats = chosen.stats()
    ranks = ("tokens", "pairs", "received", "sent", "far_received", "rank_s")
    figures = ("balance", "efficiency")
    assignments = {}
    for name, one in plans.items():
        found = one.stats()
        assignments[name] = {key: getattr(found, key) for key in figures}
        assignments[name] |= {
            f"most_{key}": int(getattr(found, key).max()) for key in ("received", "far_received")
        }
    return {
        "ranks": chosen.ranks,
        "chosen": chosen.name,
        **{key: getattr(stats, key) for key in (*figures, "alone_s", "slowest_s")},
        "of_ranks": {key: getattr(stats, key).tolist() for key in ranks},
        "assignments": assignments,
    }

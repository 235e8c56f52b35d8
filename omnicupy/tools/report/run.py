"""docs/report.md, docs/results/README.md and the table of results in README.md: prose by hand, tables and pictures
made from the records of docs/results.

A generated block stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from omnicupy.jit.build import Track, silent
from omnicupy.jit.files import replace_file
from omnicupy.masks.picture import figure_class
from omnicupy.tools.bench.gradients import PASSES
from omnicupy.tools.report import (
    accuracy,
    atoms,
    backward,
    behind_targets,
    gradient_goals,
    gradient_targets,
    gradients,
    page_tables,
    parallel_tables,
    pictures,
    score_tables,
    serving_targets,
    steps,
    studies,
    tables,
    targets,
)
from omnicupy.tools.report.library import Library

BLOCK = re.compile(r"<!-- generated: (?P<name>[^>]*?) -->\n.*?<!-- end -->", re.DOTALL)
OPENING = "<!-- generated:"

BLOCKS: dict[str, Callable[[Library], str]] = {
    "results": lambda library: f"{targets.best_others(library)}\n{gradient_goals.best(library)}",
    "serving": serving_targets.serving,
    "every record": tables.every_record,
    "records": tables.records_used,
    "hopper targets": targets.hopper,
    "behind targets": behind_targets.behind,
    "portable targets": targets.portable,
    "gradient targets": gradient_targets.gradients,
    "gradient goals": gradient_goals.goals,
    "dense": tables.dense,
    "models": tables.models,
    "sparsity lines": studies.lines,
    "sparsity crossings": studies.crossings,
    "choices": studies.choices,
    "backward choices": backward.choices,
    "variants": tables.variants,
    **{f"atoms {name}": atoms.study(name) for name in atoms.STUDIES},
    "short": tables.figures("short"),
    "latency": tables.figures("latency"),
    "seeds": tables.figures(f"seeds {PASSES['fwd+bwd'].name}"),
    "build": tables.figures("build"),
    "build both passes": tables.figures(f"build {PASSES['fwd+bwd'].name}"),
    "memory": tables.figures("memory"),
    "accuracy": accuracy.errors,
    "gradients dense": gradients.dense,
    "gradients models": gradients.models,
    "step": tables.figures("step"),
    "step short": tables.figures("step-short"),
    "step gemma": tables.figures("step-gemma"),
    "generate": tables.figures("generate"),
    "captured": tables.figures("captured"),
    **{name: page_tables.over_one_piece(name) for name in ("paged", "prompts", "e4m3")},
    "growing": tables.figures("growing"),
    "padded": tables.figures("padded"),
    "scores": score_tables.over_none,
    "decode-steps": steps.layers,
    "decode-steps goals": steps.goals,
    "host": tables.figures("host"),
    "cold": tables.figures("cold"),
    "cpu": tables.figures("cpu"),
    "presets": tables.figures("presets"),
    "scaling": tables.figures("scaling"),
    "sharing": tables.sharing,
    "parallel goals": parallel_tables.goals,
    "parallel": parallel_tables.every_way,
    "counters": tables.figures("counters"),
    "counters backward": tables.figures(f"counters {PASSES['bwd'].name}"),
    "bounds": tables.bounds,
    "ceilings": studies.ceilings,
    "predictions": studies.predictions,
    "predicted models": studies.predicted_models,
    "backward ceilings": backward.ceilings,
    "backward predictions": backward.predictions,
    "backward unseen": backward.unseen,
    **{f"picture {name}": partial(pictures.block, name) for name in pictures.SHOWN},
}


def render(text: str, library: Library, step: Callable[[], object] = lambda: None) -> str:
    """A report's text with every generated block made anew. step: called before each.

    Raises ValueError for a block of an unknown name and for one that does not end.
    """

    def made(found: re.Match[str]) -> str:
        name = found["name"]
        step()
        if name not in BLOCKS:
            raise ValueError(f"report: expected a block of some of {', '.join(BLOCKS)}, got {name!r}")
        return f"<!-- generated: {name} -->\n\n{BLOCKS[name](library).strip()}\n\n<!-- end -->"

    if len(BLOCK.findall(text)) != text.count(OPENING):
        raise ValueError("report: a generated block does not end; close it with <!-- end -->")
    return BLOCK.sub(made, text)


def update(docs: Path, track: Track = silent, *, with_pictures: bool = True) -> list[Path]:
    """Make the tables of `texts(docs)` and the pictures of docs/plots anew from docs/results; returns the files that
    were written.

    Raises ValueError for a text or a record that is none, OSError, ImportError without matplotlib (when pictures are
    wanted) before anything is made.
    """
    if with_pictures:
        try:
            figure_class()
        except ImportError as error:
            raise ImportError(
                "report: pictures need matplotlib, which cannot be imported; in the checkout: pip install '.[plot]', "
                "or --no-pictures for the tables alone"
            ) from error
    library = Library.open(docs / "results")
    for path, text in _rendered(docs, library, track):
        replace_file(path, text.encode())
    return [*texts(docs), *(pictures.save(library, docs / "plots", track) if with_pictures else [])]


def stale(docs: Path, track: Track = silent) -> list[Path]:
    """The texts whose tables are not those of the records."""
    library = Library.open(docs / "results")
    return [path for path, text in _rendered(docs, library, track) if text != path.read_text()]


def _rendered(docs: Path, library: Library, track: Track) -> list[tuple[Path, str]]:
    """Each text with its blocks made anew."""
    before = {path: path.read_text() for path in texts(docs)}
    count = sum(text.count(OPENING) for text in before.values())
    steps = iter(track(range(count), "tables", count))
    found = [(path, render(text, library, lambda: next(steps, None))) for path, text in before.items()]
    next(steps, None)  # the bar is full
    return found


def texts(docs: Path) -> tuple[Path, Path, Path]:
    """What holds generated blocks."""
    return docs / "report.md", docs / "results" / "README.md", docs.absolute().parent / "README.md"

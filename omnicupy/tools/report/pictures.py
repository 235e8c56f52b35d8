"""The report's pictures: those of the suites, the roofline, and predictions beside measurements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from omnicupy.choose import ceilings
from omnicupy.jit.build import Track, silent
from omnicupy.tools.bench.records import caption
from omnicupy.tools.report import plots, roofline
from omnicupy.tools.report import style as plot_style
from omnicupy.tools.report.library import Found, Library

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Draw = Callable[[Found, Library], "Figure"]

# name of the file -> suites of which the first that has a record is drawn, what the picture shows
SHOWN: dict[str, tuple[tuple[str, ...], str]] = {
    "shapes": (("shapes", "dense"), "useful TFLOP/s against tokens, full and causal"),
    "models": (("vlm", "masks"), "useful TFLOP/s on the masks of real models"),
    "sparsity": (("sparsity",), "time against density"),
    "tiles90": (("tiles90",), "TFLOP/s of every tile of the wgmma kernel"),
    "tiles": (("tiles",), "TFLOP/s of every tile of the mma.sync kernel"),
    "choices": (("choices",), "what the table chooses, as a share of the best tile's rate"),
    "variants": (("variants",), "TFLOP/s by stages, shared buffer and swizzle"),
    "short": (("short",), "time of whole calls against tokens"),
    "decode": (("decode",), "share of the copy against bytes of keys and values, calls by themselves"),
    "decode-steps": (("decode-steps",), "share of the copy against bytes of keys and values, captured steps"),
    "paged": (("paged",), "share of the copy against bytes of keys and values, keys in pages"),
    "build": (("build",), "time of a new mask before its first result"),
    "memory": (("memory",), "device memory beside inputs and output"),
    "roofline": (("vlm", "shapes", "dense"), "TFLOP/s against operations a byte, below the ceilings"),
    "predictions": (("vlm", "masks", "shapes", "dense"), "predicted against measured time"),
}


def found_of(name: str, library: Library) -> Found | None:
    """The suite that a picture is drawn from, None where no record has rows that it can show."""
    found = library.newest(*SHOWN[name][0])
    if found is None or (
        name in ("roofline", "predictions") and not roofline.bounds(found.rows, found.content)
    ):
        return None
    if name == "predictions" and not any(
        of.device.name == found.content.get("device") for of in ceilings.load()
    ):
        return None
    return found if plots.can_draw(found.suite, found.rows) else None


def block(name: str, library: Library) -> str:
    """The picture in Markdown and where it is from."""
    found = found_of(name, library)
    if found is None:
        return "No record to draw this from yet."
    return f"![{SHOWN[name][1]}](plots/{name}.png)\n\n{found.source}"


def save(library: Library, folder: Path, track: Track = silent) -> list[Path]:
    """Draw every picture that has a record into a folder; returns the files. Raises ImportError without matplotlib."""
    files = []
    for name in track(SHOWN, "pictures", len(SHOWN)):
        found = found_of(name, library)
        if found is not None:
            draw = DRAWN.get(name)
            made = draw(found, library) if draw else plots.DRAWN[found.suite](found.rows, found.content)
            files.append(folder / f"{name}.png")
            plot_style.save(made, files[-1])
    return files


def _roofline(found: Found, library: Library) -> Figure:
    """The rows of every record of the same device, below the ceilings of the first."""
    rows = list(found.rows)
    for suites in (("shapes", "dense"), ("variants",)):
        other = library.newest(*suites)
        if (
            other
            and other.suite != found.suite
            and other.content.get("device") == found.content.get("device")
        ):
            rows += other.rows
    return roofline.picture(rows, found.content)


def _predictions(found: Found, library: Library) -> Figure:
    """Every measurement of the device by any record, fitted or not."""
    from omnicupy.tools.explain import fitting

    name = found.content["device"]
    (known,) = (of for of in ceilings.load() if of.device.name == name)
    made, axes = plot_style.figure("Predicted and measured time", caption(found.content), (7.2, 5.6))
    panel = axes[0, 0]
    for fitted, marker, face in ((True, "o", "#4f86c6"), (False, "D", "none")):
        for kernel, size in (("sm90", 6.5), ("sm80", 4.0)):
            records = [
                one
                for one, content in library.of.items()
                if content.get("device") == name
                and content.get("gemm_tflops")
                and (one in known.sources) == fitted
            ]
            errors = [r for one in records for r in fitting.residuals(known, library.points(one))]
            of = [one for one in errors if one.point.spec.kernel == kernel]
            if of:
                panel.plot(
                    [one.point.us / 1e3 for one in of],
                    [100 * one.error for one in of],
                    linestyle="none",
                    marker=marker,
                    markersize=size,
                    markerfacecolor=face,
                    markeredgecolor=plot_style.INK,
                    label=f"{kernel}, {'in the fit' if fitted else 'not in the fit'}",
                )
    panel.axhline(0, color=plot_style.INK, linewidth=1)
    for limit in (-15, 15):
        panel.axhline(limit, color="#d1495b", linewidth=1, linestyle="--")
    plot_style.logarithmic(panel, "x")
    panel.set_ylim(-25, 25)
    plot_style.label(panel, "dashed: 15% off", "measured, ms", "predicted over measured, less one, in %")
    plot_style.legend(made, axes.flat)
    return made


DRAWN: dict[str, Draw] = {"roofline": _roofline, "predictions": _predictions}

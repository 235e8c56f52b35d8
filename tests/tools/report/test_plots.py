"""Pictures of records: every suite is drawn whole, nothing overlaps, and systems differ without colour."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import made_records
import pytest
from click.testing import CliRunner

from omnicupy.tools.bench import peers, records
from omnicupy.tools.bench.suites import GPU_SUITES
from omnicupy.tools.cli.main import main
from omnicupy.tools.report import plots
from omnicupy.tools.report import style as plot_style

pytest.importorskip("matplotlib")

RESULTS = Path(__file__).parents[3] / "docs" / "results"
FEW = {
    "shapes": ("s512", "s4096", "s32768"),
    "sparsity": ("d128",),
    "tiles": ("full-d128-s4096", "W4"),
    "tiles90": ("full-d64-s4096", "W4", "W7"),
    "choices": ("s4096", "W4", "W7"),
    "random": ("s1024",),
}


def _figure(suite: str) -> Any:
    content = made_records.record(suite, only=FEW.get(suite, ()))
    return plots.DRAWN[suite](plots.rows_of(content, suite), content)


def _boxes(figure: Any) -> list[Any]:
    """The space of the title, the caption, each panel with its labels, and the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    parts = [
        figure._suptitle.get_window_extent(renderer),
        *(text.get_window_extent(renderer) for text in figure.texts),
    ]
    title, caption = parts[0], parts[-1]
    parts = [caption] if title is caption else [title, caption]
    parts = [part for part in parts if part.width]
    parts += [axes.get_tightbbox(renderer) for axes in figure.axes if axes.get_visible()]
    return parts + [legend.get_window_extent(renderer) for legend in figure.legends]


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("suite", plots.DRAWN)
def test_every_suite_is_drawn_without_overlap(suite: str) -> None:
    figure = _figure(suite)
    assert figure._suptitle.get_text().strip()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = _boxes(figure)[1:]  # the title's second line is the caption's place
    for box in boxes:
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
    for one, other in combinations(boxes, 2):
        apart = (
            one.x1 <= other.x0 + 1
            or other.x1 <= one.x0 + 1
            or one.y1 <= other.y0 + 1
            or other.y1 <= one.y0 + 1
        )
        assert apart, f"{suite}: {one} and {other}"


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("suite", plots.DRAWN)
def test_panels_have_units(suite: str) -> None:
    for axes in (axes for axes in _figure(suite).axes if axes.get_visible()):
        labels = f"{axes.get_xlabel()} {axes.get_ylabel()} {axes.get_title()}"
        assert any(unit in labels for unit in ("TFLOP/s", "ms", "us a call", "MiB", "MB of")), labels


def test_systems_differ_without_colour() -> None:
    looks = [plot_style.STYLES[name] for name in ("omnicupy", *peers.SYSTEMS)]
    assert len({one.marker for one in looks}) == len(looks)
    assert len({str(one.line) for one in looks}) == len(looks)
    variants = [plot_style.style(f"omnicupy:{n}", n) for n in range(len(plot_style.VARIANTS))]
    assert len({one.marker for one in variants}) == len(variants)
    assert not {one.marker for one in variants} & {one.marker for one in looks}
    assert plot_style.ordered(["flex", "x", "omnicupy"]) == ["omnicupy", "flex", "x"]


def test_lines_hold_the_record_s_figures() -> None:
    content = made_records.record("shapes", only=("full-d128",))
    (panel,) = plots.shapes(content["rows"], content).axes
    assert panel.get_title() == "full, head_dim 128"
    drawn = {line.get_label(): line for line in panel.lines}
    for system in ("omnicupy", "fa4"):
        rows = [row for row in content["rows"] if row["system"] == system]
        line = drawn[plot_style.style(system).label]
        assert line.get_xdata().tolist() == [row["shape"][3] for row in rows]
        assert line.get_ydata().tolist() == [row["tflops"] for row in rows]


def test_wrong_and_missing_results_are_not_drawn() -> None:
    content = made_records.record("vlm", only=("W4", "W5"))
    content["rows"][0]["correct"] = False
    content["rows"][1] = {"workload": "W4", "system": "flex", "problem": "x", "shape": [1] * 6}
    (panel,) = plots.DRAWN["vlm"](content["rows"], content).axes
    drawn = {line.get_label(): len(line.get_xdata()) for line in panel.lines}
    assert drawn["omnicupy"] == 1
    assert drawn["FlexAttention (Triton)"] == 1


def test_sparsity_shows_the_line_and_dense_attention() -> None:
    figure = _figure("sparsity")
    assert [axes.get_title().splitlines()[0] for axes in figure.axes] == ["D 128, S 16384", "D 128, S 2048"]
    for axes in figure.axes:
        assert "dashed: " in axes.get_title()
        labels = [line.get_label() for line in axes.lines]
        assert "fit: launch + executed pairs" in labels
    assert "naive kernel" in [line.get_label() for line in figure.axes[1].lines]


def test_tables_of_tiles_show_the_best_of_each() -> None:
    content = made_records.record("tiles", only=("W4",))
    (panel,) = plots.DRAWN["tiles"](content["rows"], content).axes
    best = max(row["tflops"] for row in content["rows"] if row["workload"] == "W4")
    bold = [text.get_text() for text in panel.texts if text.get_weight() == "bold"]
    assert [text.splitlines()[0] for text in bold] == [f"{best:.0f}"]


@pytest.mark.parametrize("suite", ["decode", "paged"])
def test_decoding_shows_shares_of_the_copy(suite: str) -> None:
    content = made_records.record(suite, only=("h32-k8", "h28-k4", "h24"))
    figure = plots.DRAWN[suite](content["rows"], content)
    several, _, one_size = [axes for axes in figure.axes if axes.get_visible()]
    assert several.get_title() == "32 on 8 heads of 128\nhollow: one sequence of 131,072 keys"
    assert one_size.get_title() == "caches of one size, 537 MB of K and V"
    (label,) = (one.get_text() for one in one_size.get_xticklabels())
    assert label == "24 on 8\nheads of 128"
    system = content["rows"][0]["system"]
    rows = [row for row in content["rows"] if row["system"] == system and row["shape"][1:4] == [32, 8, 1]]
    line, hollow = several.lines[:2]
    assert line.get_label() == plot_style.style(system).label
    shares: dict[int, list[float]] = {}
    for row in rows:
        if row["shape"][0] > 1 or row["shape"][4] < 131072:
            shares.setdefault(row["shape"][0] * row["shape"][4], []).append(row["copy_share"])
    means = [sum(of) / len(of) for _, of in sorted(shares.items())]
    assert line.get_ydata().tolist() == pytest.approx(means)
    assert line.get_xdata().tolist() == sorted(line.get_xdata().tolist())
    assert list(hollow.get_ydata()) == [row["copy_share"] for row in rows if row["shape"][4] == 131072]
    low, high = several.get_ylim()
    assert high > max(row["copy_share"] for row in rows)
    assert (low == 0) == (suite == "decode" or min(row["copy_share"] for row in rows) < 0.12)


def test_a_path_without_a_suffix_is_a_png(tmp_path: Path) -> None:
    (file,) = plots.plot(made_records.record("vlm", only=("W4",)), tmp_path / "x")
    assert file == tmp_path / "x.png"
    assert file.read_bytes().startswith(b"\x89PNG")


def test_each_suite_of_a_record_has_its_file(tmp_path: Path) -> None:
    content = made_records.record("vlm", "memory", only=("W4",))
    files = plots.plot(content, tmp_path / "new" / "x.png")
    assert [file.name for file in files] == ["x-vlm.png", "x-memory.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    with pytest.raises(ValueError, match=r"plot: expected a record of some of shapes, .*, got \['cpu'\]"):
        plots.plot({"rows": [{"suite": "cpu", "workload": "w", "system": "s"}]}, tmp_path / "y.png")


@pytest.mark.parametrize(
    ("name", "suite"), [("h100-dense", "dense"), ("h100-models", "vlm"), ("h100-variants", "variants")]
)
def test_records_of_the_repository_are_drawn(tmp_path: Path, name: str, suite: str) -> None:
    content = records.load(RESULTS / f"{name}.json")
    assert plots.suites_of(content) == [suite]
    assert plots.rows_of(content, suite) == content["rows"]
    done = CliRunner().invoke(
        main, ["bench", "--table", str(RESULTS / f"{name}.json"), "--plot", str(tmp_path / "x.png")]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_a_record_without_pictures_is_refused_before_its_tables() -> None:
    done = CliRunner().invoke(
        main, ["bench", "--table", str(RESULTS / "cpu-presets.json"), "--plot", "x.png"]
    )
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "plot: expected a record of some of" in done.stderr


def test_drawable_suites_are_suites() -> None:
    assert set(plots.DRAWN) <= set(GPU_SUITES)
    tables_alone = {"latency", "seeds", "fit", "unseen", "same-bits", "behind", "blocks", "e4m3", "prompts"}
    assert set(GPU_SUITES) - set(plots.DRAWN) == tables_alone | {"scores", "portable"}

"""`explain`: what it prints and returns, with and without a GPU, and how its ceilings are fitted from a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy_gpu
import pytest
from click.testing import CliRunner

from omnicupy.choose import backward_table, ceilings, variants
from omnicupy.choose import saved as choose_saved
from omnicupy.tools import environment
from omnicupy.tools.cli.main import main
from omnicupy.tools.explain import run as explain_run
from omnicupy.tools.explain import waste
from omnicupy.tools.explain.waste import wastes
from omnicupy.tools.workloads.words import Sizes, problem_of

RECORDS = Path(__file__).parents[3] / "docs" / "results"
LAYOUT = "text:100,image:200,noise:100/text:50,image:120"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: False)


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["explain", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_workload_needs_no_sizes() -> None:
    text = _run("--mask", "W4")
    found = explain_run.run(problem_of("W4", Sizes()), "bfloat16")
    assert text == f"{found}\n"
    stats = found.stats
    for line in (
        "problem    W4: bfloat16, batch 2, 28 query heads on 4, head_dim 128",
        f"variant    {variants.word(found.spec)} for {found.spec.arch}",
        f"pairs      {stats.pairs:,} allowed ({stats.density:.2%})",
        f"executed   {stats.executed:,} pairs, {stats.waste:.3f} x the allowed ones",
        f"predicted  {found.predicted_ms:.4f} ms,",
        "there is no GPU here: these are the ceilings of",
        f"waste      {stats.executed - stats.pairs:,} executed pairs are not allowed",
    ):
        assert line in text
    assert "measured" not in text
    assert found.error is None


def test_the_kernels_of_gradients_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    of = backward_table.pick("sm_90", "bfloat16", 128)
    text = _run("--mask", "W4")
    in_order, all_three = (variants.tile_word(tile) for tile in (of.ordered, of.fused) if tile)
    assert f"gradients  sm90 ordered {in_order} for sm_90a\n" in text
    assert f"           with deterministic=False: sm90 fused {all_three} for sm_90a\n" in text
    content = json.loads(_run("--mask", LAYOUT, "--heads", "8", "--head-dim", "256", "--json"))
    assert content["backward"]["deterministic"] == content["backward"]["any_order"]
    assert content["backward"]["any_order"].startswith("sm90 dkdv ")
    monkeypatch.setattr(backward_table, "SERVED", frozenset())
    assert "gradients  attention_backward: no kernel serves bfloat16" in _run("--mask", "W4")


def test_parts_add_up_to_the_prediction() -> None:
    content = json.loads(
        _run("--mask", LAYOUT, "--heads", "8", "--kv-heads", "2", "--head-dim", "64", "--json")
    )
    assert sum(content["parts_us"].values()) == pytest.approx(1e3 * content["predicted_ms"])
    assert content["measured"] is None
    assert content["problem"]["kv_heads"] == 2
    assert 0 < content["balance"] <= 1
    stats = content["stats"]
    assert sum(one["pairs"] for one in content["wastes"]) == stats["executed"] - stats["pairs"]
    assert any(one["what"].startswith("noise 1, tokens 300 to 399") for one in content["wastes"])


def test_origins_beyond_the_largest_are_summed() -> None:
    found = explain_run.run(problem_of("W1", Sizes()), "bfloat16")
    lines = str(found).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("waste"))
    assert len(lines) - at == waste.ORIGINS + 2
    assert lines[-1].endswith(f"{len(found.wastes) - waste.ORIGINS} other origins")
    shares = [float(line.split("%")[0]) for line in lines[at + 1 :]]
    assert sum(shares) == pytest.approx(100 * (1 - found.stats.pairs / found.stats.executed), abs=0.1)


def test_a_variant_can_be_named() -> None:
    small = explain_run.run(problem_of("W4", Sizes()), "bfloat16", "sm80-128x64-s1-w4")
    assert variants.word(small.spec) == "sm80-128x64-s1-w4"
    assert small.predicted_ms > explain_run.run(problem_of("W4", Sizes()), "bfloat16").predicted_ms
    done = CliRunner().invoke(main, ["explain", "--mask", "W4", "--variant", "naive"])
    assert "no ceilings of kernel 'naive'" in done.output


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in GPU of a known name; the configs that were called."""
    numpy_gpu.install(monkeypatch)
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    called: list[Any] = []

    def attention(*arguments: Any, config: Any) -> Any:
        called.append(config)
        return numpy_gpu.attention(*arguments, config=config)

    monkeypatch.setattr(explain_run, "attention", attention)
    monkeypatch.setattr(choose_saved, "find", lambda *arguments, **of: None)
    return called


def test_on_a_gpu_the_time_is_measured_beside(gpu: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    known = ceilings.Ceilings(
        ceilings.Device("Fake H100", 132, 50 << 20),
        (ceilings.Ceiling("sm90", 16, 64, 70.0, 50.0, 5.0, 20.0, 2.0, 10.0, 0.0),),
        ("x.json",),
    )
    monkeypatch.setattr(ceilings, "load", lambda: [known])
    workload = problem_of(LAYOUT, Sizes(heads=2, head_dim=16))
    found = explain_run.run(workload, "bfloat16")
    assert found.note == ""
    assert found.measured is not None
    assert found.measured.ms > 0
    assert found.error == pytest.approx(found.predicted_ms / found.measured.ms - 1)
    assert set(gpu) == {found.spec}
    assert found.wastes == tuple(
        wastes(workload.mask(), workload.mask().blocks(found.spec.br, found.spec.bc))
    )
    assert f"measured   {found.measured.ms:.4f} ms" in str(found)
    assert "too short" in str(found) or "too long" in str(found)


def test_a_gpu_that_was_not_measured_is_said(gpu: list[Any]) -> None:
    found = explain_run.run(problem_of(LAYOUT, Sizes(heads=2, head_dim=16)), "float16")
    assert found.note.startswith("Fake H100 has not been measured: these are the ceilings of")


def test_a_tuned_choice_is_what_is_explained(gpu: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = variants.parse("sm90-64x96-s2-w8", "sm_90", "bfloat16", 16)
    monkeypatch.setattr(choose_saved, "find", lambda *arguments, **of: chosen)
    assert explain_run.run(problem_of(LAYOUT, Sizes(heads=2, head_dim=16)), "bfloat16").spec == chosen


def test_a_wrong_result_is_not_timed(gpu: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_run, "attention", lambda q, k, v, mask, config: q)
    with pytest.raises(ValueError, match=r"explain: sm90-.* gives a wrong result"):
        explain_run.run(problem_of(LAYOUT, Sizes(heads=2, head_dim=16)), "bfloat16")


def _part_of_choices(folder: Path) -> Path:
    """Each tile at two sizes: fitting takes as long as there are rows."""
    content = json.loads((RECORDS / "h100-choices.json").read_text())
    content["rows"] = [row for row in content["rows"] if "-s2048" in row["workload"]]
    assert len(content["rows"]) >= 30
    target = folder / "h100-choices.json"
    target.write_text(json.dumps(content))
    return target


@pytest.mark.in_turn(4)
def test_ceilings_are_fitted_by_a_command(tmp_path: Path) -> None:
    out = tmp_path / "ceilings.json"
    arguments = ["--fit", str(RECORDS / "h100-dense.json"), "--fit", str(_part_of_choices(tmp_path))]
    text = _run(*arguments, "--out", str(out))
    assert text.startswith("NVIDIA H100 80GB HBM3, ")
    assert "held out  error" in text
    (saved,) = ceilings.load(out)
    assert saved.sources == ("h100-dense.json", "h100-choices.json")
    content = json.loads(_run(*arguments, "--out", str(out), "--json"))
    assert content == saved.as_json()


def test_names_of_devices_come_from_the_environment(gpu: list[Any]) -> None:
    device, arch = explain_run.device_at_hand(ceilings.load()[0], True)
    assert (device.name, device.sm_count, arch) == ("Fake H100", 132, "sm_90")

"""`explain --pass bwd`: what it prints and returns, with and without a GPU, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy_gpu
import pytest
from click.testing import CliRunner
from made_ceilings import BACKWARD

from omnicupy.choose import backward_table, ceilings, variants
from omnicupy.choose import saved as choose_saved
from omnicupy.errors import UnsupportedError
from omnicupy.tools import environment
from omnicupy.tools.bench import gradients, measure
from omnicupy.tools.cli.main import main
from omnicupy.tools.explain import backward
from omnicupy.tools.explain import run as explain_run
from omnicupy.tools.workloads.words import Sizes, problem_of

LAYOUT = "text:100,image:200,noise:100/text:50,image:120"
LONG = "text:100,image:2000,noise:100/text:500,image:1200"  # sums of dQ have more than a few additions
BWD = ("--pass", "bwd")


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    load = ceilings.load
    known = [replace(next(one for one in load() if one.of), backward=BACKWARD)]  # of both passes
    monkeypatch.setattr(ceilings, "load", lambda *path: load(*path) if path else known)
    monkeypatch.setattr(environment, "has_gpu", lambda: False)


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["explain", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def _refused(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["explain", *arguments])
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


def test_a_workload_needs_no_sizes() -> None:
    text = _run("--mask", "W4", *BWD)
    found = backward.run(problem_of("W4", Sizes()), "bfloat16")
    assert text == f"{found}\n"
    tile = backward_table.pick("sm_90", "bfloat16", 128).ordered
    assert tile is not None
    (stats,) = found.stats
    for line in (
        "problem    W4: bfloat16, batch 2, 28 query heads on 4, head_dim 128",
        "pass       backward, sums in one order",
        f"kernels    sm90 ordered {variants.tile_word(tile)} for sm_90a",
        f"pairs      {stats.pairs:,} allowed ({stats.density:.2%})",
        f"predicted  {found.predicted_ms:.4f} ms,",
        f"bound      {found.prediction.bound_us / 1e3:.4f} ms with the allowed pairs alone",
        "ordered 593 TFLOP/s over full tiles of 64 x 128; a pair of a partial tile takes +14%, of a causal one +3%",
        "there is no GPU here: these are the ceilings of NVIDIA H100",
        f"waste      {stats.executed - stats.pairs:,} executed pairs are not allowed",
    ):
        assert line in text
    assert "waits " in text
    assert "by kernels" not in text
    assert "measured" not in text
    assert found.error is None


def test_two_kernels_are_told_apart() -> None:
    text = _run("--mask", "W7", *BWD)
    found = backward.run(problem_of("W7", Sizes()), "bfloat16")
    assert f"kernels    {', '.join(found.named)} for sm_90a" in text
    assert text.count("tiles      ") == 2
    assert "           by kernels: dkdv " in text
    assert "           dq 780 TFLOP/s over full tiles of 128 x 64;" in text
    assert "; one that a warpgroup skips takes 10% of its time" in text
    assert "waits" not in text


def test_any_order_is_another_kernel() -> None:
    for head_dim, default, free in (("64", "ordered", "fused"), ("256", "dkdv", "dkdv")):
        sizes = ("--heads", "8", "--head-dim", head_dim)
        assert f"kernels    sm90 {default} " in _run("--mask", LONG, *sizes, *BWD)
        text = _run("--mask", LONG, *sizes, *BWD, "--any-order")
        assert f"kernels    sm90 {free} " in text
        assert "pass       backward, sums in any order" in text


@pytest.mark.parametrize(("head_dim", "parts"), [("64", ["ordered"]), ("256", ["dkdv", "dq"])])
def test_parts_add_up_to_the_prediction(head_dim: str, parts: list[str]) -> None:
    content = json.loads(
        _run("--mask", LONG, "--heads", "8", "--kv-heads", "2", "--head-dim", head_dim, *BWD, "--json")
    )
    assert sum(content["parts_us"].values()) == pytest.approx(1e3 * content["predicted_ms"])
    assert [one["kernel"].split()[1] for one in content["kernels"]] == parts
    assert (content["pass"], content["deterministic"], content["measured"]) == ("backward", True, None)
    assert 0 < content["balance"] <= 1
    assert content["bound_ms"] <= content["predicted_ms"]
    stats = content["kernels"][0]["stats"]
    assert sum(one["pairs"] for one in content["wastes"]) == stats["executed"] - stats["pairs"]


def test_both_passes_follow_each_other() -> None:
    forward, behind = (_run("--mask", "W4", "--pass", one) for one in ("fwd", "bwd"))
    assert _run("--mask", "W4", "--pass", "FWD+BWD") == f"{forward}\n{behind}"
    content = json.loads(_run("--mask", "W4", "--pass", "fwd+bwd", "--json"))
    assert set(content) == {"forward", "backward"}
    assert content["backward"]["predicted_ms"] > content["forward"]["predicted_ms"]
    named = _run("--mask", "W4", "--pass", "fwd+bwd", "--variant", "sm80-128x64-s1-w4", "--any-order")
    assert "variant    sm80-128x64-s1-w4" in named
    assert "sm90 fused" in named.split("pass       backward")[1]


def test_options_that_do_nothing_are_refused() -> None:
    assert "--any-order does nothing without --pass bwd; leave it out" in _refused(
        "--mask", "W4", "--any-order"
    )
    variant = ("--variant", "sm80-128x64-s1-w4")
    assert "--variant does nothing with --pass bwd; leave it out" in _refused("--mask", "W4", *BWD, *variant)
    assert "--out does nothing without --fit; leave it out" in _refused(
        "--mask", "W4", *BWD, "--out", "x.json"
    )
    assert "--any-order does nothing with --fit" in _refused("--fit", "x.json", *BWD, "--any-order")
    assert "--fit is of one pass: give --pass fwd or --pass bwd" in _refused(
        "--fit", "x.json", "--pass", "fwd+bwd"
    )


def test_what_the_model_does_not_describe_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = problem_of(LAYOUT, Sizes(heads=2, head_dim=512))
    with pytest.raises(
        UnsupportedError, match="the cost model of the backward pass describes kernel 'sm90', got 'sm80'"
    ):
        backward.run(workload, "bfloat16")
    monkeypatch.setattr(explain_run, "MOST_ITEMS", 20)
    with pytest.raises(ValueError, match=r"explain: expected at most 20 block rows of all heads, .* got 36"):
        backward.run(problem_of(LAYOUT, Sizes(heads=4, head_dim=256)), "bfloat16")
    nothing = [replace(one, backward=None) for one in ceilings.load()]
    monkeypatch.setattr(ceilings, "load", lambda: nothing)
    with pytest.raises(
        UnsupportedError, match="explain: no ceilings of the backward pass are known; measure"
    ):
        backward.run(problem_of("W4", Sizes()), "bfloat16")
    done = CliRunner().invoke(main, ["explain", "--mask", "W4", *BWD])
    assert (done.exit_code, "no ceilings of the backward pass" in done.output) == (1, True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in GPU; the options of the calls."""
    numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, measure, gradients)
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    monkeypatch.setattr(choose_saved, "find_backward", lambda *arguments, **options: None)
    called: list[dict[str, Any]] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        called.append(options)
        return numpy_gpu.attention_backward(*arguments, **options)

    monkeypatch.setattr(gradients, "attention_backward", noted)
    return called


@pytest.mark.parametrize("deterministic", [True, False])
def test_on_a_gpu_the_time_is_measured_beside(gpu: list[dict[str, Any]], deterministic: bool) -> None:
    found = backward.run(
        problem_of(LAYOUT, Sizes(heads=2, head_dim=16)), "bfloat16", deterministic=deterministic
    )
    assert found.measured is not None
    assert found.error == pytest.approx(found.predicted_ms / found.measured.ms - 1)
    assert {options["deterministic"] for options in gpu} == {deterministic}
    assert {options["config"] for options in gpu} == {None}
    assert f"measured   {found.measured.ms:.4f} ms" in str(found)
    assert found.note.startswith("Fake H100 has not been measured: these are the ceilings of")


def test_a_measured_gpu_has_ceilings_of_its_own(
    gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ceilings.Ceilings(ceilings.Device("Fake H100", 132, 50 << 20), (), backward=BACKWARD)
    known = [*ceilings.load(), own]
    monkeypatch.setattr(ceilings, "load", lambda: known)
    found = backward.run(problem_of(LAYOUT, Sizes(heads=2, head_dim=16)), "bfloat16")
    assert (found.note, found.device.name) == ("", "Fake H100")


def test_a_tuned_choice_is_what_is_explained(
    gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = replace(backward_table.pick("sm_90", "bfloat16", 128), ordered=None)
    monkeypatch.setattr(choose_saved, "find_backward", lambda *arguments, **options: chosen)
    found = backward.run(problem_of("text:30,image:40", Sizes(heads=1, head_dim=128)), "bfloat16")
    assert [one.kernel for one in found.kernels] == [chosen.part("dkdv"), chosen.part("dq")]


def test_wrong_gradients_are_not_timed(gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        dq, dk, dv = numpy_gpu.attention_backward(*arguments, **options)
        return dq, -dk, dv

    monkeypatch.setattr(gradients, "attention_backward", wrong)
    with pytest.raises(ValueError, match="explain: the gradients are wrong"):
        backward.run(problem_of(LAYOUT, Sizes(heads=2, head_dim=16)), "bfloat16")


@pytest.mark.in_turn(4)
def test_ceilings_are_fitted_by_a_command(tmp_path: Path) -> None:
    out = tmp_path / "ceilings.json"
    records = Path(__file__).parents[3] / "docs" / "results"
    arguments = [
        part
        for name in ("models", "dense")
        for part in ("--fit", str(records / f"h100-gradients-{name}.json"))
    ]
    text = _run(*arguments, *BWD, "--out", str(out))
    assert text.startswith("NVIDIA H100 80GB HBM3, 38 measurements of the backward pass")
    content = json.loads(out.read_text())["devices"][0]["backward"]
    assert content["sources"] == ["h100-gradients-models.json", "h100-gradients-dense.json"]
    assert json.loads(_run(*arguments, *BWD, "--out", str(out), "--json")) == content

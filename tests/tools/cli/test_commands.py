"""The command line: what each command prints, and that errors are one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from omnicupy.masks.segment_masks import random
from omnicupy.tools import environment
from omnicupy.tools.bench import records
from omnicupy.tools.cli import console
from omnicupy.tools.cli.main import main

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_help_names_every_command() -> None:
    found = run("--help")
    assert found.exit_code == 0
    for name in ("verify", "bench", "show", "tune", "explain", "plan", "report", "env"):
        assert name in found.output
        assert run(name, "--help").exit_code == 0


def test_from_a_checkout() -> None:
    done = subprocess.run(
        [sys.executable, "cli.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "verify" in done.stdout


def test_show_prints_the_mask_and_its_statistics() -> None:
    found = run("show", "--random", "600", "--seed", "3", "--br", "64", "--bc", "64")
    assert found.exit_code == 0
    mask = random(600, 3)
    assert str(mask) in found.output
    assert str(mask.stats(64, 64)) in found.output


def test_show_takes_segments_and_workloads() -> None:
    found = run("show", "--segments", "text:120, image:200,noise:64/text:40", "--json")
    assert found.exit_code == 0
    figures = json.loads(found.stdout)
    assert (figures["q_len"], figures["br"]) == (424, 128)
    assert figures["waste"] >= 1
    assert json.loads(run("show", "--workload", "W15", "--json").stdout)["q_len"] == 1152


def test_show_saves_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "mask.png"
    found = run("show", "--random", "500", "--png", str(path))
    assert found.exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "choose one mask: --mask SPEC, which is full, causal, random:SEED, a workload such as W4"),
        (("--random", "5", "--workload", "W1"), "choose one mask"),
        (("--segments", "text"), '--segments: expected kind:length, as in text:120, got "text"'),
        (("--segments", "text:x"), "--segments: expected kind:length"),
        (("--segments", "audio:5"), "kind must be one of text, image, noise"),
        (("--workload", "W99"), "workload: expected one of W1"),
        (("--random", "64", "--br", "0"), "br (query rows) must be a positive whole number"),
    ],
)
def test_show_errors_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    found = run("show", *arguments)
    assert found.exit_code != 0
    assert message in found.output
    assert "Traceback" not in found.output


def test_env_lists_versions() -> None:
    found = run("env")
    assert found.exit_code == 0
    assert "packages.numpy" in found.output
    content = json.loads(run("env", "--json").stdout)
    assert content["device"] is None
    assert content["tuned_choices"] == 0
    assert content["packages"]["numpy"]


def test_verify_prints_a_table_and_passes() -> None:
    found = run("verify", "--case", "d64-bf16-causal-q333k")
    assert found.exit_code == 0
    assert "error/budget" in found.output
    assert "PASS" in found.output
    assert "no kernel was run: no GPU here" in found.output
    assert "all passed" in found.output


def test_what_cannot_be_is_said_in_a_line(tmp_path: Path) -> None:
    for arguments, said in (
        (["bench", "build", "--workload", "W4"], "bench: workloads need a GPU, and there is none here"),
        (["bench", "presets", "--plot", "x.png"], "got presets without one; leave --plot out"),
        (["bench", "build", "--plot", "x.png"], "got build without one; leave --plot out"),
        (["show", "--mask", "text:5", "--png", ""], "--png: expected a file, got the folder ''"),
        (["plan", "--mask", "W4", "--ranks", "2", "--png", ""], "--png: expected a file, got the folder ''"),
        (["bench", "build", "--out", str(tmp_path)], "--out: expected a file, got the folder"),
        (["show", "--segments", f"text:{2**62},text:{2**62}"], "length must be at most 1073741824 tokens"),
        (["show", "--segments", "text:\u00b2"], "--segments: expected kind:length"),
        (["show", "--random", "10", "--seed", "-1"], "--seed"),
        (
            ["explain", "--mask", "causal", "--heads", "8", "--head-dim", "63", "--length", "64"],
            "a multiple of 8",
        ),
        (
            [
                "explain",
                "--mask",
                "causal",
                "--heads",
                "8",
                "--head-dim",
                "64",
                "--length",
                "64",
                "--batch",
                "9999999",
            ],
            "explain: expected at most 2000000 block rows",
        ),
        (
            ["show", "--mask", "causal", "--length", "9000000"],
            "--mask: expected at most 67,108,864 tiles, got 9,000,000",
        ),
        (["show", "--mask", "full-d64-s2000000"], "--mask: expected at most 67,108,864 tiles"),
        (
            ["show", "--mask", "text:9000000", "--br", "8", "--bc", "32"],
            "tiles of 8 x 32; take a shorter mask",
        ),
    ):
        found = run(*arguments)
        assert found.exit_code in (1, 2), arguments
        assert said in found.output, (arguments, found.output)
    assert not list(tmp_path.iterdir())


def test_a_picture_without_a_suffix_is_named_as_it_is_saved(tmp_path: Path) -> None:
    found = run("show", "--random", "100", "--png", str(tmp_path / "mask"))
    assert found.exit_code == 0
    assert f"saved {tmp_path / 'mask.png'}" in found.output
    assert (tmp_path / "mask.png").exists()


def test_verify_prints_json() -> None:
    found = CliRunner().invoke(main, ["verify", "--case", "d64-bf16-causal-q333k", "--json"])
    content = json.loads(found.stdout)
    assert content["passed"] is True
    assert content["lines"][0]["kernel"] == "CPU engine"


def test_verify_fails_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from omnicupy.tools.verify import on_cpu

    monkeypatch.setattr(on_cpu, "same_bits", lambda a, b, xp: False)
    found = run("verify", "--case", "d64-bf16-causal-q333k")
    assert found.exit_code == 1
    assert "FAIL  CPU engine: d64-bf16-causal-q333k" in found.output


def test_verify_needs_a_gpu_for_gpu_things(tmp_path: Path) -> None:
    for arguments in (
        ["--attest", "x"],
        ["--cubins", str(tmp_path)],
        ["--kernel", "naive"],
        ["--source", "attention_naive.cu"],
        ["--part", "1/2"],
    ):
        found = run("verify", *arguments)
        assert found.exit_code == 1
        assert "need a GPU, and there is none here" in found.output


def test_verify_names_sources_and_parts_that_there_are() -> None:
    found = run("verify", "--source", "attention.cu")
    assert found.exit_code == 2
    assert "--source: expected one of attention_naive.cu, attention_fwd_sm80.cu," in found.output
    found = run("verify", "--part", "3/2")
    assert found.exit_code == 1
    assert '--part: expected i/n, from "1/n" to "n/n", got \'3/2\'' in found.output


def test_verify_builds_kernels_for_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnicupy.tools.verify import run as verify_run

    asked = []
    monkeypatch.setattr(verify_run, "compile_all", lambda specs, track: asked.extend(specs))
    monkeypatch.setattr(verify_run.cache, "export", lambda specs, folder: len(specs))
    found = run("verify", "--build", str(tmp_path), "--arch", "sm_90", "--case", "d72-", "--sweep", "0")
    assert found.exit_code == 0, found.output
    assert f"kernels for sm_90 in {tmp_path}" in found.output
    assert {spec.head_dim for spec in asked} == {80}


def test_bench_lists_its_suites_and_renders_tables(tmp_path: Path) -> None:
    found = run("bench")
    assert found.exit_code == 0
    assert "dense" in found.output
    path = tmp_path / "run.json"
    records.Record(path, {"device": "H100"}).add(workload="w", system="omnicupy", figures={"ms": 1.0})
    found = run("bench", "--table", str(path))
    assert found.output.startswith("H100")
    assert "| w | omnicupy | ms | 1 |" in found.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dense",), "these suites need a GPU"),
        (("speed",), "SUITES must be some of"),
        (("--table", "/nowhere.json"), "/nowhere.json"),
    ],
)
def test_bench_errors_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    found = run("bench", *arguments)
    assert found.exit_code == 1
    assert message in found.output
    assert "Traceback" not in found.output


def test_progress_is_a_line_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.track(iter([1, 2]), "compiling", 2)) == [1, 2]
    assert capsys.readouterr().err == "compiling: 2\n"
    assert list(console.bar(iter([1, 2]), "compiling", 2)) == [1, 2]


@pytest.mark.skipif(os.name != "posix", reason="pipes that close")
def test_output_that_nobody_reads_on_is_no_error() -> None:
    show = [sys.executable, "-m", "omnicupy", "show", "--mask", "W4"]
    with subprocess.Popen(
        show, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment.of_child()
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""

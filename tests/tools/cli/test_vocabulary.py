"""One vocabulary: the same words for masks everywhere, names in any case, JSON, and no option that does nothing."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click
import made_records
import pytest
from click.testing import CliRunner, Result

import omnicupy as oc
from omnicupy.tools import environment
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.cli import console
from omnicupy.tools.cli.main import main
from omnicupy.tools.tune import run as tune_run
from omnicupy.tools.verify import run as verify_run
from omnicupy.tools.workloads import words
from omnicupy.tools.workloads.workload import NAMED, Workload

SIZES = ("--heads", "4", "--head-dim", "64")
# Commands with a --length, which has no default: the mask tells whether it is needed.
OF_SIZES = ("bench", "explain", "plan", "show", "tune")
MASKS = (
    ("full", ("--length", "300"), oc.full(300)),
    ("Causal", ("--length", "300", "--kv-length", "400"), oc.causal(300, 400)),
    ("RANDOM:3", ("--length", "300"), oc.random(300, 3)),
    ("w15", (), NAMED["W15"].mask()),
    ("Text:120, IMAGE:72/noise:9", (), oc.segments([[("text", 120), ("image", 72)], [("noise", 9)]])),
    ("Causal-D64-S256", (), oc.causal(256)),
)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Workload]:
    """The workloads that `tune` and `bench` are given; neither does any work."""
    found: list[Workload] = []

    def bench(options: bench_run.Options, say: Any) -> dict[str, Any]:
        found.extend(one for one in options.workloads if isinstance(one, Workload))
        return {"rows": []}

    def tune(workload: Workload, *_: Any, **options: Any) -> Any:
        found.append(workload)
        raise ValueError("enough")

    monkeypatch.setattr(bench_run, "run", bench)
    monkeypatch.setattr(tune_run, "run", tune)
    return found


@pytest.mark.parametrize(("text", "lengths", "mask"), MASKS)
def test_a_mask_has_the_same_words_everywhere(
    text: str, lengths: tuple[str, ...], mask: oc.Mask, taken: list[Workload]
) -> None:
    shown = json.loads(run("show", "--mask", text, *lengths, "--json").stdout)
    assert (shown["q_len"], shown["k_len"], shown["pairs"]) == (*mask.shape, mask.pairs)
    explained = json.loads(run("explain", "--mask", text, *lengths, *SIZES, "--json").stdout)
    assert explained["stats"]["pairs"] == mask.pairs
    run("tune", "--mask", text, *lengths, *SIZES)
    run("bench", "--mask", text, *lengths, *SIZES)
    assert [one.mask() for one in taken] == [mask, mask]
    assert {one.sizes for one in taken} == {(4, 4, 64)}


def test_older_spellings_still_work(taken: list[Workload]) -> None:
    for older, now in (
        (("--random", "300", "--seed", "4"), ("--mask", "random:4", "--length", "300")),
        (
            ("--random", "300", "--documents", "2"),
            ("--mask", "random:0", "--length", "300", "--documents", "2"),
        ),
        (("--segments", "text:9,image:40"), ("--mask", "text:9,image:40")),
        (("--workload", "W15"), ("--mask", "W15")),
    ):
        assert run("show", *older).output == run("show", *now).output
    run("bench", "--workload", "w4", "--workload", "W15")
    assert taken == [NAMED["W4"], NAMED["W15"]]


def test_names_of_workloads_differ_in_more_than_case() -> None:
    assert len({name.lower() for name in NAMED}) == len(NAMED)


def test_names_are_taken_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bench_run.Options] = []
    monkeypatch.setattr(bench_run, "run", lambda options, say: seen.append(options) or {"rows": []})
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    done = run("bench", "VLM", "--system", "OmniCuPy:SM80-128x64-s2-w4", "--dtype", "Float16")
    assert done.exit_code == 0, done.output
    (options,) = seen
    assert (options.suites, options.systems) == (("vlm",), ("omnicupy:sm80-128x64-s2-w4",))
    assert options.dtype == "float16"
    monkeypatch.setattr(environment, "has_gpu", lambda: False)
    done = run("explain", "--mask", "W15", "--variant", "SM90-128x64-S2-W12", "--dtype", "BFLOAT16", "--json")
    assert json.loads(done.stdout)["variant"] == "sm90-128x64-s2-w12"


def test_what_a_row_of_a_record_names_is_found_again() -> None:
    for text, shape in (("text:9,image:40", (1, 4, 2, 49, 49, 64)), ("causal", (2, 4, 4, 30, 50, 64))):
        found = words.of_record(text, shape)
        assert (found.batch, *found.sizes, *found.mask().shape) == (*shape[:3], shape[5], *shape[3:5])
    assert words.of_record("W4", ()) is NAMED["W4"]
    with pytest.raises(ValueError, match="workload: expected one of W1"):
        words.of_record("W99", ())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("bench --out x.json", "--out does nothing without SUITES or --mask"),
        ("bench --system flex", "--system does nothing without SUITES or --mask"),
        ("bench --table x.json --samples 9", "--samples does nothing with --table"),
        ("bench vlm --table x.json", "SUITES does nothing with --table"),
        ("bench cpu --samples 9", "--samples does nothing with cpu here"),
        ("bench cpu --part 1/2", "--part does nothing without accuracy"),
        ("bench presets cpu --dtype float16", "--dtype does nothing with presets, cpu here"),
        ("bench vlm --heads 4", "--heads does nothing without --mask"),
        ("bench vlm --workload W4 --length 9", "--length does nothing without --mask"),
        ("bench vlm --mask W4 --seeds 2", "--seeds does nothing with --mask"),
        ("show --mask W4 --seed 3", "--seed does nothing without --random"),
        ("show --mask W4 --documents 3", "--documents does nothing unless the mask is a random one"),
        ("show --random 99 --length 9", "--length does nothing without --mask"),
        ("explain --fit x.json --heads 4", "--heads does nothing with --fit"),
        ("explain --fit x.json --mask full", "--mask does nothing with --fit"),
        ("explain --mask W4 --out x.json", "--out does nothing without --fit"),
        ("verify --arch sm_80", "--arch does nothing without --build"),
        ("verify --build x --repeats 3", "--repeats does nothing with --build"),
        ("verify --commit abc", "--commit does nothing without --attest"),
        ("verify --resume", "--resume does nothing without --attest"),
        ("verify --list --source attention_naive.cu", "--source does nothing with --list"),
        ("verify --list --part 1/2", "--part does nothing with --list"),
        ("verify --sweep 5", "--sweep does nothing without a GPU"),
        ("verify --no-timing", "--no-timing does nothing without a GPU"),
        (
            "verify --case causal --all-specs",
            "--all-specs does nothing with --case where no kernel is compiled",
        ),
        ("verify --list --kernel sm80", "--kernel does nothing with --list"),
        ("report --check --no-pictures", "--no-pictures does nothing with --check"),
    ],
)
def test_an_option_that_does_nothing_is_a_usage_error(arguments: str, named: str) -> None:
    found = run(*arguments.split())
    assert found.exit_code == 2, found.output
    assert f"Error: {named}" in found.output
    assert found.output.rstrip().endswith("; leave it out")


def test_every_command_prints_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "record.json"
    record.write_text(json.dumps(made_records.record("vlm", only=("W15",))))
    monkeypatch.setattr(verify_run, "build_cubins", lambda *arguments: 3)
    assert all("--json" in {name for one in of.params for name in one.opts} for of in main.commands.values())
    assert "vlm" in json.loads(run("bench", "--json").stdout)["gpu"]
    assert json.loads(run("bench", "--table", str(record), "--json").stdout) == json.loads(record.read_text())
    built = json.loads(run("verify", "--build", "x", "--arch", "SM_80", "--json").stdout)
    assert built == {"kernels": 3, "arch": "sm_80", "folder": "x"}
    listed = json.loads(run("verify", "--list", "--case", "Large Scores", "--json").stdout)
    assert {one["group"] for one in listed} == {"large scores"}
    assert isinstance(json.loads(run("env", "--json").stdout)["notes"], list)


def test_cases_are_chosen_by_what_the_table_prints_and_listed() -> None:
    lines = run("verify", "--list").stdout.splitlines()
    assert len(lines) > 300
    assert "head dims         d64-bf16-" in "\n".join(lines)
    assert all(re.fullmatch(r"\S.*\S  +\S+", line) for line in lines)  # group and id
    some = run("verify", "--list", "--case", "EMPTY ROWS").stdout.splitlines()
    assert some == [line for line in lines if line.startswith("empty rows")]
    done = run("verify", "--case", "empty rows", "--case", "d64-bf16-causal-q333k333")
    assert done.exit_code == 0, done.output
    assert re.search("^CPU engine +empty rows", done.stdout, re.MULTILINE)
    assert re.search("^CPU engine +masks", done.stdout, re.MULTILINE)


def test_a_command_that_says_nothing_for_long_shows_that_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a command does, also in one long step: the group itself shows it."""
    monkeypatch.setattr(console, "QUIET_S", 0.05)

    @click.command()
    def slow() -> None:
        deadline = time.monotonic() + 20
        while "slow: " not in (said := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.02)
        click.echo(said)

    monkeypatch.setitem(main.commands, "slow", slow)
    main(["slow"], standalone_mode=False)
    assert "slow: 0 s so far" in capsys.readouterr().out
    assert not [one for one in threading.enumerate() if getattr(one, "_target", None) is console._watch]


def test_signs_of_life_keep_silent_beside_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "QUIET_S", 0.02)
    with console.signs_of_life(lambda: "slow"):
        for _ in console.bar([1, 2], "bar", 2):
            time.sleep(0.1)
    assert "so far" not in capsys.readouterr().err


def test_on_a_terminal_the_line_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(console, "QUIET_S", 0.02)
    monkeypatch.setattr(console.click, "echo", lambda text, **_: written.append(text))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with console.signs_of_life(lambda: "slow"):
        deadline = time.monotonic() + 20
        while not any("so far" in text for text in written) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert any(text.startswith(f"{console.CLEAR}slow: ") for text in written)
    assert written[-1] == console.CLEAR


def test_the_list_of_commands_says_what_each_does_in_whole_sentences() -> None:
    listed = CliRunner(env={"COLUMNS": "80"}).invoke(main, ["--help"]).output.split("Commands:\n")[1]
    assert "..." not in listed
    assert len(listed.splitlines()) == len(main.commands)
    assert all(line.endswith(".") for line in listed.splitlines())


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_says_what_it_does_and_what_it_is_where_it_is_left_out(name: str) -> None:
    options = [one for one in main.commands[name].params if isinstance(one, click.Option) and not one.hidden]
    assert [one.opts for one in options if not one.help] == []
    numbers = [one for one in options if isinstance(one.type, click.types.IntParamType)]
    unsaid = [
        one for one in numbers if not (one.show_default or one.required or "default" in (one.help or ""))
    ]
    assert [max(one.opts, key=len) for one in unsaid] == ["--length"] * (name in OF_SIZES)


@pytest.mark.parametrize(
    "arguments", ["show --mask W15 --png", "plan --mask W15 --ranks 2 --png", "bench cpu --plot"]
)
def test_an_error_of_a_picture_names_the_option(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = arguments.split()[-1]
    found = run(*arguments.split(), str(tmp_path / "x.exe"))
    assert f"Error: {option}: expected a suffix of " in found.output
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = run(*arguments.split(), str(tmp_path / "x.png"))
    assert found.output == (
        f"Error: {option}: matplotlib is needed, but cannot be imported; in the checkout: pip install '.[plot]'\n"
    )


def test_suites_are_listed_in_two_columns() -> None:
    listed = bench_run.listing().split("\nsystems:")[0].splitlines()
    names = {name for kind in ("gpu", "anywhere") for name in bench_run.catalogue()[kind]}
    width = max(map(len, names))
    suites = [line for line in listed if line.startswith("  ")]
    assert {line[2 : 2 + width].rstrip() for line in suites} == names
    assert {line[2 + width] for line in suites} == {" "}
    assert " " not in {line[3 + width] for line in suites}


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_a_library_that_is_missing_is_named_with_what_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs(options: bench_run.Options, say: Any) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}.part'", name=f"{name}.part")

    monkeypatch.setattr(bench_run, "run", needs)
    found = run("bench", "padded")
    assert found.output == (
        f"Error: {name} is needed, but cannot be imported; in the checkout: pip install '.[{name}]'\n"
    )
    assert found.exit_code == 1

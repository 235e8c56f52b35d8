"""Training steps as a suite: samples and masks, rows of a record, and processes that fail; no torch is needed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench import step
from omnicupy.tools.bench.records import Record
from omnicupy.tools.bench.step_stacks import FULL, SLIDING, STACKS, Packs, Stack
from omnicupy.tools.bench.suites import OTHER_SUITES

LLAMA, GEMMA = STACKS["llama"], STACKS["gemma"]


@pytest.mark.parametrize("packs", LLAMA.packs)
def test_a_row_is_full_of_samples_of_the_lengths_that_are_said(packs: Packs) -> None:
    rows = [packs.row(LLAMA.tokens, seed) for seed in range(5)]
    for row in rows:
        sizes = [sum(tokens for _, tokens in sample) for sample in row]
        assert sum(sizes) == LLAMA.tokens
        assert max(sizes) <= packs.longest
        assert all(size >= packs.longest // 4 for size in sizes[:-1])
        assert all(sample[0][0] == "text" for sample in row)
    kinds = {kind for row in rows for sample in row for kind, _ in sample}
    assert kinds == {"text", "image", "noise"}
    assert rows[0] != rows[1]
    assert packs.row(LLAMA.tokens, 0) == rows[0]


@pytest.mark.parametrize("stack", [STACKS["tiny-llama"], STACKS["tiny-gemma"]])
def test_masks_are_those_of_the_samples(stack: Stack) -> None:
    packs = stack.packs[0]
    masks = stack.masks(packs, 3)
    assert set(masks) == set(stack.layers)
    place, image, hidden = [], [], []
    for i, sample in enumerate(packs.row(stack.tokens, 3)):
        for kind, tokens in sample:
            place += [i] * tokens
            image += [len(image) if kind != "text" else -1] * tokens
            hidden += [kind == "noise"] * tokens
    sample_of, image_of, noise = np.array(place), np.array(image), np.array(hidden)
    row, key = np.arange(stack.tokens)[:, None], np.arange(stack.tokens)
    together = (image_of[:, None] == image_of) & (image_of >= 0)
    wanted = (sample_of[:, None] == sample_of) & ((key <= row) | together) & (together | ~noise)
    assert (masks[FULL].to_dense() == wanted).all()
    if SLIDING in masks:
        wanted = wanted & (key > row - stack.sizes["sliding_window"])
        assert (masks[SLIDING].to_dense() == wanted).all()
    for mask in masks.values():
        assert mask.intervals is not None
        assert len(mask.intervals[0]) == 1


def test_layers_are_those_of_the_models() -> None:
    assert LLAMA.layers == (FULL,) * 4
    assert GEMMA.layers == (SLIDING,) * 5 + (FULL,)
    assert LLAMA.workload(LLAMA.packs[0]) == "Llama 3 8B, 4 layers, 32,768 tokens, samples to 8,192"
    for stack in (LLAMA, GEMMA):
        short, long = (stack.masks(packs, 0)[FULL].pairs / stack.tokens**2 for packs in stack.packs)
        assert 0.05 < short < 0.2 < long < 0.6


def test_rows_stand_beside_flex_attention() -> None:
    first = {
        "sample": [1.0, 2.0],
        "rows": {"a": {"tokens a second": 100, "peak_bytes": 50}, "b": {"problem": "no time"}},
    }
    (a, b) = step.rows("flex_attention", first, first)
    assert (a["figures"], b["figures"]) == (first["rows"]["a"], first["rows"]["b"])
    ours = {
        "sample": [1.01, 2.0],
        "rows": {"a": {"tokens a second": 120, "peak_bytes": 45}, "b": {"steps": 2}},
    }
    (a, b) = step.rows("omnicupy", ours, first)
    assert a["figures"]["tokens a second over FlexAttention"] == 1.2
    assert a["figures"]["peak memory over FlexAttention"] == 0.9
    assert a["figures"]["difference to FlexAttention"] == pytest.approx(0.01 / 5**0.5, abs=1e-5)
    assert a["figures"]["correct"] is b["figures"]["correct"] is True
    assert "tokens a second over FlexAttention" not in b["figures"]
    wrong = step.rows("sdpa", {"sample": [2.0, 1.0], "rows": {"a": {"tokens a second": 50}}}, first)
    assert wrong[0]["figures"]["correct"] is False
    alone = step.rows("sdpa", {"sample": [2.0], "rows": {"a": {"tokens a second": 50}}}, {})
    assert alone[0]["figures"] == {"tokens a second": 50}
    (broken,) = step.rows("sdpa", {"sample": [float("nan"), 2.0], "rows": {"a": {}}}, first)
    assert broken["figures"] == {"correct": False}


def _processes(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> tuple[list[Any], list[str]]:
    """The rows of the tiny suite whose processes run `code`, and what was said."""
    (folder / "made_step_process.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(step, "MODULE", "made_step_process")
    record, said = Record(None, {}), []
    step.suite("tiny-llama")(record, said.append)
    return record.rows, said


def test_the_last_figures_of_each_process_are_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workload = STACKS["tiny-llama"].workload(STACKS["tiny-llama"].packs[0])
    code = f"""
import json, sys
print("begins", sys.argv[2])
rate = {{"flex_attention": 100, "omnicupy": 150, "sdpa": 20}}[sys.argv[2]]
print(json.dumps({{"sample": [1.0], "rows": {{}}}}))
print(json.dumps({{"sample": [1.0], "rows": {{{workload!r}: {{"tokens a second": rate}}}}}}))
sys.exit(sys.argv[2] == "sdpa")
"""
    rows, said = _processes(monkeypatch, tmp_path, code)
    assert [row["system"] for row in rows] == ["flex_attention", "omnicupy", "sdpa"]
    assert [row["workload"] for row in rows] == [workload] * 3
    ratios = [row["figures"].get("tokens a second over FlexAttention") for row in rows]
    assert ratios == [None, 1.5, 0.2]
    assert said == [f"{name}: begins {name}" for name in ("flex_attention", "omnicupy", "sdpa")]


def test_a_process_that_fails_is_its_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "import sys\nsys.exit('no such attention' if sys.argv[2] == 'omnicupy' else 0)\n"
    rows, said = _processes(monkeypatch, tmp_path, code)
    problems = [row["figures"]["problem"] for row in rows]
    assert problems == ["its process printed no figures", "no such attention", problems[0]]
    assert [f"{row['system']}: {row['figures']['problem']}" for row in rows] == list(dict.fromkeys(said))


def test_a_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(step, "PROCESS_S", 0.5)
    monkeypatch.setattr(step, "LEAST_S", 0.0)
    rows, _ = _processes(monkeypatch, tmp_path, "import time\ntime.sleep(60)\n")
    assert all("over 0 s" in row["figures"]["problem"] for row in rows)
    monkeypatch.setattr(step, "LEAST_S", 1.0)
    rows, _ = _processes(monkeypatch, tmp_path, "")
    assert all("no time was left" in row["figures"]["problem"] for row in rows)


def test_workers_of_a_process_that_takes_too_long_are_ended_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They hold its output open, which is read to its end."""
    monkeypatch.setattr(step, "PROCESS_S", 2.0)
    monkeypatch.setattr(step, "LEAST_S", 0.0)
    worker = "import time; time.sleep(60)"
    code = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {worker!r}])\ntime.sleep(60)\n"
    begin = time.monotonic()
    rows, _ = _processes(monkeypatch, tmp_path, code)
    assert time.monotonic() - begin < 30
    assert all("over 2 s" in row["figures"]["problem"] for row in rows)


def test_the_suites_are_listed() -> None:
    for name in ("step", "step-gemma", "generate", "captured", "growing"):
        assert name in bench_run.GPU_HOST
        assert OTHER_SUITES[name] in bench_run.listing()

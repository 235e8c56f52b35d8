"""The scripts in examples/ run on the CPU and print what they promise."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parents[1]
# Script: arguments, the optional library it needs, what it prints.
EXAMPLES: dict[str, tuple[list[str], str | None, str]] = {
    "segments.py": ([], None, r"token 382 sees 319 of 383 keys"),
    "bagel_pack.py": (["--scale", "0.02"], None, r"393 tokens, .*without the mask \d\d+% of the rows"),
    "decode.py": (
        ["--tokens", "30"],
        None,
        r"30 tokens by .*hold \[30, 37, 50\] keys\n.*finite: True\n.*ordinary masks: (0|\d\.\de-0[6-9])",
    ),
    "paged.py": (
        ["--tokens", "30", "--page", "8"],
        None,
        r"30 tokens by .*67\] keys in 19 pages of 8\n.*finite: True\n.*ordinary masks: (0|\d\.\de-0[6-9])",
    ),
    "plot_mask.py": (["{folder}"], "matplotlib", r"streaming.png: 16% of the pairs"),
    "jax_arrays.py": (
        ["--tokens", "60"],
        "jax",
        r"bfloat16 \(1, 8, 60, 64\)\n.*the same bits: True\n.*at most \de-0[5-9] from the gradients",
    ),
    "context_parallel.py": (
        ["--steps", "6", "--tokens", "256"],
        "torch",
        r"alone: loss (\d\.\d{4})\d+; 2 ranks together: \1.*step 5: .*the loss fell by [4-9]\d%",
    ),
    "train_vlm.py": (["--steps", "8"], "torch", r"step 7: .*the loss fell by [5-9]\d%"),
    "torch_compile.py": (
        ["--tokens", "128", "--steps", "5"],
        "torch",
        r"graphs compiled for 5 masks: 2; largest difference to eager: 0.0e\+00",
    ),
    "transformers_gemma3.py": (["--tokens", "10"], "transformers", r"tokens that are the same: 100%"),
}


def test_every_example_is_run() -> None:
    assert sorted(path.name for path in (ROOT / "examples").glob("*.py")) == sorted(EXAMPLES)


@pytest.mark.parametrize("name", [name for name, (_, library, _) in EXAMPLES.items() if library])
def test_it_says_what_it_needs(name: str) -> None:
    assert f"Needs {EXAMPLES[name][1]}: pip install" in (ROOT / "examples" / name).read_text()


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(name: str, tmp_path: Path) -> None:
    arguments, library, printed = EXAMPLES[name]
    if library is not None and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, f"examples/{name}", *(part.format(folder=tmp_path) for part in arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            check=False,
        )
        if not any(said in done.stderr for said in processes.OF_GLOO):
            break
    assert done.returncode == 0, done.stderr
    assert re.search(printed, done.stdout, re.DOTALL), done.stdout
    if library == "matplotlib":
        assert len(list(tmp_path.glob("*.png"))) == 4


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["decode.py", "paged.py"])
def test_it_runs_on_a_gpu(name: str) -> None:
    """Each token is a replay of a captured graph there, of kernels in float16."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), "--tokens", "30"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "replays of one graph" in done.stdout
    assert "is finite: True" in done.stdout
    assert re.search(r"ordinary masks: (0\.0e\+00|\d\.\de-0[3-9])", done.stdout), done.stdout

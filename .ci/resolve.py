"""Does each extra resolve to the newest torch and transformers on each platform? Asks a package index, through uv.

Run: python .ci/resolve.py. Prints what each extra brings where; exit status 1 when one brings something else than
WANTED says. Where no index can be reached it says so and checks nothing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
PLATFORMS = (
    "x86_64-manylinux_2_28",
    "aarch64-manylinux_2_28",
    "x86_64-pc-windows-msvc",
    "aarch64-apple-darwin",
)
PYTHON = "3.12"
# CUDA extra -> its CuPy, its NVRTC and the least version of that.
WANTED = {
    "cuda12": ("cupy-cuda12x", "nvidia-cuda-nvrtc-cu12", (12, 9)),
    "cuda13": ("cupy-cuda13x", "nvidia-cuda-nvrtc", (13, 0)),
}
NEWEST = ("torch", "transformers")  # nothing of ours may hold them back
CUDA_PACKAGE = re.compile(r"cupy|cuda-|nvidia-")
NO_INDEX = re.compile(
    r"failed to fetch|error sending request|could not connect|dns error|network", re.IGNORECASE
)
SHOWN = re.compile(r"^torch$|^transformers$|^cupy|nvrtc|^cuda-bindings$")

Versions = dict[str, str]


def combinations(project: Path = PROJECT) -> list[tuple[str, ...]]:
    """Each CUDA extra alone, and with all extras that name no CUDA."""
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    others = tuple(sorted(set(extras) - set(WANTED)))
    return [combination for cuda in WANTED for combination in ((cuda,), (cuda, *others))]


def problems(extras: tuple[str, ...], platform: str, found: Versions, newest: Versions) -> list[str]:
    """What is wrong with the versions that extras resolve to, a line each. newest: those of NEWEST alone."""
    names = sorted(name for name in found if CUDA_PACKAGE.match(name))
    if "darwin" in platform:
        lines = [f"{name} is a CUDA package" for name in names]
    else:
        cupy, nvrtc, least = WANTED[extras[0]]
        lines = [f"{name} is another CuPy than {cupy}" for name in names if "cupy" in name and name != cupy]
        lines += [f"{name} is missing" for name in (cupy, nvrtc, "cuda-bindings") if name not in found]
        if nvrtc in found and tuple(map(int, found[nvrtc].split(".")[:2])) < least:
            lines.append(f"{nvrtc} {found[nvrtc]} is older than {'.'.join(map(str, least))}")
    for name in NEWEST if set(NEWEST) & set(extras) else ():
        if found.get(name) != newest[name]:
            lines.append(f"{name} is {found.get(name)}, alone it is {newest[name]}")
    return lines


class NoIndexError(RuntimeError):
    """No package index answers."""


def resolve(
    platform: str, *, extras: tuple[str, ...] = (), names: tuple[str, ...] = (), offline: bool = False
) -> Versions:
    """The versions that the project with these extras, or packages by name, resolve to on a platform.

    offline: from what earlier resolutions of this process have read, where that is enough.
    Raises NoIndexError, RuntimeError with uv's words where they do not resolve.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", str(PROJECT) if extras else "-", "--quiet"]
    command += ["--no-config", "--no-header", "--no-annotate", f"--python-version={PYTHON}"]
    command.append(f"--python={sys.executable}")  # else uv asks all that it finds for their versions
    command += [f"--python-platform={platform}", *(f"--extra={name}" for name in extras)]
    for tried in (["--offline"], []) if offline else ([],):
        done = subprocess.run(
            [*command, *tried],
            input="\n".join(names),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode == 0:
            return dict(line.split("==") for line in done.stdout.splitlines() if "==" in line)
    error = NoIndexError if NO_INDEX.search(done.stderr) else RuntimeError
    raise error(f"{platform}, {','.join(extras or names)}: {done.stderr.strip()}")


def main() -> int:
    """Resolve everything, print a table, return the exit status."""
    combined = combinations()
    every = tuple(sorted({name for extras in combined for name in extras}))
    with ThreadPoolExecutor(
        len(PLATFORMS)
    ) as pool:  # these wait for the index and read nearly all that is needed
        read = [pool.submit(resolve, platform, extras=every) for platform in PLATFORMS]
    if all(isinstance(one.exception(), NoIndexError) for one in read):
        print(f"SKIPPED: no package index answers, so no extra was resolved ({read[0].exception()})")
        return 0
    jobs = [(platform, extras) for platform in PLATFORMS for extras in combined]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        alone = {
            platform: pool.submit(resolve, platform, names=NEWEST, offline=True) for platform in PLATFORMS
        }
        found = [pool.submit(resolve, platform, extras=extras, offline=True) for platform, extras in jobs]
    failed = 0
    for (platform, extras), one in zip(jobs, found, strict=True):
        wrong = [str(error) for error in (one.exception(), alone[platform].exception()) if error]
        versions = {} if wrong else one.result()
        wrong = wrong or problems(extras, platform, versions, alone[platform].result())
        told = [f"{name} {versions[name]}" for name in versions if SHOWN.search(name)]
        print(f"{'FAIL' if wrong else 'ok':5}{platform:26}{','.join(extras)}")
        print(f"     {', '.join(told) or 'no CUDA package'}", *wrong, sep="\n     ")
        failed += bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    from usage import words

    words(__doc__, known=())
    if importlib.util.find_spec("uv") is None:
        raise SystemExit("resolve.py: uv is needed, but cannot be imported; pip install uv")
    os.environ.setdefault("UV_HTTP_TIMEOUT", "60")
    sys.exit(main())

"""The rules of the code base: sizes, which way imports point, macros, where CUDA text may stand, what ships."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cuda_scan
import pytest

from omnicupy.attest import LAUNCH_MODULES

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 300, 60, 6

# Made text, and the script whose text it is.
NO_CEILINGS = {"kernels/omni/sm90/wgmma_table.cuh", "tests/make_wgmma.py"}
# One function is one instruction there: its operands are the instruction's.
INSTRUCTIONS = re.compile(r"kernels/omni/sm\d+/ptx\.cuh")

# A module imports only what stands before it. Lines are layers; a new module takes its place here.
LAYERS = """
    errors spec
    arrays maskargs intervals bitform pairset segmented blockmask stats draw plot tiling_bits tiling masks
    samples layouts
    presets.arguments presets.images presets.showo presets.sequences presets.blocks presets
    check
    blas reference cpu
    source params nvrtc locks cache tuned environment
    schedule order packing upload counters workspace tma overlap loading tune plan launch
    api __init__ tensors torch
    transformers.rules transformers.closures transformers.masking transformers.forward transformers
    model_masks case_masks cases workloads maskspec inputs sweep waste costs
    bench bench.configs bench.records bench.timing bench.accuracy bench.flex bench.peers
    bench.catalog bench.fitting bench.sparsity bench.plotstyle bench.plotrows bench.plots
    bench.roofline
    verify verify.watchdog verify.outcome verify.variants verify.compiling verify.special
    verify.on_cpu verify.on_gpu attest
    bench.measure explain bench.search bench.tuning bench.host bench.first_call bench.building bench.memory
    bench.preset_masks bench.suites
    report.library report.tables report.studies report.targets report.pictures report
    verify.timed verify.report verify.run
    console study_commands commands
"""
ORDER = LAYERS.split()


def _files(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


PYTHON = _files("omnicupy/**/*.py", "tests/*.py", "examples/*.py", "cli.py")
CUDA = _files("kernels/**/*.cu", "kernels/**/*.cuh")


@cache
def _text(name: str) -> str:
    return (ROOT / name).read_text()


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse(_text(name))


def test_there_is_something_to_check() -> None:
    assert len(PYTHON) > 80
    assert len(CUDA) > 15


@pytest.mark.parametrize("name", sorted(set(PYTHON + CUDA) - NO_CEILINGS))
def test_file_length(name: str) -> None:
    lines = len(_text(name).splitlines())
    assert lines <= MAX_FILE, f"{name} has {lines} lines, at most {MAX_FILE} are allowed; split it"


@pytest.mark.parametrize("name", sorted(set(PYTHON) - NO_CEILINGS))
def test_python_functions(name: str) -> None:
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{name}:{node.lineno} {node.name} has {lines} lines"
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            count = len([argument for argument in names if argument not in ("self", "cls")])
            assert count <= MAX_PARAMETERS, (
                f"{name}:{node.lineno} {node.name} has {count} positional parameters"
            )


@pytest.mark.parametrize("name", sorted(set(CUDA) - NO_CEILINGS))
def test_cuda_functions(name: str) -> None:
    found = cuda_scan.functions(_text(name))
    for function in found:
        where = f"{name}:{function.line} {function.name}"
        assert function.lines <= MAX_FUNCTION, f"{where} has {function.lines} lines"
        if not INSTRUCTIONS.fullmatch(name):
            assert function.parameters <= MAX_PARAMETERS, f"{where} has {function.parameters} parameters"
    code = cuda_scan.blanked(_text(name))
    declared = len(re.findall(r"\b(?:__device__|__global__) ", code))
    assert len([f for f in found if not f.name.startswith("operator")]) >= declared - code.count("operator")


@pytest.mark.parametrize("name", CUDA)
def test_macros_are_read_in_entry_files_alone(name: str) -> None:
    code = cuda_scan.blanked(_text(name))
    directives = {found[1] for found in re.finditer(r"^\s*#\s*(\w+)", code, re.MULTILINE)}
    assert directives <= {"include", "pragma"}, (
        f"{name}: features are chosen by `if constexpr`, not by macros"
    )
    if name.endswith(".cuh"):
        assert "OMNI_" not in code, f"{name}: only the entry .cu files read OMNI_* macros"
        assert re.match(r"(?://[^\n]*\n)+#pragma once\n", _text(name)), (
            f"{name}: first what it owns, then #pragma once"
        )


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_linters_are_content(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _imports(name: str) -> Iterator[str]:
    """Modules of the package that a file imports at run time, without "omnicupy."."""
    checked_only = {
        id(inner)
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(_tree(name)):
        if id(node) in checked_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "omnicupy")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute"
            if (node.module or "").partition(".")[0] == "omnicupy":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module(imported: str) -> str:
    """The module that an import such as "omnicupy.bench.peers.Shared" loads: "bench.peers"."""
    parts = imported.split(".")[1:]
    while parts and ".".join(parts) not in ORDER:
        parts.pop()
    return ".".join(parts) or "__init__"


def test_every_module_has_a_layer() -> None:
    names = _files("omnicupy/**/*.py")
    modules = [name.removeprefix("omnicupy/").removesuffix(".py").replace("/", ".") for name in names]
    assert sorted(ORDER) == sorted(module.removesuffix(".__init__") for module in modules)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module: str) -> None:
    path = f"omnicupy/{module.replace('.', '/')}"
    name = f"{path}.py" if (ROOT / f"{path}.py").exists() else f"{path}/__init__.py"
    allowed = ORDER[: ORDER.index(module)]
    later = {_module(imported) for imported in _imports(name)} - {module, *allowed}
    assert not later, f"{name} imports {', '.join(sorted(later))}, which stand above it"


def test_the_attestation_digests_all_that_packs_and_launches() -> None:
    (layer,) = (line.split() for line in LAYERS.splitlines() if "launch" in line)
    # What tune.py selects is in the digest itself, so that another row leaves other kernels' entries alone.
    assert {f"{module}.py" for module in ("params", *layer)} - {"tune.py"} == set(LAUNCH_MODULES)


@pytest.mark.parametrize("name", [name for name in PYTHON if not name.startswith("tests/")])
def test_no_cuda_text_in_python(name: str) -> None:
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.search(r"__global__|threadIdx|blockIdx|asm volatile|__syncthreads", node.value)
            assert not found, f"{name}:{node.lineno} holds CUDA source; it belongs in kernels/"


def test_importing_works_without_cupy_and_touches_nothing() -> None:
    code = """
import sys
for name in ("cupy", "cuda", "torch", "matplotlib"):
    sys.modules[name] = None
import numpy, ml_dtypes, click
seen = []
reads = (".py", ".pyc", ".so")
def hook(event, args):
    if event == "open" and (str(args[0]).endswith(reads) or ".pyc." in str(args[0])):
        return
    if event == "open" or event.split(".")[0] in ("os", "subprocess", "socket", "tempfile", "shutil"):
        if event not in ("os.listdir", "os.scandir"):  # the import system looks for modules
            seen.append((event, args))
sys.dont_write_bytecode = True
sys.addaudithook(hook)
import omnicupy, omnicupy.commands, omnicupy.cache, omnicupy.cases, omnicupy.tune, omnicupy.workloads
print(seen)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_the_wheel_carries_the_kernels(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    assert {f"omnicupy/{name}" for name in CUDA} <= names
    assert set(_files("omnicupy/**/*.py", "omnicupy/*.json")) <= names
    version = tomllib.loads(_text("pyproject.toml"))["project"]["version"]
    assert {name.partition("/")[0] for name in names} == {"omnicupy", f"omnicupy-{version}.dist-info"}

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
from importlib.util import find_spec
from pathlib import Path

import cuda_scan
import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 300, 60, 6
GRADIENT = "attention_backward"  # has six arrays and a mask
BY_VLLM = {"omnicupy/vllm/backend.py", "omnicupy/vllm/impl.py"}  # whose signatures are vLLM's
# Made text, and the script whose text it is.
NO_CEILINGS = {"kernels/omni/sm90/wgmma_table.cuh", "tests/helpers/make_wgmma.py"}
# One function is one instruction there: its operands are the instruction's.
INSTRUCTIONS = re.compile(r"kernels/omni/sm\d+/ptx\.cuh")

# A file imports from its own folder and from what stands before it; folders between two commas are apart: neither
# imports the other. docs/design.md says why.
ORDER = (
    "errors, masks; presets, jit, serving; call; schedule; cpu, reference; choose; gpu; serving_api; api; __init__; "
    "torch; transformers, parallel, vllm; tools.environment, tools.watchdog, tools.random_arrays, tools.workloads; "
    "tools.bench; tools.verify, tools.tune, tools.explain; tools.report; tools.cli; __main__"
)
RANKS = {part: rank for rank, parts in enumerate(ORDER.split("; ")) for part in parts.split(", ")}


def _files(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


PYTHON = _files("omnicupy/**/*.py", "tests/**/*.py", "examples/*.py", "cli.py")
PACKAGE = [name for name in PYTHON if name.startswith("omnicupy/")]
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


def test_file_length() -> None:
    lines = {name: len(_text(name).splitlines()) for name in sorted(set(PYTHON + CUDA) - NO_CEILINGS)}
    assert not {name: count for name, count in lines.items() if count > MAX_FILE}, "split them"


@pytest.mark.parametrize("folder", sorted({name.partition("/")[0] for name in PYTHON}))
def test_python_functions(folder: str) -> None:
    wrong = []
    for name in sorted(set(PYTHON) - NO_CEILINGS):
        for node in ast.walk(_tree(name)) if name.partition("/")[0] == folder else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                arguments = (*node.args.posonlyargs, *node.args.args)
                count = sum(one.arg not in ("self", "cls") for one in arguments) * (name not in BY_VLLM)
                if lines > MAX_FUNCTION or count > MAX_PARAMETERS + (node.name == GRADIENT):
                    wrong.append(f"{name}:{node.lineno} {node.name}: {lines} lines, {count} parameters")
    assert not wrong


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


def _module(name: str) -> str:
    """ "omnicupy/masks/cut.py" -> "masks.cut", "omnicupy/gpu/__init__.py" -> "gpu"."""
    dotted = name.removeprefix("omnicupy/").removesuffix(".py").replace("/", ".")
    return dotted.removesuffix(".__init__")


MODULES = {_module(name): name for name in PACKAGE}


def _part(module: str) -> str:
    """The part of the library that a module stands in: "tools.bench", "masks", "api"."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "tools" and len(parts) > 1 else parts[0]


VLLM = {"vllm.backend", "vllm.builder", "vllm.impl"}  # which need it, as those of TORCH need PyTorch
TORCH = VLLM | {"vllm.attend"} | {one for one in MODULES if _part(one) in ("torch", "transformers")}
TORCH |= {one for one in MODULES if re.match(r"parallel\.(distributed|peer|places|ranks|trip|way)", one)}


def _loaded(imported: str) -> str:
    """The module that an import such as "omnicupy.masks.mask.Mask" loads: "masks.mask"."""
    parts = imported.split(".")[1:]
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts) or "__init__"


@cache
def _imports(module: str) -> frozenset[str]:
    """Modules of the package that a file names, also for type checking alone."""
    name, found = MODULES[module], set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "omnicupy"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute"
            if (node.module or "").partition(".")[0] == "omnicupy":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(map(_loaded, found)) - {module}


def test_every_part_has_a_place() -> None:
    parts = {_part(module) for module in MODULES} - {"tools"}
    assert parts == set(RANKS), "a new folder takes its place in ORDER"
    assert not _imports("tools")
    top = {module.partition(".")[0] for module in MODULES}
    assert len(top) <= 20, "about a dozen names stand at the top of omnicupy/"


def test_imports_point_one_way() -> None:
    later = [
        f"{MODULES[module]} imports {other}, which does not stand before it"
        for module in sorted(MODULES)
        for other in sorted(_imports(module))
        if _part(other) != _part(module) and RANKS[_part(other)] >= RANKS.get(_part(module), 0)
    ]
    assert not later


def test_no_files_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for other in sorted(_imports(module)):
                follow(other, (*path, module))
            done.add(module)

    for module in sorted(MODULES):
        follow(module, ())


def _imported_libraries(name: str) -> Iterator[tuple[str, bool]]:
    """Each library that a file names, and whether it does so inside a function."""
    inside = {
        id(inner)
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    checked = {
        id(inner)
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(_tree(name)):
        if id(node) not in checked:
            if isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], id(node) in inside) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield (node.module or "").partition(".")[0], id(node) in inside


def test_optional_libraries_are_imported_where_they_may_be() -> None:
    imports = [(name, *found) for name in PACKAGE for found in _imported_libraries(name)]
    assert {"click", "matplotlib", "torch", "cupy"} <= {library for _, library, _ in imports}
    for name, library, in_function in imports:
        module, where = _module(name), f"{name} imports {library}"
        if library == "click":
            assert _part(module) == "tools.cli", where
        elif library == "matplotlib":
            assert in_function, f"{where} outside of a function"
            assert module == "masks.picture" or _part(module) == "tools.report", where
        elif library in ("torch", "transformers", "vllm") and not in_function:
            assert module in (VLLM if library == "vllm" else TORCH), where
        elif library == "cupy" and not in_function:
            assert _part(module) == "gpu" or module == "tools.bench.first_call", where


def test_everything_but_gpu_imports_without_cupy() -> None:
    names = [one for one in MODULES if _part(one) != "gpu" and (one not in TORCH or find_spec("torch"))]
    names = [one for one in names if _part(one) != "transformers" or find_spec("transformers")]
    without = {"tools.bench.first_call", "__init__"} | (VLLM if find_spec("vllm") is None else set())
    names = [module for module in names if module not in without]
    code = f"""
import importlib, sys
sys.modules["cupy"] = None
importlib.import_module("omnicupy")
for name in {sorted(names)!r}:
    importlib.import_module(f"omnicupy.{{name}}")
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("done", 0), done.stderr


def test_no_cuda_text_in_python() -> None:
    for name in PYTHON:
        for node in () if name.startswith("tests/") else ast.walk(_tree(name)):
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
import omnicupy, omnicupy.jit.cache, omnicupy.choose.pick
import omnicupy.tools.cli.main, omnicupy.tools.verify.cases, omnicupy.tools.workloads.workload
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
    assert set(_files("omnicupy/**/*.py", "omnicupy/**/*.json", "omnicupy/py.typed")) <= names
    version = tomllib.loads(_text("pyproject.toml"))["project"]["version"]
    assert {name.partition("/")[0] for name in names} == {"omnicupy", f"omnicupy-{version}.dist-info"}

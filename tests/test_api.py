"""The package's face: what is public, what importing costs, where calls go, what is refused."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import fake_device
import numpy as np
import pytest

import omnicupy as oc
from omnicupy import api

ROOT = Path(__file__).parents[1]
PUBLIC = """
    AttnSpec BackwardSpec BlockMask CachedKV CachedRule CachedStep CompileError Mask PagedKV TileShape
    UnsupportedError append attention attention_backward cached causal documents from_dense from_predicate
    from_tiles full intervals plan prefix prepare presets random ranges segments sink sliding_window
"""


def _numpy(shape: tuple[int, ...] = (1, 2, 20, 16)) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, cwd=ROOT
    )
    return done.stdout


def test_public_names() -> None:
    assert sorted(oc.__all__) == PUBLIC.split()
    assert all(getattr(oc, name) is not None for name in oc.__all__)


def test_a_name_that_is_not_there_says_what_to_import() -> None:
    said = "module 'omnicupy' has no attribute 'torch'; write import omnicupy.torch"
    tried = "import omnicupy\ntry:\n omnicupy.torch\nexcept AttributeError as error:\n print(error)"
    assert _run(tried) == f"{said}\n"
    with pytest.raises(AttributeError, match=r"^module 'omnicupy' has no attribute 'segment'$") as raised:
        _ = oc.segment
    assert (raised.value.name, raised.value.obj) == ("segment", oc)


def test_the_version_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert oc.__version__ == project["project"]["version"]


def test_importing_brings_no_gpu_library_and_opens_no_file() -> None:
    code = """
import sys, numpy, ml_dtypes
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
before = set(sys.modules)
import omnicupy
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} & {"cupy", "cuda", "torch"}))
print([name for name in opened if not name.endswith((".py", ".pyc", ".so")) and ".pyc." not in name])
"""
    assert _run(code).splitlines() == ["[]", "[]"]


def test_numpy_arrays_never_import_cupy() -> None:
    code = """
import sys, numpy as np, omnicupy as oc
q = np.ones((1, 1, 8, 16), np.float32)
oc.attention(q, q, q, oc.causal(8))
try:
    oc.attention([1], q, q)
except TypeError as error:
    print(error)
print("cupy" in sys.modules)
"""
    assert _run(code).splitlines() == [
        "q must be a CuPy or NumPy array, got list; convert it with cupy.asarray or numpy.asarray",
        "False",
    ]


def test_numpy_arrays_run_on_the_cpu() -> None:
    q = _numpy()
    out, lse = oc.attention(q, q, q, oc.causal(20), return_lse=True)
    assert (out.shape, out.dtype, lse.shape, lse.dtype) == (q.shape, np.float32, (1, 2, 20), np.float32)
    np.testing.assert_allclose(out[:, :, 0], q[:, :, 0], rtol=1e-6)
    target = np.full_like(q, np.nan)
    assert oc.attention(q, q, q, oc.causal(20), out=target) is target
    np.testing.assert_array_equal(target, out)


def test_no_mask_is_the_full_mask() -> None:
    q, k = _numpy(), _numpy((1, 1, 33, 16))
    np.testing.assert_array_equal(oc.attention(q, k, k), oc.attention(q, k, k, oc.full(20, 33)))


def test_the_scale_reaches_the_engine() -> None:
    q = _numpy()
    np.testing.assert_allclose(oc.attention(q, q, q, scale=0.25), oc.attention(q, q, q), rtol=1e-5)
    assert not np.allclose(oc.attention(q, q, q, scale=1.0), oc.attention(q, q, q))


def test_options_are_keyword_only() -> None:
    q = _numpy()
    with pytest.raises(TypeError, match="positional"):
        oc.attention(q, q, q, None, 0.5)  # type: ignore[misc]


def test_kinds_of_arrays_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_device.install(monkeypatch)
    here, there = _numpy().astype(np.float16), fake_device.ndarray((1, 2, 20, 16), np.float16)
    for arrays in ((here, there, there), (there, here, here), (there, there, here)):
        with pytest.raises(
            TypeError, match="q, k and v must all be CuPy arrays or all NumPy arrays, got q: "
        ):
            oc.attention(*arrays)


def test_cupy_arrays_go_to_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_device.install(monkeypatch)
    monkeypatch.setattr(api, "_on_gpu", None)
    q = fake_device.ndarray((1, 2, 20, 16), np.float16)
    oc.attention(q, q, q)
    assert len(fake.launches) == 1


def test_cupy_arrays_where_there_is_no_nvrtc(monkeypatch: pytest.MonkeyPatch, isolated_cache: Path) -> None:
    from omnicupy.gpu import planning
    from omnicupy.jit import cache, nvrtc

    fake_device.install(monkeypatch)
    monkeypatch.setattr(planning, "kernel", lambda spec, device: cache.cubin(spec))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    nvrtc._library.cache_clear()
    q = fake_device.ndarray((1, 2, 20, 16), np.float16)
    with pytest.raises(oc.UnsupportedError, match="no NVRTC library could be loaded"):
        oc.attention(q, q, q)
    nvrtc._library.cache_clear()
    assert not isolated_cache.exists()


def test_prepare_takes_what_attention_takes() -> None:
    taken = {
        name: (one.kind, one.default) for name, one in inspect.signature(oc.attention).parameters.items()
    }
    assert {
        name: (one.kind, one.default) for name, one in inspect.signature(oc.prepare).parameters.items()
    } == taken | {
        "gradients": (inspect.Parameter.KEYWORD_ONLY, False),
        "max_length": (inspect.Parameter.KEYWORD_ONLY, None),
    }
    q = np.ones((1, 2, 9, 8), np.float32)
    for gradients in (False, True):
        assert (
            oc.prepare(
                q, q, q, oc.causal(9), scale=0.5, return_lse=True, out=np.empty_like(q), gradients=gradients
            )
            is None
        )


def test_gradients_of_cupy_arrays_go_to_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every argument; `prepare` prepares them only when asked."""
    fake_device.install(monkeypatch)
    from omnicupy.gpu import backward as gpu_backward

    seen: list[Any] = []
    monkeypatch.setattr(
        gpu_backward, "attention_backward", lambda *given, **options: seen.append((given, options))
    )
    monkeypatch.setattr(
        gpu_backward, "prepare_backward", lambda *given, **options: seen.append((given, options))
    )
    q = fake_device.ndarray((1, 2, 20, 16), np.float16)
    mask, options = (
        oc.causal(20),
        {"scale": 0.5, "dlse": 1, "wanted": ["q"], "out_grads": 2, "deterministic": False},
    )
    options |= {"sink_logits": 3, "softcap": 4, "config": 5}
    oc.attention_backward(1, q, q, q, 2, 3, mask, **options)  # type: ignore[arg-type]
    assert seen == [((1, q, q, q, 2, 3), options | {"mask": mask})]
    oc.prepare(q, q, q, mask, scale=0.5)
    assert len(seen) == 1
    oc.prepare(q, q, q, mask, scale=0.5, gradients=True)
    nothing = {"sink_logits": None, "softcap": None}
    assert seen[1:] == [((q, q, q, mask), {"scale": 0.5, "config": None} | nothing)]


def test_gradients_of_numpy_arrays_use_every_argument() -> None:
    q, other = _numpy(), _numpy()[:, :, ::-1] + 1
    mask = oc.causal(20)
    out, lse = oc.attention(q, other, q, mask, scale=0.5, return_lse=True)
    given, dlse = (other, q, other, q, out, lse), np.ones_like(lse)
    plain = oc.attention_backward(*given, mask, scale=0.5)
    assert all(one.flags.c_contiguous for one in plain)
    for changed in (
        {"scale": 0.4},
        {"dlse": dlse},
        {"softcap": 3.0},
        {"sink_logits": np.ones(2, np.float32)},
    ):
        found = oc.attention_backward(*given, mask, **({"scale": 0.5} | changed))
        assert not np.array_equal(found[0], plain[0])
    assert not np.array_equal(oc.attention_backward(*given, scale=0.5)[0], plain[0])
    assert [one is None for one in oc.attention_backward(*given, mask, wanted=("v",))] == [True, True, False]
    target = np.empty_like(q)
    found = oc.attention_backward(
        *given, mask, scale=0.5, out_grads=(None, target, None), deterministic=False
    )
    assert found[1] is target
    assert all(np.array_equal(one, wanted) for one, wanted in zip(found, plain, strict=True))


def test_a_split_is_checked_and_changes_nothing_on_the_cpu() -> None:
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((2, heads, 100, 16), np.float32) for heads in (4, 2, 2))
    mask = oc.causal(100)
    plain = oc.attention(q, k, v, mask)
    for split in (32, 384, np.int64(64)):
        np.testing.assert_array_equal(oc.attention(q, k, v, mask, split=split), plain)
        oc.prepare(q, k, v, mask, split=split)
    for call in (oc.attention, oc.prepare):
        with pytest.raises(ValueError, match="split must be a multiple of 32 keys"):
            call(q, k, v, mask, split=33)

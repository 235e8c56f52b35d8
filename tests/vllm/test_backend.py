"""The backend inside of vLLM: registered, chosen, built, routed and called as vLLM does it, on the CPU.

Tried with vLLM 0.33.0. Skipped where vLLM is not installed; `pip install --no-deps vllm` and what its imports ask for
are enough, beside any PyTorch: none of its kernels runs.
"""

from __future__ import annotations

import inspect
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
interface: Any = pytest.importorskip("vllm.v1.attention.backend", reason="vLLM is not installed")

from vllm.config.attention import AttentionConfig  # noqa: E402 - after what it needs
from vllm.platforms.interface import DeviceCapability  # noqa: E402
from vllm.plugins import load_plugins_by_group  # noqa: E402
from vllm.v1.attention.backends import flash_attn  # noqa: E402
from vllm.v1.attention.backends.registry import AttentionBackendEnum  # noqa: E402
from vllm.v1.worker.utils import select_common_block_size  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.vllm  # noqa: E402
from omnicupy.vllm import backend  # noqa: E402
from omnicupy.vllm.impl import OmnicupyImpl  # noqa: E402

CONFIGURATION: dict[str, Any] = {
    "head_size": 256,
    "dtype": torch.bfloat16,
    "kv_cache_dtype": "auto",
    "block_size": 16,
    "use_mla": False,
    "has_sink": False,
    "use_sparse": False,
    "use_mm_prefix": True,
    "use_per_head_quant_scales": False,
    "device_capability": DeviceCapability(9, 0),
    "attn_type": "decoder",
    "has_sliding_window": True,
}


def _chosen() -> Any:
    omnicupy.vllm.register()
    return AttentionBackendEnum[omnicupy.vllm.BACKEND].get_class()


def test_vllm_s_processes_register_the_backend() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (path,) = project["entry-points"]["vllm.general_plugins"].values()
    register = EntryPoint("omnicupy", path, "vllm.general_plugins").load()
    register()
    register()  # vLLM may load plug-ins more than once
    assert AttentionConfig(backend="omnicupy").backend is AttentionBackendEnum["OMNICUPY"]
    assert AttentionConfig(backend_per_kind={"sliding_window": "OMNICUPY"}).backend_per_kind
    assert AttentionBackendEnum["OMNICUPY"].get_class() is backend.OmnicupyAttentionBackend


def test_vllm_finds_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    if not [one for one in entry_points(group="vllm.general_plugins") if one.value.startswith("omnicupy")]:
        pytest.skip("omnicupy was installed before it had entry points; run pip install --editable . anew")
    monkeypatch.setenv("VLLM_PLUGINS", "omnicupy")
    assert load_plugins_by_group("vllm.general_plugins") == {"omnicupy": omnicupy.vllm.register}


def test_what_layers_ask_of_a_backend() -> None:
    chosen = _chosen()
    assert chosen.get_name() in AttentionBackendEnum.__members__
    assert chosen.full_cls_name() == ("omnicupy.vllm.backend", "OmnicupyAttentionBackend")
    assert not chosen.forward_includes_kv_cache_update
    assert chosen.supports_mm_prefix()
    assert chosen.general_backend_cls is backend.OmnicupyImagesBackend
    assert chosen.causal_backend_cls is flash_attn.FlashAttentionBackend
    assert {size: select_common_block_size(size, [chosen]) for size in (16, 48, 256, 512, 528)} == {
        16: 16,
        48: 16,
        256: 256,
        512: 256,
        528: 16,
    }


def test_configurations_that_are_taken() -> None:
    changes: list[dict[str, Any]] = [{}, {"dtype": torch.float16}, {"kv_cache_dtype": "bfloat16"}]
    changes += [{"head_size": size} for size in (64, 72, 80, 96, 128)]
    changes += [{"has_sliding_window": False}, {"device_capability": DeviceCapability(8, 0)}]
    assert [_chosen().validate_configuration(**CONFIGURATION | one) for one in changes] == [[]] * len(changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype not supported"),
        ({"kv_cache_dtype": "float16"}, "float16 with queries of torch.bfloat16"),
        ({"dtype": torch.float32}, "dtype not supported"),
        ({"head_size": 100}, "head_size not supported"),
        ({"block_size": 24}, "block_size not supported"),
        ({"attn_type": "encoder"}, "attention type encoder"),
        ({"device_capability": DeviceCapability(7, 5)}, "compute capability"),
        ({"use_mla": True}, "MLA not supported"),
        ({"use_non_causal": True}, "non-causal"),
        ({"use_dcp": True}, "DCP"),
        ({"use_rswa": True}, "R-SWA"),
        ({"use_per_head_quant_scales": True}, "per-head quant scales"),
        ({"use_batch_invariant": True}, "batch invariance"),
        ({"use_adaptive_verification": True}, "device-cpu query lens"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], reason: str) -> None:
    reasons = _chosen().validate_configuration(**CONFIGURATION | changes)
    assert any(reason in one for one in reasons), reasons


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"alibi_slopes": [0.5] * 4}, oc.UnsupportedError, "alibi_slopes"),
        ({"attn_type": "encoder_only"}, oc.UnsupportedError, "attn_type .*'encoder_only'"),
        ({"kv_cache_dtype": "fp8_e5m2"}, oc.UnsupportedError, "kv_cache_dtype .*'fp8_e5m2'"),
        ({"kv_cache_dtype": "fp8"}, oc.UnsupportedError, "queries of fp8"),
        ({"sinks": torch.zeros(3)}, ValueError, r"sinks .*\(4,\), got shape \(3,\)"),
        ({"use_alibi_sqrt": True}, TypeError, "use_alibi_sqrt"),
        ({"chunk_lookback": 1}, TypeError, "chunk_lookback"),
    ],
)
def test_layers_that_are_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        OmnicupyImpl(**{"num_heads": 4, "head_size": 16, "scale": 0.25} | changes)


@pytest.mark.parametrize(
    ("mine", "theirs", "names"),
    [
        (OmnicupyImpl, flash_attn.FlashAttentionImpl, ("forward", "do_kv_cache_update")),
        (backend.OmnicupyBuilder, interface.AttentionMetadataBuilder, ("__init__", "build")),
        (backend.OmnicupyBuilder, interface.AttentionMetadataBuilder, ("build_for_cudagraph_capture",)),
        (backend.OmnicupyImagesBackend, interface.AttentionBackend, ("supports_combination",)),
    ],
)
def test_signatures_are_those_that_vllm_calls(mine: Any, theirs: Any, names: tuple[str, ...]) -> None:
    for name in names:
        ours, wanted = (list(inspect.signature(getattr(cls, name)).parameters) for cls in (mine, theirs))
        assert ours == wanted, name


def test_arguments_of_layers_are_those_of_flash_attention() -> None:
    from omnicupy.vllm.impl import LayerArguments

    wanted = list(inspect.signature(flash_attn.FlashAttentionImpl.__init__).parameters)[1:]
    assert list(inspect.signature(LayerArguments).parameters) == wanted

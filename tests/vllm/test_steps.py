"""Steps as vLLM hands them to the backend: built, routed, computed and refused. Skipped where vLLM is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
interface: Any = pytest.importorskip("vllm.v1.attention.backend", reason="vLLM is not installed")

from vllm_calls import (  # noqa: E402 - after what it needs
    STEP,
    WINDOW,
    builder_of,
    common_metadata,
    composed,
    impl_of,
    layer_like,
    run_layer,
)
from vllm_steps import Request, Step  # noqa: E402

import omnicupy as oc  # noqa: E402
from omnicupy.vllm import backend  # noqa: E402
from omnicupy.vllm.batch import Batch  # noqa: E402
from omnicupy.vllm.impl import OmnicupyImpl  # noqa: E402


@pytest.mark.parametrize("clamped", [False, True])
def test_a_step_of_vllm_is_attention_by_a_mask_of_all_pairs(clamped: bool) -> None:
    step, layer = Step(STEP), layer_like(mm_prefix_clamp_sliding_window=clamped)
    metadata = builder_of(backend.OmnicupyBuilder, layer).build(0, common_metadata(step))
    with torch.inference_mode():
        found = run_layer(impl_of(), layer, step, metadata)
    torch.testing.assert_close(found, step.wanted(WINDOW, clamped=clamped), rtol=0, atol=1e-12)


def test_gemma_4_makes_layers_causal_once_metadata_are_built() -> None:
    step, layer = Step(STEP), layer_like(mm_prefix_clamp_sliding_window=True)
    metadata = builder_of(backend.OmnicupyBuilder, layer).build(0, common_metadata(step))
    assert hasattr(metadata, "mm_prefix_range")
    metadata.mm_prefix_range = None  # what its model does to the metadata of layers that see all keys
    with torch.inference_mode():
        found = run_layer(impl_of(), layer, step, metadata)
    torch.testing.assert_close(found, step.wanted(WINDOW, images=False), rtol=0, atol=1e-12)


def test_the_run_that_measures_memory_gets_zeros() -> None:
    step = Step(STEP)
    out = impl_of().forward(
        layer_like(), step.query, step.new_keys, step.new_values, step.kv_cache, None, step.output
    )
    assert not out.any()


@pytest.mark.parametrize(
    ("requests", "ours"),
    [
        (STEP, True),
        ([Request(9, 9, ((2, 5),))], True),
        ([Request(9, 30, ((2, 5),))], False),  # images in the history alone
        ([Request(9, 9)], False),
        ([Request(1, 30, ((2, 5),)), Request(1, 4)], False),
    ],
)
def test_steps_without_images_go_to_flash_attention(requests: list[Request], ours: bool) -> None:
    step, layer = Step(requests), layer_like(mm_prefix_clamp_sliding_window=True)
    both = composed()
    metadata = builder_of(both.get_builder_cls(), layer).build(0, common_metadata(step))
    assert isinstance(metadata, Batch) == ours
    impl = impl_of(both.get_impl_cls())
    assert not impl.supports_quant_query_input
    if not ours:
        given = layer, step.query, step.new_keys, step.new_values, step.kv_cache, metadata
        assert impl.forward(*given, step.output) == "causal"
        return
    with torch.inference_mode():
        found = run_layer(impl, layer, step, metadata)
    torch.testing.assert_close(found, step.wanted(WINDOW, clamped=True), rtol=0, atol=1e-12)


def test_graphs_are_those_that_routing_permits() -> None:
    builder, support = composed().get_builder_cls(), interface.AttentionCGSupport
    for layer, wanted in (
        (layer_like(), support.NEVER),
        (layer_like(sliding_window=None), support.UNIFORM_SINGLE_TOKEN_DECODE),
    ):
        config = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context={"layer": layer}))
        assert builder.get_cudagraph_support(config, None) is wanted
    step = Step([Request(1, 9)])
    with pytest.raises(oc.UnsupportedError, match="not captured"):
        builder_of(backend.OmnicupyBuilder, layer_like()).build_for_cudagraph_capture(common_metadata(step))
    assert not isinstance(
        builder_of(builder, layer_like()).build_for_cudagraph_capture(common_metadata(step)), Batch
    )  # of the composite: FlashAttention's


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"causal": False}, oc.UnsupportedError, "causal must be True"),
        ({"causal": torch.ones(4, dtype=torch.bool)}, oc.UnsupportedError, "causal must be True"),
        ({"encoder_seq_lens": torch.ones(4)}, oc.UnsupportedError, "encoder_seq_lens: cross attention"),
        ({"dcp_local_seq_lens": torch.ones(4)}, oc.UnsupportedError, "dcp_local_seq_lens"),
        ({"rswa_prefix_lens": torch.ones(4)}, oc.UnsupportedError, "rswa_prefix_lens"),
        ({"seq_lens_cpu_upper_bound": None}, ValueError, "seq_lens_cpu_upper_bound"),
    ],
)
def test_steps_that_are_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        builder_of(backend.OmnicupyBuilder, layer_like()).build(0, common_metadata(Step(STEP), **changes))


def test_cascades_and_quantised_outputs_are_refused() -> None:
    step, layer = Step(STEP), layer_like()
    builder = builder_of(backend.OmnicupyBuilder, layer)
    with pytest.raises(oc.UnsupportedError, match="cascades"):
        builder.build(16, common_metadata(step))
    metadata = builder.build(0, common_metadata(step))
    given = layer, step.query, step.new_keys, step.new_values, step.kv_cache, metadata, step.output
    with pytest.raises(oc.UnsupportedError, match="fuse_attn_quant"):
        impl_of().forward(*given, torch.ones(1))


def test_softcap_and_sinks_reach_attention() -> None:
    step, sinks = Step(STEP), torch.nn.Parameter(torch.randn(4).double(), requires_grad=False)
    metadata = builder_of(backend.OmnicupyBuilder, layer_like()).build(0, common_metadata(step))
    impl = impl_of(OmnicupyImpl, 2.0, "decoder", None, sinks=sinks)
    step.query, step.new_keys, step.new_values, step.kv_cache, step.output = (
        one.float() for one in (step.query, step.new_keys, step.new_values, step.kv_cache, step.output)
    )
    with torch.inference_mode():
        found = run_layer(impl, layer_like(), step, metadata)
    torch.testing.assert_close(
        found.double(), step.wanted(WINDOW, softcap=2.0, sinks=sinks), rtol=0, atol=1e-5
    )

"""jit/backward_spec.py: the kernels of the parts of a backward pass."""

from __future__ import annotations

import numpy as np
import pytest
from backward_specs import NAIVE, SM80, SM90

from omnicupy.jit import params
from omnicupy.jit.backward_kernel import FUSED_PARTS, PARTS, SINK_PARTS, TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.finishing import TICKET_PARTS
from omnicupy.jit.source import kernels_dir


def test_one_kernel_for_all_gradients_comes_with_one_that_converts() -> None:
    spec = BackwardSpec(**SM90 | {"fused": (64, 128, 2, 12)})
    assert list(spec.kernels()) == [*PARTS, *FUSED_PARTS, *TICKET_PARTS, *SINK_PARTS]
    assert str(spec).endswith(" dkdv=64x128x2x12 dq=128x128x4x12 fused=64x128x2x12")
    fused, convert = (spec.part(part) for part in FUSED_PARTS)
    assert (fused.source, fused.params, fused.step) == ("attention_bwd_sm90.cu", "bwd_sm90", 64)
    assert (convert.source, convert.params) == ("attention_bwd_convert.cu", "bwd_sums")
    assert (convert.threads, convert.smem_bytes, convert.br) == (128, 0, 64)
    assert fused.smem_bytes > spec.part("dkdv").smem_bytes


@pytest.mark.parametrize("stages", [1, 2])
def test_the_fused_kernel_of_mma_sync_is_a_source_of_its_own(stages: int) -> None:
    spec = BackwardSpec(**SM80 | {"dkdv": (64, 128, stages, 4), "fused": (64, 128, stages, 4)})
    fused, convert = (spec.part(part) for part in FUSED_PARTS)
    assert (fused.source, fused.params, fused.step) == ("attention_bwd_fused_sm80.cu", "bwd_sums", 64)
    assert (convert.source, convert.params) == ("attention_bwd_convert.cu", "bwd_sums")
    assert (fused.threads, fused.columns, fused.column_blocks) == (128, 64, 1)
    assert fused.smem_bytes == spec.part("dkdv").smem_bytes + stages * 2 * 64 * 128  # dS of a tile a stage


def test_the_kernel_that_prepares_is_one_for_all_tiles() -> None:
    kernels = {
        BackwardSpec(**given).part("prepare") for given in (SM90, SM90 | {"dq": TileShape(64, 32, 2, 8)})
    }
    assert len(kernels) == 1
    (only,) = kernels
    assert (only.arch, only.kernel, only.source) == ("sm_90", "sm80", "attention_bwd_delta.cu")
    assert (only.threads, only.smem_bytes, only.params) == (256, 32, "bwd")


def test_parts_name_their_source_entry_and_struct() -> None:
    found = {
        (spec["kernel"], part): (kernel.source, kernel.entry, kernel.params)
        for spec in (SM80, SM90, NAIVE)
        for part, kernel in BackwardSpec(**spec).kernels().items()
        if part != "prepare"
    }
    for part in ("dkdv", "dq"):
        name = f"attention_bwd_{part}_sm90"
        assert found["sm90", part] == (f"{name}.cu", name, "bwd_sm90")
        assert found["sm80", part] == ("attention_bwd_sm80.cu", "attention_bwd_sm80", "bwd")
        assert found["naive", part] == ("attention_bwd_naive.cu", "attention_bwd_naive", "bwd")
    for source, entry, struct in found.values():
        text = (kernels_dir() / source).read_text()
        assert f"{entry}(const __grid_constant__" in text
        assert ("BackwardParamsSm90" in text) == (struct == "bwd_sm90")
        assert struct in params.PARAMS


def test_a_soft_cap_is_a_field_of_the_kernels_that_it_changes() -> None:
    spec = BackwardSpec(**SM90 | {"softcap": True, "fused": (64, 128, 2, 12)})
    assert str(spec).endswith(" softcap")
    capped = {part for part, kernel in spec.kernels().items() if kernel.softcap}
    assert capped == {"dkdv", "dq", "fused", *TICKET_PARTS}
    assert {part: kernel.defines()["OMNI_SOFTCAP"] for part, kernel in spec.kernels().items()} == {
        part: int(part in capped) for part in spec.kernels()
    }
    assert BackwardSpec(**SM90 | {"softcap": np.bool_(True)}).softcap is True
    for value in (1, None, "yes"):
        with pytest.raises(TypeError, match=r"^config: softcap must be True or False, got"):
            BackwardSpec(**SM90 | {"softcap": value})
    sinks = spec.part("sinks")
    assert (sinks.source, sinks.entry, sinks.params) == (
        "attention_bwd_delta.cu",
        "attention_bwd_delta",
        "bwd",
    )
    assert (sinks.threads, sinks.smem_bytes, sinks.kernel) == (256, 32, "sm80")
    assert sinks.defines()["OMNI_PART"] == 5

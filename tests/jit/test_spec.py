"""jit/spec.py: tiles that no kernel has raise, saying what was expected, what came and what to do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from omnicupy.errors import UnsupportedError
from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.ragged_spec import RaggedSpec
from omnicupy.jit.spec import RESERVED_BYTES, AttnSpec

SM80: dict[str, Any] = {
    "arch": "sm_90",
    "kernel": "sm80",
    "dtype": "bfloat16",
    "head_dim": 64,
    "br": 128,
    "bc": 64,
}
SM90: dict[str, Any] = SM80 | {"arch": "sm_90a", "kernel": "sm90", "stages": 2, "warps": 12}

TABLE = [
    (SM80, {"kernel": "sm75"}, "config: kernel must be one of naive, sm80, sm90, got 'sm75'"),
    (
        SM80,
        {"head_dim": 72},
        "config: head_dim must be a multiple of 16 from 16 to 1024, got 72; round the tensors' head_dim up",
    ),
    (SM80, {"bc": 48}, "config: bc must be a multiple of 32 from 32 to 256, got 48"),
    (SM80, {"warps": 3}, "config: warps must be 1, 2, 4 or 8, got 3"),
    (
        SM80,
        {"br": 96},
        "config: br must be 16 or 32 rows a warp (64 or 128 with 4 warps), got 96",
    ),
    (
        SM80,
        {"share_kv": True, "stages": 2},
        "config: share_kv needs stages=1 (one buffer for K and V), got stages=2",
    ),
    (SM80, {"stages": 5}, "config: stages must be 1, 2, 3 or 4, got 5"),
    (
        SM80,
        {"stages": 4},
        "config: kernel 'sm80' has 1, 2 or 3 stages, got 4; take stages=3 or kernel='sm90'",
    ),
    (
        SM80,
        {"arch": "sm_86", "head_dim": 256, "stages": 3},
        "config: the tile needs 266240 B of shared memory, sm_86 has 101376 B a block; lower br=128, bc=64 or stages=3",
    ),
    (SM90, {"arch": "sm_90"}, "config: kernel 'sm90' needs arch='sm_90a' (wgmma), got 'sm_90'"),
    (
        SM90,
        {"br": 192},
        "config: kernel 'sm90' has 4 producer warps and 4 warps for each 64 query rows: br=64, 128 or 192 with "
        "warps=8, 12 or 16, or br=64 for 2 or 3 heads with warps=12 or 16, got br=192, warps=12",
    ),
    (
        SM90,
        {"pack": True, "br": 64},
        "config: pack=True with br=64 and warps=12 needs bc=128 or more, stages=2 or more and ping_pong=True, got "
        "bc=64, stages=2 and ping_pong=True; take warps=8",
    ),
    (
        SM90,
        {"scheduler": True},
        "config: scheduler=True needs kernel='sm90' with warps=16, got kernel='sm90', warps=12; with fewer warps there "
        "is one anyway",
    ),
    (SM90, {"blocks": 4}, "config: blocks must be 1, 2 or 3, got 4"),
    (
        SM80,
        {"blocks": 2},
        "config: blocks=2 needs kernel='sm90' with warps=8 or 12 and pack=False, got kernel='sm80', warps=4, "
        "pack=False",
    ),
    (
        SM90,
        {"br": 64, "warps": 8, "pack": True, "blocks": 2},
        "config: blocks=2 needs kernel='sm90' with warps=8 or 12 and pack=False, got kernel='sm90', warps=8, pack=True",
    ),
    (
        SM90,
        {"bc": 128, "blocks": 2},
        "config: blocks=2 with warps=12 leaves registers for bc and value_dim up to 100, got bc=128 and value_dim=64; "
        "lower blocks",
    ),
    (
        SM90,
        {"br": 64, "warps": 8, "head_dim": 128, "bc": 128, "value_dim": None, "blocks": 2},
        "config: the tile needs 152576 B of shared memory, sm_90a has 115712 B a block; lower br=64, bc=128 or "
        "stages=2",
    ),
    (
        SM80,
        {"pack": True},
        "config: pack=True needs kernel='sm90' with br=64 and warps=8, or br=64 and warps=12, or br=128 and warps=12, "
        "got kernel='sm80', br=128, warps=4",
    ),
    (
        SM90,
        {"pack": True, "br": 64, "bc": 128, "ping_pong": False},
        "config: pack=True with br=64 and warps=12 needs bc=128 or more, stages=2 or more and ping_pong=True, got "
        "bc=128, stages=2 and ping_pong=False; take warps=8",
    ),
]


@pytest.mark.parametrize(("fields", "changed", "message"), TABLE, ids=range(len(TABLE)))
def test_tiles_that_no_kernel_has(fields: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    AttnSpec(**fields)
    with pytest.raises(ValueError, match="config: ") as caught:
        AttnSpec(**(fields | changed))
    assert str(caught.value) == message


SM90_ROWS = {br: {"kernel": "sm90", "br": br, "warps": 12} for br in (64, 128)}


def test_heads_that_share_a_tile_take_the_memory_of_its_rows() -> None:
    whole = AttnSpec(arch="sm_90a", dtype="bfloat16", head_dim=128, bc=128, stages=2, **SM90_ROWS[128])
    shared = AttnSpec(arch="sm_90a", dtype="bfloat16", head_dim=128, bc=128, stages=2, **SM90_ROWS[64])
    assert (whole.heads, shared.heads) == (1, 2)
    assert whole.smem_bytes == shared.smem_bytes
    assert whole.q_slots == shared.q_slots
    assert replace(shared, bc=64, warps=16).heads == 3
    with pytest.raises(ValueError, match=r"lower warps=12, bc=160 or stages=2$"):
        replace(shared, bc=160, head_dim=256, value_dim=None)


def test_thread_blocks_of_a_multiprocessor_share_its_memory() -> None:
    spec = AttnSpec(**SM90 | {"br": 64, "warps": 8, "head_dim": 80, "bc": 32, "blocks": 3})
    assert 3 * (spec.smem_bytes + RESERVED_BYTES) <= SMEM_LIMIT_BYTES["sm_90a"] + RESERVED_BYTES
    assert spec.q_slots == 2
    assert spec.defines()["OMNI_BLOCKS"] == 3
    assert str(spec).endswith(" blocks=3")
    assert "blocks" not in str(replace(spec, blocks=1))


@pytest.mark.parametrize("change", [{"blocks": 2}, {"br": 192, "warps": 16, "scheduler": True}])
def test_calls_on_caches_have_other_variants(change: dict[str, Any]) -> None:
    spec = AttnSpec(**SM90 | {"br": 64, "warps": 8} | change)
    others = f"blocks={spec.blocks}, scheduler={spec.scheduler}"
    assert not spec.serves_caches
    assert str(spec).endswith(" scheduler=True" if spec.scheduler else " blocks=2")
    for made in (CachedSpec.of, partial(PagedSpec.with_pages, page_size=16), RaggedSpec.of):
        with pytest.raises(
            UnsupportedError, match=rf"^config: calls on caches .* got {others}; leave config out"
        ):
            made(spec)
        assert made(replace(spec, blocks=1, scheduler=False)).serves_caches
    with pytest.raises(UnsupportedError, match="got " + ("warps=16" if spec.warps == 16 else others)):
        Fp8Spec.of_e4m3(spec, in_pages=False)


@pytest.mark.parametrize("name", ["head_dim", "br", "bc", "stages", "warps", "blocks"])
@pytest.mark.parametrize("value", [2.0, 64.0, "64", None, True, np.float32(64), [64], np.array([64, 64])])
def test_numbers_are_integers(name: str, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        AttnSpec(**SM80 | {name: value})
    assert str(caught.value) == (
        f"config: {name} must be an integer, got {type(value).__name__} {value!r}; pass a whole number"
    )


@pytest.mark.parametrize("name", ["share_kv", "swizzle", "ping_pong", "scheduler"])
@pytest.mark.parametrize("value", [1, 0, None, "no", 1.0, [True]])
def test_flags_are_bools(name: str, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        AttnSpec(**SM80 | {name: value})
    assert str(caught.value) == (
        f"config: {name} must be True or False, got {type(value).__name__} {value!r}; pass a bool"
    )


@pytest.mark.parametrize("name", ["arch", "kernel", "dtype"])
@pytest.mark.parametrize("value", [None, 80, b"sm80", ["sm80"], np.array(["sm80"])])
def test_names_are_strings(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^config: {name} must be one of .*, got "):
        AttnSpec(**SM80 | {name: value})


def test_equal_specs_have_equal_macros() -> None:
    plain = AttnSpec(**SM80)
    of_numpy = AttnSpec(**SM80 | {"br": np.int64(128), "bc": np.uint8(64), "swizzle": np.True_})
    assert of_numpy == plain
    assert repr(of_numpy) == repr(plain)
    assert of_numpy.defines() == plain.defines()


@pytest.mark.parametrize(
    ("group", "packs", "heads", "tokens"),
    [
        *((1, 1, 1, 64), (3, 1, 3, 21), (5, 1, 5, 12), (7, 1, 7, 9), (8, 1, 8, 8), (64, 1, 64, 1)),
        *((65, 2, 33, 1), (71, 2, 36, 1), (128, 2, 64, 1), (129, 3, 43, 1), (500, 8, 63, 1)),
    ],
)
def test_heads_and_tokens_of_a_packed_tile(group: int, packs: int, heads: int, tokens: int) -> None:
    spec = AttnSpec(**SM90 | {"br": 64, "warps": 8, "pack": True})
    assert (spec.packs(group), spec.pack_heads(group), spec.tokens(group)) == (packs, heads, tokens)
    assert packs * heads >= group > (packs - 1) * heads
    assert heads * tokens <= spec.rows == 64
    assert packs == 1 or tokens == 1  # live rows follow each other
    plain = AttnSpec(**SM90)
    assert (plain.packs(group), plain.pack_heads(group), plain.tokens(group)) == (1, 1, plain.br)

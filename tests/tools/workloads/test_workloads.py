"""The benchmark workloads are the masks that they name."""

from __future__ import annotations

import numpy as np
import pytest

from omnicupy.tools.workloads import workload as workloads_workload
from omnicupy.tools.workloads.workload import NAMED, by_name

# name: (q_len, k_len), allowed pairs in per cent, forward GFLOP; from the models' published mask rules.
TABLE = {
    "W1": ((36864, 36864), 11.4, 2217),
    "W2": ((11520, 11520), 34.9, 665),
    "W3": ((16152, 16152), 39.5, 1478),
    "W4": ((5120, 5120), 56.1, 422),
    "W5": ((4096, 4096), 51.8, 569),
    "W6": ((9877, 9877), 72.0, 2303),
    "W6b": ((4097, 9877), 99.98, 1326),
    "W7": ((16384, 16384), 6.25, 137),
    "W7g": ((16384, 16384), 50.2, 1104),
    "W7c": ((16384, 16384), 7.9, 174),
    "W8": ((31732, 31732), 0.19, 10),
    "W8f": ((31732, 31732), 13.7, 707),
    "W9": ((4096, 25616), 20.8, 714),
    "W10": ((32760, 32760), 57.1, 3768),
    "W10t": ((65520, 65520), 28.6, 7536),
    "W11": ((8192, 8192), 25.2, 277),
    "W12": ((32768, 32768), 4.8, 838),
    "W13": ((32768, 32768), 5.9, 1043),
    "W14": ((64, 8256), 99.3, 69),
    "W15": ((1152, 1152), 94.6, 82),
}


@pytest.mark.parametrize("name", TABLE)
def test_density_and_work(name: str) -> None:
    shape, percent, giga = TABLE[name]
    workload = NAMED[name]
    mask = workload.mask()
    assert mask.shape == shape
    digits = len(str(percent).partition(".")[2])
    assert round(100 * mask.pairs / (shape[0] * shape[1]), digits) == percent
    assert round(workload.flops(mask.pairs) / 1e9) == giga


def test_w1_has_the_samples_and_kinds_of_the_pack() -> None:
    mask = NAMED["W1"].mask()
    assert len({document for *_, document in mask.segments}) == 7
    assert [kind for kind, *_ in mask.segments[:8]] == ["image", "image", "text", "noise"] * 2


def test_interleaving_the_streams_keeps_the_pairs() -> None:
    split, interleaved = NAMED["W10t"].mask(), NAMED["W10i"].mask()
    assert split.pairs == interleaved.pairs
    # The interleaved order is noisy 0, clean 0, noisy 1, ...; the split one all clean, then all noisy blocks.
    block = 4680
    for q, k in ((0, 0), (5, 2), (2, 5), (6, 6)):
        for q_noisy in (0, 1):
            for k_noisy in (0, 1):
                one = split.dense(*_tile((7 * q_noisy + q) * block, (7 * k_noisy + k) * block))
                other = interleaved.dense(
                    *_tile((2 * q + 1 - q_noisy) * block, (2 * k + 1 - k_noisy) * block)
                )
                assert np.array_equal(one, other)


def _tile(q0: int, k0: int) -> tuple[int, int, int, int]:
    return q0, q0 + 3, k0, k0 + 3


def test_w3m_hides_vae_tokens_from_text_only() -> None:
    plain, mogao = NAMED["W3"].mask(), NAMED["W3m"].mask()
    text = [(first, stop) for kind, first, stop, _ in plain.segments if kind == "text"]
    q0, q1 = text[1]
    lost = plain.dense(q0, q1, 0, q1) & ~mogao.dense(q0, q1, 0, q1)
    assert lost.any(axis=0).sum() == 1602 * 2  # both clean images before the second text
    assert np.array_equal(plain.dense(q1, q1 + 1602, 0, 48), mogao.dense(q1, q1 + 1602, 0, 48))


def test_names_reach_every_kind() -> None:
    assert by_name("W4") is NAMED["W4"]
    causal = by_name("causal-d64-s4096")
    assert (causal.batch, causal.q_heads, causal.mask().pairs) == (4, 32, 4096 * 4097 // 2)
    random = by_name("random-d128-s1024-seed3-h28-k4-b4")
    assert (random.batch, random.sizes, random.mask().shape) == (4, (28, 4, 128), (1024, 1024))
    assert (
        by_name("random-d64-s16384").mask()
        == workloads_workload.interleaved(16384, 0, (32, 32, 64), 1).mask()
    )


@pytest.mark.parametrize("length", [2048, 16384])
@pytest.mark.parametrize("per_mille", [1000, 900, 750, 600, 500, 350, 250, 150, 100, 50, 35, 20])
def test_sparse_masks_have_about_their_density(length: int, per_mille: int) -> None:
    found = by_name(f"sparse-d128-s{length}-p{per_mille}-seed1")
    mask = found.mask()
    assert mask == workloads_workload.sparse(length, per_mille, 1, (16, 16, 128), 1).mask()
    assert mask.shape == (length, length)
    density = mask.pairs / length**2
    assert density == pytest.approx(per_mille / 1000, rel=0.2)
    if per_mille == 1000:
        assert density == 1
    other = workloads_workload.sparse_layout(length, per_mille, 2)
    assert (other == workloads_workload.sparse_layout(length, per_mille, 1)) == (per_mille == 1000)
    assert (found.sizes, found.batch) == ((16, 16, 128), 16384 // length)


@pytest.mark.parametrize("per_mille", [0, 1001])
def test_densities_out_of_range_raise(per_mille: int) -> None:
    with pytest.raises(ValueError, match=f"density: expected 1 to 1000 thousandths, got {per_mille}"):
        workloads_workload.sparse_layout(1000, per_mille, 0)


def test_names_may_give_heads_and_batch() -> None:
    found = by_name("causal-d128-s256-h28-k4-b1")
    assert (found.name, found.batch, found.sizes) == ("causal-d128-s256-h28-k4-b1", 1, (28, 4, 128))
    assert by_name("full-d128-s256").sizes == (16, 16, 128)
    assert by_name("full-d128-s256").batch == 64


@pytest.mark.parametrize(
    "name",
    [
        "W99",
        "full",
        "causal-d64",
        "random-d0-s64",
        "full-d64-sx",
        "full-d64-s64-x1",
        "full-d64-s64-seed1",
        "sparse-d64-s64",
    ],
)
def test_unknown_names_raise(name: str) -> None:
    with pytest.raises(ValueError, match="workload: expected one of W1, W2"):
        by_name(name)

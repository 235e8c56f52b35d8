"""Steps with images on a CUDA device, against attention by masks of all pairs in float64. Without vLLM."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from vllm_steps import Request, Step  # noqa: E402 - after what it needs

from omnicupy.vllm import attend  # noqa: E402
from omnicupy.vllm.batch import Batch  # noqa: E402

pytestmark = pytest.mark.gpu
REQUESTS = [
    Request(1, 700),
    Request(1, 400, ((40, 295),)),
    Request(333, 333),
    Request(640, 640, ((20, 275), (300, 555))),
    Request(640, 640, ((100, 355),)),
    Request(400, 1100, ((800, 999), (1010, 1020))),
    Request(300, 700, ((350, 500),)),
    Request(0, 0),
]
# Heads, columns, block, the cache's order in memory, window, whether it cuts images, softcap.
CASES = {
    "gemma3": ((8, 4), 256, 16, (0, 2, 1, 3), 300, False, None),
    "gemma4": ((8, 4), 256, 16, (0, 1, 2, 3), 200, True, None),
    "paligemma": ((8, 1), 256, 64, (0, 2, 1, 3), None, False, None),
    "bagel": ((28, 4), 128, 256, (1, 0, 2, 3), None, False, None),
    "softcap": ((8, 8), 72, 32, (0, 2, 1, 3), None, False, 30.0),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, 6e-3)])
@pytest.mark.parametrize("name", CASES)
def test_steps_on_a_gpu(name: str, dtype: Any, tolerance: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no CUDA device")
    heads, head_size, block, order, window, clamped, softcap = CASES[name]
    step = Step(REQUESTS, heads, head_size, block, dtype, order)
    scale = head_size**-0.5
    wanted = step.wanted(window, clamped=clamped, scale=scale, softcap=softcap)
    step.to("cuda")
    of_device = step.query_start_loc, step.seq_lens, step.block_table
    batch = Batch(step.tokens, *of_device, step.starts, step.bounds, step.ranges)
    pools = attend.pools_of(step.kv_cache, head_size)
    with torch.inference_mode():
        attend.append(pools, step.new_keys, step.new_values, step.slots)
        for _ in range(2):  # the second layer finds the first one's lists
            step.output.fill_(float("nan"))
            attend.attend(
                batch, attend.Layer(scale, window, clamped, softcap), step.query, pools, step.output
            )
            found = step.output[: step.tokens].double().cpu()
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    assert step.output[step.tokens :].isnan().all()

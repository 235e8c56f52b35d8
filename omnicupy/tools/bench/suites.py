"""What the suites are: workloads by systems, and what is done with each."""

from __future__ import annotations

from omnicupy.tools.bench import serving_suites
from omnicupy.tools.bench.fit_masks import (
    FIT_D64,
    FIT_D80,
    FIT_D128,
    FIT_D192,
    FIT_D256,
    FORMS,
    UNSEEN,
    dense,
)
from omnicupy.tools.bench.gradients import ANY_ORDER
from omnicupy.tools.bench.peers import BY_TORCH, BY_TORCH_FREE, SAME_BITS, SYSTEMS
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.bench.suite import Part, Suite
from omnicupy.tools.workloads.workload import NAMED

EVERY = (OURS, *(name for name in SYSTEMS if name not in (*SAME_BITS, BY_TORCH, BY_TORCH_FREE)))
PORTABLE_TILES = (
    f"{OURS}:sm80-128x64-s1-w4",
    f"{OURS}:sm80-128x96-s2-w4",
)  # the mma.sync kernel's tiles on Hopper
SPARSE_MASKS = ("flex", "flex-flash", "cudnn-flex", "sdpa-efficient")  # peers that take any mask

LADDER = (
    *("sm80-64x64-s1-w4-shared", "sm80-64x64-s1-w4", "sm80-64x64-s2-w4", "sm80-64x64-s3-w4"),
    *("sm80-128x64-s1-w4-shared", "sm80-128x64-s1-w4", "sm80-128x64-s2-w4"),
    *("sm80-128x64-s1-w8", "sm80-128x64-s2-w8", "sm80-64x64-s2-w4-plain", "sm80-128x64-s1-w4-plain"),
)
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
RANDOM_LENGTHS = (1024, 8192, 16384)
SHORT_LENGTHS = (128, 256, 512, 1024, 2048, 4096)
PER_MILLE = (1000, 900, 750, 600, 500, 350, 250, 150, 100, 70, 50, 35, 20)
WHOLE_SIZES = "h28-k4-b1"  # of the whole-call suite
# Where the naive kernel is measured too. With 16 heads some multiprocessors have two block rows, others one, and time
# does not follow the pairs; with 64 the tile is another one from a density of 0.75 on.
SMALL = "s2048-{}h32-k32-b1"


def _random(seeds: int) -> tuple[str, ...]:
    return tuple(f"random-d64-s{length}-seed{seed}" for length in RANDOM_LENGTHS for seed in range(seeds))


def _sparse(head_dim: int, sizes: str, seed: int = 0) -> tuple[str, ...]:
    """sizes: how the names go on, with {} for density and seed."""
    return tuple(
        f"sparse-d{head_dim}-{sizes.format(f'p{share}-seed{seed}-')}".rstrip("-") for share in PER_MILLE
    )


_FULL_OBJECTS = tuple(f"{OURS}:{word}" for word in ("nomask", "image", "ones"))
_LATENCY = (
    "s1024-seed0-h28-k4-b4",
    "s2048-seed0-h28-k4-b8",
    "s1024-seed0-h16-k16-b4",
    "s2048-seed0-h16-k16-b8",
)
SHORT_RANDOM = tuple(f"random-d128-{rest}" for rest in _LATENCY)
# Masks of models whose gradients are compared with those of other libraries.
GRADIENT_MODELS = (
    *(f"W{number}" for number in range(1, 8)),
    "W7g",
    "W8f",
    *(f"W{number}" for number in range(9, 14)),
)
# Masks of which the mean of all seeds counts: of gradients, and of whole calls of both passes.
NARROW_RANDOM, MIDDLE_RANDOM, WIDE_RANDOM = (
    tuple(f"random-{sizes}-seed{seed}" for seed in range(8))
    for sizes in ("d64-s8192", "d128-s16384", "d256-s8192")
)
CALL_SEEDS = tuple(
    tuple(f"random-d128-{rest.replace('seed0', f'seed{seed}')}" for seed in range(8)) for rest in _LATENCY[2:]
)
_SHORT_ROWS = (
    *dense((64, 128, 256), (512, 1024, 2048)),
    *dense((80,), (512, 1024)),
    *("W8", "W8f", "W15", "random-d64-s1024-seed0", *SHORT_RANDOM),
)

GPU_SUITES = {
    "shapes": Suite(
        "D 64, 128, 256 by S 512 to 32768, full and causal", (Part(dense((64, 128, 256), LENGTHS), EVERY),)
    ),
    "vlm": Suite("the masks of real models, W1 to W15", (Part(tuple(NAMED), (OURS, *SPARSE_MASKS)),)),
    "sparsity": Suite(
        "random interleaved masks from density 1 down to 0.02, beside dense attention",
        (
            Part(("full-d128-s16384", "full-d64-s16384"), (*_FULL_OBJECTS, OURS, "sdpa-cudnn", "sdpa-flash")),
            Part(_sparse(128, "s16384-{}"), (OURS, "flex")),
            Part(_sparse(128, "s16384-{}", seed=1), (OURS,)),
            Part(_sparse(64, "s16384-{}"), (OURS, "flex")),
            Part(
                (f"full-d128-{SMALL.format('')}", *_sparse(128, SMALL)),
                (OURS, f"{OURS}:naive", "sdpa-cudnn", "sdpa-flash", "flex"),
            ),
        ),
    ),
    "fit": Suite(
        "what the cost model of the backward pass is fitted on: each of its kernels, dense and random masks",
        (
            Part((*FIT_D128, *FIT_D80, *FIT_D64), FORMS, "forms"),
            Part((*FIT_D256, *FIT_D192), (OURS, *FORMS[3:]), "forms"),  # where no kernel makes all gradients
        ),
    ),
    "unseen": Suite(
        "what that model is judged by: the masks of real models, W1 to W13, and ten random ones",
        (Part(UNSEEN, FORMS[:2], "forms"),),
    ),
    "tiles": Suite(
        "every tile of the mma.sync kernel, with and without swizzle and a shared K/V buffer",
        (Part(("full-d64-s4096", "full-d128-s4096", "causal-d128-s4096", "W4"), (), "tiles"),),
    ),
    "tiles90": Suite(
        "every tile of the wgmma kernel",
        (Part(("full-d64-s4096", "full-d128-s4096", "causal-d128-s4096", "W4", "W7"), (), "tiles90"),),
    ),
    "choices": Suite(
        "shapes and vlm on the tiles of the wgmma kernels that are worth a look: is the table's choice the best?",
        (
            Part(
                (
                    *dense((64, 128, 256), LENGTHS),
                    *dense((80,), (4096, 16384)),
                    *NAMED,
                    *_random(1),
                    *SHORT_RANDOM,
                ),
                (),
                "choices",
            ),
        ),
    ),
    "blocks": Suite(
        "choices of calls with short block rows: among them are several thread blocks a multiprocessor",
        (Part(_SHORT_ROWS, (), "choices"),),
    ),
    "behind": Suite(
        "calls on which another library was once ahead: dense S 512, D 256 under random masks, W3m, W9",
        (
            Part(dense((64, 128, 256), (512,)), (OURS, "sdpa-cudnn", "cudnn-flex")),
            Part((*WIDE_RANDOM, "W3m", "W9"), (OURS, "cudnn-flex")),
        ),
    ),
    "same-bits": Suite(
        "gradients with the same bits each time, on masks of models: the default, and FlexAttention",
        (Part(GRADIENT_MODELS, (OURS, "flex"), "forms"),),
    ),
    "portable": Suite(
        "gradients by the mma.sync kernels, in one order and in any, beside FlashAttention-2",
        (
            Part(
                dense((64, 128), (4096, 16384)),
                (f"{OURS}:sm80", f"{OURS}:sm80-{ANY_ORDER}", "sdpa-flash"),
                "forms",
            ),
        ),
    ),
    "short": Suite(
        "whole calls from Python, 128 to 4096 tokens",
        (
            Part(
                tuple(
                    f"{kind}-d128-s{length}-{WHOLE_SIZES}"
                    for length in SHORT_LENGTHS
                    for kind in ("causal", "random")
                ),
                EVERY,
                "latency",
            ),
        ),
    ),
    **serving_suites.SUITES,
    "build": Suite(
        "what a new mask costs before the first result",
        (
            Part(
                ("W1", "W3", "W4", "W7g", "W12", "W13", "W10"),
                (OURS, "flex", "flex-flash", "cudnn-flex"),
                "build",
            ),
        ),
    ),
    "memory": Suite(
        "peak device memory of a call and of a mask object",
        (Part(("full-d128-s16384", "causal-d128-s16384", "W1", "W4", "W12"), EVERY, "memory"),),
    ),
    "dense": Suite(
        "full and causal, D 64, 128 and 256: a short form of shapes, and the mma.sync kernel",
        (
            Part(
                dense((64, 128), (4096, 16384)),
                (OURS, *PORTABLE_TILES, "sdpa-flash", "sdpa-cudnn", "flex", "fa4", "cudnn-flex"),
            ),
            Part(dense((256,), (16384,)), (OURS, "sdpa-flash", "sdpa-cudnn", "fa4")),
        ),
    ),
    "masks": Suite(
        "a short form of vlm, also with the mma.sync kernel, and dense S 4096 for the executed rate",
        (
            Part(
                ("full-d128-s4096", "W1", "W4", "W5", "W11", "W12"),
                (OURS, PORTABLE_TILES[0], "flex", "flex-flash", "cudnn-flex"),
            ),
        ),
    ),
    "random": Suite(
        "random interleaved masks",
        (
            Part(
                _random(8),
                (OURS, *PORTABLE_TILES, "flex", "cudnn-flex"),
            ),
        ),
    ),
    "latency": Suite(
        "whole calls of small batches",
        (
            Part(
                ("W15", *SHORT_RANDOM),
                (OURS, "flex", "flex-flash", "cudnn-flex"),
                "latency",
            ),
        ),
    ),
    "seeds": Suite(
        "whole calls of small batches as torch makes them, random masks of seeds 0 to 7; with --pass fwd+bwd",
        (
            Part(
                (*CALL_SEEDS[0], *CALL_SEEDS[1]),
                (OURS, BY_TORCH, BY_TORCH_FREE, "flex", "cudnn-flex"),
                "calls",
            ),
        ),
    ),
    "variants": Suite(
        "stages, shared K/V buffer, swizzle",
        (
            Part(
                ("full-d64-s4096", "full-d128-s4096", "causal-d128-s16384", "W4"),
                tuple(f"{OURS}:{word}" for word in LADDER),
            ),
        ),
    ),
}

# What other suites are for, and what other tools write.
OTHER_SUITES = {
    "host": "host time of warm calls",
    "cold": "first calls in fresh processes",
    "atoms": "shapes of tensor-core instructions: K of mma.sync, N and M of wgmma",
    "step": "training steps of layers of Llama 3 8B, a new mask each",
    "step-short": "the same with rows of 16,384 tokens, where SDPA with a dense mask ends in time",
    "step-gemma": "training steps of layers of Gemma 3 4B, local layers and a global one",
    "generate": "a token of transformers' generate, prompts padded on the left",
    "captured": "a captured step of 32 layers, longer at each replay",
    "growing": "host time of eager steps of 32 layers, longer each",
    "padded": "masks of steps of a padded batch, beside those for SDPA",
    "accuracy": "errors of results and gradients against float64",
    "presets": "presets at 36,864 tokens",
    "scaling": "masks of a million tokens",
    "sharing": "a mask shared among ranks, by a model; plans timed",
    "parallel": "a call that several ranks share (under torchrun)",
    "parallel-flex": "FlexAttention on gathered keys beside it (under torchrun)",
    "cpu": "the CPU engine",
    "counters": "hardware counters of calls (`.ci/counters.py`)",
}

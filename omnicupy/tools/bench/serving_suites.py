"""The suites of those who serve: decoding, keys in pages and of e4m3, sinks and soft caps."""

from __future__ import annotations

from omnicupy.tools.bench import decode_steps, decoding, pages, scores
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.bench.suite import Part, Suite

SUITES = {
    "decode": Suite(
        "one query row or a few against caches of 17 MB to 1.1 GB: shares of what a copy moves",
        (Part(decoding.workloads(), (OURS, "sdpa-flash", "sdpa-cudnn", "flex")),),
    ),
    decode_steps.SUITE: Suite(
        "the same workloads as layers of captured steps, beside copies of as many bytes",
        tuple(Part(*of, "steps") for of in decode_steps.parts()),
    ),
    "paged": Suite(
        "decoding from pages of 128 to 1 tokens, beside the same keys in one piece",
        (Part(pages.workloads(), pages.SYSTEMS, "paged"),),
    ),
    "prompts": Suite(
        "prompts whose keys are in pages of 128 to 1 tokens, beside the same keys in one piece",
        (Part(pages.PROMPTS, pages.SYSTEMS, "paged"),),
    ),
    "e4m3": Suite(
        "decoding from caches of e4m3, in one piece and in pages, beside the 16-bit numbers that they stand for",
        (Part(pages.OF_E4M3, pages.E4M3_SYSTEMS, "paged"),),
    ),
    scores.SUITE: Suite(
        "a sink logit a head and a soft cap of scores, beside the same call without",
        (Part(scores.WORKLOADS, scores.SYSTEMS, "scores"),),
    ),
}

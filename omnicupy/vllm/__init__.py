"""Attention of vLLM for prompts with images, which see themselves inside of a causal prompt.

    vllm serve google/gemma-3-12b-it --attention-backend OMNICUPY

vLLM finds `register` through the entry point group "vllm.general_plugins", in each of its processes. What it costs
where another backend serves is `import omnicupy`, which needs no GPU, and one name in a table: vLLM imports
`omnicupy.vllm.backend` where OMNICUPY is asked for.
docs/serving.md says what is served. `import omnicupy` imports neither PyTorch nor vLLM, nor does this package.
"""

from omnicupy.vllm.registration import BACKEND, register

__all__ = ["BACKEND", "register"]

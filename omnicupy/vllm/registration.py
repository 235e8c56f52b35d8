"""The name by which vLLM finds the backend."""

from __future__ import annotations

BACKEND = "OMNICUPY"
CLASS = "omnicupy.vllm.backend.OmnicupyAttentionBackend"


def register() -> None:
    """Make --attention-backend OMNICUPY mean omnicupy. vLLM calls this in each of its processes; twice is once."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if BACKEND not in AttentionBackendEnum.__members__:
        register_backend(BACKEND, CLASS)

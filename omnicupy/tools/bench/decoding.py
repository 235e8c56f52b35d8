"""What bounds calls with few query rows: the bytes of their keys and values, against what a copy moves."""

from __future__ import annotations

from collections.abc import Sequence

from omnicupy.tools.workloads.workload import Workload

FEW_ROWS = 64  # query rows of a sequence up to which K and V decide the time
ELEMENT_BYTES = 2

# Query heads, heads of keys, head_dim; batch and keys. What is decoded from: caches of 17 MB to 1.1 GB.
GROUPS = ((32, 8, 128), (28, 4, 128), (8, 4, 256), (16, 16, 64))
OTHER_GROUPS = ((24, 8, 128), (40, 8, 128), (64, 8, 128))
LENGTHS = ((1, 8192), (1, 131072), (8, 8192), (16, 8192), (64, 4096), (128, 2048))
ONE_KEY_HEAD = (71, 1, 64)  # Falcon
ROWS = (4, 16)  # query rows of drafts


def workloads() -> tuple[str, ...]:
    """The names of the suite's workloads."""
    found = [_name(sizes, *of) for sizes in GROUPS for of in LENGTHS]
    found += [_name(sizes, 16, 8192) for sizes in OTHER_GROUPS]
    found += [_name(ONE_KEY_HEAD, 64, 16384)]
    return (*found, *(_name(sizes, 16, 8192, rows) for sizes in GROUPS[:2] for rows in ROWS))


def _name(sizes: Sequence[int], batch: int, keys: int, rows: int = 1) -> str:
    heads, kv_heads, head_dim = sizes
    several = f"-q{rows}" if rows > 1 else ""
    return f"decode-d{head_dim}-s{keys}{several}-h{heads}-k{kv_heads}-b{batch}"


def kv_bytes(batch: int, kv_heads: int, keys: int, head_dim: int) -> int:
    """Of K and V together."""
    return 2 * ELEMENT_BYTES * batch * kv_heads * keys * head_dim


def copy_share(workload: Workload, shape: tuple[int, int], ms: float, copy_tbps: float) -> dict[str, float]:
    """The figure "copy_share" of a call with few query rows: bytes of K and V a second over those that a copy reads
    and writes; {} for others.

    shape: of the mask.  ms: of the call.  copy_tbps: terabytes a second.
    """
    rows, keys = shape
    if rows > FEW_ROWS or not copy_tbps:
        return {}
    read = kv_bytes(workload.batch, workload.kv_heads, keys, workload.head_dim)
    return {"copy_share": read / ms / 1e9 / copy_tbps}

"""What the report's tables of single figures call them: heads with units in place of the names in records."""

from __future__ import annotations

MIB = 1 << 20

HEADS = {
    "ms": "time, ms",
    "us": "time, us",
    "us_of_100_in_a_row": "a call of 100 in a row, us",
    "us_alone": "a call alone, us",
    "host_us": "host, us",
    "spec": "variant",
    "useful": "allowed / executed pairs",
    "error": "error / reference error",
    "correct": "right",
    "first_call_s": "first call, s",
    "build_ms": "block mask built, ms",
    "build_compiled_ms": "block mask built under torch.compile, ms",
    "peak_mib": "memory at the most, MiB",
    "mib": "memory at the most, MiB",
    "tiles": "tiles",
    "mask_ms": "mask built, ms",
    "cut_ms": "mask cut, ms",
    "gradient_lists_ms": "lists of gradients made, ms",
    "new_mask_call_ms": "call with a new mask, ms",
    "same_mask_call_ms": "call with the same mask, ms",
    "intervals": "intervals of a key",
    "entries": "list entries",
    "device_mib": "lists on the device, MiB",
    "first_ms": "first call, ms",
    "second_ms": "second call, ms",
    "engine_ms": "CPU engine, ms",
    "products_ms": "products alone, ms",
    "ratio": "engine / products",
    "output_bytes": "output, MiB",
    "call_bytes": "a call beside its output, MiB",
    "first_bytes": "mask and first call, MiB",
    "kept_bytes": "kept by the mask, MiB",
    "taken_bytes": "taken from the device, MiB",
    "plan_ms": "plan made, ms",
    "peak_bytes": "torch's memory at the most, MiB",
    "outside_bytes": "memory outside of torch's allocator, MiB",
    "problem": "why not measured",
}


def head(name: str) -> str:
    """The head of the column of a figure, by its name in the records. Names in words stay as they are.

    Raises ValueError for a name that is none in words and has no head here.
    """
    first, comma, rest = name.partition(", ")
    if first in HEADS:
        return f"{HEADS[first]}: {rest}" if comma else HEADS[first]
    if "_" in name:
        raise ValueError(f"report: expected a figure of {', '.join(HEADS)}, got {name!r}; give it a head")
    return name


def cell(name: str, value: object) -> str:
    """A figure in the unit of its head; nothing where it was not measured."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and isinstance(value, int | float):
        return f"{value / MIB:.4g}"
    if name == "useful" and isinstance(value, float):
        return f"{value:.1%}"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) >= 10**6):
        return f"{value:.4g}"
    return str(value)

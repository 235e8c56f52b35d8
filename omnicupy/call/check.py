"""Argument checks of `attention`: this module and check_config, _masks, _scores and _widths word its argument errors.

Works on NumPy and CuPy arrays alike through the attributes that both have, and never imports CuPy. The checks
run on every call, so the straight path only compares; words are made where a comparison fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from omnicupy.call import check_scores
from omnicupy.call.arrays import DTYPE_NAMES, overlap, overlaps_itself
from omnicupy.call.arrays import on_gpu as is_on_gpu
from omnicupy.call.check_config import check_config
from omnicupy.call.check_masks import check_reads_masks, masks_of
from omnicupy.call.check_widths import check_gpu_widths, out_shape
from omnicupy.call.problem import Problem, scale_of, split_of, type_name
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.arguments import plain_array
from omnicupy.masks.mask import Mask
from omnicupy.serving.caches import CACHES

ALIGN_BYTES = 16  # the kernels move 16 bytes per load (cp.async.cg)
AXES = ("batch", "heads", "tokens")
GPU_DTYPES = ("float16", "bfloat16")
READ_WHILE_WRITTEN = "inputs are read while out is written"


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `attention` that was checked.

    masks: one for all batch elements, or one for each.  scale: the factor of scores.  softcap: their bound, or None.
    split: keys of a part of each row, None where engines cut as they see fit.
    """

    problem: Problem
    masks: tuple[Mask, ...]
    scale: float
    softcap: float | None = None
    split: int | None = None


def call(
    q: Any,
    k: Any,
    v: Any,
    mask: Mask | Sequence[Mask] | None,
    *,
    scale: float | None = None,
    sink_logits: Any = None,
    softcap: float | None = None,
    out: Any = None,
    config: AttnSpec | None = None,
    split: int | None = None,
) -> Call:
    """Check the arguments of `attention` before any work, once: what they come to is all that engines need.

    q, k, v, out: NumPy or CuPy arrays, all of one kind; the other arguments as in `attention`. Arrays are not
    read. A stride of zero or below is fine in q, k and v.
    Raises TypeError for an argument of a wrong type or dtype, ValueError for a wrong shape, value or layout,
    UnsupportedError for widths of heads that no kernel of a GPU takes.
    """
    problem, factor, cap = arrays(
        q, k, v, scale=scale, sink_logits=sink_logits, softcap=softcap, out=out, config=config
    )
    check_reads_masks(config, problem)
    return Call(problem, masks_of(mask, problem), factor, cap, split_of(split))


def arrays(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    sink_logits: Any = None,
    softcap: float | None = None,
    out: Any = None,
    config: AttnSpec | None = None,
) -> tuple[Problem, float, float | None]:
    """The same check of all but the mask and the parts: the sizes, the factor of the scores, and their bound."""
    on_gpu = _check_kinds(q, k, v)
    dtype = _check_dtypes(q, k, v, on_gpu)
    problem = _check_shapes(q, k, v, dtype)
    if on_gpu:
        check_gpu_widths(problem)
        for name, array in (("q", q), ("k", k), ("v", v)):
            check_layout(name, array)
    read = [("q", q), ("k", k), ("v", v)]
    if sink_logits is not None:
        check_place("sink_logits", sink_logits, q)
        check_scores.check_sink_logits(sink_logits, q)
        read.append(("sink_logits", sink_logits))
    if out is not None:
        check_target("out", out, read[0], read, shape=out_shape(problem))
    factor = scale_of(scale, problem.head_dim, dtype)
    if (cap := check_scores.softcap_of(softcap, factor, dtype)) is not None:
        problem = replace(problem, softcap=True)
    if config is not None:
        check_config(config, "an AttnSpec", problem, is_kind=isinstance(config, AttnSpec), on_gpu=on_gpu)
    return problem, factor, cap


def _check_kinds(q: Any, k: Any, v: Any) -> bool:
    named = (("q", q), ("k", k), ("v", v))
    if isinstance(q, np.ndarray) and isinstance(k, np.ndarray) and isinstance(v, np.ndarray):
        for name, array in named:
            plain_array(name, array)
        return False
    for name, array in named:
        if not isinstance(array, np.ndarray) and not is_on_gpu(array):
            refuse_non_array(name, array)
    if any(isinstance(array, np.ndarray) for _, array in named):
        kinds = ", ".join(f"{name}: {_kind(array)}" for name, array in named)
        raise TypeError(
            f"q, k and v must all be CuPy arrays or all NumPy arrays, got {kinds}; "
            "move them with cupy.asarray or cupy.asnumpy"
        )
    device = q.data.device_id
    for name, array in named[1:]:
        if array.data.device_id != device:
            _refuse_device(name, array, device)
    return True


def _check_dtypes(q: Any, k: Any, v: Any, on_gpu: bool) -> str:
    dtype = q.dtype
    name = DTYPE_NAMES.get(dtype)
    if name is None or (on_gpu and name not in GPU_DTYPES):
        wanted = "float16 or bfloat16 on the GPU" if on_gpu else "float16, bfloat16, float32 or float64"
        raise TypeError(f"q must be {wanted}, got {dtype}; cast q, k and v")
    for other, array in (("k", k), ("v", v)):
        if array.dtype != dtype:
            raise TypeError(f"{other} must have the dtype of q ({dtype}), got {array.dtype}; cast it")
    return name


def _check_shapes(q: Any, k: Any, v: Any, dtype: str) -> Problem:
    for name, array in (("q", q), ("k", k), ("v", v)):
        check_axes(name, array)
        if 0 in array.shape:
            raise ValueError(
                f"{name} must have no empty axis, got shape {array.shape}; skip the call when it is empty"
            )
    batch, q_heads, q_len, head_dim = q.shape
    k_batch, kv_heads, k_len, k_dim = k.shape
    if k_batch != batch:
        raise ValueError(f"k must have the batch size of q ({batch}), got {k_batch}; k.shape is {k.shape}")
    if k_dim != head_dim:
        raise ValueError(
            f"k must have the head_dim of q ({head_dim}), got {k_dim}; k.shape is {k.shape}; v alone may have another"
        )
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v must have the batch, heads and tokens of k {k.shape[:3]}, got {v.shape[:3]}; v.shape is {v.shape}"
        )
    if q_heads % kv_heads:
        raise ValueError(
            f"q must have a multiple of the heads of k ({kv_heads}), got {q_heads}; query head h reads "
            "key head h // (q heads / k heads)"
        )
    return Problem(batch, q_heads, kv_heads, q_len, k_len, head_dim, dtype, value_dim=v.shape[3])


def check_axes(name: str, array: Any) -> None:
    """Raises ValueError unless an array has the four axes of q, k and v."""
    if len(array.shape) != 4:
        raise ValueError(
            f"{name} must have 4 axes (batch, heads, tokens, head_dim), got shape {array.shape}; "
            "add missing axes with None"
        )


def check_layout(name: str, array: Any, axes: Sequence[str] = AXES) -> None:
    """Raises ValueError unless the last axis of a device's array is contiguous and its rows are 16-byte aligned.

    axes: names of the others.
    """
    strides, shape = array.strides, array.shape
    copy_with = getattr(array, "copy_with", "cupy.ascontiguousarray")
    if strides[-1] != array.dtype.itemsize and shape[-1] > 1:
        raise ValueError(
            f"{name} must have a contiguous last axis (a stride of {array.dtype.itemsize} bytes), "
            f"got {strides[-1]}; copy it with {copy_with}"
        )
    for axis, stride, length in zip(axes, strides[:-1], shape[:-1], strict=True):
        if stride % ALIGN_BYTES and length > 1:  # that of an axis of length 1 is never used
            raise ValueError(
                f"{name} must have strides that are multiples of {ALIGN_BYTES} bytes, got {stride} on "
                f"the {axis} axis; copy it with {copy_with}"
            )
    if array.data.ptr % ALIGN_BYTES:
        raise ValueError(
            f"{name} must start on a multiple of {ALIGN_BYTES} bytes, got address {array.data.ptr:#x}; "
            f"copy it with {copy_with}"
        )


def check_place(name: str, array: Any, q: Any) -> None:
    """Raises TypeError unless `array` is an array of the library of q, ValueError where its device is another one."""
    on_gpu = is_on_gpu(q)
    if isinstance(array, np.ndarray):
        plain_array(name, array)
    elif not is_on_gpu(array):
        refuse_non_array(name, array)
    if is_on_gpu(array) != on_gpu:
        raise TypeError(f"{name} must be a {_kind(q)} array like q, got a {_kind(array)} array")
    if on_gpu and array.data.device_id != q.data.device_id:
        _refuse_device(name, array, q.data.device_id)


def check_target(
    name: str,
    target: Any,
    like: tuple[str, Any],
    read: Sequence[tuple[str, Any]],
    why: str = READ_WHILE_WRITTEN,
    *,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Raises TypeError or ValueError unless an engine can write into `target`.

    like: the name of an argument and the array whose place, dtype and shape the target must have.  read: names and
    arrays that it must not overlap.  why: the reason.  shape: what the target must have in place of that array's.
    """
    other, array = like
    check_place(name, target, array)
    if target.dtype != array.dtype:
        raise TypeError(f"{name} must have the dtype of {other} ({array.dtype}), got {target.dtype}")
    check_shape(name, target, like, array.shape if shape is None else shape)
    if is_on_gpu(target):
        check_layout(name, target)
    elif not target.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array; pass a copy")
    if overlaps_itself(target):
        raise ValueError(
            f"{name} must not repeat elements, got strides {target.strides} for shape {target.shape}; "
            "pass a full array"
        )
    check_apart(name, target, dict(read), f"{why}; pass another array")


def check_apart(name: str, written: Any, read: dict[str, Any], why: str) -> None:
    """Raises ValueError where an array that is written shares memory with one of those that are read; None is none."""
    for other, array in read.items():
        if array is not None and overlap(written, array):
            raise ValueError(f"{name} must not overlap {other}: {why}")


def check_shape(name: str, array: Any, like: tuple[str, Any], shape: tuple[int, ...]) -> None:
    """Raises ValueError for another shape than `shape`: that of `like`, or that with the width of v."""
    if array.shape == shape:
        return
    other, model = like
    if tuple(model.shape) == shape:
        raise ValueError(f"{name} must have the shape of {other} {model.shape}, got {array.shape}")
    raise ValueError(
        f"{name} must have the shape of {other} with the width of v ({shape[-1]}), {shape}, got {array.shape}"
    )


def refuse_non_array(name: str, value: object) -> NoReturn:
    how = "convert it with cupy.asarray or numpy.asarray"
    if type_name(value).startswith("torch."):
        how = "pass tensors to omnicupy.torch, which has gradients by autograd"
    elif isinstance(value, Mask):
        how = "masks stand behind q, k and v, or are passed as mask="
    elif isinstance(value, CACHES):
        how = "caches have no gradients, and stand in the place of k alone: pass keys and values as arrays"
    elif hasattr(value, "__dlpack__"):
        how = "convert it with numpy.asarray on the CPU, with cupy.from_dlpack on a GPU"
    raise TypeError(f"{name} must be a CuPy or NumPy array, got {type_name(value)}; {how}")


def _refuse_device(name: str, array: Any, device: int) -> NoReturn:
    raise ValueError(
        f"{name} must be on the device of q (device {device}), got device {array.data.device_id}; "
        "copy it there"
    )


def _kind(array: object) -> str:
    return "NumPy" if isinstance(array, np.ndarray) else "CuPy"

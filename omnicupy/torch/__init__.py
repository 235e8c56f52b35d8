"""attention() on PyTorch tensors: no copy, torch's stream and allocator, and no graph break in torch.compile.

    import omnicupy as oc, omnicupy.torch
    out = oc.torch.attention(q, k, v, mask)

`import omnicupy` does not import this package, so PyTorch stays optional.
"""

from omnicupy.torch.appending import append
from omnicupy.torch.cached import plan
from omnicupy.torch.call import attention, prepare
from omnicupy.torch.mask_mods import from_mask_mod
from omnicupy.torch.masks_apart import keep_apart

keep_apart()

__all__ = ["append", "attention", "from_mask_mod", "plan", "prepare"]

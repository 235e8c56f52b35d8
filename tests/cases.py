"""The shapes, masks and dtypes that the tests draw from; they are the package's own verification cases."""

from __future__ import annotations

from omnicupy.cases import CPU_SIZED, FIXED, Case, dead_tiles
from omnicupy.sweep import DEFAULT, sweep

__all__ = ["CPU_SIZED", "DEFAULT", "FIXED", "Case", "dead_tiles", "sweep"]

"""The variants of forward kernels that calls on caches run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec


@dataclass(frozen=True, kw_only=True)
class CachedSpec(AttnSpec):
    """The variant of a Hopper kernel whose block lists a planner writes on the device (attention_plan_cached.cu)."""

    @classmethod
    def of(cls, spec: AttnSpec) -> AttnSpec:
        """That of a kernel; kernels that read no counts from the device serve as they are."""
        return cls(**asdict(spec)) if spec.kernel == "sm90" else spec

    def _check_blocks(self) -> None:
        if not self.serves_caches:
            raise UnsupportedError(
                "config: calls on caches run kernels with blocks=1 and scheduler=False, got "
                f"blocks={self.blocks}, scheduler={self.scheduler}; leave config out, or pass these"
            )

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        return {**super().defines(), "OMNI_CACHED": 1}

"""The variants of forward kernels that calls on caches of e4m3 run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from omnicupy.errors import UnsupportedError
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.spec import AttnSpec

MOST_RAW_SLOTS = 4
_SCALE_BYTES = 4 * 4 * 2  # of a key: those of its key and its value, for each warp that converts


@dataclass(frozen=True, kw_only=True)
class Fp8Spec(PagedSpec):
    """The variant of a kernel that reads keys and values of e4m3.

    page: 1 where they are in pages, of any size, 0 where not.  raw_slots: of kernel "sm90", tiles of e4m3 keys and
    values in shared memory, on their way or waiting to be converted. They take the room of stages, of which there are
    two, or one where raw tiles leave room for no more; results do not depend on it.  ragged: sequences have numbers of
    rows of their own, as with RaggedSpec.
    """

    raw_slots: int = 0
    ragged: bool = False

    @classmethod
    def of_e4m3(cls, spec: AttnSpec, *, in_pages: bool, ragged: bool = False) -> Fp8Spec:
        """That of a kernel. Raises UnsupportedError where it has none."""
        fields = {**asdict(spec), "page": int(in_pages), "ragged": ragged}
        if spec.kernel != "sm90":
            return cls(**fields)
        if not converts(spec):
            raise UnsupportedError(
                f"k: kernel 'sm90' reads e4m3 with warps=8 alone, got warps={spec.warps}; leave config out, or pass "
                "warps=8 and br=64, or kernel='sm80'"
            )
        for stages, least in ((2, 2), (1, 1)):
            for slots in range(MOST_RAW_SLOTS, least - 1, -1):
                try:
                    return cls(**{**fields, "stages": stages, "raw_slots": slots})
                except ValueError:  # too much shared memory
                    continue
        raise UnsupportedError(
            f"k: tiles of bc={spec.bc} keys of head_dim {spec.head_dim} and their e4m3 do not fit shared memory"
        )

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return f"{self.kernel}_fp8"

    @property
    def _fills(self) -> bool:
        """Does a warpgroup of its own bring keys and values?"""
        return True

    @property
    def q_slots(self) -> int:
        """One: e4m3 has the room of a second one."""
        return 1

    def _sm90_bytes(self, q_slots: int) -> int:
        panels = -(-self.head_dim // 64) + -(-self.value_dim // 64)
        slot = self.bc * (64 * panels + _SCALE_BYTES)
        return super()._sm90_bytes(q_slots) + self.raw_slots * slot

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        of_e4m3 = {"OMNI_FP8": 1, "OMNI_RAW_SLOTS": self.raw_slots, "OMNI_RAGGED": int(self.ragged)}
        return {**super().defines(), **of_e4m3}


def converts(spec: AttnSpec) -> bool:
    """Has a kernel a variant for e4m3? Of "sm90" those whose consumers leave registers to a warpgroup that converts."""
    return spec.kernel != "sm90" or spec.warps == 8

"""The variants of forward kernels that calls on caches of e4m3 run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from omnicupy.errors import UnsupportedError
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.spec import AttnSpec, round_up

# Above so many columns an instruction of wgmma leaves registers for one warpgroup that converts, else there are two.
_MOST_COLUMNS = 192
_FOUND = 4  # tiles whose keys are found, in shared memory until they are converted
_KEY_BYTES = 25  # of a key: where it and its value are, their scales, and a bit


@dataclass(frozen=True, kw_only=True)
class Fp8Spec(PagedSpec):
    """The variant of a kernel that reads keys and values of e4m3.

    page: 1 where they are in pages, of any size, 0 where not.  ragged: sequences have numbers of rows of their own, as
    with RaggedSpec.
    """

    ragged: bool = False

    @classmethod
    def of_e4m3(cls, spec: AttnSpec, *, in_pages: bool, ragged: bool = False) -> Fp8Spec:
        """That of a kernel. Raises UnsupportedError where it has none."""
        if not converts(spec):
            raise UnsupportedError(
                f"k: kernel 'sm90' reads e4m3 with warps=8 alone, got warps={spec.warps}; leave config out, or pass "
                "warps=8 and br=64, or kernel='sm80'"
            )
        fields = {**asdict(spec), "page": int(in_pages), "ragged": ragged}
        for stages in range(spec.stages, 0, -1):
            try:
                return cls(**{**fields, "stages": stages})
            except ValueError:  # too much shared memory
                continue
        raise UnsupportedError(
            f"k: tiles of bc={spec.bc} keys of head_dim {spec.head_dim} do not fit shared memory where they are e4m3"
        )

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return f"{self.kernel}_fp8"

    @property
    def apart_warps(self) -> int:
        """Warps of kernel "sm90" behind the consumers', which bring and convert keys and values."""
        if self.kernel != "sm90":
            return 0
        return 4 if max(self.bc, self.value_dim) > _MOST_COLUMNS else 8

    @property
    def q_slots(self) -> int:
        """One: what shared memory does not take serves loads on their way to registers."""
        return 1

    def _sm90_bytes(self, q_slots: int) -> int:
        found = _FOUND * (self.bc * _KEY_BYTES + 64) + 16 * _FOUND  # tiles, and barriers
        return round_up(super()._sm90_bytes(q_slots) + found, 1024)

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        of_e4m3 = {"OMNI_FP8": 1, "OMNI_CONVERTERS": self.apart_warps, "OMNI_RAGGED": int(self.ragged)}
        return {**super().defines(), **of_e4m3}


def converts(spec: AttnSpec) -> bool:
    """Has a kernel a variant for e4m3? Of "sm90" those whose consumers leave registers to warps that convert."""
    return spec.kernel != "sm90" or spec.warps == 8

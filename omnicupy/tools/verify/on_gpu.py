"""The GPU kernels against the float64 reference, which runs on the same GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from omnicupy.api import attention, attention_backward
from omnicupy.choose import table
from omnicupy.jit import archs
from omnicupy.jit.build import Track, silent
from omnicupy.jit.spec import KernelSpec
from omnicupy.masks.mask import Mask
from omnicupy.reference import budget
from omnicupy.tools.verify import append_cases, inputs, serving_judge, serving_kernels
from omnicupy.tools.verify.backward_cases import BackwardCase
from omnicupy.tools.verify.backward_judges import Forward, GradientJudge
from omnicupy.tools.verify.backward_special import SPECIAL as BACKWARD_SPECIAL
from omnicupy.tools.verify.cached_cases import CACHED, kernels_on_caches
from omnicupy.tools.verify.case_kernels import Variant, forward_spec, variants
from omnicupy.tools.verify.cases import Case
from omnicupy.tools.verify.changed_bits import ChangedBits
from omnicupy.tools.verify.outcome import BrokenDeviceError, Outcome
from omnicupy.tools.verify.serving_cases import KINDS
from omnicupy.tools.verify.special_cases import SPECIAL
from omnicupy.tools.watchdog import Watchdog

Judge = Callable[[Variant], tuple[float, str]]

REPEATS = 10
HANG_S = 120.0  # far above the slowest case on the slowest kernel
# Of naive kernels, which are slow: a thread block a row, so there is nothing whose order could change.
NAIVE_REPEATS, NAIVE_WORK = (
    2,
    1e10,
)  # calls of cases up to so much work; larger ones are compared with the reference
KEPT_BYTES = 4 << 30  # of free memory that a process keeps to itself, others may run beside it


@dataclass(frozen=True)
class Target:
    """The current device, and which kernels to verify there. kernels: parts of their names, () for all.

    sources: files in `kernels/`; only kernels that are compiled of one of them, () for all.  any_size: stands for
    devices of any number of multiprocessors, which decides what a call chooses.
    """

    arch: str
    sm_count: int
    kernels: tuple[str, ...] = ()
    repeats: int = REPEATS
    sources: tuple[str, ...] = ()
    any_size: bool = False

    @classmethod
    def current(
        cls, kernels: Sequence[str] = (), repeats: int = REPEATS, sources: Sequence[str] = ()
    ) -> Target:
        """The current CUDA device. Raises UnsupportedError where no kernel serves it."""
        import cupy

        from omnicupy.gpu.device import device_info

        info = device_info(cupy.cuda.Device().id)
        return cls(
            archs.arch_of(info.major, info.minor), info.sm_count, tuple(kernels), repeats, tuple(sources)
        )

    def variants(self, case: Case, masks: Sequence[Mask]) -> list[Variant]:
        """The kernels that the case runs through here.

        A kernel that no row of the table selects on any architecture runs only where `kernels` or `sources` names it.
        """
        found = self._of_sources(case, masks)
        if self.kernels:
            parts = [part.lower() for part in self.kernels]
            return [variant for variant in found if any(part in variant.name.lower() for part in parts)]
        selected = {row.kernel for row in table.TABLE} | {"naive", "sm80", "append"}
        return [variant for variant in found if self.sources or variant.spec.kernel in selected]

    def _of_sources(self, case: Case, masks: Sequence[Mask]) -> list[Variant]:
        found = self._every(case, masks)
        return [one for one in found if not self.sources or set(self.sources) & set(one.sources)]

    def _every(self, case: Case, masks: Sequence[Mask]) -> list[Variant]:
        if case.tag in append_cases.KINDS:
            return append_cases.variants(case, self.arch)
        if case.tag in KINDS:
            return serving_kernels.variants(case, self.arch, self.sm_count)
        found = variants(case, masks, self.arch, self.sm_count, cached=case.tag in CACHED)
        if case.tag in CACHED:
            return [replace(one, compiled=kernels_on_caches(one, self.arch)) for one in found]
        return found

    def specs(self, chosen: Iterable[Case]) -> list[KernelSpec]:
        """Every distinct kernel that the cases run, those that make inputs among them."""
        return list(dict.fromkeys(kernel for case in chosen for kernel in self._kernels(case)))

    def _kernels(self, case: Case) -> Iterator[KernelSpec]:
        masks = case.masks()
        found = self.variants(case, masks)
        if found and isinstance(case, BackwardCase):
            yield forward_spec(case, masks, self.arch)
        if self.any_size and not all(variant.explicit for variant in found):
            # What a call chooses elsewhere is a row of the table, which `kernels` may have left out.
            found += self._of_sources(case, masks)
        for variant in found:
            yield from variant.kernels


@dataclass(frozen=True)
class Turn:
    """The kernels of one NVRTC, which take their turn at each case.

    take: makes calls use them.  done: called after each case, with its outcomes on all kernels.  cases: the ids of
    those that they run, None for all.
    """

    take: Callable[[], None] = lambda: None
    done: Callable[[list[Outcome]], None] = lambda outcomes: None
    cases: frozenset[str] | None = None


def run(
    chosen: Sequence[Case], target: Target, track: Track = silent, turns: Sequence[Turn] = (Turn(),)
) -> tuple[list[Outcome], bool]:
    """Every case through every kernel. False beside the outcomes: one made the device unusable, the run
    ended.
    """
    found: list[Outcome] = []
    try:
        with Watchdog(HANG_S) as watchdog:
            for case in track(chosen, "GPU kernels", len(chosen)):
                found.extend(run_case(case, target, watchdog.step, turns))
    except BrokenDeviceError as error:
        return [*found, error.outcome], False
    return found, True


def run_case(
    case: Case,
    target: Target,
    step: Callable[[str], None] = lambda label: None,
    turns: Sequence[Turn] = (Turn(),),
) -> Iterator[Outcome]:
    """One case through every kernel of the target, of each NVRTC; its inputs and its reference are made once."""
    import cupy

    turns = [turn for turn in turns if turn.cases is None or case.id in turn.cases]
    step(f"reference: {case.id}")
    masks = case.masks()
    chosen = target.variants(case, masks)
    if not chosen or not turns:
        return
    judge: Judge | Exception
    try:
        turns[0].take()
        judge = _judge_of(case, masks, target)
    except Exception as error:
        judge = error
    for turn in turns:
        turn.take()
        outcomes = []
        try:
            for variant in chosen:
                step(f"{variant.name}: {case.id}")
                outcomes.append(_outcome(case, variant, judge))
        except BrokenDeviceError as error:
            turn.done([error.outcome])
            raise
        turn.done(outcomes)
        yield from outcomes
    del judge
    pool = cupy.get_default_memory_pool()
    if pool.free_bytes() > KEPT_BYTES:
        pool.free_all_blocks()


def _outcome(case: Case, variant: Variant, judge: Judge | Exception) -> Outcome:
    """What a judge says of a kernel. A case that cannot run has failed; the others still run."""
    if isinstance(judge, Exception):
        return _failed(case, variant, judge)
    try:
        ratio, problem = judge(variant)
    except Exception as error:
        return _failed(case, variant, error)
    skipped = problem if problem.startswith("skipped: ") else ""
    return Outcome(case, variant.name, variant.sources, ratio, "" if skipped else problem, skipped)


def _failed(case: Case, variant: Variant, error: Exception) -> Outcome:
    import cupy

    text = f"{type(error).__name__}: {error}"
    try:
        cupy.cuda.Device().synchronize()
    except cupy.cuda.runtime.CUDARuntimeError as fatal:
        text = f"{text}; the device is unusable for this process ({fatal})"
        broken = Outcome(case, variant.name, variant.sources, float("inf"), text)
        raise BrokenDeviceError(broken) from error
    return Outcome(case, variant.name, variant.sources, float("inf"), text)


def _judge_of(case: Case, masks: Sequence[Mask], target: Target) -> Judge:
    if isinstance(case, BackwardCase):
        forward = partial(attention, config=forward_spec(case, masks, target.arch))
        of_backward = BACKWARD_SPECIAL.get(case.tag)
        return of_backward(case, masks, forward) if of_backward else _gradients(case, masks, target, forward)
    if special := SPECIAL.get(case.tag) or CACHED.get(case.tag):
        return special(case, masks)
    if case.tag in append_cases.KINDS:
        return append_cases.on_a_gpu(case, masks)
    return serving_judge.on_a_gpu(case, masks) if case.tag in KINDS else _numeric(case, masks, target)


def _gradients(case: BackwardCase, masks: Sequence[Mask], target: Target, forward: Forward) -> Judge:
    """Gradients within the budget, no more than was wanted, and the same bits at every repetition."""
    import cupy

    of_case = GradientJudge(case, masks, cupy, call=attention_backward, forward=forward)

    def judge(variant: Variant) -> tuple[float, str]:
        first = of_case.gradients(variant.options)
        ratio, problem = of_case.judge(first)
        return ratio, problem or of_case.repeated(first, _repeats(target, variant, case), variant.options)

    return judge


def _repeats(target: Target, variant: Variant, case: Case) -> int:
    if variant.spec.kernel != "naive":
        return target.repeats
    return min(target.repeats, NAIVE_REPEATS if case.work <= NAIVE_WORK else 1)


def _numeric(case: Case, masks: Sequence[Mask], target: Target) -> Judge:
    """Within the error budget, written everywhere, and the same bits at every repetition."""
    import cupy

    made = inputs.inputs_of(case, masks, cupy)
    mask = masks[0] if len(masks) == 1 else list(masks)
    expected = budget.budget(made.q, made.k, made.v, mask, **made.changes)

    def judge(variant: Variant) -> tuple[float, str]:
        options: dict[str, Any] = {"config": variant.config, "split": case.split or None, **made.changes}
        out, lse = attention(
            made.q,
            made.k,
            made.v,
            mask,
            return_lse=True,
            out=inputs.nan_output(case, cupy),
            **options,
        )
        found = budget.compare(out, lse, expected)
        if not found.ok:
            return found.ratio, str(found)
        repeats = _repeats(target, variant, case)
        again = ChangedBits((out, lse))
        for _ in range(repeats - 1):
            again.add(attention(made.q, made.k, made.v, mask, return_lse=True, **options))
        return found.ratio, again.problem(repeats)

    return judge

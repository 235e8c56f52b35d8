"""The verification cases of the backward pass: masks and shapes of the forward's, and what gradients add to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from omnicupy.call.check_backward import SINK
from omnicupy.masks.mask import Mask
from omnicupy.tools.verify.case_masks import live_rows
from omnicupy.tools.verify.cases import BASE, BROADCAST, BSHD, FIXED, LARGE, PER_BATCH, POISON, REVERSED, Case
from omnicupy.tools.verify.random_cases import sweep
from omnicupy.tools.verify.width_cases import ONE_TILE

# Layouts of dout: as q's; strides of zero everywhere, as out.sum().backward() makes them, or along the rows; (batch,
# tokens, heads, head_dim) in memory; columns before rows in memory; a slice of a wider array.
PLAIN, ONES, ROWS, TOKENS_FIRST, COLUMNS_FIRST, SLICED = DOUTS = (
    *("plain", "ones", "rows", "tokens-first", "columns-first", "sliced"),
)
OWN_ROWS = (
    PLAIN,
    TOKENS_FIRST,
    COLUMNS_FIRST,
    SLICED,
)  # a row of such a dout is no other row, so it may be poisoned
ALL = ("q", "k", "v")
WANTED = (ALL, ("q",), ALL, ("k", "v"), ALL, ("q", "v"), ALL, ("k",), ALL, ("v",), ALL, ("q", "k"))


@dataclass(frozen=True, kw_only=True)
class BackwardCase(Case):
    """One comparison of gradients.

    dout: one of DOUTS.  wanted: which gradients are asked for.  dlse: lse has a gradient, too.  given: the gradients
    are written to given arrays.  options: "poison" also stands in the rows that see nothing, of q, dout, out, lse and
    dlse, and in given arrays.  The rest: as in Case.
    """

    dout: str = PLAIN
    wanted: tuple[str, ...] = ALL
    dlse: bool = False
    given: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dout not in DOUTS:
            raise ValueError(f"case: dout must be one of {', '.join(DOUTS)}, got {self.dout!r}")
        if POISON in self.options and self.dout not in OWN_ROWS:
            raise ValueError(f"case: rows of a dout that is {self.dout!r} cannot be poisoned one by one")

    @property
    def id(self) -> str:
        """Stable and unique: every field but the group."""
        parts = ["bwd", super().id]
        parts += [] if self.dout == PLAIN else [self.dout]
        parts += [] if self.wanted == ALL else ["".join(self.wanted)]
        parts += ["dlse"] * self.dlse + ["given"] * self.given
        return "-".join(parts)

    @property
    def work(self) -> int:
        """Multiply-adds of the five products over all pairs."""
        pairs = self.batch * self.q_heads * self.q_len * self.k_len
        return pairs * (3 * self.head_dim + 2 * self.value_columns)

    def masks(self) -> list[Mask]:
        """As those of a forward case; poisoned ones also have rows that see nothing."""
        made = super().masks()
        if POISON in self.options:
            rng = self.generator("rows")
            made = [mask & live_rows(self.q_len, self.k_len, rng) for mask in made]
        return made


def backward_of(case: Case, number: int) -> BackwardCase:
    """The backward case with a forward one's mask and shape; the number decides what gradients add."""
    douts = OWN_ROWS if POISON in case.options else DOUTS
    wanted = WANTED[number // 3 % len(WANTED)]
    return BackwardCase(
        **{field.name: getattr(case, field.name) for field in fields(case)},
        dout=douts[number % len(douts)] if number % 2 else PLAIN,
        wanted=(*wanted, SINK) if case.sinks and number % 4 != 3 else wanted,
        dlse=number % 3 == 0,
        given=number % 4 == 1,
    )


def _douts() -> Iterator[BackwardCase]:
    """Every layout of dout, beside every layout of the other arrays."""
    for i, dout in enumerate(DOUTS):
        for j, options in enumerate(((), (BSHD,), (BROADCAST,), (REVERSED,))):
            case = replace(BASE, group="dout", options=options, batch=2, q_heads=4, q_len=190, k_len=230)
            case = replace(case, head_dim=(64, 128, 40, 256, 320)[(i + j) % 5])
            yield replace(backward_of(case, 0), dout=dout, dlse=(i + j) % 2 == 0, given=i % 2 == 0)


def _wanted() -> Iterator[BackwardCase]:
    for i, wanted in enumerate(dict.fromkeys(WANTED)):
        for j, head_dim in enumerate((64, 128, 192, 320)):
            case = replace(BASE, group="wanted", head_dim=head_dim, options=(POISON,), q_heads=6, q_len=300)
            yield replace(
                backward_of(case, 0), wanted=wanted, dlse=j % 2 == 0, given=(i + j) % 2 == 0, dout=OWN_ROWS[j]
            )


def _many_items() -> Iterator[BackwardCase]:
    """More key blocks and block rows than any device has multiprocessors, so that each thread block has several."""
    shapes = ((64, 8, 8), (128, 16, 4), (256, 8, 2), (320, 4, 4))
    for i, (head_dim, q_heads, kv_heads) in enumerate(shapes):
        for mask, options in (("causal", ()), ("segments", (POISON, PER_BATCH)), ("holes", (POISON,))):
            case = replace(BASE, group="many items", mask=mask, head_dim=head_dim, options=options, batch=6)
            case = replace(case, q_heads=q_heads, kv_heads=kv_heads, q_len=1100, k_len=1100)
            yield replace(backward_of(case, i), dout=PLAIN, wanted=ALL)


def _many_heads() -> Iterator[BackwardCase]:
    """So many heads that most are worked on when the first ones have been: sums of dQ become dQ meanwhile, statistics
    of later rows are made meanwhile, and only the last heads have tiers.
    """
    shapes = ((128, 8, 16, 16, 1400), (128, 8, 24, 12, 1400), (96, 8, 16, 16, 1100), (72, 10, 12, 12, 1300))
    for i, (head_dim, batch, q_heads, kv_heads, length) in enumerate(shapes):
        for mask, options in (("causal", ()), ("segments", ()), ("prefix", (BSHD,)), ("holes", (POISON,))):
            case = replace(
                BASE, group="many heads", mask=mask, head_dim=head_dim, options=options, batch=batch
            )
            case = replace(case, q_heads=q_heads, kv_heads=kv_heads, q_len=length, k_len=length)
            yield replace(backward_of(case, i), dout=PLAIN, wanted=ALL)
    for head_dim in (64, 128):
        case = replace(BASE, group="many heads", mask="causal", head_dim=head_dim, softcap=20.0, batch=8)
        case = replace(case, q_heads=16, kv_heads=16, q_len=1400, k_len=1400)
        yield replace(backward_of(case, 0), dout=PLAIN, wanted=ALL)


def _few_keys() -> Iterator[BackwardCase]:
    """Few keys that many rows see, whose blocks are split over several work items, and few rows that see many keys."""
    for head_dim, q_heads, kv_heads in ((64, 2, 2), (128, 8, 1), (192, 2, 1), (256, 4, 2)):
        for mask, options in (
            ("full", ()),
            ("segments", (POISON,)),
            ("sink", ()),
            ("holes", (PER_BATCH, POISON)),
        ):
            case = replace(BASE, group="few keys", mask=mask, head_dim=head_dim, options=options)
            case = replace(case, q_heads=q_heads, kv_heads=kv_heads, batch=2 if PER_BATCH in options else 1)
            for number, (q_len, k_len) in enumerate(((4099, 70), (6000, 450), (60, 5000))):
                yield replace(backward_of(replace(case, q_len=q_len, k_len=k_len), number), wanted=ALL)


def _widths() -> Iterator[BackwardCase]:
    """Values of another width than keys: dK and dV each in one piece or in two, by one kernel or by two, blocks of keys
    that are split, and widths that round up to one number.
    """
    pairs = ((192, 128), (128, 192), (64, 128), (96, 64), (72, 40), (56, 64), (256, 64), (16, 160))
    for i, (head_dim, value_dim) in enumerate(pairs):
        dtype = ("bfloat16", "float16")[i % 2]
        case = replace(BASE, group="widths of values", head_dim=head_dim, value_dim=value_dim, dtype=dtype)
        for j, (mask, options) in enumerate(
            (("causal", ()), ("holes", (POISON, PER_BATCH)), ("segments", (BSHD,)))
        ):
            made = replace(
                case, mask=mask, options=options, batch=2, q_heads=4, kv_heads=2, q_len=500, k_len=400
            )
            yield replace(backward_of(made, i + j), dout=OWN_ROWS[(i + j) % 4], wanted=ALL)
        split = replace(case, mask="full", q_heads=4, kv_heads=1, q_len=4099, k_len=70)
        yield replace(backward_of(split, i), wanted=ALL)
    capped = replace(
        BASE, group="widths of values", head_dim=192, value_dim=128, q_heads=4, softcap=20.0, sinks=True
    )
    yield backward_of(capped, 1)


def _large() -> Iterator[BackwardCase]:
    """Scores of 1e4, so that weights are exactly 0 and 1, with each layout of dout."""
    for dtype in ("bfloat16", "float16"):
        for i, dout in enumerate(DOUTS):
            case = replace(
                BASE, group="large scores", options=(LARGE,), dtype=dtype, head_dim=(64, 128)[i % 2]
            )
            yield replace(backward_of(case, 0), dout=dout, q_heads=4)


def _fixed() -> tuple[BackwardCase, ...]:
    # Those of one tile are of the forward pass: _widths has pairs of its own.
    made = [backward_of(case, number) for number, case in enumerate(FIXED) if case.tag != ONE_TILE]
    made += [
        case
        for maker in (_douts, _wanted, _many_items, _many_heads, _few_keys, _large, _widths)
        for case in maker()
    ]
    return tuple(dict.fromkeys(made))


BACKWARD_FIXED = _fixed()
CPU_SIZED_BACKWARD = tuple(case for case in BACKWARD_FIXED if case.work <= 3e8)


def backward_sweep(count: int) -> tuple[BackwardCase, ...]:
    """The backward cases of the forward's `count` random ones."""
    return tuple(backward_of(case, number) for number, case in enumerate(sweep(count)))

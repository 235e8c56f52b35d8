"""What the caches of a verification case are: in pages or not, e4m3 or not, with rows of their own or not."""

from __future__ import annotations

from dataclasses import dataclass

SCALES = ("number", "all", "head", "token")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The caches of a case, and the rule.

    rule: a name of RULES.  page_size: keys of a page, 0 for keys one behind the other.  shared: the first pages of
    all sequences are the same ones.  holes: some entries inside of lengths name no page, which a device alone takes.
    scales: of e4m3 one of SCALES, a number, an array of one, one a head, one a token; "" for 16 bits.  rows: sequences
    have numbers of rows of their own.
    """

    rule: str = "causal"
    page_size: int = 0
    shared: bool = False
    holes: bool = False
    scales: str = ""
    rows: bool = False

    @property
    def tag(self) -> str:
        """What leads the ids of its cases; another kind has another one."""
        parts = [f"pages{self.page_size}"] * bool(self.page_size) + ["shared"] * self.shared
        parts += ["holes"] * self.holes + [f"e4m3-{self.scales}"] * bool(self.scales) + ["rows"] * self.rows
        return "-".join([*parts, self.rule])

    @property
    def on_the_host(self) -> bool:
        """True where the CPU engine takes such caches, too."""
        return not self.holes

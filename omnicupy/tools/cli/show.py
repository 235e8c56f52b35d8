"""The command `show`."""

from __future__ import annotations

from typing import Any

import click

from omnicupy.masks.mask import Mask
from omnicupy.tools.cli.console import JSON, print_json, say
from omnicupy.tools.cli.options import MASK_HELP, PNG, picture_file, refuse_unused
from omnicupy.tools.workloads import words


@click.command()
@click.option("--mask", "text", metavar="SPEC", help=MASK_HELP)
@click.option("--length", type=int, help="Query rows, in tokens, of full, causal and random masks.")
@click.option("--kv-length", type=int, help="Keys, in tokens (default: the length).")
@click.option(
    "--documents", type=click.IntRange(min=1), help="Packed samples of a random mask (default: one)."
)
@click.option("--random", "tokens", type=int, hidden=True, help="Tokens of a random mask.")
@click.option("--seed", type=click.IntRange(min=0), default=0, hidden=True, help="Seed of --random.")
@click.option("--segments", "segments", hidden=True, help="Segments, as --mask takes them.")
@click.option("--workload", hidden=True, help="A named workload.")
@click.option("--br", type=int, default=128, show_default=True, help="Query rows of a tile.")
@click.option("--bc", type=int, default=128, show_default=True, help="Keys of a tile.")
@PNG
@JSON
def show(br: int, bc: int, png: str | None, as_json: bool, **chosen: Any) -> None:
    """Draw a mask as text, with its statistics at a tile size."""
    picture = picture_file("--png", png)
    mask = _mask(br, bc, **chosen)
    stats = mask.stats(br, bc)
    if as_json:
        names = (*stats.__dataclass_fields__, "density", "tiles", "empty", "executed", "waste")
        print_json({name: getattr(stats, name) for name in names})
    else:
        click.echo(str(mask))
        click.echo(str(stats))
    if picture:
        mask.plot(picture, br=br, bc=bc)
        say(f"saved {picture}")


def _mask(br: int, bc: int, **chosen: Any) -> Mask:
    """The mask of --mask, or of one of the older options --random, --segments and --workload."""
    older = [name for name in ("tokens", "segments", "workload") if chosen[name] is not None]
    if (chosen["text"] is not None) + len(older) != 1:
        raise click.UsageError(f"choose one mask: --mask SPEC, which is {words.FORMS}")
    if older:
        refuse_unused("without --mask", drop=("length", "kv_length"))
    if older != ["tokens"]:
        refuse_unused("without --random; as --mask say random:SEED", drop=("seed",))
    text, length = _words(chosen)
    if not text.lower().startswith("random:"):
        refuse_unused("unless the mask is a random one", drop=("documents",))
    sizes = words.Sizes(length=length, kv_length=chosen["kv_length"])
    sizes.check()
    described = words.describe(text, length, chosen["kv_length"], chosen["documents"])
    return words.mask_of(text, described, sizes, br, bc)


def _words(chosen: dict[str, Any]) -> tuple[str, int | None]:
    """The mask as --mask takes it, and its length where an option gives one."""
    if chosen["tokens"] is not None:
        return f"random:{chosen['seed']}", chosen["tokens"]
    if chosen["segments"] is not None:
        words.documents_of(chosen["segments"], "--segments")
        return chosen["segments"], None
    if chosen["workload"] is not None:
        return words.named(chosen["workload"]).name, None
    return chosen["text"], chosen["length"]

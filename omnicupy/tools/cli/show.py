"""The command `show`."""

from __future__ import annotations

from typing import Any

import click

from omnicupy.masks.mask import Mask
from omnicupy.masks.picture import file_of
from omnicupy.masks.segment_masks import random, segments
from omnicupy.tools.cli import mask_words
from omnicupy.tools.cli.console import JSON, print_json


@click.command()
@click.option("--random", "length", type=int, help="Tokens of a random interleaved layout.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random layout."
)
@click.option("--documents", type=int, help="Packed samples of the random layout.")
@click.option(
    "--segments", "layout", help='Segments, as in "text:120,image:729,noise:64"; / starts a document.'
)
@click.option("--workload", help="A named workload, such as W4.")
@click.option("--br", type=int, default=128, show_default=True, help="Query rows of a tile.")
@click.option("--bc", type=int, default=128, show_default=True, help="Keys of a tile.")
@click.option(
    "--png", type=click.Path(dir_okay=False), help="Save a picture too; the suffix names its format."
)
@JSON
def show(br: int, bc: int, png: str | None, as_json: bool, **chosen: Any) -> None:
    """Draw a mask as text, with its statistics at a tile size."""
    mask = _chosen_mask(**chosen)
    stats = mask.stats(br, bc)
    if as_json:
        names = (*stats.__dataclass_fields__, "density", "tiles", "empty", "executed", "waste")
        print_json({name: getattr(stats, name) for name in names})
    else:
        click.echo(str(mask))
        click.echo(str(stats))
    if png:
        picture = file_of(png)
        mask.plot(picture, br=br, bc=bc)
        click.echo(f"saved {picture}", err=True)


def _chosen_mask(
    length: int | None, seed: int, documents: int | None, layout: str | None, workload: str | None
) -> Mask:
    if sum(value is not None for value in (length, layout, workload)) != 1:
        raise click.UsageError("choose one mask: --random LENGTH, --segments LIST or --workload NAME")
    if workload is not None:
        from omnicupy.tools.workloads.workload import by_name

        return by_name(workload).mask()
    if layout is not None:
        return segments(mask_words.layout(layout, "--segments"))
    assert length is not None
    return random(length, seed, documents=documents)

"""Pictures of the masks of real models: segments, tiles by kind, and how much of them is wanted.

Run: python examples/plot_mask.py [FOLDER]. Needs matplotlib: pip install '.[plot]' in the checkout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import omnicupy as oc

MASKS = {
    "transfusion": oc.presets.transfusion(1500, [(150, 256), (586, 256), (1000, 256)]),
    "gemma3_local": oc.presets.gemma3(1500, [(150, 256), (1000, 256)], window=300),
    "self_forcing": oc.presets.self_forcing(6, 120, 2, teacher_forcing=True),
    "streaming": oc.presets.streaming(1500, sink=16, window=250),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, mask in MASKS.items():
        path = options.folder / f"{name}.png"
        mask.plot(path, br=64, bc=64)
        print(f"{path}: {mask.pairs / (mask.shape[0] * mask.shape[1]):.0%} of the pairs")
        print(mask.stats(64, 64))


if __name__ == "__main__":
    main()

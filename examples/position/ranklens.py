"""RankLens as it would be if its lists had been ranked, and looked at from the top: JSON lines, gzipped.

The lists came in random order. Here each is put in the order of its offsets and some noise, and a click stays with the
probability 1 / rank^A: an examination that is known, of real clicks.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from examples.ranklens.dataset import SLATE_SIZE, DatasetMissing, load
from examples.ranklens.replay import clicks, impression


def main(argv: list[str] | None = None) -> int:
    """Write the log; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.position.ranklens", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with impressions.parquet, items.parquet")
    parser.add_argument("--out", type=Path, required=True, help="for example looked.jsonl.gz")
    parser.add_argument("--power", type=float, default=0.5, metavar="A", help="default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the order and of what is looked at (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    try:
        data = load(arguments.data)
    except DatasetMissing as exc:
        print(f"ranklens: {exc}", file=sys.stderr)
        return 2
    generator = np.random.default_rng(arguments.seed)
    examination = np.arange(1, SLATE_SIZE + 1) ** -arguments.power
    with gzip.open(arguments.out, "wb", compresslevel=3) as out:
        for slate in data.slates:
            order = np.argsort(generator.standard_normal(SLATE_SIZE) - slate.offsets)
            ranked = replace(
                slate,
                item_ids=tuple(slate.item_ids[place] for place in order),
                features=tuple(slate.features[place] for place in order),
                offsets=slate.offsets[order],
                clicked=slate.clicked[order] & (generator.random(SLATE_SIZE) < examination),
                clicked_at=slate.timestamp,
            )
            # As in examples.ranklens.log: clicks stand before their list, at its own time.
            out.writelines(event + b"\n" for event in clicks(ranked.user_id, ranked))
            out.write(impression(ranked.user_id, ranked) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

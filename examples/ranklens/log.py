"""RankLens as a log of events for `freshet fit` and `freshet evaluate`: JSON lines, gzipped."""

from __future__ import annotations

import argparse
import gzip
import sys
from dataclasses import replace
from pathlib import Path

from examples.ranklens.dataset import FITTED_SHARE, TASTE_SIZE, DatasetMissing, load
from examples.ranklens.replay import clicks, impression


def main(argv: list[str] | None = None) -> int:
    """Write the log; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.ranklens.log", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with impressions.parquet, items.parquet")
    parser.add_argument("--out", type=Path, required=True, help="for example ranklens.jsonl.gz")
    parser.add_argument(
        "--fitted-share", type=float, default=FITTED_SHARE,
        help="first share of lists that the fixed effect, each item's offset, is fitted on (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--taste", type=int, default=TASTE_SIZE, metavar="N",
        help="how many numbers the films' taste has, which the model has to have as its size (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        data = load(arguments.data, arguments.fitted_share, arguments.taste)
    except DatasetMissing as exc:
        print(f"ranklens: {exc}", file=sys.stderr)
        return 2
    with gzip.open(arguments.out, "wb", compresslevel=3) as out:
        for slate in data.slates:
            # A list was handed in as a whole, and when each film was ticked is not known. So its clicks stand before
            # it, at its own time, and wait for it: every label is known when the list is learnt.
            whole = replace(slate, clicked_at=slate.timestamp)
            out.writelines(event + b"\n" for event in clicks(slate.user_id, whole))
            out.write(impression(slate.user_id, slate) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

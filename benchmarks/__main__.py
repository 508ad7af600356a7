"""`python -m benchmarks`: measure, print the table, compare with the committed results."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from benchmarks.against.tree import commit_of
from benchmarks.harness import COMMITTED, Context, Figure, as_json, table, worse, yardstick
from tests.servers import Missing

SUBJECTS = (
    "posterior",
    "foreign",
    "learner",
    "quality",
    "shadow",
    "targets",
    "freshness",
    "busy_user",
    "score",
    "items",
    "catalog",
    "encoder",
    "memory",
    "start",
    "growth",
    "soak",
    "batch",
    "spark",
    "rebuild",
)
ONLY_IN_FULL = ("soak", "batch", "spark", "rebuild")
AGAINST = "against"


def main() -> int:
    """Run the subjects asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller repetitions, under three minutes")
    parser.add_argument(
        "--only", nargs="+", choices=(*SUBJECTS, AGAINST), metavar="NAME", help=f"of {', '.join(SUBJECTS)}"
    )
    parser.add_argument(
        "--against", type=commit_of, metavar="REV",
        help="run the learning step, learner and service of an earlier revision too, in turn with this one's",
    )  # fmt: skip
    parser.add_argument(
        "--outcomes", type=int, nargs="+", default=(), metavar="N",
        help="sizes of the log for the subject spark, such as 100000000, of which it writes 2.4 GB",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    wanted = parser.parse_args()
    if wanted.only and AGAINST in wanted.only and not wanted.against:
        parser.error(f"--only {AGAINST} needs --against REV")
    figures: list[Figure] = []
    speed = yardstick()
    with tempfile.TemporaryDirectory() as folder:
        context = Context(wanted.quick, Path(folder), wanted.against, outcomes=tuple(wanted.outcomes))
        subjects = wanted.only or [
            *(name for name in SUBJECTS if not (wanted.quick and name in ONLY_IN_FULL)),
            *([AGAINST] if wanted.against else ()),
        ]
        try:
            for name in (progress := tqdm(subjects, unit="subject", disable=None)):
                progress.set_postfix_str(name)
                try:
                    found = import_module(f"benchmarks.{name}").measure(context)
                except Missing as exc:
                    print(f"{name}: left out: {exc}", file=sys.stderr)
                    continue
                figures += found
                print(table(found), flush=True)
                if wanted.out:
                    wanted.out.write_text(as_json(figures, speed, wanted.quick, wanted.against))
        finally:
            context.stop()
    print("\n" + table([one for one in figures if one.met is not None]))
    if COMMITTED.exists():
        committed = json.loads(COMMITTED.read_text())
        print("\nmore than 15 % worse than benchmarks/results.json:")
        print("\n".join(f"  {one}" for one in worse(figures, speed, committed)) or "  nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main())

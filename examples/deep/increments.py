"""Day after day: an encoder learnt from each day's log alone, beside one trained anew on all days.

    python -m examples.deep.increments --drift 0.1
    python -m examples.deep.increments --ranklens FILE     # of examples.ranklens.log
    python -m examples.deep.increments --movielens FILE    # stream.jsonl.gz of examples.movielens.log

Without a file the log is simulated (`examples.deep.simulate`). A first part is trained from nothing. After each of the
parts that follow every way trains by `freshet train-encoder --no-users`, and its log-odds alone are scored on the
next part, without users.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from examples.deep import logs, simulate
from examples.deep.ways import freshet, mean_gap, worth
from learner.evaluation.compare import FIXED_EFFECT

EVERYTHING = "retrained on everything"
COLD = ["--no-users", "--held-out", "0", "--epochs", "8"]
BESIDE = ["--no-users", "--held-out", "0", "--epochs", "3"]
# After each part: whether all is read or the part alone, and what stands beside it.
WAYS: dict[str, tuple[str, list[str]]] = {
    EVERYTHING: ("all", COLD),
    "warm start, no prior": ("part", [*BESIDE, "--lambda", "0", "--previous"]),
    "diagonal prior": ("part", [*BESIDE, "--previous"]),
    "diagonal prior, keep 0.9": ("part", [*BESIDE, "--keep", "0.9", "--previous"]),
    "first training, never again": ("", []),
}
COLUMNS = ("log_loss", "slate_ndcg@10")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, score, print a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.deep.increments", description=__doc__)
    parser.add_argument("--parts", type=int, default=10, help="increments (default: %(default)s)")
    parser.add_argument("--first", type=int, default=10, help="parts in the first training (default: %(default)s)")
    parser.add_argument("--ranklens", type=Path, metavar="FILE", help="what examples.ranklens.log has written")
    parser.add_argument("--movielens", type=Path, metavar="FILE", help="stream.jsonl.gz of examples.movielens.log")
    parser.add_argument("--every", type=int, default=1, metavar="N", help=logs.EVERY)
    parser.add_argument("--slates", type=int, default=1_000, help="a part (default: %(default)s)")
    parser.add_argument("--drift", type=float, default=0.0, help="of what all like, a part (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        n = arguments.first + arguments.parts + 1
        cuts = [k / n for k in range(arguments.first, n)]
        if arguments.ranklens is not None:
            source = logs.ranklens(arguments.ranklens, folder, cuts, arguments.every)
        elif arguments.movielens is not None:
            source = logs.movielens_stream(arguments.movielens, folder, cuts, arguments.every)
        else:
            rng = np.random.default_rng(arguments.seed)
            parts = list(simulate.log(n * arguments.slates, n * arguments.slates // 20, rng, arguments.drift, n))
            joined = [list(chain(*parts[: arguments.first])), *parts[arguments.first :]]
            source = logs.Source(simulate.MODEL, simulate.LINEAR, simulate.INPUTS, logs.written(folder, joined))
        found = compare(folder, source)
    say(found)
    return 0


def compare(folder: Path, source: logs.Source) -> dict[str, list[dict[str, float]]]:
    """Of each way and part the seconds of a processor, and what it is worth on the part that follows."""
    files, model = source.files, source.head + '[features]\ndeep = { kind = "encoded" }\n' + source.inputs
    first = _trained(folder / "first", model, [files[0]], COLD)
    before = dict.fromkeys(WAYS, first)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for k in range(1, len(files) - 1):
        for number, (name, (what, options)) in enumerate(WAYS.items()):
            start = time.process_time()
            if what:
                beside = [*options, *([str(before[name] / "encoder.npz")] if options[-1] == "--previous" else [])]
                read = files[: k + 1] if what == "all" else [files[k]]
                before[name] = _trained(folder / f"{k}-{number}", model, read, beside)
            seconds = time.process_time() - start
            its = worth([files[k + 1]], before[name] / "model.toml", None, 0.0, 2, [FIXED_EFFECT])
            scored = its[FIXED_EFFECT].metrics
            found[name].append({"seconds": seconds} | {column: scored[column].value for column in COLUMNS})
        print(f"increment {k} of {len(files) - 2}", file=sys.stderr, flush=True)
    return found


def say(found: dict[str, list[dict[str, float]]]) -> None:
    """Print means over parts, and paired differences to what was retrained on everything."""
    print(f"| after each part | seconds | {' | '.join(f'{one} | minus everything' for one in COLUMNS)} |")
    print(f"| --- | --- |{' --- | --- |' * len(COLUMNS)}")
    for name, rows in found.items():
        cells = [f"{np.mean([row['seconds'] for row in rows]):.2f}"]
        for column in COLUMNS:
            mine, all_of_it = ([row[column] for row in found[way]] for way in (name, EVERYTHING))
            cells += [f"{np.mean(mine):.5f}", "" if name == EVERYTHING else mean_gap(mine, all_of_it)]
        print(f"| {name} | {' | '.join(cells)} |")


def _trained(folder: Path, model: str, read: Sequence[Path], options: Sequence[str]) -> Path:
    folder.mkdir()
    (folder / "model.toml").write_text(model)
    freshet("train-encoder", *read, "--model", folder / "model.toml", *options)
    return folder


if __name__ == "__main__":
    sys.exit(main())

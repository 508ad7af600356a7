"""Users on top of a gradient-boosting model that is refitted as the log grows, as many have one.

    python -m examples.deep.boosting simulated
    python -m examples.deep.boosting ranklens --data FILE     # of examples.ranklens.log

The first share of a log is fitted from nothing, and the rest is cut into ten slices. At each cut scikit-learn's
HistGradientBoostingClassifier, as it comes, is fitted on all outcomes so far, on the columns of the linear model; its
log-odds are the offsets of the next slice. Priors of users are fitted on the first three slices, and the others are
replayed. The linear model has a fixed effect of its own, of all that comes before these. scikit-learn is of the
dependency group `bench`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from examples.deep import logs, simulate
from examples.deep.ways import COLUMNS, FIT, NEW, freshet, read, table, with_new, worth
from learner.evaluation.compare import FIXED_EFFECT, FRESH
from learner.evaluation.metrics import Metrics
from service.model_file import read_model

FIRST, SLICES, FOR_PRIORS = 0.3, 10, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, score, replay, print a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.deep.boosting", description=__doc__)
    parser.add_argument("log", choices=["simulated", "ranklens"])
    parser.add_argument("--data", type=Path, help="what the example of the log has written")
    parser.add_argument("--slates", type=int, default=12_000, help="of the simulation (default: %(default)s)")
    parser.add_argument("--users", type=int, default=300, help="of the simulation (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help=logs.EVERY)
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap (default: %(default)s)")
    arguments = parser.parse_args(argv)
    cuts = [FIRST + (1.0 - FIRST) * k / SLICES for k in range(SLICES)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.log == "simulated":
            (lines,) = simulate.log(arguments.slates, arguments.users, np.random.default_rng(0))
            # In equal parts of the time, which is the number of the slate.
            parts: list[list[bytes]] = [[] for _ in range(SLICES + 1)]
            for line in lines:
                share = (msgspec.json.decode(line)["timestamp"] - simulate.START_MS) / 1_000 / arguments.slates
                parts[sum(share >= cut for cut in cuts)].append(line)
            source = logs.Source(simulate.MODEL, simulate.LINEAR, "", logs.written(folder, parts))
        elif arguments.data is None:
            parser.error(f"{arguments.log}: expected --data")
        else:
            source = logs.ranklens(arguments.data, folder, cuts, arguments.every)
        found = compare(folder, source, arguments.resamples)
    print(table(found, ["linear + users", "boosting alone"], [*COLUMNS, NEW[0]]))
    return 0


def compare(folder: Path, source: logs.Source, resamples: int) -> dict[str, Metrics]:
    """Each way's metrics on the slices behind those that priors were fitted on."""
    model = folder / "model.toml"
    model.write_text(source.head + source.linear)
    first, *slices = source.files
    scored = with_offsets(folder, model, source.files)
    sizes = [logs.n_outcomes(one) for one in slices]
    share = sum(sizes[:FOR_PRIORS]) / sum(sizes)
    found: dict[str, Metrics] = {}
    for name, files, fitted_on in (
        ("linear", slices, [first, *slices[:FOR_PRIORS]]),
        ("boosting", scored, scored[:FOR_PRIORS]),
    ):
        prior = folder / f"{name}.npz"
        freshet("fit", *fitted_on, "--model", model, "--out", prior, *FIT)
        results = worth(files, model, prior, share, resamples, (FIXED_EFFECT, FRESH))
        found |= {f"{name} alone": with_new(results[FIXED_EFFECT]), f"{name} + users": with_new(results[FRESH])}
        print(f"{name}: replayed", file=sys.stderr, flush=True)
    return found


def with_offsets(folder: Path, model: Path, files: Sequence[Path]) -> list[Path]:
    """All files but the first, with the log-odds of a model of all that comes before each."""
    log = read(files, read_model(str(model)))
    X, y = log.batch.events.row[:, 1:], np.zeros(len(log.batch.events.row))
    for one in log.users:
        for place, labels in zip(one.places, one.labels, strict=True):
            if len(labels):
                y[log.batch.items(place)] = labels
    ends = np.cumsum([logs.n_outcomes(one) for one in files])
    offsets, start = np.zeros(len(y)), time.process_time()
    for begin, end in pairwise(ends):
        fitted = HistGradientBoostingClassifier(random_state=0).fit(X[:begin], y[:begin])
        offsets[begin:end] = fitted.decision_function(X[begin:end])
    print(f"boosting: {SLICES} fits in {time.process_time() - start:.1f} s of a processor", file=sys.stderr, flush=True)
    written, at = [], int(ends[0])
    for file in files[1:]:
        lines = []
        for line in logs.lines_of(file):
            event = msgspec.json.decode(line)
            for item in event.get("items", ()):
                item["offset"], at = float(offsets[at]), at + 1
            lines.append(msgspec.json.encode(event))
        written += logs.written(folder / f"scored-{file.stem}", [lines])
    return written


if __name__ == "__main__":
    sys.exit(main())

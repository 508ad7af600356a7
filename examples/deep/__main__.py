"""What a Bayesian last layer on a deep model is worth: beside the deep model alone, and users of a linear one.

    python -m examples.deep simulated
    python -m examples.deep movielens --data FOLDER    # of examples.movielens.log
    python -m examples.deep ranklens --data FILE       # of examples.ranklens.log

A log has three parts. Encoders are trained on the first and on the second of half of the users, one of them for what
all users like alike (`--no-users`). Priors on them are fitted on the second of the other half, which no encoder has
seen, and that of the linear model on all of the second. The third is replayed. Users learn from all three.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.deep import logs, simulate
from examples.deep.ways import COLUMNS, FIT, NEW, freshet, table, with_new, worth
from learner.evaluation.compare import A_DAY, FIXED_EFFECT, FRESH, FROZEN
from learner.evaluation.metrics import Metrics

ALIKE = ", no users"
"""Of encoders that were trained without effects of users."""
ITEMS = "[effects.item]\n[effects.item.prior]\nvariance = 0.25\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Train, fit, replay and print a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.deep", description=__doc__)
    parser.add_argument("log", choices=["simulated", "movielens", "ranklens"])
    parser.add_argument("--data", type=Path, help="what the example of the log has written")
    parser.add_argument("--slates", type=int, default=24_000, help="of the simulation (default: %(default)s)")
    parser.add_argument("--users", type=int, default=600, help="of the simulation (default: %(default)s)")
    parser.add_argument("--every", type=int, default=4, metavar="N", help=logs.EVERY)
    parser.add_argument(
        "--cuts", type=float, nargs=2, default=logs.RANKLENS_CUTS, metavar="SHARE",
        help="of ranklens, between its parts (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--items", action="store_true", help="let items learn too, an intercept each")
    parser.add_argument(
        "--train", nargs="*", default=[], metavar="OPTION", help="of train-encoder, without dashes: a=1"
    )
    parser.add_argument("--ways", nargs="*", default=[], metavar="NAME", help="of the table (default: all)")
    parser.add_argument("--late", nargs="*", default=[], metavar="NAME", help="ways whose users learn late, too")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.log == "simulated":
            rng = np.random.default_rng(0)
            parts = list(simulate.log(arguments.slates, arguments.users, rng, parts=3))
            source = logs.Source(simulate.MODEL, simulate.LINEAR, simulate.INPUTS, logs.written(folder, parts))
        elif arguments.data is None:
            parser.error(f"{arguments.log}: expected --data")
        else:
            cuts = {"shares": arguments.cuts} if arguments.log == "ranklens" else {}
            source = logs.SOURCES[arguments.log](arguments.data, folder, every=arguments.every, **cuts)
        found = compare(folder, source, arguments)
    columns = [*COLUMNS, *(NEW if arguments.items else NEW[:1])]
    print(
        table(
            found, [name for name in ("linear + users", "deep alone", f"deep{ALIKE} alone") if name in found], columns
        )
    )
    return 0


def compare(folder: Path, source: logs.Source, arguments: argparse.Namespace) -> dict[str, Metrics]:
    """Every way's results on the third part."""
    judged = first, second, _ = source.files
    one_half, other_half = logs.halves(second, folder / "halves")
    sizes = [logs.n_outcomes(one) for one in judged]
    share = sum(sizes[:-1]) / sum(sizes)
    print("outcomes", sizes, file=sys.stderr)
    items = ITEMS if arguments.items else ""
    deep = '[features]\ndeep = { kind = "encoded" }\n'
    text_of = {
        "linear": source.head + items + source.linear,
        "deep": source.head + items + deep + source.inputs,
        "deep and linear": source.head + items + source.linear + 'deep = { kind = "encoded" }\n' + source.inputs,
    }
    found: dict[str, Metrics] = {}
    ways = arguments.ways or ["linear", "deep", f"deep{ALIKE}", "deep and linear"]
    encoder = {"": folder / "encoder", ALIKE: folder / "alike"}
    start = time.perf_counter()
    for kind, at in encoder.items():
        if not any(one.endswith(ALIKE) == bool(kind) for one in ways if one != "linear"):
            continue
        at.mkdir()
        (at / "model.toml").write_text(text_of["deep"])
        options = [f"--{one}" for one in [*arguments.train, *(["no-users"] if kind else [])]]
        freshet("train-encoder", first, one_half, "--model", at / "model.toml", *options)
        print(f"trained: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    for name in ways:
        at = folder / name.replace(" ", "-")
        at.mkdir()
        what, alike, _ = name.partition(ALIKE)
        (at / "model.toml").write_text(text_of[what])
        if what != "linear":
            (at / "encoder.onnx").write_bytes((encoder[alike] / "encoder.onnx").read_bytes())
        fitted_on = second if what == "linear" else other_half
        freshet("fit", fitted_on, "--model", at / "model.toml", "--out", at / "prior.npz", *FIT)
        late = [FROZEN, A_DAY] if name in arguments.late else []
        wanted = [FIXED_EFFECT, FRESH, *late]
        results = worth(judged, at / "model.toml", at / "prior.npz", share, arguments.resamples, wanted)
        if what != "deep and linear":
            found[f"{name} alone"] = with_new(results[FIXED_EFFECT])
        found[f"{name} + users"] = with_new(results[FRESH])
        found |= {f"{name} + users, {one}": with_new(results[one]) for one in late}
        loss = results[FRESH].metrics["log_loss"].value
        print(f"{name} + users: {loss:.4f}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Day after day: what a fit from a day's log alone is worth, beside fits from all days.

    python -m examples.increments LOG --model model.toml --parts 12

A log's first share is fitted from nothing. The rest is cut into parts of equally many slates; after each, every way
fits anew by `freshet fit`, and is scored on the part that follows by the replay of `freshet evaluate`. Offsets of the
log are left out, so that there is a fixed effect to fit. Without LOG it is simulated: a fixed effect that drifts, or
with --drift 0 does not.
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import json
import resource
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import msgspec
import numpy as np

from learner.batch.reading import read_events
from learner.evaluation.compare import FIXED_EFFECT, FRESH, variants
from learner.evaluation.history import read_log
from learner.evaluation.parts import evaluate
from learner.events.microbatch import joined
from service.commands.main import main as freshet
from service.model_file import read_model

FEATURES, SLATE, SIMULATED_SLATES = 12, 10, 1_000
WINDOW = 4
"""Parts that the sliding window has."""
EVERY = 5
FROM_STORE = f"incremental, full, each {EVERY}th from the store"
"""It refits the prior of users, at the first part and each so many behind it, from what learners with the new prior
know of them."""
REFIT = ["--iterations", "3"]
"""Further ones changed log loss by .00003 on RankLens, and took most of the time."""
NOBODY = ["--offsets", "none"]
"""Who goes on learning where a log ends."""

# After part k: what is read, and what stands beside it.
WAYS: dict[str, tuple[str, list[str]]] = {
    "retrained on everything": ("all", []),
    f"sliding window of {WINDOW}": ("window", []),
    "the part alone": ("part", []),
    "incremental, full": ("part", ["--previous"]),
    FROM_STORE: ("part", ["--previous"]),
    "incremental, diagonal": ("part", ["--hessian", "diagonal", "--previous"]),
    "incremental, full, keep 0.9": ("part", ["--keep", "0.9", "--previous"]),
    "incremental, full, keep 0.7": ("part", ["--keep", "0.7", "--previous"]),
    "first fit, never again": ("", []),
}
KEPT = ["--keep-half-life", "--keep-covariance"]
COLUMNS = ("log_loss", "slate_auc")
SHORT = {FIXED_EFFECT: "fixed", FRESH: "fresh"}


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, score, print a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.increments", description=__doc__)
    parser.add_argument("log", nargs="?", type=Path, metavar="LOG", help="JSON lines, perhaps .gz; none: simulated")
    parser.add_argument("--model", type=Path, help="model.toml of the log")
    parser.add_argument("--parts", type=int, default=12, help="increments (default: %(default)s)")
    parser.add_argument("--skip", type=float, default=0.0, metavar="SHARE", help="leave out this first share of slates")
    parser.add_argument("--first", type=float, default=0.4, metavar="SHARE", help="of the rest, fitted from nothing")
    parser.add_argument("--drift", type=float, default=0.15, help="of each coefficient a part, if simulated")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="some of them alone")
    parser.add_argument("--json", type=Path, help="where to write all numbers, after each increment")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "model.toml"
        if arguments.log is None:
            model.write_text(_simulated_model())
            parts = list(_simulated(arguments.parts + 1, arguments.drift, np.random.default_rng(arguments.seed)))
        else:
            if arguments.model is None:
                parser.error("LOG: expected --model beside it")
            model.write_bytes(arguments.model.read_bytes())
            parts = _cut(arguments.log, arguments.skip, arguments.first, arguments.parts)
        files = []
        for number, lines in enumerate(parts):
            files.append(folder / f"part-{number}.jsonl")
            files[-1].write_bytes(b"\n".join(lines) + b"\n")
        for found in _compare(folder, files, model, {name: WAYS[name] for name in arguments.ways}):
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1))
    _say(found)
    return 0


def _compare(
    folder: Path, files: Sequence[Path], model: Path, ways: Mapping[str, tuple[str, list[str]]]
) -> Iterator[dict[str, list[dict[str, float]]]]:
    """Of each way and increment the cost of the fit, and what it is worth on the part that follows, as they come."""
    first = folder / "first.npz"
    _freshet("fit", files[0], "--model", model, *KEPT, "--out", first)
    before = dict.fromkeys(ways, first)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for k in range(1, len(files) - 1):
        for name, (what, options) in ways.items():
            read = _read(what, files, k)
            out, seconds = folder / f"{name}-{k}.npz", 0.0
            n_bytes = sum(one.stat().st_size for one in read)
            if read:
                beside = [*options, before[name]] if options else KEPT
                seconds += _freshet("fit", *read, "--model", model, *beside, "--out", out)
                before[name] = out
            if name == FROM_STORE and k % EVERY == 1:
                store, common = folder / "store.db", ["--model", model, "--prior", out]
                # Of no cost: learners have it already.
                _freshet("rebuild", *files[: k + 1], *common, *NOBODY, "--store", f"sqlite:///{store}")
                before[name] = folder / f"{name}-{k} refit.npz"
                refit = ["--from-store", f"sqlite:///{store}", *REFIT, "--out", before[name]]
                seconds += _freshet("fit", *refit, *common)
                n_bytes += store.stat().st_size
                store.unlink()
            cost = {"seconds": seconds, "bytes": float(n_bytes)}
            found[name].append(cost | _worth(files[k + 1], model, before[name]))
        print(f"increment {k} of {len(files) - 2}", file=sys.stderr, flush=True)
        yield found


def _spent() -> float:
    """Seconds of processors, of this process and of those that it has waited for: a long log is read by some."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _read(what: str, files: Sequence[Path], k: int) -> Sequence[Path]:
    """What is read after part k."""
    first = {"all": 0, "window": max(0, k + 1 - WINDOW), "part": k}.get(what, k + 1)
    return files[first : k + 1]


def _worth(part: Path, model: Path, prior: Path) -> dict[str, float]:
    """How well the fixed effect alone, and with users learnt as their slates come, predict a part."""
    fitted = read_model(str(model), str(prior))
    batches = read_events([str(part)], fitted)
    log = read_log(joined(batches, fitted.width), fitted.window_ms)
    ways = [one for one in variants(fitted, -np.inf, False) if one.name in SHORT]
    return {
        f"{SHORT[result.name]} {column}": result.metrics[column].estimate().value
        for result in evaluate([log], ways, -np.inf, resamples=2)
        for column in COLUMNS
    }


def _freshet(*typed: object) -> float:
    """Run a command; returns the seconds of processors that it took."""
    said, start = io.StringIO(), _spent()
    with redirect_stdout(said), redirect_stderr(said):
        status = freshet([str(one) for one in typed])
    if status:
        raise SystemExit(said.getvalue())
    return _spent() - start


def _cut(log: Path, skip: float, first: float, n: int) -> list[list[bytes]]:
    """The lines of the first fit, and of each part: clicks go with their slates."""
    data = log.read_bytes()
    lines = (gzip.decompress(data) if log.suffix == ".gz" else data).splitlines()
    events = [msgspec.json.decode(line) for line in lines]
    requests: dict[tuple[str, str], list[bytes]] = {}
    at: dict[tuple[str, str], int] = {}
    for event in events:
        for item in event.get("items", ()):
            item.pop("offset", None)
        key = event["user_id"], event["request_id"]
        requests.setdefault(key, []).append(msgspec.json.encode(event))
        if event["type"] == "impression":
            at[key] = event["timestamp"]
    # Ties keep the log's order.
    order = sorted(at, key=at.__getitem__)
    order = order[round(skip * len(order)) :]
    begin = round(first * len(order))
    ends = np.linspace(begin, len(order), n + 1).round().astype(int).tolist()
    groups = [order[:begin], *(order[a:b] for a, b in itertools.pairwise(ends))]
    return [[line for key in group for line in requests[key]] for group in groups]


def _simulated_model() -> str:
    features = "".join(f'f{i} = {{ kind = "numeric" }}\n' for i in range(FEATURES))
    return f'name = "simulated"\nattribution_window = "1m"\n[prior]\nvariance = 0.05\n[features]\n{features}'


def _simulated(n: int, drift: float, rng: np.random.Generator) -> Iterator[list[bytes]]:
    """Slates of users who each come once, by a fixed effect and 0.2 of each user's own."""
    b = np.append(-1.5, 0.5 * rng.normal(size=FEATURES))
    keep, number = np.sqrt(1.0 - drift**2), 0
    for part in range(n):
        lines = []
        for _ in range(SIMULATED_SLATES * (8 if part == 0 else 1)):
            number += 1
            x = rng.normal(size=(SLATE, FEATURES)).round(3)
            theta = b + 0.2 * rng.normal(size=len(b))
            ids = {"request_id": f"r{number}", "user_id": f"u{number}", "timestamp": 1_700_000_000_000 + number * 100}
            items = [
                {"item_id": str(i), "features": {f"f{j}": value for j, value in enumerate(row.tolist())}}
                for i, row in enumerate(x)
            ]
            clicked = np.flatnonzero(rng.random(SLATE) < 1.0 / (1.0 + np.exp(-theta[0] - x @ theta[1:])))
            lines += [msgspec.json.encode({"type": "click", **ids, "item_id": str(i)}) for i in clicked.tolist()]
            lines.append(msgspec.json.encode({"type": "impression", **ids, "items": items}))
        yield lines
        b[1:] = keep * b[1:] + drift * 0.5 * rng.normal(size=FEATURES)


def _say(found: dict[str, list[dict[str, float]]]) -> None:
    names = list(next(iter(found.values()))[0])
    everything = next(iter(found.values()))
    below = "  minus the first"
    width = max(map(len, [below, *found]))
    print(f"{'':<{width}}" + "".join(f"{name:>22}" for name in names))
    for way, rows in found.items():
        means = {name: float(np.mean([row[name] for row in rows])) for name in names}
        print(f"{way:<{width}}" + "".join(f"{means[name]:>22,.5f}" for name in names))
        differences = [
            np.array([row[name] - other[name] for row, other in zip(rows, everything, strict=True)]) for name in names
        ]
        half = [1.96 * one.std(ddof=1) / np.sqrt(len(one)) for one in differences]
        print(
            f"{below:<{width}}"
            + "".join(f"{f'{one.mean():+,.5f} ±{h:,.5f}':>22}" for one, h in zip(differences, half, strict=True))
        )


if __name__ == "__main__":
    sys.exit(main())

"""A new encoder under users who have learnt on the old one: what their next slates are predicted with.

    python -m examples.deep.switch simulated
    python -m examples.deep.switch ranklens --data FILE       # of examples.ranklens.log

A log has four parts. The old encoder is trained on the first, its prior fitted on the second. The new one is trained on
the second beside it (`--previous`), or from nothing on both (`--cold`); its prior is fitted on the third. Users have
learnt from all three when the encoder is switched, and learn nothing more: scored are their first slates of the fourth.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.deep import logs, simulate
from examples.deep.ways import FIT, freshet, read, table
from learner.belief.gaussian import Array, Belief, Gaussian, click_probability, factorised, predict
from learner.belief.population import Population, gained
from learner.evaluation.compare import cut_at
from learner.evaluation.history import Available, History, Log, frozen_at
from learner.evaluation.items import ReplayedItems
from learner.evaluation.metrics import Metrics, Scored, measure
from learner.evaluation.replay import Asked, Replayed, replay
from learner.model.spec import Model
from service.model_file import read_model

PARTS = 4
REBUILT, MAPPED, KEPT = "rebuilt from the whole log", "least-squares map", "coefficients as they were"


class Bridge(NamedTuple):
    """What coefficients on an old embedding are on a new one: theta' = A theta + c + e, e ~ N(0, Q).

    Attributes
    ----------
    A
        Of x_old = A'x_new + r by least squares over rows, shape (d', d).
    c
        Of the difference of the two offsets, in the same way, shape (d',).
    Q
        What the map leaves: x'Qx is on average over rows the variance of r'theta over users, shape (d', d').
    """

    A: Array
    c: Array
    Q: Array


def least_squares(old: Array, new: Array, offsets: Array, population: Gaussian) -> Bridge:
    """Fit a bridge on rows of the same items by both encoders, shapes (n, d) and (n, d').

    Parameters
    ----------
    offsets
        What the old encoder's offset is above the new one's, shape (n,).
    population
        Of users of the old encoder.
    """
    n, d = new.shape
    gram = new.T @ new / n + 1e-9 * np.eye(d)
    A = np.linalg.solve(gram, new.T @ old / n)
    c = np.linalg.solve(gram, new.T @ offsets / n)
    left = old - new @ A
    cov = population.cov if population.cov.ndim == 2 else np.diag(population.cov)
    variance = np.einsum("ij,jk,ik->i", left, cov + np.outer(population.mean, population.mean), left).mean()
    return Bridge(A, c, variance / d * np.linalg.inv(gram))


def moved(belief: Belief, bridge: Bridge, old: Gaussian, new: Gaussian) -> Belief:
    """A user's evidence on the new prior: what the belief has beyond the old prior, both pushed through the bridge."""
    own, prior = (
        Gaussian(bridge.A @ one.mean + bridge.c, bridge.A @ one.cov @ bridge.A.T + bridge.Q) for one in (belief, old)
    )
    nothing = np.zeros(len(new.mean))
    precision, shift = gained(own, Population(prior, nothing), nothing)
    before = np.linalg.inv(new.cov)
    cov = np.linalg.inv(before + precision)
    mean, factor = factorised(Gaussian(cov @ (before @ new.mean + shift), 0.5 * (cov + cov.T)))
    return Belief(mean.astype(np.float32), factor.astype(np.float32))


def main(argv: Sequence[str] | None = None) -> int:
    """Train both, switch, print a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.deep.switch", description=__doc__)
    parser.add_argument("log", choices=["simulated", "ranklens"])
    parser.add_argument("--data", type=Path, help="what the example of the log has written")
    parser.add_argument("--slates", type=int, default=12_000, help="of the simulation (default: %(default)s)")
    parser.add_argument("--users", type=int, default=300, help="of the simulation (default: %(default)s)")
    parser.add_argument("--drift", type=float, default=0.0, help="of the simulation (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="train the new encoder from nothing, from another seed")
    parser.add_argument("--first", type=int, default=3, help="slates of a user that are scored (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help=logs.EVERY)
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.log == "simulated":
            parts = simulate.log(
                arguments.slates, arguments.users, np.random.default_rng(0), arguments.drift, parts=PARTS
            )
            source = logs.Source(simulate.MODEL, simulate.LINEAR, simulate.INPUTS, logs.written(folder, parts))
        elif arguments.data is None:
            parser.error(f"{arguments.log}: expected --data")
        else:
            source = logs.ranklens(arguments.data, folder, (0.3, 0.5, 0.75), arguments.every)
        old, new = encoders(folder, source, arguments.cold)
        print(table(switched(old, new, source.files, arguments.first, arguments.resamples), [REBUILT, MAPPED]))
    return 0


def encoders(folder: Path, source: logs.Source, cold: bool) -> list[Model]:
    """The old model and the new one, each with a prior of the part behind those that its encoder was trained on."""
    first, second, third, _ = source.files
    begun = [second, "--previous", folder / "old" / "encoder.npz"]
    models = []
    for name, options, fitted_on in (
        ("old", [first], second),
        ("new", [first, second, "--seed", "1"] if cold else begun, third),
    ):
        at = folder / name
        at.mkdir()
        model = at / "model.toml"
        model.write_text(source.head + '[features]\ndeep = { kind = "encoded" }\n' + source.inputs)
        freshet("train-encoder", *options, "--model", model)
        freshet("fit", fitted_on, "--model", model, "--out", at / "prior.npz", *FIT)
        models.append(read_model(str(model), str(at / "prior.npz")))
        print(f"{name}: trained and fitted", file=sys.stderr, flush=True)
    return models


def switched(old: Model, new: Model, files: Sequence[Path], first: int, resamples: int) -> dict[str, Metrics]:
    """How well each way to carry users over predicts their first slates behind the switch."""
    before, after = read(files, old), read(files, new)
    sizes = [logs.n_outcomes(one) for one in files]
    starts = [cut_at(after, sum(sizes[:k]) / sum(sizes)) for k in range(1, PARTS)]
    cut = starts[-1]
    event, item = after.batch.events.event, after.batch.events.item
    learnt = slice(0, int(event["n_items"][event["at"] < cut].sum()))
    x_old, x_new = (log.batch.events.row[learnt].astype(np.float64) for log in (before, after))
    gaps = before.batch.events.item["offset"][learnt] - item["offset"][learnt]
    bridge = least_squares(x_old, x_new, gaps.astype(np.float64), old.prior)
    told = np.full(len(item), np.nan)

    def tell(way: Callable[[Belief], Belief], place: int, belief: Belief, now: int, _: ReplayedItems | None) -> None:
        its = after.batch.items(place)
        mean, var = predict(way(belief), after.batch.events.row[its], item["offset"][its])
        told[its] = click_probability(mean, var)

    def by_beliefs_of_old(way: Callable[[Belief], Belief]) -> Replayed:
        asked = Asked(np.empty(0, np.int64), partial(tell, way))
        done = replay(old, before, frozen_at(cut), cut, asked=asked)
        return done._replace(scored=done.scored._replace(p=told[done.place]))

    def by_new(available: Available | None) -> Replayed:
        return replay(new, after, available, cut)

    ways = {
        "a fresh start": by_new(None),
        "rebuilt from the third part": by_new(_between(starts[1], cut)),
        "rebuilt from the second and third": by_new(_between(starts[0], cut)),
        REBUILT: by_new(frozen_at(cut)),
        MAPPED: by_beliefs_of_old(lambda belief: moved(belief, bridge, old.prior, new.prior)),
        KEPT: by_beliefs_of_old(lambda belief: belief),
        "the old encoder, no switch": replay(old, before, frozen_at(cut), cut),
    }
    chosen = _first_slates(after, cut, first)
    return {name: _measured(done, chosen, resamples) for name, done in ways.items()}


def _between(start: float, cut: float) -> Available:
    def available(history: History, number: int) -> tuple[float, float]:
        at = float(history.at[number])
        return (at if start <= at < cut else np.inf), number

    return available


def _first_slates(log: Log, cut: float, first: int) -> Array:
    """The places of items of each user's first slates from the cut on, of users who were shown something before."""
    places = []
    for one in log.users:
        shown = [place for place, at, labels in zip(one.places, one.at, one.labels, strict=True) if len(labels)]
        before = sum(len(labels) > 0 for at, labels in zip(one.at, one.labels, strict=True) if at < cut)
        places += shown[before : before + first] if before else []
    return np.concatenate([np.arange(len(log.batch.events.row))[log.batch.items(place)] for place in places])


def _measured(done: Replayed, chosen: Array, resamples: int) -> Metrics:
    order = np.argsort(done.place)
    is_chosen = np.isin(done.place[order], chosen)
    return measure(Scored._make(column[order][is_chosen] for column in done.scored), resamples)


if __name__ == "__main__":
    sys.exit(main())

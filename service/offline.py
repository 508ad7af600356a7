"""The commands that work on a log at rest: `freshet fit` and `freshet evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from learner.events import Event, Impression
from learner.model import Model
from learner.offline.evaluate import cut_at, evaluate, variants
from learner.offline.fit import (
    Iteration,
    feature_scaling,
    features_unseen,
    fit_click_delay,
    fit_fixed_effect,
    fit_prior,
)
from learner.offline.half_life import DAY_MS, GRID_MS, fit_half_life
from learner.offline.outcomes import chosen, collect, without_fixed_effect
from learner.offline.reading import LogError, read_events
from learner.offline.replay import histories
from learner.offline.report import as_html, as_json, as_text
from learner.population import Population
from learner.prior_file import PriorFile, encode_prior, with_prior
from service.settings import Settings

_LOGS = "files or folders of .jsonl, .json, .ndjson (or with .gz) or .parquet; or kafka://host:port or sqlite:///path, \
from the beginning to now"
_HALF_LIFE_USERS = 500


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add `fit` and `evaluate` to the command."""
    fit = commands.add_parser(
        "fit", help="learn the prior, click delay and half-life from a log",
        description="Learn from a log what is true of all users: the prior's mean and covariance by empirical Bayes, a "
        "fixed effect if the log has no offsets of its own, the click delay, the half-life. The result replaces the "
        "prior of a running system: users keep their evidence. A log that does not fit the model is refused.",
    )  # fmt: skip
    fit.add_argument("--out", required=True, metavar="FILE", help="the prior to write, for example prior.npz")
    fit.add_argument("--until", type=float, default=1.0, metavar="SHARE", help="use this first share of outcomes only")
    fit.add_argument("--iterations", type=int, default=50, help="of EM, at most (default: %(default)s)")
    fit.add_argument("--half-life", action="store_true", help=f"fit it too; replays up to {_HALF_LIFE_USERS} users")
    evaluation = commands.add_parser(
        "evaluate", help="what freshness would have gained on a log",
        description="Replay a log by its own times, score every slate before learning from it, and compare: the prior, "
        "users frozen at the cut, learning with a lag, fresh, other attributions and approximations.",
    )  # fmt: skip
    evaluation.add_argument(
        "--from", dest="start", type=float, default=0.5, metavar="SHARE",
        help="score from behind this share of the outcomes; earlier ones are only learnt (default: %(default)s)",
    )  # fmt: skip
    evaluation.add_argument("--brief", action="store_true", help="leave out other attributions and approximations")
    evaluation.add_argument("--resamples", type=int, default=200, help="of the bootstrap (default: %(default)s)")
    evaluation.add_argument("--json", metavar="FILE", help="write all numbers")
    evaluation.add_argument("--html", metavar="FILE", help="write one self-contained page with plots")
    for command in (fit, evaluation):
        command.add_argument("logs", nargs="+", metavar="LOG", help=_LOGS)
        command.add_argument("--sample", type=float, default=1.0, metavar="SHARE", help="keep this share of users")
        command.add_argument("--seed", type=int, default=0, help="of every random choice (default: %(default)s)")
    return [fit, evaluation]


def run_fit(arguments: argparse.Namespace, settings: Settings, model: Model) -> int:
    """Fit and write a prior."""
    events = _events(arguments, settings, without_fixed_effect(model))
    with _bar("sorting", " outcomes") as bar:
        outcomes = collect(events, model, arguments.sample, arguments.seed, arguments.until, bar.update)
    if not len(outcomes):
        raise LogError(f"{' '.join(arguments.logs)}: no outcomes in it: expected impressions")
    if unseen := features_unseen(outcomes, model):
        raise LogError(
            f"{' '.join(arguments.logs)}: model {model.name!r} has {', '.join(unseen)}, which all {len(outcomes):,} "
            f"outcomes lack, or have at the mean: nothing can be learnt of it; expected every feature in the log"
        )
    fixed_effect = model.fixed_effect
    with _bar("fixed effect", " outcomes") as bar:
        if not outcomes.own_offset:
            fixed_effect = fit_fixed_effect(outcomes, model.d, bar.update)
    with _bar("EM", " outcomes") as bar:
        clicked = sum(float(rows.y.sum()) for rows in outcomes.chunks(fixed_effect)) / len(outcomes)
        bar.write(f"{len(outcomes):,} outcomes of {outcomes.n_users:,} users, {clicked:.3f} clicked")
        bar.write(
            "fixed effect: none, since the log has offsets of its own"
            if outcomes.own_offset
            else f"fixed effect: {model.d} coefficients by logistic regression, used where an item has no offset"
        )
        best = -np.inf

        def told(iteration: Iteration) -> None:
            nonlocal best
            fell = (
                f", {best - iteration.evidence:.3g} lower: the prior before is kept"
                if iteration.evidence < best
                else ""
            )
            bar.write(f"  EM {iteration.number:3d}   log marginal likelihood {iteration.evidence:.3f}{fell}")
            best = max(best, iteration.evidence)

        prior = fit_prior(outcomes, model.prior, fixed_effect, arguments.iterations, observe=told, advance=bar.update)
    delay = fit_click_delay(outcomes.delay, outcomes.horizon, model.window_ms)
    print("click delay: " + (f"median {delay[0] / 1000:.3g} s, sigma {delay[1]:.3g}" if delay else "none to fit"))
    fitted = PriorFile(
        model.name,
        model.fingerprint,
        model.coefficients,
        Population(prior, fixed_effect),
        (*model.earlier, model.population),
        delay,
        None,
        feature_scaling(outcomes, model),
    )
    if arguments.half_life:
        half_life_ms = _half_life(arguments, settings, with_prior(model, fitted), outcomes.end)
        fitted = replace(fitted, half_life_ms=half_life_ms)
    Path(arguments.out).write_bytes(encode_prior(fitted))
    for name, (mean, std) in fitted.scaling.items():
        print(f'scaling seen: {name} = {{ kind = "numeric", mean = {mean:.4g}, std = {std:.4g} }}')
    print(f"wrote {arguments.out}, prior {fitted.population.fingerprint.hex()}")
    return 0


def run_evaluate(arguments: argparse.Namespace, settings: Settings, model: Model) -> int:
    """Replay, print the table and write what was asked for."""
    events = _events(arguments, settings, model)
    if arguments.sample < 1.0:
        events = (event for event in events if chosen(event.user_id, arguments.sample, arguments.seed))
    users = histories(events, model.window_ms)
    cut_ms = cut_at(users, arguments.start)
    ways = variants(model, cut_ms, not arguments.brief)
    slates = sum(isinstance(e, Impression) and e.timestamp >= cut_ms for history in users for e in history.events)
    with _bar("replaying", " slates", len(ways) * slates) as bar:
        results = evaluate(users, ways, cut_ms, arguments.resamples, arguments.seed, bar.update)
    print(as_text(results))
    if arguments.json:
        Path(arguments.json).write_text(as_json(results), encoding="utf-8")
    if arguments.html:
        Path(arguments.html).write_text(as_html(results, model.name), encoding="utf-8")
    return 0


def _half_life(arguments: argparse.Namespace, settings: Settings, model: Model, until_ms: int) -> float | None:
    if model.discount is not None:
        print("half-life: none, since the model has discount")
        return None
    seen: dict[str, None] = {}
    events = []
    for event in _events(arguments, settings, model):
        if len(seen) < _HALF_LIFE_USERS and chosen(event.user_id, arguments.sample, arguments.seed):
            seen[event.user_id] = None
        if event.user_id in seen and event.timestamp <= until_ms:
            events.append(event)
    slates = sum(isinstance(event, Impression) for event in events)
    with _bar("half-life", " slates", slates * len(GRID_MS)) as bar:

        def told(half_life_ms: float | None, loss: float) -> None:
            shown = "never forgets" if half_life_ms is None else f"{half_life_ms / DAY_MS:.3g} d"
            bar.write(f"  half-life {shown:14s} progressive log loss {loss:.5f}")

        return fit_half_life(histories(events, model.window_ms), model, observe=told, advance=bar.update)


def _events(arguments: argparse.Namespace, settings: Settings, model: Model) -> Iterator[Event]:
    with _bar("reading", " events") as bar:
        yield from read_events(arguments.logs, model, settings.topics, bar.update, settings.kafka_options)


def _bar(what: str, unit: str, total: int | None = None) -> Any:
    """A progress bar on a terminal; nothing elsewhere."""
    return tqdm(desc=what, unit=unit, total=total, unit_scale=True, disable=None, leave=False, file=sys.stderr)


__all__ = ["LogError", "add_parsers", "run_evaluate", "run_fit"]

"""`freshet demo`: simulated users and items against Freshet, with the truth known, and so the regret of each policy."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from learner.evaluation.simulate import (
    ARRIVALS,
    CANDIDATES,
    ITEMS,
    NOMINAL,
    SHOWN,
    WIDTH,
    Catalogue,
    Slates,
    World,
    best_of,
)
from learner.model.spec import Model, load_model
from learner.policy.rule import Policy
from service.commands.command import Arguments
from service.progress import progress
from service.settings import Settings

_POLICIES: tuple[Policy, ...] = ("mean", "ucb", "thompson")
_LINE = "{:10s} {:>8s} {:>8s} {:>8s} {:>8s}   {:>16s} {:>6s}   {:>8s} {:>6s} {:>6s}"
_AGES = (("0", 0, 1), ("1-9", 1, 10), ("10-99", 10, 100), ("100 or more", 100, np.inf))
_ITEM_EFFECT = 'name = "demo"\n[features]\n[effects.item]\nhalf_life = "7d"\nprior = { variance = 0.5 }\n'
_EPILOG = f"""\
Without --service it runs in memory, in simulated time: rounds are half a day apart. With it, the same users go through
a running service, its log and its learner. Rounds are dated minutes apart, up to now, so that tastes hardly drift. To
go through Kafka and Redis:
  freshet learn & freshet serve &           # FRESHET_LOG, FRESHET_STORE say where they are
  freshet demo --service http://localhost:8000 --users 20 --rounds 20

There are {ITEMS} items at a time, {ARRIVALS} of which make way for new ones between rounds; some are met more often.
Where the model has [effects.item], each has a true effect of its own beyond its features. In memory a model without
gets one: an intercept of each item's own, with a variance of 0.5 and a half-life of 7d. A running service has its own.
To a model that refuses items without an offset they come with the log-odds of the fixed effect.

What the columns are, for each policy:
  regret            expected clicks a slate below the best {SHOWN} of {CANDIDATES} candidates: in the first tenth of the
                    rounds, from the middle on, in the last tenth, and summed over all rounds. It should fall; how far
                    shows what learning is worth, and its total what exploring cost
  predicted/actual  clicks promised for the shown slates by those that came: 1 if calibrated
  ECE               mean gap between the two over ten bins of equal count: 0 if calibrated
  log-odds, theta,  how often {NOMINAL:.0%} credible intervals hold the true log-odds of a candidate, each true
  items             coefficient of a user, and what an item truly adds (parameter recovery): {NOMINAL:.2f} if they are
                    as sure as they should be

Then the regret of the same slates, from the middle on, had they been ranked by less: by the fixed effect, which knows
no user and no item, by the user's effect too, and by the item's as well (by the mean, without exploring).

Then how new items rank against old ones, by how often an item had been shown before the round:
  best, shown       of the candidates of that age, the share that should have been shown, and that was
  p/a               predicted/actual clicks on those that were
"""


class DemoArguments(Arguments):
    """What was typed."""

    service: str | None
    users: int
    rounds: int
    pause: float
    seed: int


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Simulate users and items whose true effects follow the model's priors and drift with its "
        "half-lives; new items\ncome in, and clicks come as late as the model has it. Shows the regret of each policy, "
        "calibration, how often 90 %\ncredible intervals hold the truth, what the effect of items adds, and how new "
        "items rank against old ones."
    )
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--service", metavar="URL", help="a running service of the same model, for example started by up"
    )
    parser.add_argument("--users", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="slates of each user (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between rounds, with --service")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: %(default)s)")


def run(arguments: DemoArguments, settings: Settings, model: Model) -> int:
    """Run the simulation for every policy, and print what came of it."""
    from freshet import Client
    from service.simulation import Embedded, Freshet, Running, simulate

    learns = "the model's own effect of items"
    if model.item is None:
        learns = "they differ by their features alone, since the model has no [effects.item]"
        # Beside the papers' method, and a discount, no effect of items can be.
        if not arguments.service and model.method == "adf" and model.discount is None:
            model = replace(model, item=load_model(_ITEM_EFFECT).item)
            learns = "an intercept of each item's own, beside the model"
    print(f"{arguments.users} users, {arguments.rounds} slates each, {SHOWN} of {CANDIDATES} items shown")
    print(f"{ITEMS} items, {ARRIVALS} of them new in each round; {learns}\n")
    print(f"{'':10s} {'regret':>35s}   {'calibration':>23s}   {f'{NOMINAL:.0%} intervals hold':>22s}")
    print(
        _LINE.format(
            "policy", "first", "half", "last", "total", "predicted/actual", "ECE", "log-odds", "theta", "items"
        )
    )
    slates: dict[str, Slates] = {}
    for number, policy in enumerate(_POLICIES, start=1):
        generator = np.random.default_rng(arguments.seed)
        # Every policy meets the same users, tastes and items.
        world = World(model, arguments.users, generator)
        catalogue = Catalogue(model, world, generator)
        freshet: Freshet = Embedded(model, np.random.default_rng([arguments.seed, 1]), settings.ucb_alpha)
        name = "demo"
        if arguments.service:
            client = Client(arguments.service, settings.admin_key or settings.api_key)
            apart = max(2 * model.settle_age_ms, 60_000.0)
            freshet = Running(client, arguments.pause, apart, arguments.rounds)
            name = f"demo-{policy}-{time.time_ns()}"
        slates_of_each = arguments.rounds * arguments.users
        with progress(f"{policy}, {number} of {len(_POLICIES)}", " slates", slates_of_each) as bar:
            done = simulate(freshet, world, catalogue, policy, arguments.rounds, name, bar.update)
        slates[policy] = done.slates
        regret = done.slates.regret(done.slates.shown).reshape(arguments.rounds, arguments.users).mean(axis=1)
        tenth = max(1, arguments.rounds // 10)
        parts = (regret[:tenth], regret[len(regret) // 2 :][:tenth], regret[-tenth:])
        numbers = [f"{part.mean():.3f}" for part in parts] + [f"{regret.sum():.2f}"]
        errors = [done.slates.error, done.user_error] + ([] if model.item is None else [done.slates.item_error])
        held = [f"{np.mean(np.abs(error) <= WIDTH):.3f}" for error in errors] + ["-"] * (3 - len(errors))
        print(_LINE.format(policy, *numbers, *(f"{one:.3f}" for one in done.slates.calibration()), *held), flush=True)
    _what_each_effect_adds(slates)
    _by_age(slates)
    print("freshet demo --help says what the columns are")
    return 0


def _what_each_effect_adds(slates: Mapping[str, Slates]) -> None:
    print("\nregret of the same slates, from the middle on, had they been ranked by")
    print(f"{'policy':10s} {'fixed effect':>14s} {'and user':>14s} {'and item':>14s}")
    for policy, seen in slates.items():
        late = seen.of(slice(len(seen.truth) // 2, None))
        regrets = [late.regret(best_of(score)).mean() for score in (late.fixed, late.user, late.both)]
        print(f"{policy:10s} " + " ".join(f"{regret:14.3f}" for regret in regrets))


def _by_age(slates: Mapping[str, Slates]) -> None:
    print("\nitems by how often they had been shown before, from the middle on")
    print(f"{'':11s} " + " ".join(f"{policy:>22s}" for policy in slates))
    print(f"{'shown':11s} " + f"{'best':>8s} {'shown':>6s} {'p/a':>6s} " * len(slates))
    for name, least, most in _AGES:
        line = f"{name:11s} "
        for seen in slates.values():
            late = seen.of(slice(len(seen.truth) // 2, None))
            those = (late.age >= least) & (late.age < most)
            if those.any():
                best, shown = late.best()[those].mean(), late.shown[those].mean()
                line += f"{best:8.0%} {shown:6.0%} "
                # Of what was met there may be nothing that was shown.
                line += f"{late.of(those).calibration()[0]:6.2f} " if shown else f"{'-':>6s} "
            else:
                line += f"{'-':>8s} {'-':>6s} {'-':>6s} "
        print(line.rstrip())

"""`freshet demo`: simulated users against Freshet, with the truth known, and so the regret of each policy."""

from __future__ import annotations

import argparse
import time
from typing import get_args

import numpy as np

from learner.belief.policies import Policy
from learner.evaluation.simulate import CANDIDATES, NOMINAL, SHOWN, World
from learner.model.spec import Model
from service.commands.command import Subparsers
from service.settings import Settings

_LINE = "{:10s} {:>9s} {:>9s} {:>9s} {:>9s}   {:>16s} {:>6s}   {:>11s} {:>6s}"
_EPILOG = f"""\
Without --service it runs in memory, in simulated time: rounds are half a day apart. With it, the same users go through
a running service, its log and its learner, in real time, in which tastes hardly drift. To go through Kafka and Redis:
  freshet learn & freshet serve &           # FRESHET_LOG, FRESHET_STORE say where they are
  freshet demo --service http://localhost:8000 --users 20 --rounds 20

What the columns are, for each policy:
  regret            expected clicks a slate below the best {SHOWN} of {CANDIDATES} candidates: in the first tenth of the
                    rounds, from the middle on, in the last tenth, and summed over all rounds. It should fall; how far
                    shows what learning is worth, and its total what exploring cost
  predicted/actual  clicks promised for the shown slates by those that came: 1 if calibrated
  ECE               mean gap between the two over ten bins of equal count: 0 if calibrated
  log-odds, theta   how often {NOMINAL:.0%} credible intervals hold the true log-odds of a candidate, and each true
                    coefficient of a user (parameter recovery): {NOMINAL:.2f} if it is as sure as it should be
"""


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add `demo` to the command."""
    demo = commands.add_parser(
        "demo", help="simulated users whose tastes drift, and the regret of each policy",
        description="Simulate users whose true tastes follow the model's prior and drift with its half-life, clicks "
        "coming late as\nthe model's click delay has it. Shows the regret of each policy, calibration, and how often "
        "90 % credible intervals\nhold the truth.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    demo.add_argument("--service", metavar="URL", help="a running service of the same model, for example started by up")
    demo.add_argument("--users", type=int, default=100, help="(default: %(default)s)")
    demo.add_argument("--rounds", type=int, default=60, help="slates of each user (default: %(default)s)")
    demo.add_argument("--pause", type=float, default=0.5, help="seconds between rounds, with --service")
    demo.add_argument("--seed", type=int, default=0, help="of the simulation (default: %(default)s)")
    return demo


def run(arguments: argparse.Namespace, settings: Settings, model: Model) -> int:
    """Run the simulation for every policy, and print what came of it."""
    from service.client import Client
    from service.simulation import Embedded, Freshet, Running, simulate

    print(f"{arguments.users} users, {arguments.rounds} slates each, {SHOWN} of {CANDIDATES} items shown")
    print(f"{'':10s} {'regret':>39s}   {'calibration':>23s}   {f'{NOMINAL:.0%} intervals hold':>18s}")
    print(_LINE.format("policy", "first", "half", "last", "total", "predicted/actual", "ECE", "log-odds", "theta"))
    for policy in get_args(Policy):
        generator = np.random.default_rng(arguments.seed)
        # Every policy meets the same users and tastes.
        world = World(model, arguments.users, generator)
        freshet: Freshet = Embedded(model, np.random.default_rng([arguments.seed, 1]), settings.ucb_alpha)
        name = "demo"
        if arguments.service:
            freshet = Running(Client(arguments.service, settings.admin_key or settings.api_key), arguments.pause)
            name = f"demo-{policy}-{time.time_ns()}"
        done = simulate(freshet, world, policy, arguments.rounds, name)
        tenth = max(1, arguments.rounds // 10)
        first, last = np.mean(done.regret[:tenth]), np.mean(done.regret[-tenth:])
        half = np.mean(done.regret[len(done.regret) // 2 :][:tenth])
        numbers = [f"{one:.3f}" for one in (first, half, last)] + [f"{sum(done.regret):.2f}"]
        rates = (done.predicted / max(done.actual, 1), done.ece, done.coverage, done.recovery)
        print(_LINE.format(policy, *numbers, *(f"{one:.3f}" for one in rates)), flush=True)
    print("freshet demo --help says what the columns are")
    return 0

"""`freshet evaluate`: what freshness would have gained on a log."""

from __future__ import annotations

import argparse
import textwrap
from functools import partial, reduce
from typing import TYPE_CHECKING

from learner.evaluation.metrics import METRICS, Metric
from learner.model.spec import Model
from learner.policy.rule import Rule, parse_rule
from service.commands.logs import (
    LogArguments,
    add_arguments,
    check_items,
    check_output,
    no_slates,
    share,
    skipping,
    tables_of_logs,
    write_output,
)
from service.progress import progress
from service.settings import Settings
from service.shadows import declare_target

if TYPE_CHECKING:
    from learner.batch.raw import Skipped

# Outcomes that are replayed at a time, in memory.
_TOGETHER = 1_000_000
_EPILOG = """\
What the columns are, what a ranking page can use first:
{}

Differences are paired: the same slates, the same bootstrap samples of users. So a difference may be sure where two
values alone, whose intervals overlap, do not look it.
"""


class EvaluateArguments(LogArguments):
    """What was typed."""

    policy: Rule | None
    reward: str
    at: int | None
    clip: float

    start: float
    learnt: float
    brief: bool
    resamples: int
    json: str | None
    html: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Replay a log by its own times, score every slate before learning from it, and compare: the\n"
        "fixed effect, the prior, users frozen at the cut, learning with a lag, fresh, other attributions and\n"
        "approximations."
    )
    parser.epilog = _EPILOG.format("\n".join(map(_explained, METRICS.values())))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--from", dest="start", type=share, default=0.5, metavar="SHARE",
        help="score from behind this share of the outcomes; earlier ones are only learnt (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--learn-from", dest="learnt", type=share, default=0.0, metavar="SHARE",
        help="leave out the log before this share of its outcomes: that from which features or offsets were made, "
        "which have seen its clicks and hide what items are worth (default: %(default)s, nothing)",
    )  # fmt: skip
    parser.add_argument(
        "--policy", type=rule, metavar="NAME[:PARAMETER=VALUE,…]",
        help="instead, estimate what this policy would have earned on slates that say with what chance they were "
        "shown: mean, ucb:alpha=1, thompson, epsilon-greedy:epsilon=0.1 or plackett-luce:temperature=1, each also "
        "with epsilon=…, top_k=… and, where the model has an explore.category, max_per_category=…",
    )  # fmt: skip
    parser.add_argument(
        "--reward", choices=("clicks", "reward"), default="clicks",
        help="with --policy: what is earned, clicks or what they say as their `reward` (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--at", type=places, metavar="K", help="with --policy: only the first K places count")
    parser.add_argument(
        "--clip", type=weight, default=float("inf"), metavar="WEIGHT",
        help="with --policy: no weight counts for more than this (default: none is clipped)",
    )  # fmt: skip
    parser.add_argument("--brief", action="store_true", help="leave out other attributions and approximations")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers")
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page with plots")
    declare_target(parser)
    add_arguments(parser)


def run(arguments: EvaluateArguments, settings: Settings, model: Model) -> int:
    """Replay, print the table and write what was asked for."""
    import numpy as np

    from learner.batch.collect import cut_at, extent
    from learner.evaluation.compare import Extent, Part, results, variants
    from learner.evaluation.page import as_html
    from learner.evaluation.parts import replay_events
    from learner.evaluation.report import Evaluation, as_json, as_text
    from service.commands.evaluate_policy import evaluate_policy
    from service.static_files import REPORT_SCRIPTS, REPORT_STYLES, head

    check_output("--json", arguments.json)
    check_output("--html", arguments.html)
    check_items(arguments, model)
    if arguments.learnt > arguments.start:
        raise ValueError(f"--learn-from {arguments.learnt}: expected at most --from, {arguments.start}")
    skipped = skipping(arguments)
    policy = arguments.policy
    if policy is not None and policy.max_per_category and model.categories is None:
        raise ValueError(f"--policy {policy.name}: max_per_category: expected a model with explore.category")
    with tables_of_logs(arguments, settings, model, skipped, with_told=policy is not None) as tables:
        cut_ms, learnt_ms = cut_at(tables, arguments.start), cut_at(tables, arguments.learnt)
        since_ms = int(learnt_ms) if np.isfinite(learnt_ms) else 0
        slates, _ = extent(tables, int(max(cut_ms, since_ms)))
        if not slates:
            raise no_slates(arguments, skipped)
        _, outcomes = extent(tables, since_ms)
        # What is known of an item is from all users.
        n_parts = 1 if model.item is not None else 1 + outcomes // _TOGETHER
        if policy is not None:
            evaluate_policy(policy, arguments, model, tables, n_parts, since_ms, cut_ms, slates)
            _say(skipped)
            return 0
        ways = variants(model, cut_ms, not arguments.brief)
        of_part = partial(replay_events, model=model, ways=ways, cut_ms=cut_ms, seed=arguments.seed)
        with progress("replaying", " slates", len(ways) * slates) as bar:
            parts: list[Part] = list(tables.histories(n_parts, since_ms, of_part, bar.update))
    compared = results(parts, [way.name for way in ways], arguments.resamples, arguments.seed)
    whole = reduce(Extent.and_of, (part.whole for part in parts))
    scored = reduce(Extent.and_of, (part.scored for part in parts))
    source = settings.prior or model.prior_file or "as the model states it"
    prior = f"{source}, fingerprint {model.population_fingerprint.hex()}"
    done = Evaluation(model.name, prior, arguments.typed, whole, scored, compared)
    print(as_text(done))
    if arguments.json:
        write_output("--json", arguments.json, as_json(done).encode())
    if arguments.html:
        write_output("--html", arguments.html, as_html(done, head(REPORT_STYLES, REPORT_SCRIPTS)).encode())
    _say(skipped)
    return 0


def _say(skipped: Skipped | None) -> None:
    if skipped is not None:
        print(skipped)


def rule(text: str) -> Rule:
    """The type of an option that is a policy."""
    try:
        return parse_rule(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def places(text: str) -> int:
    """The type of an option that is a number of places.

    >>> places("3")
    3
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def weight(text: str) -> float:
    """The type of an option that is a weight.

    >>> weight("50")
    50.0
    """
    number = float(text)
    if not number > 0.0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return number


def _explained(metric: Metric) -> str:
    return textwrap.fill(metric.meaning, 118, initial_indent=f"  {metric.title:18s}", subsequent_indent=" " * 20)

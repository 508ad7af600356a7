"""`freshet evaluate`: what freshness would have gained on a log."""

from __future__ import annotations

import argparse
import textwrap

from learner.evaluation.metrics import METRICS, Metric
from learner.events.microbatch import Microbatch, is_of_item, joined
from learner.model.spec import Model
from learner.policy.rule import Rule, parse_rule
from service.commands.logs import LogArguments, add_arguments, check_output, events_of, share, skipping, write_output
from service.progress import progress
from service.settings import Settings

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
        "with epsilon=… and top_k=…",
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
    add_arguments(parser)


def run(arguments: EvaluateArguments, settings: Settings, model: Model) -> int:
    """Replay, print the table and write what was asked for."""
    import numpy as np

    from learner.batch.reading import LogError
    from learner.batch.users import chosen
    from learner.evaluation.compare import cut_at, evaluate, extent, variants
    from learner.evaluation.history import read_log
    from learner.evaluation.off_policy import judge
    from learner.evaluation.page import as_html
    from learner.evaluation.policies import weigh
    from learner.evaluation.policy_report import PolicyReport, policy_as_json, policy_as_text
    from learner.evaluation.report import Evaluation, as_json, as_text
    from service.static_files import REPORT_SCRIPTS, REPORT_STYLES, head

    def sampled(batch: Microbatch) -> Microbatch:
        return batch.only(lambda user_id: is_of_item(user_id) or chosen(user_id, arguments.sample, arguments.seed))

    check_output("--json", arguments.json)
    check_output("--html", arguments.html)
    skipped = skipping(arguments)
    with events_of(arguments, settings, model, skipped) as batches:
        log = read_log(joined(map(sampled, batches), model.width), model.window_ms, model.by_item)
    if arguments.learnt > arguments.start:
        raise ValueError(f"--learn-from {arguments.learnt}: expected at most --from, {arguments.start}")
    cut_ms, learnt_ms = cut_at(log, arguments.start), cut_at(log, arguments.learnt)
    if np.isfinite(learnt_ms):
        log = read_log(log.batch.only(lambda user_id: True, since_ms=learnt_ms), model.window_ms, model.by_item)
    ways = variants(model, cut_ms, not arguments.brief)
    slates = log.n_slates(cut_ms)
    if not slates:
        after = f"; {skipped}" if skipped else ""
        raise LogError(f"{' '.join(arguments.logs)}: no slates to score in it: expected impressions{after}")
    if arguments.policy is not None:
        with progress("replaying", " slates", slates) as bar:
            seen = weigh(
                model, log, arguments.policy, arguments.reward, arguments.at, cut_ms, arguments.seed, bar.update
            )
        found = judge(seen.weighed, arguments.clip, arguments.resamples, arguments.seed)
        told = PolicyReport(arguments.policy, arguments.reward, arguments.at, arguments.typed, seen, found)
        print(policy_as_text(told))
        if arguments.json:
            write_output("--json", arguments.json, policy_as_json(told).encode())
        if skipped is not None:
            print(skipped)
        return 0
    with progress("replaying", " slates", len(ways) * slates) as bar:
        results = evaluate(log, ways, cut_ms, arguments.resamples, arguments.seed, bar.update)
    source = settings.prior or model.prior_file or "as the model states it"
    prior = f"{source}, fingerprint {model.population_fingerprint.hex()}"
    done = Evaluation(model.name, prior, arguments.typed, extent(log), extent(log, cut_ms), results)
    print(as_text(done))
    if arguments.json:
        write_output("--json", arguments.json, as_json(done).encode())
    if arguments.html:
        write_output("--html", arguments.html, as_html(done, head(REPORT_STYLES, REPORT_SCRIPTS)).encode())
    if skipped is not None:
        print(skipped)
    return 0


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

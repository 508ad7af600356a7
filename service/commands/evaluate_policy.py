"""`freshet evaluate --policy`: what another policy would have earned on a log."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from learner.batch import sql
from learner.evaluation.off_policy import judge
from learner.evaluation.policies import together, weigh_events
from learner.evaluation.policy_report import PolicyReport, policy_as_json, policy_as_text
from learner.model.spec import Model
from learner.policy.rule import Rule
from service.commands.logs import write_output
from service.progress import progress

if TYPE_CHECKING:
    from learner.batch.collect import Engine
    from service.commands.evaluate import EvaluateArguments


def evaluate_policy(
    policy: Rule,
    arguments: EvaluateArguments,
    model: Model,
    tables: Engine,
    n_parts: int,
    since_ms: int,
    cut_ms: float,
    slates: int,
) -> None:
    """Weigh the slates of a log in parts of its users, and print what the policy would have earned.

    Parameters
    ----------
    since_ms, cut_ms
        From when on events count, and from when on slates, epoch ms.
    slates
        How many these are.
    """
    of_part = partial(
        weigh_events, model=model, rule=policy, reward=arguments.reward, top=arguments.at, score_from_ms=cut_ms,
        seed=arguments.seed,
    )  # fmt: skip
    with progress("replaying", " slates", slates) as bar:
        parts = list(tables.histories(n_parts, since_ms, of_part, bar.update))
    seen = together(parts, [str(one) for one in tables.query(sql.in_order(since_ms)).column("whose").to_pylist()])
    found = judge(seen.weighed, arguments.clip, arguments.resamples, arguments.seed)
    told = PolicyReport(policy, arguments.reward, arguments.at, arguments.typed, seen, found)
    print(policy_as_text(told))
    if arguments.json:
        write_output("--json", arguments.json, policy_as_json(told).encode())

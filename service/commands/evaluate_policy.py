"""`freshet evaluate --policy`: what another policy would have earned on a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.batch.raw import Skipped
from learner.batch.users import chosen
from learner.evaluation.compare import cut_at
from learner.evaluation.history import read_log
from learner.evaluation.off_policy import judge
from learner.evaluation.policies import weigh
from learner.evaluation.policy_report import PolicyReport, policy_as_json, policy_as_text
from learner.events.microbatch import Microbatch, is_of_item, joined
from learner.model.spec import Model
from learner.policy.rule import Rule
from service.commands.logs import events_of, no_slates, write_output
from service.progress import progress
from service.settings import Settings

if TYPE_CHECKING:
    from service.commands.evaluate import EvaluateArguments


def evaluate_policy(
    policy: Rule, arguments: EvaluateArguments, settings: Settings, model: Model, skipped: Skipped | None
) -> int:
    """Weigh what was logged, print what the policy would have earned; the whole log is in memory."""

    def sampled(batch: Microbatch) -> Microbatch:
        return batch.only(lambda user_id: is_of_item(user_id) or chosen(user_id, arguments.sample, arguments.seed))

    with events_of(arguments, settings, model, skipped) as batches:
        log = read_log(joined(map(sampled, batches), model.width), model.window_ms, model.by_item)
    cut_ms, learnt_ms = cut_at(log, arguments.start), cut_at(log, arguments.learnt)
    if learnt_ms > 0:
        log = read_log(log.batch.only(lambda user_id: True, since_ms=learnt_ms), model.window_ms, model.by_item)
    slates = log.n_slates(cut_ms)
    if not slates:
        raise no_slates(arguments, skipped)
    with progress("replaying", " slates", slates) as bar:
        seen = weigh(model, log, policy, arguments.reward, arguments.at, cut_ms, arguments.seed, bar.update)
    found = judge(seen.weighed, arguments.clip, arguments.resamples, arguments.seed)
    told = PolicyReport(policy, arguments.reward, arguments.at, arguments.typed, seen, found)
    print(policy_as_text(told))
    if arguments.json:
        write_output("--json", arguments.json, policy_as_json(told).encode())
    if skipped is not None:
        print(skipped)
    return 0

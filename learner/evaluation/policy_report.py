"""What an off-policy evaluation says, in words and as JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from learner.evaluation.metrics import Estimate
from learner.evaluation.off_policy import ESTIMATORS, LEAST_ESS, Judged, supported
from learner.evaluation.policies import Slates
from learner.policy.rule import Rule


class PolicyReport(NamedTuple):
    """What was asked, what is known of the slates, and what each estimator says."""

    rule: Rule
    reward: str
    top: int | None
    command: str
    slates: Slates
    judged: Mapping[str, Judged]


def policy_as_text(report: PolicyReport) -> str:
    """A table, and what its numbers rest on."""
    slates, weighed = report.slates, report.slates.weighed
    earned, n = weighed.reward.sum(axis=1), len(weighed.user)
    where = "a slate" if report.top is None else f"the first {report.top} places of a slate"
    sure = supported(weighed)
    lines = [
        f"{_said(report.rule)}: {report.reward} in {where}, of which {earned.mean():.4f} came as it was shown",
        "",
        f"{'':36s} {'estimate':>26s} {'more than came':>28s} {'ESS':>9s} {'largest weight':>15s} {'clipped':>8s}",
    ]
    for name, one in report.judged.items():
        value, gain = _interval(one.value, ""), _interval(one.gain, "+")
        if one.value is None:
            value, gain = "not estimable", f"ESS below {LEAST_ESS:.0f}"
        ess = f"{one.ess:9,.0f} {one.largest:15.2f} {one.clipped:8.1%}"
        lines.append(f"{ESTIMATORS[name]:36s} {value:>26s} {gain:>28s} {ess}")
    lines += [
        "",
        f"slates          {slates.n:,}, of which {n:,} are weighed, of {len(np.unique(weighed.user)):,} users; "
        f"{slates.unsaid:,} do not say with what chance they were shown",
        f"no support      {slates.unsupported / max(slates.n, 1):.1%} of slates were shown with no chance; "
        f"{slates.impossible / n:.1%} of the others begin as the policy never would",
        f"mean weight     {sure.value:.3f} [{sure.low:.3f}, {sure.high:.3f}] at the first place: {_of_support(sure)}",
        "intervals       95 %, bootstrapped over users; of differences, paired",
        f"command         {report.command}",
    ]
    return "\n".join(lines)


def policy_as_json(report: PolicyReport) -> str:
    """Every number; null for what is not estimable."""
    slates = report.slates
    document: dict[str, Any] = {
        "policy": report.rule._asdict(),
        "reward": report.reward,
        "at": report.top,
        "command": report.command,
        "came": float(slates.weighed.reward.sum(axis=1).mean()),
        "slates": {
            "all": slates.n,
            "weighed": len(slates.weighed.user),
            "without_propensity": slates.unsaid,
            "without_support": slates.unsupported,
            "begin_as_never": slates.impossible,
        },
        "mean_weight": supported(slates.weighed)._asdict(),
        "estimators": {
            name: {
                "value": None if one.value is None else one.value._asdict(),
                "gain": None if one.gain is None else one.gain._asdict(),
                "ess": one.ess,
                "largest_weight": one.largest,
                "clipped": one.clipped,
            }
            for name, one in report.judged.items()
        },
    }
    return msgspec.json.format(msgspec.json.encode(document)).decode()


def _said(rule: Rule) -> str:
    parameters = {"ucb": f", alpha {rule.alpha:g}", "plackett-luce": f", temperature {rule.temperature:g}"}
    explored = f", epsilon {rule.epsilon:g} at the first {rule.top_k} places" if rule.epsilon else ""
    diverse = f", at most {rule.max_per_category} of a category there" if rule.max_per_category else ""
    return f"{rule.name}{parameters.get(rule.name, '')}{explored}{diverse}"


def _interval(estimate: Estimate | None, sign: str) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "-"
    return f"{estimate.value:{sign}.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _of_support(sure: Estimate) -> str:
    if sure.high >= 1.0:
        return "nothing says that the log could not have shown what the policy would"
    return f"some {1.0 - sure.value:.0%} of what the policy would show there could not have been shown, and is left out"

"""`freshet check`: the model and the settings, and whether log and store are as they need to be."""

from __future__ import annotations

import argparse
import os

from learner.belief.gaussian import factorised
from learner.limits import MAX_RECORD_BYTES
from learner.model.duration import HalfLife
from learner.model.spec import Model
from service.commands.command import SQLITE_FILE, Subparsers
from service.environment import service_links
from service.footprint import told
from service.settings import Settings, describe


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add `check` to the command."""
    parser = commands.add_parser(
        "check", help="print the model and the settings, and look at log and store",
        description="Read the model and the settings as the other commands would, and print them with secrets hidden, "
        "with the bytes of a user's record and about how long an outcome takes to be learnt. A model whose records "
        f"would have more than {MAX_RECORD_BYTES >> 20} MiB is refused, here as by every command. "
        "Then connect to the log and the store and say, a line each, whether they are as docs/guarantees.md needs "
        "them: topics, dead letter topics, numbers of partitions, eviction, persistence, the API key. Changes nothing. "
        "Exit status 1 if anything failed.",
    )  # fmt: skip
    parser.add_argument("--offline", action="store_true", help="only print; connect to nothing")
    parser.add_argument("--file", help=SQLITE_FILE)
    return parser


def run(arguments: argparse.Namespace, settings: Settings, model: Model) -> int:
    """Print both, and what was found."""
    print(check_text(settings, model), end="", flush=True)
    if arguments.offline:
        return 0
    from service.verification import status_of, verify

    findings = []
    print("found")
    for finding in verify(settings, model):
        print(f"  {finding}", flush=True)
        findings.append(finding)
    return status_of(findings)


def check_text(settings: Settings, model: Model) -> str:
    """The settings, secrets hidden, and the model, for people."""
    half_life = HalfLife(model.half_life_ms, model.half_life_outcomes)
    forgets = f"half_life = {half_life}" if any(half_life) else "never"
    if model.discount is not None:
        forgets = f"keeps {model.discount:g} of the evidence per microbatch"
    delay = "a missing click means no at once"
    if model.click_delay is not None:
        delay = f"median {model.click_delay[0] / 1000:g} s, sigma {model.click_delay[1]:g}"
    covariance = "diagonal" if model.prior.is_diagonal else "full"
    lines = [
        "settings",
        *(f"  {name}={value}" for name, value in describe(settings).items()),
        *(f"  passed over {name}: a service link of Kubernetes" for name in service_links(os.environ)),
        f"model {model.name!r}, fingerprint {model.fingerprint.hex()}, prior {model.population_fingerprint.hex()}",
        f"  method        {model.method}, {covariance} covariance, {model.d} coefficients",
        f"  users         {told(model)}",
        f"  forgetting    {forgets}",
        f"  items         {_items(model)}",
        f"  attribution   window {model.window_ms / 60_000:g} min, click delay: {delay}",
        f"  offsets       one that is missing: {_missing_offset(model)}",
        f"  coefficients  {', '.join(model.coefficients)}",
    ]
    return "\n".join(lines) + "\n"


def _items(model: Model) -> str:
    if (item := model.item) is None:
        return "not learnt"
    half_life = HalfLife(item.half_life_ms, item.half_life_outcomes)
    variance = factorised(item.prior).variances[0]
    prior = f"prior {item.population_fingerprint.hex()}, variance of the intercept {variance:.4g}"
    return f"{prior}, half_life = {half_life}; {told(item)}"


def _missing_offset(model: Model) -> str:
    if model.missing_offset == "refuse":
        return "the item is refused"
    if model.missing_offset == "mean":
        return f"the mean, {model.mean_offset:.4g}"
    return "x'b of the fixed effect" if model.fixed_effect.any() else "0, since no fixed effect was fitted"

"""`freshet check`: the model and the settings, and whether log and store are as they need to be."""

from __future__ import annotations

import argparse
import os
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from learner.events.wire import BadEvent
from learner.limits import MAX_RECORD_BYTES
from learner.model.duration import HalfLife
from learner.model.encoding import Encoder
from learner.model.spec import Model
from service.commands.command import SQLITE_FILE, Arguments
from service.environment import describe, service_links
from service.footprint import told
from service.settings import Settings
from service.shadows import declare_shadow

if TYPE_CHECKING:
    from learner.batch.raw import Raw

SAMPLED, READ_TO_SUGGEST, ITEMS_TO_SUGGEST = 100, 10_000, 100_000


class CheckArguments(Arguments):
    """What was typed."""

    sample: str | None
    suggest: str | None
    items: str | None
    offline: bool
    file: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Read the model and the settings as the other commands would, and print them with secrets hidden, "
        "with the bytes of a user's record and about how long an outcome takes to be learnt. A model whose records "
        f"would have more than {MAX_RECORD_BYTES >> 20} MiB is refused, here as by every command. "
        "Then connect to the log and the store and say, a line each, whether they are as docs/guarantees.md needs "
        "them: topics, dead letter topics, numbers of partitions, eviction, persistence, the API key. Changes nothing. "
        "Exit status 1 if anything failed. With --sample it looks at events instead, and says what the model makes of "
        "them; with --suggest it writes a model for events that have none yet."
    )
    parser.add_argument(
        "--sample", metavar="SOURCE",
        help=f"read the first {SAMPLED} records of a file, of a topic of FRESHET_LOG by its name, or of a log by its "
        "URL, and say for each path of [events] what it found, and what would be refused and why; no values are shown. "
        "Exit status 1 if anything would be",
    )  # fmt: skip
    parser.add_argument(
        "--suggest", metavar="SOURCE",
        help=f"read up to {READ_TO_SUGGEST:,} records, and print a model.toml for them: a mapping, and features with "
        "their kinds, means and values. Read it before you use it, and try it with --sample",
    )  # fmt: skip
    parser.add_argument(
        "--items", metavar="TABLE",
        help="with --suggest: a table of items, as `freshet items import` takes it; its columns become features of the "
        f"catalog. Up to {ITEMS_TO_SUGGEST:,} rows are read",
    )  # fmt: skip
    declare_shadow(parser)
    parser.add_argument("--offline", action="store_true", help="only print; connect to nothing")
    parser.add_argument("--file", help=SQLITE_FILE)


def run(arguments: CheckArguments, settings: Settings, model: Model) -> int:
    """Print both, and what was found."""
    if arguments.items is not None and arguments.suggest is None:
        raise ValueError("--items: expected --suggest with it")
    if arguments.suggest is not None:
        return _suggest(arguments.suggest, arguments.items, settings, model)
    if arguments.sample is not None:
        return _sample(arguments.sample, settings, model)
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


def _sample(source: str, settings: Settings, model: Model) -> int:
    from service.sample import described

    report, n_refused = described(_records(source, SAMPLED, settings, model), model)
    print(report, end="")
    return 1 if n_refused else 0


def _suggest(source: str, items: str | None, settings: Settings, model: Model) -> int:
    import msgspec

    from learner.batch.items import read_cells
    from learner.batch.raw import Reached
    from learner.limits import UNREADABLE
    from service.suggestion import suggest

    events = []
    for raw in _records(source, READ_TO_SUGGEST, settings, model):
        with suppress(*UNREADABLE):
            events.append(msgspec.json.decode(raw.value if isinstance(raw.value, bytes) else b""))
    table = [] if items is None else list(islice(read_cells(items, Reached()), ITEMS_TO_SUGGEST))
    if items is not None and not table:
        raise ValueError(f"{items}: no rows to look at")
    print(suggest(events, source, table, items or ""), end="")
    return 0


def _records(source: str, most: int, settings: Settings, model: Model) -> list[Raw]:
    """The first records of a source, as they stand there."""
    from learner.batch.raw import Raw
    from learner.batch.sources import raw_events

    topics = settings.topics
    if "://" not in source and not Path(source).exists():
        source, topics = settings.log, [source]
    with closing(raw_events(source, model, topics, settings.kafka_options, as_bytes=True)) as raws:
        found = [_unframed(raw, model) for raw in islice(raws, most) if isinstance(raw, Raw)]
    if not found:
        raise ValueError(f"{source}: no records to look at")
    return found


def _unframed(raw: Raw, model: Model) -> Raw:
    """With JSON in the place of what has a schema registry's framing."""
    if model.unframed is None or not isinstance(raw.value, bytes):
        return raw
    try:
        return raw._replace(value=model.unframed(raw.value))
    except BadEvent as exc:
        return raw._replace(value=exc)


def check_text(settings: Settings, model: Model) -> str:
    """The settings, secrets hidden, and the model, for people."""
    half_life = HalfLife(model.half_life_ms, model.half_life_outcomes)
    forgets = f"half_life = {half_life}" if any(half_life) else "never"
    if model.discount is not None:
        forgets = f"keeps {model.discount:g} of the evidence per microbatch"
    delay = "a missing click means no at once"
    if model.click_delay is not None:
        delay = f"median {model.click_delay[0] / 1000:g} s, sigma {model.click_delay[1]:g}"
    lines = [
        "settings",
        *(f"  {name}={value}" for name, value in describe(settings).items()),
        *(f"  passed over {name}: a service link of Kubernetes" for name in service_links(os.environ)),
        f"model {model.name!r}, fingerprint {model.fingerprint.hex()}, prior {model.population_fingerprint.hex()}",
        f"  method        {model.method}, {model.prior.form} covariance, {model.d} coefficients",
        f"  users         {told(model)}",
        f"  forgetting    {forgets}",
        f"  items         {_items(model)}",
        *([f"  encoder       {_encoder(model.encoder)}"] if model.encoder is not None else []),
        f"  attribution   window {model.window_ms / 60_000:g} min, click delay: {delay}",
        f"  offsets       one that is missing: {_missing_offset(model)}",
        f"  events        {_events(model)}",
        f"  coefficients  {', '.join(model.coefficients)}",
    ]
    return "\n".join(lines) + "\n"


def _items(model: Model) -> str:
    if (item := model.item) is None:
        return "not learnt"
    half_life = HalfLife(item.half_life_ms, item.half_life_outcomes)
    variance = item.prior.variances[0]
    prior = f"prior {item.population_fingerprint.hex()}, variance of the intercept {variance:.4g}"
    return f"{prior}, half_life = {half_life}; {told(item)}"


def _encoder(encoder: Encoder) -> str:
    makes = f"{encoder.d} numbers{' and the offset' if encoder.has_offset else ''}"
    read = ", ".join(f"{one.name} ({one.kind})" for one in encoder.inputs)
    kept = "; kept by item" if encoder.keeps else ""
    return f"{encoder.hash}: {makes} of {read}; about {encoder.us_per_item:.2g} us an item, of a hundred{kept}"


def _events(model: Model) -> str:
    if (events := model.events) is None:
        return "of our shape"
    told = "what has items is an impression" if events.type is None else f"told apart by {events.type}"
    slow = "" if model.foreign is not None else "; read slowly, since a path leads to what must be of two types"
    return f"of our shape, or as [events] says: {told}{slow}"


def _missing_offset(model: Model) -> str:
    if model.encoder is not None and model.encoder.has_offset:
        return "the encoder's"
    if model.missing_offset == "refuse":
        return "the item is refused"
    if model.missing_offset == "mean":
        return f"the mean, {model.mean_offset:.4g}"
    return "x'b of the fixed effect" if model.fixed_effect.any() else "0, since no fixed effect was fitted"

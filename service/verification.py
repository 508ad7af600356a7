"""What `freshet check` finds where a deployment would run, a line for each thing that a guarantee needs. Only reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from learner.events.alike import read_alike
from learner.log import DEAD_LETTER_SUFFIX
from learner.model.spec import Model
from learner.store import StoreUnavailable, open_store
from learner.store.owner import WrongStore, difference, owner_in, owner_of, require_same
from service.dead_letters import MARKS_SUFFIX
from service.environment import hide_password
from service.eviction import forgets, redis_info
from service.footprint import advice, footprint
from service.settings import Settings
from service.shadows import read_shadows

ANSWER_TIMEOUT_MS = 5_000
# A dead letter is its event with headers.
HEADERS_BYTES = 1_024
FORMATS_WITHOUT_HEADERS = ("0.8", "0.9", "0.10")


class Verdict(StrEnum):
    """How it stands with one thing."""

    OK = "ok"
    WARNING = "warning"
    """Works, and some promise does not hold."""
    FAILED = "FAILED"


class Finding(NamedTuple):
    """One line: what was looked at, and what there is."""

    verdict: Verdict
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:8} {self.subject:13} {self.text}"


def verify(settings: Settings, model: Model) -> Iterator[Finding]:
    """Look at the model, the API key, the log and the store, in this order; each line as soon as it is known."""
    source = settings.prior or model.prior_file or "the specification"
    yield _ok("model", f"{model.name!r}, {model.d} coefficients, prior from {source}")
    for effect in (model, model.item):
        if effect is not None and (cheaper := advice(effect)):
            much = f"{footprint(effect).record:,} bytes for every {effect.key}'s belief"
            yield _warning("covariance", f"{effect.prior.form} of {effect.d:,} coefficients takes {much}; {cheaper}")
    yield _api_key(settings)
    yield from _log(settings)
    yield from _store(settings, model)
    if model.experiment is not None:
        arms = ", ".join(f"{name} {arm.share:g}" for name, arm in model.experiment.arms.items())
        yield _ok("experiment", f"{model.experiment.name!r}: {arms}")
        if not model.quality:
            yield _warning("experiment", "nothing is told of its arms where quality.users is 0")
    for shadow in read_shadows(settings, model):
        yield _ok("shadow", f"{shadow.name!r}, {shadow.d} coefficients")
        if read_alike(model, shadow):
            yield _ok("shadow", f"{shadow.name!r} reads events as {model.name!r} does: they are read once for both")
        else:
            yield _warning("shadow", f"{shadow.name!r} has other features or rules: events are read for it once more")
        if not settings.store.startswith("sqlite://"):
            yield _owner(settings, shadow, shadow.name)


def _ok(subject: str, text: str) -> Finding:
    return Finding(Verdict.OK, subject, text)


def _warning(subject: str, text: str) -> Finding:
    return Finding(Verdict.WARNING, subject, text)


def _failed(subject: str, text: str) -> Finding:
    return Finding(Verdict.FAILED, subject, text)


def _api_key(settings: Settings) -> Finding:
    if settings.api_key:
        return _ok("API key", "set")
    if _is_loopback(settings.host):
        return _ok("API key", f"not set: whoever is on this machine may use {settings.host}")
    return _failed("API key", f"not set: whoever reaches {settings.host} may erase users; set FRESHET_API_KEY_FILE")


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _log(settings: Settings) -> Iterator[Finding]:
    if not settings.log.startswith("kafka://"):
        yield _sqlite("log", settings.log)
        return
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    servers = settings.log.removeprefix("kafka://").removesuffix("/").split(",")
    try:
        with closing(
            KafkaAdminClient(
                bootstrap_servers=servers,
                bootstrap_timeout_ms=ANSWER_TIMEOUT_MS,
                request_timeout_ms=ANSWER_TIMEOUT_MS,
                **settings.kafka_options,
            )
        ) as admin:
            yield _ok("log", f"{settings.log} answers")
            yield from _topics(settings, admin)
    except (KafkaError, OSError, ValueError) as exc:
        yield _failed("log", f"{hide_password(settings.log)}: {type(exc).__name__}: {exc}")


def _topics(settings: Settings, admin: Any) -> Iterator[Finding]:
    letters = [topic + DEAD_LETTER_SUFFIX for topic in settings.topics]
    marks = [topic + MARKS_SUFFIX for topic in settings.topics]
    found = {
        one["name"]: len(one["partitions"])
        for one in admin.describe_topics([*settings.topics, *letters, *marks])
        if one["error_code"] == 0
    }
    makes_topics = _setting(admin, "BROKER", _broker(admin), "auto.create.topics.enable") == "true"

    def missing(name: str, cost: str, needed: bool) -> Finding:
        if makes_topics:
            return _warning("topic", f"{name} does not exist; Kafka will make it with its own number of partitions")
        return (_failed if needed else _warning)("topic", f"{name} does not exist: {cost}")

    for topic in settings.topics:
        if topic in found:
            yield _ok("topic", f"{topic}: {found[topic]} partitions")
        else:
            yield missing(topic, "nothing can be learnt from it, or sent to it", True)
    of_users = settings.topics_of_users
    if len(partitions := {found[topic] for topic in of_users if topic in found}) > 1:
        yield _failed(
            "partitions",
            f"{' and '.join(of_users)} have {' and '.join(map(str, sorted(partitions)))}: a user's impressions "
            "and clicks would go to different learners; make them equal, or use one topic for both",
        )
    for topic, letter, mark in zip(settings.topics, letters, marks, strict=True):
        if letter not in found:
            yield missing(letter, "a learner stops at the first bad event of its topic", True)
        elif topic in found:
            yield _size(admin, topic, letter)
        if mark not in found:
            yield missing(mark, "`freshet replay-dlq` needs it; create it with cleanup.policy=compact", False)


def _size(admin: Any, topic: str, letter: str) -> Finding:
    """Whether a dead letter topic takes headers, and what its topic takes beside them."""
    # Brokers before 4.0 have it.
    written_as = _setting(admin, "TOPIC", letter, "message.format.version")
    if written_as is not None and written_as.startswith(FORMATS_WITHOUT_HEADERS):
        return _failed(
            "dead letters",
            f"{letter} has message.format.version {written_as}, which has no headers: a learner stops at the first bad "
            "event; set it to 0.11.0 or later",
        )
    taken, wanted = (_setting(admin, "TOPIC", one, "max.message.bytes") for one in (letter, topic))
    if taken is None or wanted is None:
        return _warning("dead letters", f"{letter}: this account may not see max.message.bytes")
    if int(taken) < int(wanted) + HEADERS_BYTES:
        return _warning(
            "dead letters",
            f"{letter} takes {taken} bytes, {topic} {wanted}: the largest letters go without their bodies; set its "
            f"max.message.bytes to {int(wanted) + HEADERS_BYTES} or more",
        )
    return _ok("dead letters", f"{letter}: up to {taken} bytes")


def _broker(admin: Any) -> str:
    # By what it was told at its start: of brokers before 3.7 kafka-python's `describe_cluster` ends in a KeyError.
    return str(next(iter(admin._manager.cluster.brokers())).node_id)


def _setting(admin: Any, kind: str, name: str, setting: str) -> str | None:
    """A setting of a topic or broker; None for an account that may not see it."""
    from kafka.admin import ConfigResource

    told = admin.describe_configs([ConfigResource(kind, name, [setting])], config_filter="all")
    value = told.get(kind.lower(), {}).get(name, {}).get(setting)
    return None if value is None else str(value["value"])


def _store(settings: Settings, model: Model) -> Iterator[Finding]:
    if settings.store.startswith("sqlite://"):
        yield _sqlite("store", settings.store)
        return
    place = hide_password(settings.store)
    try:
        nodes = redis_info(settings)
    except StoreUnavailable as exc:
        yield _failed("store", f"{place}: {exc}")
        return
    yield _ok("store", f"{place} answers")
    if not nodes:
        yield _warning("eviction", "this account may not ask for INFO; maxmemory-policy must be noeviction")
    for at, told in nodes:
        yield from _redis_findings(at, told)
    yield _owner(settings, model)


def _owner(settings: Settings, model: Model, shadow: str = "") -> Finding:
    """Whose records the store has."""
    ours = owner_of(model, settings.group)
    try:
        with closing(open_store(settings.store_url, **settings.store_options, shadow=shadow)) as store:
            held = owner_in(store)
        if held is None:
            return _ok("owner", "no learner has begun on this store yet")
        require_same(held, ours)
    except (StoreUnavailable, WrongStore) as exc:
        return _failed("owner", str(exc))
    if differing := difference(held, ours):
        return _warning("owner", f"the learner that started last has other settings: {differing}")
    return _ok("owner", f"model {held.model!r}, learnt by group {held.group!r}")


def _redis_findings(at: str, told: Mapping[str, Any]) -> Iterator[Finding]:
    evicted = int(told.get("evicted_keys", 0))
    if "maxmemory_policy" not in told:
        yield _warning("eviction", f"{at}this account may not see maxmemory-policy; it must be noeviction")
    elif why := forgets(told):
        yield _failed("eviction", f"{at}{why}")
    elif evicted:
        yield _warning("eviction", f"{at}noeviction, but {evicted:,} keys were evicted since Redis started")
    else:
        yield _ok("eviction", f"{at}maxmemory-policy noeviction")
    if not int(told.get("aof_enabled", 0)):
        yield _warning("persistence", f"{at}appendonly is off: a crash of Redis loses what was learnt since its last "
                       "snapshot; set appendonly yes")  # fmt: skip
    elif told.get("aof_last_write_status", "ok") != "ok":
        yield _failed("persistence", f"{at}the append-only file cannot be written")
    else:
        yield _ok("persistence", f"{at}appendonly yes")


def _sqlite(subject: str, url: str) -> Finding:
    path = Path(url.removeprefix("sqlite:///"))
    if not path.exists():
        if path.parent.is_dir():
            return _ok(subject, f"{path} does not exist yet and will be made")
        return _failed(subject, f"{path}: no such folder")
    try:
        # Only reads: nothing is made of an empty file.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as exc:
        return _failed(subject, f"{path}: {exc}")
    return _ok(subject, f"{path} can be read")


def status_of(findings: Sequence[Finding]) -> int:
    """The exit status of a command that found this: 1 if something failed."""
    return int(any(one.verdict is Verdict.FAILED for one in findings))

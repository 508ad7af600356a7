"""Settings: one frozen object, read once from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec

PREFIX = "FRESHET_"
DAY_S = 86_400
SECRETS = frozenset({"api_key", "redis_password", "kafka_sasl_password", "kafka_ssl_password"})

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


class SettingsError(ValueError):
    """A setting is wrong; the message names the variable and what was expected, and never a secret's value."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings, each from ``FRESHET_<NAME>``; a secret may stand in the file that ``FRESHET_<NAME>_FILE`` names.

    Attributes
    ----------
    model
        Path of the model specification; empty: the sample model.
    prior
        Path of a prior that `freshet fit` wrote; empty: the one that the model names, if any.
    store, log
        ``redis://…`` or ``sqlite:///path``; ``kafka://host:port,…`` or ``sqlite:///path``.
    redis_password
        Where the store's URL has none.
    ttl_days
        Days after its last write at which a user's record expires.
    tombstone_days
        The same for users who were ever erased: longer than the log can be replayed. 0: for ever.
    impressions_topic, clicks_topic, group
        What learners read, and their consumer group. One topic for both types keeps the order of a user's events.
    kafka_security_protocol, kafka_sasl_mechanism, kafka_sasl_username, kafka_sasl_password
        ``PLAINTEXT``, ``SSL``, ``SASL_PLAINTEXT`` or ``SASL_SSL``; ``PLAIN``, ``SCRAM-SHA-256`` or ``SCRAM-SHA-512``.
    kafka_ssl_cafile, kafka_ssl_certfile, kafka_ssl_keyfile, kafka_ssl_password
        PEM files: whom to trust (empty: whom the system trusts), and a certificate of our own with its key.
    kafka_session_timeout_ms
        After which a learner that died has its partitions given to others.
    unreadable
        What a learner does where the log cannot be read (a corrupt batch, an unknown codec): ``wait`` there with that
        partition, or ``skip`` it with a dead letter without body.
    loss_acknowledged
        Until when events that were lost to retention are known: ISO 8601 with a zone, as ``2026-11-26T03:00:00Z``.
        Those found later make a learner not ready.
    max_batch, poll_timeout_ms
        The largest microbatch of a learner, and how long it waits for one.
    stalled_after_s
        How long a learner may take for a turn, or take nothing while there is something to learn, and still be ready.
    host, port, learner_port
        Where the service listens, and where a learner answers health and metrics (0: nowhere).
    api_key
        What clients must send as ``X-API-Key``; empty: nothing.
    ucb_alpha
        Standard deviations of optimism of the policy ``ucb``.
    store_timeout_s
        How long one round trip to the store may take.
    request_timeout_s
        How long a client may take to send a request, from its first byte to its last, or to read on in its answer.
    keep_alive_s
        After how long an idle connection is closed; longer than a load balancer in front keeps its own.
    max_concurrency
        Requests of one route that are worked on or wait at a time; more are answered 503. Health is not counted.
    log_format, log_level
        ``auto`` (readable on a terminal, else JSON), ``json`` or ``text``; the least severe level that is logged.
    """

    model: str = ""
    prior: str = ""
    store: str = "redis://127.0.0.1:6379/0"
    log: str = "kafka://127.0.0.1:9092"
    redis_password: str = ""
    ttl_days: PositiveInt = 180
    tombstone_days: Annotated[int, msgspec.Meta(ge=0)] = 0
    impressions_topic: str = "events"
    clicks_topic: str = "events"
    group: str = "freshet"
    kafka_security_protocol: str = "PLAINTEXT"
    kafka_sasl_mechanism: str = ""
    kafka_sasl_username: str = ""
    kafka_sasl_password: str = ""
    kafka_ssl_cafile: str = ""
    kafka_ssl_certfile: str = ""
    kafka_ssl_keyfile: str = ""
    kafka_ssl_password: str = ""
    kafka_session_timeout_ms: PositiveInt = 10_000
    unreadable: Annotated[str, msgspec.Meta(pattern="^(wait|skip)$")] = "wait"
    loss_acknowledged: Annotated[datetime, msgspec.Meta(tz=True)] = datetime(1970, 1, 1, tzinfo=UTC)
    max_batch: PositiveInt = 1_000
    poll_timeout_ms: PositiveInt = 200
    stalled_after_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    host: str = "127.0.0.1"
    port: Port = 8000
    learner_port: Port = 8001
    api_key: str = ""
    ucb_alpha: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    store_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    request_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    keep_alive_s: PositiveInt = 75
    max_concurrency: PositiveInt = 128
    log_format: Annotated[str, msgspec.Meta(pattern="^(auto|json|text)$")] = "auto"
    log_level: Annotated[str, msgspec.Meta(pattern="^(debug|info|warning|error)$")] = "info"

    @property
    def topics(self) -> list[str]:
        """What a learner reads."""
        return list(dict.fromkeys([self.impressions_topic, self.clicks_topic]))

    @property
    def store_url(self) -> str:
        """The store with its password put in."""
        if not self.redis_password:
            return self.store
        parts = urlsplit(self.store)
        user = parts.username or ""
        place = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{user}:{quote(self.redis_password, safe='')}@{place}"))

    @property
    def store_options(self) -> dict[str, Any]:
        """What `open_store` needs besides the address."""
        return {
            "ttl_s": self.ttl_days * DAY_S,
            "timeout_s": self.store_timeout_s,
            "tombstone_ttl_s": self.tombstone_days * DAY_S,
        }

    @property
    def kafka_options(self) -> dict[str, Any]:
        """What kafka-python needs besides the address; nothing for a plain connection."""
        options = {
            "security_protocol": self.kafka_security_protocol,
            "sasl_mechanism": self.kafka_sasl_mechanism,
            "sasl_plain_username": self.kafka_sasl_username,
            "sasl_plain_password": self.kafka_sasl_password,
            "ssl_cafile": self.kafka_ssl_cafile,
            "ssl_certfile": self.kafka_ssl_certfile,
            "ssl_keyfile": self.kafka_ssl_keyfile,
            "ssl_password": self.kafka_ssl_password,
        }
        return {name: value for name, value in options.items() if value and value != "PLAINTEXT"}

    @property
    def reader_options(self) -> dict[str, Any]:
        """What a Kafka consumer needs besides."""
        timeout = self.kafka_session_timeout_ms
        # Three heartbeats may be lost before a learner counts as dead.
        kafka = {**self.kafka_options, "session_timeout_ms": timeout, "heartbeat_interval_ms": max(1, timeout // 4)}
        return {"skip_unreadable": self.unreadable == "skip", **kafka}


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings.

    Parameters
    ----------
    environ
        Variables by name, as in `os.environ`.

    Raises
    ------
    SettingsError
        If a value has the wrong type or range, a ``_FILE`` cannot be read, or a variable with the prefix is unknown.
    """
    values: dict[str, str] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name.endswith("_file") and name not in Settings.__struct_fields__:
            name = name.removesuffix("_file")
            try:
                value = Path(value).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise SettingsError(f"{variable} = {value!r}: cannot be read: {exc}") from exc
        if name not in Settings.__struct_fields__:
            known = ", ".join(PREFIX + field.upper() for field in Settings.__struct_fields__)
            raise SettingsError(f"{variable}: no such setting; there are: {known}")
        if name in values:
            raise SettingsError(f"{PREFIX}{name.upper()} and {PREFIX}{name.upper()}_FILE: expected one of the two")
        values[name] = value
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as exc:
        what, _, path = str(exc).partition(" - at `$.")
        name = path.rstrip("`")
        shown = "(secret)" if name in SECRETS else repr(values.get(name))
        raise SettingsError(f"{PREFIX}{name.upper()} = {shown}: {what[:1].lower()}{what[1:]}") from exc


def describe(settings: Settings) -> dict[str, str]:
    """Each setting as text, with secrets hidden."""
    shown = {}
    for name in Settings.__struct_fields__:
        value = str(getattr(settings, name))
        if name in SECRETS:
            value = "(set)" if value else "(not set)"
        shown[PREFIX + name.upper()] = hide_password(value) if "://" in value else value
    return shown


def hide_password(url: str) -> str:
    """A URL with its passwords, if any, replaced by stars."""
    parts = urlsplit(url)
    # redis-py takes them there too: ?password=, ?ssl_password=
    parts = parts._replace(query=re.sub(r"(password=)[^&]*", r"\1***", parts.query))
    if parts.password is None:
        return urlunsplit(parts)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{place}"))

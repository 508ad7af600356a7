"""Settings: one frozen object, which `service.environment` reads once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec

DAY_S = 86_400
SECRETS = frozenset({"api_key", "admin_key", "redis_password", "kafka_sasl_password", "kafka_ssl_password"})

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
    shadow
        Paths of specifications, by commas, of models that learn and score beside the first, each with its own records
        and its own prior, named in it. The same for learners and scorers.
    experiment
        Path of an experiment's TOML: arms by share of users, each with a policy, a model or neither. The same for
        learners and scorers; empty: there is none.
    prior
        Path of a prior that `freshet fit` wrote; empty: the one that the model names, if any.
    store
        ``redis://…``, ``rediss://…``, either with ``+cluster``, or ``sqlite:///path``.
    log
        ``kafka://host:port,…`` or ``sqlite:///path``.
    redis_password
        Where the store's URL has none.
    key_prefix
        What every key in Redis begins with: deployments that share a Redis need different ones.
    ttl_days
        Days after its last write at which a record expires, unless the `max_age` of its effect says when.
    tombstone_days
        The same for users who were ever erased: longer than the log can be replayed. 0: for ever.
    impressions_topic, clicks_topic
        What learners read, and where `POST /events` puts events of each type. One topic for both keeps the
        order of a user's events.
    items_topic
        The same of events about items; not set: with impressions. It may be compacted: a null removes the key's item.
    group
        The learners' consumer group.
    kafka_security_protocol
        ``PLAINTEXT``, ``SSL``, ``SASL_PLAINTEXT`` or ``SASL_SSL``.
    kafka_sasl_mechanism
        ``PLAIN``, ``SCRAM-SHA-256`` or ``SCRAM-SHA-512``.
    kafka_sasl_username, kafka_sasl_password
        The account.
    kafka_ssl_cafile
        PEM file with whom to trust; empty: whom the system trusts.
    kafka_ssl_certfile, kafka_ssl_keyfile, kafka_ssl_password
        PEM files with a certificate of our own and its key, and the key's password.
    schemas
        Of Avro, JSON and Protobuf behind a registry's framing: its URL, or a folder of ``<id>.avsc``, ``<id>.json`` or
        ``<id>.desc``, or one ``.avsc``.
    kafka_session_timeout_ms
        After which a learner that died has its partitions given to others.
    unreadable
        What a learner does where the log cannot be read (a corrupt batch, an unknown codec): ``wait`` there with that
        partition, or ``skip`` it with a dead letter without body.
    loss_acknowledged
        Until when events that were lost to retention are known: ISO 8601 with a zone, as ``2026-11-26T03:00:00Z``.
        Those found later make a learner not ready.
    max_batch
        The largest microbatch of a learner, in messages; 2 MiB of them end it sooner, or 32 MiB of users' records.
    max_slates_per_minute
        How many slates of one user are learnt in a minute, the others being dead-lettered as ``too_busy``; 0: all.
    poll_timeout_ms
        How long a learner waits for one.
    stalled_after_s
        How long a learner may take for a turn, or take nothing while there is something to learn, and still be ready.
    host, port
        The address that the service and a learner listen on, and where the service does.
    learner_port
        Where a learner answers health and metrics; 0: nowhere.
    api_key
        What clients must send as ``X-API-Key``; not set: nothing.
    admin_key
        The only key that opens what is neither scoring, ingest, metrics nor quality: erasure, `PUT /items`, posteriors,
        the model. It opens all else too. Not set: `api_key` opens every route.
    cors_origins
        Whose web pages may call the service: origins such as ``https://shop.example``, by commas, or ``*``.
    ucb_alpha
        Standard deviations of optimism of the policy ``ucb``.
    store_timeout_s
        How long one round trip to the store may take.
    encoder_threads
        How many threads of a process run a model's encoder at a time, in the scorer and in the learner.
    item_cache_ms
        How long a scorer remembers the beliefs of items; 0: it reads them for every request.
    impression_timeout_s, score_unlogged
        How long `POST /score` waits for the log to take the impression of `log_impression`; and whether it answers with
        ``"logged": false`` when that is over, in the place of 503.
    request_timeout_s
        How long a client may take to send a request, from its first byte to its last, or to read on in its answer.
    keep_alive_s
        After how long an idle connection is closed; longer than a load balancer in front keeps its own.
    max_concurrency
        Requests of one route that are worked on or wait at a time; more are answered 503. Health is not counted.
    log_format
        ``auto``: readable on a terminal, else JSON.
    log_level
        The least severe level that is logged.
    """

    model: str = ""
    shadow: str = ""
    experiment: str = ""
    prior: str = ""
    store: str = "redis://127.0.0.1:6379/0"
    log: str = "kafka://127.0.0.1:9092"
    redis_password: str = ""
    key_prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] = "freshet"
    ttl_days: PositiveInt = 180
    tombstone_days: Annotated[int, msgspec.Meta(ge=0)] = 0
    impressions_topic: str = "events"
    clicks_topic: str = "events"
    items_topic: str = ""
    group: str = "freshet"
    kafka_security_protocol: str = "PLAINTEXT"
    kafka_sasl_mechanism: str = ""
    kafka_sasl_username: str = ""
    kafka_sasl_password: str = ""
    kafka_ssl_cafile: str = ""
    kafka_ssl_certfile: str = ""
    kafka_ssl_keyfile: str = ""
    kafka_ssl_password: str = ""
    schemas: str = ""
    kafka_session_timeout_ms: PositiveInt = 10_000
    unreadable: Annotated[str, msgspec.Meta(pattern="^(wait|skip)$")] = "wait"
    loss_acknowledged: Annotated[datetime, msgspec.Meta(tz=True)] = datetime(1970, 1, 1, tzinfo=UTC)
    max_batch: PositiveInt = 1_000
    max_slates_per_minute: Annotated[int, msgspec.Meta(ge=0)] = 0
    poll_timeout_ms: PositiveInt = 200
    stalled_after_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    host: str = "127.0.0.1"
    port: Port = 8000
    learner_port: Port = 8001
    api_key: str = ""
    admin_key: str = ""
    cors_origins: str = ""
    ucb_alpha: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    store_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    encoder_threads: PositiveInt = 1
    item_cache_ms: Annotated[int, msgspec.Meta(ge=0)] = 1_000
    impression_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    score_unlogged: bool = False
    request_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    keep_alive_s: PositiveInt = 75
    max_concurrency: PositiveInt = 128
    log_format: Annotated[str, msgspec.Meta(pattern="^(auto|json|text)$")] = "auto"
    log_level: Annotated[str, msgspec.Meta(pattern="^(debug|info|warning|error)$")] = "info"

    @property
    def topics(self) -> list[str]:
        """What a learner reads."""
        return list(dict.fromkeys([*self.topics_of_users, self.topic_of_items]))

    @property
    def topics_of_users(self) -> list[str]:
        """Those that are keyed by user."""
        return list(dict.fromkeys([self.impressions_topic, self.clicks_topic]))

    @property
    def topic_of_items(self) -> str:
        """Where events about items go."""
        return self.items_topic or self.impressions_topic

    @property
    def shadows(self) -> list[str]:
        """`shadow`, one by one."""
        return [path.strip() for path in self.shadow.split(",") if path.strip()]

    @property
    def allowed_origins(self) -> list[str]:
        """`cors_origins`, one by one."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

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
            "key_prefix": self.key_prefix,
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
        return {"skip_unreadable": self.unreadable == "skip", "items_topic": self.items_topic, **kafka}

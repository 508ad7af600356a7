"""Which versions of a model have learnt into a store: what their records mean, and which of them is in force.

Every shard keeps every version, and is told of one before it gets a record of it: whatever a shard steps back to, it
knows the versions that its records were learnt under. Of a model's versions the one that was registered last is in
force: its learners bring records of the others over as they read them, and those of the others stop.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import inf
from typing import NamedTuple

import msgspec
import numpy as np

from learner.belief.gaussian import Array, Gaussian
from learner.belief.population import Population
from learner.model.effect import Effect, Origin, mark_of
from learner.model.file import ModelFile
from learner.model.space import Space
from learner.model.spec import Model
from learner.store import Store

REGISTERED_EVERY_S = 5.0


class ModelReplaced(ValueError):
    """Another version of the model is in force: this one must not learn."""


class IndistinctVersions(ValueError):
    """Two versions have the same mark in records."""


class Learnt(msgspec.Struct, frozen=True, array_like=True):
    """What records of one effect mean: feature space, prior and fixed effect, arrays as compressed float64."""

    fingerprint: bytes
    population_fingerprint: bytes
    space: Space
    diagonal: bool
    mean: bytes
    cov: bytes
    fixed_effect: bytes

    def origin(self) -> Origin:
        """As `learner.record` wants it."""
        mean, cov, fixed_effect = map(_unpacked, (self.mean, self.cov, self.fixed_effect))
        d = len(mean)
        shape = (d, d) if not self.diagonal and cov.size == d * d else cov.shape
        return Origin(self.space, Population(Gaussian(mean, cov.reshape(shape)), fixed_effect))


class Version(msgspec.Struct, frozen=True):
    """One version of a model.

    Attributes
    ----------
    name, model
        Of the version, from fingerprints; of the model.
    number
        Rises with every version that comes into force.
    registered_at
        When, epoch ms.
    specification
        `model.toml`, as it was read.
    effects
        By key, ``user`` and perhaps ``item``.
    """

    name: str
    model: str
    number: int
    registered_at: int
    specification: ModelFile
    effects: dict[str, Learnt]


class Known(NamedTuple):
    """All versions that a store knows, oldest first, and whether each of its shards knows all of them as they are."""

    versions: list[Version]
    everywhere: bool


def known(store: Store) -> Known:
    """Ask a store."""
    shards = store.versions()
    found: dict[str, Version] = {}
    # Mostly all shards say the same.
    for name, data in dict.fromkeys(entry for shard in shards for entry in shard.items()):
        version = msgspec.json.decode(zlib.decompress(data), type=Version)
        if name not in found or found[name].number < version.number:
            found[name] = version
    return Known(sorted(found.values(), key=lambda one: one.number), all(shard == shards[0] for shard in shards))


def in_force(versions: list[Version], model: str) -> Version | None:
    """The version of a model that was registered last; None if none was."""
    return max((one for one in versions if one.model == model), key=lambda one: one.number, default=None)


def put_in_force(store: Store, version: Version, versions: list[Version], now: int) -> Version:
    """Register a version, perhaps again, as the last one; `now` is epoch ms."""
    number = 1 + max((one.number for one in versions), default=0)
    version = msgspec.structs.replace(version, number=number, registered_at=now)
    _tell(store, version)
    return version


class Versions:
    """The versions of a model that a store knows, for those who read its records.

    Parameters
    ----------
    store, model
        What is known fills the `known` of the model's effects.
    learns
        Whether records are written: then only while the version is in force.
    clock
        Epoch seconds.
    """

    def __init__(
        self, store: Store, model: Model, learns: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._model, self._learns, self._clock = store, model, learns, clock
        self._mine = version_of(model)
        self._registered_at = -inf

    def register(self, take_over: bool = False) -> None:
        """Have every shard know this version, before any record of it; in force, if it is new.

        Parameters
        ----------
        take_over
            Whether it is to come into force again where another has followed it.

        Raises
        ------
        ModelReplaced, IndistinctVersions
            If another version has followed it, or records of two versions cannot be told apart.
        StoreUnavailable
            As the store does.
        """
        versions, everywhere = known(self._store)
        mine = next((one for one in versions if one.name == self._mine.name), None)
        if mine is None or (take_over and in_force(versions, mine.model) != mine):
            versions.append(put_in_force(self._store, self._mine, versions, int(self._clock() * 1000)))
        elif not everywhere:
            # A shard has stepped back, or lost everything.
            for version in versions:
                _tell(self._store, version)
        self._take(versions)
        self._require_in_force(versions)

    def keep_up(self, take_over: bool = False) -> None:
        """As `register`, at once and then every `REGISTERED_EVERY_S` seconds.

        One whose partitions are not those of the version that has followed it meets no record of that.
        """
        now = time.monotonic()
        if now - self._registered_at >= REGISTERED_EVERY_S:
            self.register(take_over)
            self._registered_at = now

    def look(self) -> bool:
        """Read what others have registered meanwhile; whether there is any.

        Raises
        ------
        ModelReplaced
            If another version has come into force, and this one learns.
        StoreUnavailable
            As the store does.
        """
        versions = known(self._store).versions
        if self._learns:
            self._require_in_force(versions)
        return self._take(versions)

    def _take(self, versions: list[Version]) -> bool:
        effects: list[Effect] = [self._model, *([] if self._model.item is None else [self._model.item])]
        new = False
        for effect in effects:
            for learnt in (one.effects[effect.key] for one in versions if effect.key in one.effects):
                mark = mark_of(learnt.fingerprint, learnt.population_fingerprint)
                if (found := effect.origin(mark)) is None:
                    effect.known[mark] = learnt.origin()
                    new = True
                elif found.population.fingerprint != learnt.population_fingerprint:
                    raise IndistinctVersions(
                        f"records of two versions of model {self._model.name!r} cannot be told apart, as happens once "
                        "in 17 million pairs: expected another number somewhere in the prior of the newer one"
                    )
        return new

    def _require_in_force(self, versions: list[Version]) -> None:
        last = in_force(versions, self._mine.model)
        if last is not None and last.name != self._mine.name:
            when = datetime.fromtimestamp(last.registered_at / 1000, UTC).isoformat(timespec="seconds")
            raise ModelReplaced(
                f"model {last.model!r}, version {self._mine.name}, was replaced by version {last.name}, registered "
                f"{when}: expected that model.toml and prior; to go back, `freshet models --use {self._mine.name}`"
            )


def version_of(model: Model) -> Version:
    """A model as the store is to know it, not registered yet."""
    effects: Mapping[str, Effect] = {one.key: one for one in (model, model.item) if one is not None}
    learnt = {
        key: Learnt(
            one.fingerprint, one.population_fingerprint, one.space, one.prior.is_diagonal, _packed(one.prior.mean),
            _packed(one.prior.cov), _packed(one.fixed_effect),
        )
        for key, one in effects.items()
    }  # fmt: skip
    said = b"".join(one.fingerprint + one.population_fingerprint for one in learnt.values())
    name = hashlib.blake2b(said, digest_size=4).hexdigest()
    return Version(name, model.name, 0, 0, model.specification, learnt)


def _tell(store: Store, version: Version) -> None:
    store.keep_version(version.name, zlib.compress(msgspec.json.encode(version)))


def _packed(numbers: Array) -> bytes:
    return zlib.compress(numbers.astype("<f8").tobytes())


def _unpacked(data: bytes) -> Array:
    return np.frombuffer(zlib.decompress(data), "<f8").astype(np.float64)

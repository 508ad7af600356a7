"""The file that `freshet fit` writes: a prior learnt from a log, and what was learnt beside it.

A NumPy ``.npz`` without pickle: arrays and one JSON header. It carries the populations that came before it, so that
records written under one of them can be re-based when they are read.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Gaussian, blocks
from learner.belief.population import Population
from learner.model.crowd import Crowd
from learner.model.duration import HalfLife, ModelError
from learner.model.effect import Effect
from learner.model.kind import Found
from learner.model.position import Examination
from learner.model.space import Space

VERSION = 6
# What the names of arrays of the effect of items begin with.
_ITEM = "item_"
_FIXED_EFFECT_COV = "fixed_effect_cov"
# Sums over users, each an array of its own.
_SUMS = ("step", "squares", "covariances")


class _Version(msgspec.Struct, frozen=True):
    """What the JSON part of every version has."""

    version: int


class _EffectHeader(msgspec.Struct, frozen=True):
    """The JSON part of one effect."""

    feature_space: str
    space: Space
    population: str
    earlier: int
    half_life: HalfLife | None


class _Header(_EffectHeader, frozen=True, kw_only=True):
    """The JSON part of the file."""

    version: int
    model: str
    click_delay: tuple[float, float] | None
    found: dict[str, Found]
    mean_offset: float | None
    item: _EffectHeader | None = None
    examination: Examination | None = None
    users: float | None = None
    log_likelihood: float | None = None


@dataclass(frozen=True)
class Evidence:
    """How much a prior was fitted on: what the next one, from a later log alone, stands on.

    Attributes
    ----------
    users
        All that it was fitted on, under the population that was found.
    fixed_effect_cov
        The covariance of the fixed effect around its mode, shape (width, width), or the inverse of the precisions,
        shape (width,); None where none was fitted.
    """

    users: Crowd
    fixed_effect_cov: Array | None = None


@dataclass(frozen=True, kw_only=True)
class EffectPrior:
    """What was learnt of an effect.

    Attributes
    ----------
    feature_space, space
        Of the effect it was fitted for: fingerprint, and what its columns mean.
    population
        The prior and the fixed effect.
    earlier
        The populations that came before, oldest first.
    half_life
        None leaves the model's; one without time and outcomes never forgets.
    """

    feature_space: bytes
    space: Space
    population: Population
    earlier: tuple[Population, ...] = ()
    half_life: HalfLife | None = None


@dataclass(frozen=True, kw_only=True)
class PriorFile(EffectPrior):
    """What was learnt from a log. As that of an effect it is that of users.

    Attributes
    ----------
    model_name
        Of the model it was fitted for.
    click_delay
        Median in ms and sigma; None leaves the model's.
    found
        By feature, the numbers that the model leaves to `freshet fit`: ``mean`` and ``std``, or ``edges``. With them it
        has the feature space that the prior is of.
    mean_offset
        The mean of the log's offsets; None if it has none, which leaves the model's.
    item
        That of the effect of items; None leaves the model's. A model that learns no items does without it.
    examination
        How likely items are looked at, by rank; None leaves the model's, which stays where that is ``none``.
    evidence
        How much it was fitted on; None where that is not known.
    """

    model_name: str
    click_delay: tuple[float, float] | None = None
    found: Mapping[str, Found] = field(default_factory=dict)
    mean_offset: float | None = None
    item: EffectPrior | None = None
    examination: Examination | None = None
    evidence: Evidence | None = None


def fitted_prior(effect: Effect, population: Population, half_life: HalfLife | None) -> EffectPrior:
    """What was fitted with the effect's own population in force, which it knows as an earlier one."""
    earlier = (*effect.earlier, effect.population)
    return EffectPrior(
        feature_space=effect.fingerprint, space=effect.space, population=population, earlier=earlier,
        half_life=half_life,
    )  # fmt: skip


def encode_prior(prior: PriorFile) -> bytes:
    """The bytes of the file; the same prior always gives the same bytes.

    Raises
    ------
    ModelError
        If a number is not finite, or the click delay or half-life not positive: no reader would take it.
    """
    if flaw := _flaw(prior):
        raise ModelError(f"prior of model {prior.model_name!r}: {flaw}")
    header = _Header(
        *_facts(prior), version=VERSION, model=prior.model_name, click_delay=prior.click_delay,
        found=dict(prior.found), mean_offset=prior.mean_offset, examination=prior.examination,
        item=None if prior.item is None else _EffectHeader(*_facts(prior.item)),
        users=None if prior.evidence is None else prior.evidence.users.n,
        log_likelihood=None if prior.evidence is None else prior.evidence.users.evidence,
    )  # fmt: skip
    arrays: dict[str, NDArray[Any]] = {"header": np.frombuffer(msgspec.json.encode(header), np.uint8)}
    if (evidence := prior.evidence) is not None:
        arrays |= {f"users_{name}": getattr(evidence.users, name) for name in _SUMS}
        if evidence.fixed_effect_cov is not None:
            arrays[_FIXED_EFFECT_COV] = evidence.fixed_effect_cov
    for name, effect in _effects(prior).items():
        for i, one in enumerate([*effect.earlier, effect.population]):
            parts = (("mean", one.prior.mean), ("cov", one.prior.cov), ("fixed_effect", one.fixed_effect))
            arrays |= {f"{name}{part}_{i}": numbers for part, numbers in parts}
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    return out.getvalue()


def decode_prior(data: bytes, source: str = "prior.npz") -> PriorFile:
    """Read the file.

    Raises
    ------
    ModelError
        If it is not such a file, of a later version, or altered; the message names `source`.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            written = arrays["header"].tobytes()
            if (version := msgspec.json.decode(written, type=_Version).version) != VERSION:
                raise ModelError(
                    f"prior {source!r}: format version {version}, this release reads {VERSION}: expected a file that "
                    "its own `freshet fit` wrote"
                )
            header = msgspec.json.decode(written, type=_Header)
            user = _decoded(header, arrays, "")
            item = None if header.item is None else _decoded(header.item, arrays, _ITEM)
            evidence = _evidence(header, user.population.prior, arrays)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, msgspec.MsgspecError) as exc:
        if isinstance(exc, ModelError):
            raise
        raise ModelError(f"prior {source!r}: is not a file that `freshet fit` wrote: {exc}") from exc
    prior = PriorFile(
        **vars(user),
        model_name=header.model, click_delay=header.click_delay, found=header.found,
        mean_offset=header.mean_offset, item=item, examination=header.examination, evidence=evidence,
    )  # fmt: skip
    for effect, expected in zip(_effects(prior).values(), (header, header.item), strict=False):
        if expected is not None and effect.population.fingerprint.hex() != expected.population:
            raise ModelError(
                f"prior {source!r}: its numbers do not have the fingerprint {expected.population}; is it damaged?"
            )
    if flaw := _flaw(prior):
        raise ModelError(f"prior {source!r}: {flaw}")
    return prior


def _effects(prior: PriorFile) -> dict[str, EffectPrior]:
    return {"": prior} if prior.item is None else {"": prior, _ITEM: prior.item}


def _facts(effect: EffectPrior) -> tuple[str, Space, str, int, HalfLife | None]:
    """The fields of an `_EffectHeader`."""
    population = effect.population.fingerprint.hex()
    return effect.feature_space.hex(), effect.space, population, len(effect.earlier), effect.half_life


def _decoded(header: _EffectHeader, arrays: Mapping[str, Array], name: str) -> EffectPrior:
    *earlier, population = (_population(arrays, name, i, header.space.d) for i in range(header.earlier + 1))
    return EffectPrior(
        feature_space=bytes.fromhex(header.feature_space),
        space=header.space,
        population=population,
        earlier=tuple(earlier),
        half_life=header.half_life,
    )


def _evidence(header: _Header, population: Gaussian, arrays: Mapping[str, Array]) -> Evidence | None:
    if header.users is None or header.log_likelihood is None:
        return None
    sums = (arrays[f"users_{name}"] for name in _SUMS)
    return Evidence(Crowd(population, header.users, header.log_likelihood, *sums), arrays.get(_FIXED_EFFECT_COV))


def _population(arrays: Mapping[str, Array], name: str, i: int, d: int) -> Population:
    mean, cov, fixed_effect = (arrays[f"{name}{part}_{i}"] for part in ("mean", "cov", "fixed_effect"))
    blocks(cov, d)
    if mean.shape != (d,) or fixed_effect.ndim != 1 or len(fixed_effect) < d:
        raise ValueError(f"arrays of {mean.shape} and {cov.shape} for {d} coefficients")
    return Population(Gaussian(mean, cov), fixed_effect)


def _flaw(prior: PriorFile) -> str | None:
    """Why nothing can be learnt under a prior; None if it can."""
    positive = {"click_delay": prior.click_delay or (), "examination": prior.examination or ()}
    for of, effect in _effects(prior).items():
        for one in (*effect.earlier, effect.population):
            if not all(np.isfinite(part).all() for part in (one.prior.mean, one.prior.cov, one.fixed_effect)):
                return "its mean, covariance or fixed effect is not finite"
        positive[f"{of}half_life"] = tuple(one for one in effect.half_life or () if one is not None)
    if prior.item is not None and prior.item.population.prior.mean.any():
        return "its mean of items is not 0: expected 0, since their level is that of users"
    for name, numbers in positive.items():
        if not all(np.isfinite(number) and number > 0 for number in numbers):
            return f"{name} = {numbers}: expected positive numbers"
    if prior.mean_offset is not None and not np.isfinite(prior.mean_offset):
        return f"mean_offset = {prior.mean_offset}: expected a finite number"
    if (evidence := prior.evidence) is not None:
        cov = evidence.fixed_effect_cov
        users, population = evidence.users, prior.population.prior
        if not all(np.isfinite(one).all() for one in users[1:]) or users.n <= 0.0:
            return f"users = {users.n}: expected how many there were, and finite sums over them"
        if users.step.shape != population.mean.shape or {users.squares.shape, users.covariances.shape} != {
            population.cov.shape
        }:
            return f"sums over users of shape {users.squares.shape}: expected {population.cov.shape}"
        width = len(prior.population.fixed_effect)
        if cov is not None and (cov.shape not in {(width,), (width, width)} or not np.isfinite(cov).all()):
            return f"fixed_effect_cov of shape {cov.shape}: expected finite numbers for {width} coefficients"
    for feature, found in prior.found.items():
        if not all(np.isfinite(one).all() for one in found.values()):
            return f"found of {feature!r} = {found}: expected finite numbers"
    return None

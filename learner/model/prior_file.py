"""The file that `freshet fit` writes: a prior learnt from a log, and what was learnt beside it.

A NumPy ``.npz`` without pickle: arrays and one JSON header. It carries the populations that came before it, so that
records written under one of them can be re-based when they are read.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Gaussian
from learner.belief.population import Population
from learner.model.duration import HalfLife, ModelError
from learner.model.spec import Model

VERSION = 2


class _Version(msgspec.Struct, frozen=True):
    """What the JSON part of every version has."""

    version: int


class _Header(_Version, frozen=True):
    """The JSON part of the file."""

    model: str
    feature_space: str
    coefficients: list[str]
    population: str
    earlier: int
    click_delay: tuple[float, float] | None
    half_life: HalfLife | None
    scaling: dict[str, tuple[float, float]]
    mean_offset: float | None


@dataclass(frozen=True)
class PriorFile:
    """What was learnt from a log.

    Attributes
    ----------
    model_name, feature_space, coefficients
        Of the model it was fitted for: name, fingerprint, and the d names.
    population
        The prior and the fixed effect.
    earlier
        The populations that came before, oldest first.
    click_delay
        Median in ms and sigma; None leaves the model's.
    half_life
        None leaves the model's; one without time and outcomes never forgets.
    scaling
        Mean and standard deviation seen of each numeric feature: a recommendation for the next `model.toml`. Nothing
        else depends on it, since a prior with full covariance takes up any change of scale.
    mean_offset
        The mean of the log's offsets; None if it has none, which leaves the model's.
    """

    model_name: str
    feature_space: bytes
    coefficients: tuple[str, ...]
    population: Population
    earlier: tuple[Population, ...] = ()
    click_delay: tuple[float, float] | None = None
    half_life: HalfLife | None = None
    scaling: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    mean_offset: float | None = None


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
        VERSION,
        prior.model_name,
        prior.feature_space.hex(),
        list(prior.coefficients),
        prior.population.fingerprint.hex(),
        len(prior.earlier),
        prior.click_delay,
        prior.half_life,
        dict(prior.scaling),
        prior.mean_offset,
    )
    arrays: dict[str, NDArray[Any]] = {"header": np.frombuffer(msgspec.json.encode(header), np.uint8)}
    for i, one in enumerate([*prior.earlier, prior.population]):
        arrays |= {f"mean_{i}": one.prior.mean, f"cov_{i}": one.prior.cov, f"fixed_effect_{i}": one.fixed_effect}
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
                raise ModelError(f"prior {source!r}: format version {version}, this release reads {VERSION}")
            header = msgspec.json.decode(written, type=_Header)
            populations = [_population(arrays, i, len(header.coefficients)) for i in range(header.earlier + 1)]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, msgspec.MsgspecError) as exc:
        if isinstance(exc, ModelError):
            raise
        raise ModelError(f"prior {source!r}: is not a file that `freshet fit` wrote: {exc}") from exc
    if populations[-1].fingerprint.hex() != header.population:
        raise ModelError(
            f"prior {source!r}: its numbers do not have the fingerprint {header.population}; is it damaged?"
        )
    prior = PriorFile(
        header.model,
        bytes.fromhex(header.feature_space),
        tuple(header.coefficients),
        populations[-1],
        tuple(populations[:-1]),
        header.click_delay,
        header.half_life,
        header.scaling,
        header.mean_offset,
    )
    if flaw := _flaw(prior):
        raise ModelError(f"prior {source!r}: {flaw}")
    return prior


def with_prior(model: Model, prior: PriorFile, source: str = "prior.npz") -> Model:
    """The model with what was learnt from a log in the place of what its specification says.

    Raises
    ------
    ModelError
        If the prior is of another feature space, or has a half-life and the model a discount; the message names what
        differs.
    """
    if prior.feature_space != model.fingerprint:
        raise ModelError(f"prior {source!r}: fitted for another feature space: {_difference(model, prior)}")
    if prior.half_life is not None and model.discount is not None:
        raise ModelError(
            f"prior {source!r}: has half_life = {prior.half_life}, and model {model.name!r} discount = "
            f"{model.discount}: expected at most one of the two"
        )
    half_life = prior.half_life
    if half_life is None:
        half_life = HalfLife(model.half_life_ms, model.half_life_outcomes)
    known = {one.fingerprint: one for one in (*model.earlier, model.population, *prior.earlier)}
    known.pop(prior.population.fingerprint, None)
    return replace(
        model,
        prior=prior.population.prior,
        fixed_effect=prior.population.fixed_effect,
        earlier=tuple(known.values()),
        click_delay=prior.click_delay or model.click_delay,
        half_life_ms=half_life.ms,
        half_life_outcomes=half_life.outcomes,
        mean_offset=model.mean_offset if prior.mean_offset is None else prior.mean_offset,
    )


def _population(arrays: Mapping[str, Array], i: int, d: int) -> Population:
    mean, cov, fixed_effect = arrays[f"mean_{i}"], arrays[f"cov_{i}"], arrays[f"fixed_effect_{i}"]
    if mean.shape != (d,) or fixed_effect.ndim != 1 or len(fixed_effect) < d or cov.shape not in {(d,), (d, d)}:
        raise ValueError(f"arrays of {mean.shape} and {cov.shape} for {d} coefficients")
    return Population(Gaussian(mean, cov), fixed_effect)


def _flaw(prior: PriorFile) -> str | None:
    """Why nothing can be learnt under a prior; None if it can."""
    for one in (*prior.earlier, prior.population):
        if not all(np.isfinite(part).all() for part in (one.prior.mean, one.prior.cov, one.fixed_effect)):
            return "its mean, covariance or fixed effect is not finite"
    half_life = tuple(one for one in prior.half_life or () if one is not None)
    for name, numbers in (("click_delay", prior.click_delay or ()), ("half_life", half_life)):
        if not all(np.isfinite(number) and number > 0 for number in numbers):
            return f"{name} = {numbers}: expected positive numbers"
    if prior.mean_offset is not None and not np.isfinite(prior.mean_offset):
        return f"mean_offset = {prior.mean_offset}: expected a finite number"
    for feature, seen in prior.scaling.items():
        if not np.isfinite(seen).all():
            return f"scaling of {feature!r} = {seen}: expected finite numbers"
    return None


def _difference(model: Model, prior: PriorFile) -> str:
    """What tells the feature space of a prior from the model's."""
    lacking = [name for name in prior.coefficients if name not in model.coefficients]
    new = [name for name in model.coefficients if name not in prior.coefficients]
    parts = []
    if lacking:
        parts.append(f"it has {', '.join(lacking)}, which model {model.name!r} does not")
    if new:
        parts.append(f"model {model.name!r} has {', '.join(new)}, which it does not")
    if prior.population.prior.is_diagonal != model.prior.is_diagonal:
        parts.append(
            f"its covariance is {'diagonal' if prior.population.prior.is_diagonal else 'full'}, "
            f"the model's {'diagonal' if model.prior.is_diagonal else 'full'}"
        )
    return "; ".join(parts) or "the coefficients are the same, but their order or the features' scaling is not"

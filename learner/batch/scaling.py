"""What a log says of the model's features: their scale and edges, and which of them it lacks. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from learner.batch.raw import LogError
from learner.belief.gaussian import Array
from learner.model.events_file import EventsFile
from learner.model.file import ModelFile
from learner.model.kind import Found
from learner.model.kinds import Age, Bucket, Feature, Numeric
from learner.model.spec import Model, build_model

if TYPE_CHECKING:
    from learner.batch.outcomes import Outcomes

# Of so many values a quantile is within a tenth of a percent of what it is in the log.
MAX_VALUES = 1 << 20


def probe(model: Model) -> Model:
    """A model whose rows have the raw values of the features that are to be fitted, and which are missing."""
    features: dict[str, Feature] = {}
    for name, feature in model.features.items():
        if isinstance(feature, Numeric | Age) and feature.unfitted:
            features[name] = msgspec.structs.replace(feature, scale="given", missing="indicator")
        elif isinstance(feature, Bucket) and feature.unfitted:
            features[name] = Numeric(missing="indicator", coerce=feature.coerce, origin=feature.origin)
    # Without one of the catalog, events of items would be none to this model.
    features |= {name: one for name, one in model.features.items() if one.origin == "catalog" and name not in features}
    said = model.specification
    columns = {name: column for name, column in said.catalog.features.items() if name in features}
    return build_model(
        ModelFile(
            name=said.name, features=features, unknown_features="ignore", match_clicks=said.match_clicks,
            attribution_window=said.attribution_window, max_ahead=said.max_ahead,
            catalog=msgspec.structs.replace(said.catalog, features=columns), events=_of(features, said.events),
            targets=said.targets, target=said.target,
        )
    )  # fmt: skip


def _of(features: Mapping[str, Feature], events: EventsFile | None) -> EventsFile | None:
    """A mapping without the paths of other features."""
    if events is None:
        return None
    rule = events.impression
    kept = {
        key: said if isinstance(said, str) else {name: path for name, path in said.items() if name in features}
        for key, said in (("features", rule.features), ("context", rule.context))
    }
    item = events.item
    if item is not None and not isinstance(item.features, str):
        paths = {name: path for name, path in item.features.items() if name in features}
        item = msgspec.structs.replace(item, features=paths)
    return msgspec.structs.replace(events, impression=msgspec.structs.replace(rule, **kept), item=item)


def find_numbers(outcomes: Outcomes, model: Model) -> dict[str, Found]:
    """Mean and std, or edges, of the features that a model left to be found.

    Parameters
    ----------
    outcomes
        Of the log, read with its `probe`.

    Raises
    ------
    LogError
        If a feature has but one value in it.
    """
    step = len(outcomes) // MAX_VALUES + 1
    found: dict[str, Found] = {}
    for i, name in enumerate(model.unfitted):
        # Behind each value stands whether it is missing.
        values = outcomes.numbers(1 + 2 * i, 2 + 2 * i, step)
        feature = model.features[name]
        edges = _edges(values, feature.quantiles or 0) if isinstance(feature, Bucket) else []
        if not len(values) or (not edges if isinstance(feature, Bucket) else values.min() == values.max()):
            raise LogError(
                f"features.{name}: the {len(outcomes):,} outcomes have no two values of it: no scale or edges can be "
                "found; expected every feature in the log"
            )
        found[name] = {"edges": edges} if edges else {"mean": float(values.mean()), "std": float(values.std())}
    return found


def _edges(values: Array, n: int) -> list[float]:
    """Edges of n ranges with equal shares of values; fewer where many values are the same."""
    if not len(values):
        return []
    quantiles = np.quantile(values, np.arange(1, n) / n, method="higher")
    # Six digits: values are of 32 bits, and the edges are names of coefficients.
    rounded = sorted({float(f"{one:.6g}") for one in quantiles.tolist()})
    return [one for one in rounded if (values < one).any() and (values >= one).any()]


def feature_scaling(outcomes: Outcomes, model: Model) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each numeric feature in its own unit, the recommendation for `model.toml`."""
    total, squares = np.zeros(model.width), np.zeros(model.width)
    for one, two in outcomes.map(lambda rows: (rows.X.sum(axis=0), (rows.X**2).sum(axis=0)), np.zeros(model.width)):
        total, squares = total + one, squares + two
    n, mean = len(outcomes), total / len(outcomes)
    std = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
    return {
        name: (feature.mean + feature.std * float(mean[j]), feature.std * float(std[j]))
        for name, feature, j in _numeric(model)
        if std[j] > 0
    }


def features_unseen(outcomes: Outcomes, model: Model) -> list[str]:
    """The model's features that no outcome had, or none but at their mean: nothing can be learnt of them."""
    start, unseen = 1, []
    for name, feature in model.features.items():
        end = start + feature.width
        if end > start and not outcomes.seen[start:end].any():
            unseen.append(name)
        start = end
    return unseen


def _numeric(model: Model) -> Iterator[tuple[str, Numeric, int]]:
    start = 1
    for name, feature in model.features.items():
        if isinstance(feature, Numeric):
            yield name, feature, start
        start += feature.width

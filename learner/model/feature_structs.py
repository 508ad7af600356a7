"""Structs of a model's features, to decode events to."""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from learner.model.design import taken
from learner.model.kinds import Feature

# A struct of more is read more slowly than a dictionary where the events have another order than the model.
MAX_FIELDS = 128


def structs(features: Mapping[str, Feature]) -> tuple[type[msgspec.Struct], type[msgspec.Struct]] | None:
    """Structs that an item's features, and a context, can be decoded to, faster than to dictionaries.

    They have a field for each feature, in order, of the type that the feature wants, None if it is missing. None if one
    would have too many fields, or names that JSON escapes.
    """
    if any(json.dumps(name, ensure_ascii=False) != f'"{name}"' for name in features):
        return None
    of = taken(features, "item"), taken(features, "context")
    return None if max(map(len, of)) > MAX_FIELDS else (_struct("Item", of[0]), _struct("Context", of[1]))


def lenient(title: str, features: Mapping[str, Feature]) -> type[msgspec.Struct]:
    """As those of `structs`, of what may have other features too, which are passed over."""
    return _struct(title, features, forbid_unknown=False)


def _struct(title: str, features: Mapping[str, Feature], forbid_unknown: bool = True) -> type[msgspec.Struct]:
    names = {f"f{i}": name for i, name in enumerate(features)}
    fields = [(field, one.schema() | None, None) for field, one in zip(names, features.values(), strict=True)]
    return msgspec.defstruct(
        title, fields, rename=names, frozen=True, gc=False, forbid_unknown_fields=forbid_unknown, omit_defaults=True
    )

"""The kinds of features: for each its columns, their names, what JSON it takes, and how its values fill them."""

from __future__ import annotations

from typing import TypeAlias

from learner.model.category_kinds import Boolean, Category, Cross, Hashed, Multi
from learner.model.encoded_kind import Encoded
from learner.model.kind import FeatureError, FeatureName, Features, FeatureValue, ItemError, Kind, Positive
from learner.model.number_kinds import Bucket, Numeric, Vector
from learner.model.time_kinds import Age, Time

__all__ = [
    "Age", "Boolean", "Bucket", "Category", "Cross", "Encoded", "Feature", "FeatureError", "FeatureName",
    "FeatureValue", "Features", "Hashed", "ItemError", "Kind", "Multi", "Numeric", "Positive", "Time", "Vector",
]  # fmt: skip

Feature: TypeAlias = Numeric | Category | Multi | Vector | Bucket | Boolean | Hashed | Age | Time | Cross | Encoded

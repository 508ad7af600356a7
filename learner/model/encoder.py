"""The keys of `[encoder]` in `model.toml`: a network that makes features, and perhaps the offset, of an item's inputs.

Each input is a field of the item, the context or the catalog, or the item's id. It need not be a feature of the linear
model; where it is one too, both read the same value. Nothing here runs the network: `learner.onnx_encoder` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.limits import MAX_EMBEDDING, MAX_ENCODER_INPUTS
from learner.model.category_kinds import Multi
from learner.model.kind import FeatureError, Kind, Number, Scalar, Size, Text, require, some, type_name
from learner.model.number_kinds import Vector, numbers

OUTPUTS = ("embedding", "offset")
"""Of the graph."""
InputName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Tensor: TypeAlias = NDArray[Any]
"""An input of the graph, of n items: float32 or int64, shape (n,) or (n, width)."""
EncoderHash: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
"""The first 16 hex digits of the SHA-256 of an encoder's file."""


class EncoderInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input of the encoder's graph, of its name, batched along n items.

    Attributes
    ----------
    name
        The field that has its value, and the graph's input.
    kind
        ``numeric``: float32, shape (n,), the raw value, NaN where it is missing. ``category`` and ``id``: int64, shape
        (n,), k + 1 for value k of the vocabulary, 0 for one that is not in it or missing; an ``id`` is the item's.
        ``vector``: float32, shape (n, width), zeros where it is missing. ``multi``, a list of values: float32, shape
        (n, number of values), 1 for each that is in the list and 0 for the others.
    origin
        Whether each item says it, or the context of the request, once; or the catalog, of an item that does not.
    values
        The vocabulary of a ``category``; without, it is in the encoder's file. Of a ``multi`` all there are.
    width
        The length of a ``vector``.
    """

    name: InputName
    kind: Literal["numeric", "category", "id", "vector", "multi"]
    origin: Literal["item", "context", "catalog"] = msgspec.field(default="item", name="from")
    values: Annotated[list[Text], msgspec.Meta(min_length=1)] | None = None
    width: Size | None = None

    @property
    def columns(self) -> int:
        """Numbers that the graph takes of it, or places in a vocabulary."""
        return {"vector": self.width or 0, "multi": len(self.values or ())}.get(self.kind, 1)

    def schema(self) -> Any:
        """The type of the JSON that it takes, but for null; None for an id, which is not among the features."""
        match self.kind:
            case "numeric":
                return Number
            case "category":
                return Text
            case "vector":
                return Annotated[list[Number], msgspec.Meta(min_length=self.width, max_length=self.width)]
            case "multi":
                return self._many.schema()
        return None

    def reader(self, vocabulary: Sequence[str]) -> Callable[[Sequence[Any]], Tensor]:
        """What makes the graph's input of the values of n items (of an ``id``, the ids), None where one is missing.

        It raises `FeatureError` for what is no such value. Training and serving read by this one.
        """
        if self.kind == "numeric":
            return lambda values: numbers(self.name, values, False).astype(np.float32)
        if self.kind in ("vector", "multi"):
            read = Vector(size=self.width or 0) if self.kind == "vector" else self._many
            fill = read.filler(self.name, {})

            def rows(values: Sequence[Any]) -> Tensor:
                filled = np.zeros((len(values), self.columns))
                fill(filled, values)
                return filled.astype(np.float32)

            return rows
        place = {value: k + 1 for k, value in enumerate(vocabulary)}

        def places(values: Sequence[Any]) -> Tensor:
            for i, value in enumerate(values):
                if value is not None and type(value) is not str:
                    raise FeatureError("bad_feature", i, self.name, f"expected a string, got {type_name(value)}")
            return np.array([place.get(value, 0) for value in values], np.int64)

        return places

    @property
    def _many(self) -> Multi:
        return Multi(values=self.values, unknown="ignore")

    def check(self, key: str) -> None:
        """Raise `ModelError` if it cannot be; `key` is where it stands."""
        is_vector = self.kind == "vector"
        expected = "how many numbers the vector has" if is_vector else "none, for it is no vector"
        require((self.width is not None) == is_vector, f"{key}.width", self.width, expected)
        has_values = self.kind in ("category", "multi")
        require(self.values is None or has_values, f"{key}.values", self.values, "none, but for a category or a multi")
        require(self.values is not None or self.kind != "multi", f"{key}.values", None, "the values of its lists")
        distinct = self.values is None or len(set(self.values)) == len(self.values)
        require(distinct, f"{key}.values", self.values, "each value once")
        require(
            self.kind != "id" or self.origin == "item", f"{key}.from", self.origin, "'item', for it is the item's id"
        )


class EncoderFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network whose output `embedding` is the values of the feature of kind ``encoded``.

    Its output `offset`, if it has one, is the log-odds of an item that comes without an offset.

    Attributes
    ----------
    file
        The ONNX file, beside the specification. `freshet train-encoder` writes it.
    embedding
        The width of the output `embedding`.
    inputs
        What the network sees.
    hash
        The only file that is taken: the first 16 hex digits of its SHA-256. Without, whichever is there.
    """

    embedding: Annotated[int, msgspec.Meta(ge=1, le=MAX_EMBEDDING)]
    inputs: Annotated[list[EncoderInput], msgspec.Meta(min_length=1, max_length=MAX_ENCODER_INPUTS)]
    file: Annotated[str, msgspec.Meta(min_length=1)] = "encoder.onnx"
    hash: EncoderHash | None = None


def check_encoder(encoder: EncoderFile, features: Mapping[str, Kind]) -> None:
    """Raise `ModelError` for an encoder that cannot be, beside these features."""
    seen = set[str]()
    for i, one in enumerate(encoder.inputs):
        key = f"encoder.inputs[{i}]"
        one.check(key)
        require(one.name not in seen, f"{key}.name", one.name, "another name: an input before it has this one")
        seen.add(one.name)
        require(one.name not in OUTPUTS, f"{key}.name", one.name, f"another name: {some(OUTPUTS)} are outputs")
        other = None if one.kind == "id" else features.get(one.name)
        if other is None:
            continue
        require(other.origin == one.origin, f"{key}.from", one.origin, f"{other.origin!r}, as the feature has it")
        alike = _json(other.schema()) == _json(one.schema())
        kind = f"one that takes the JSON that the feature of this name does, of kind {_tag(other)!r}"
        require(alike, f"{key}.kind", one.kind, kind)


def _tag(feature: Kind) -> Any:
    return type(feature).__struct_config__.tag


def _json(schema: Any) -> Any:
    """The shape of the JSON of a type, without its bounds but those of a list; nothing of what is no JSON."""
    if schema is None or schema == Scalar:
        return None
    found = msgspec.json.schema(schema)
    return found.get("type", "string"), found.get("minItems"), found.get("maxItems")

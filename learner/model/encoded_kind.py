"""The kind of feature whose values an encoder makes, and what the encoder reads of items beside their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from learner.belief.gaussian import Array, Rows
from learner.model.duration import ModelError
from learner.model.encoder import EncoderFile, EncoderInput, check_encoder
from learner.model.kind import Filler, Kind, require


class Encoded(Kind, frozen=True, tag="encoded"):
    """The embedding of the model's `[encoder]`, as many columns as that is wide.

    A new encoder file is a new feature: what its numbers mean is known by the file's hash.
    """

    def of(self, encoder: EncoderFile) -> Embedding:
        """The feature as this encoder makes it."""
        return Embedding(size=encoder.embedding, encoder=encoder.hash or "", was=self.was)

    def check(self, key: str, features: Mapping[str, Kind]) -> None:
        """The encoder's inputs say where they come from."""
        require(self.origin == "item", f"{key}.from", self.origin, "none: the inputs of the encoder say it")
        first = next(name for name, one in features.items() if isinstance(one, Encoded))
        require(features[first] is self, key, "encoded", f"one feature of this kind, and {first!r} is one")

    def schema(self) -> Any:
        """It takes no value."""
        return None


class Embedding(Encoded, frozen=True, tag="encoded", kw_only=True):
    """An encoded feature of a known encoder; no specification says it.

    Attributes
    ----------
    size
        The width of the embedding.
    encoder
        The hash of the encoder's file; empty while there is none.
    """

    size: int
    encoder: str

    def coefficients(self, name: str) -> list[str]:
        """One a number."""
        return [f"{name}[{i}]" for i in range(self.size)]

    def space(self) -> dict[str, Any]:
        """Known by the encoder, and its width."""
        return {"kind": "encoded", "size": self.size, "encoder": self.encoder}

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """The numbers; their source is no field of an item."""

        def fill(columns: Array, values: Rows) -> None:
            columns[:] = values

        return fill

    def plain(self) -> Self:
        """Itself."""
        return self


class Input(Kind, frozen=True, tag="input"):
    """What an encoder reads of an item and the linear model does not: a field like a feature, without columns."""

    reads: EncoderInput

    def coefficients(self, name: str) -> list[str]:
        """None."""
        return []

    def schema(self) -> Any:
        """The JSON that the input takes."""
        return self.reads.schema()

    def space(self) -> dict[str, Any]:
        """It has no columns, so that it makes no other feature space: the encoder's hash does."""
        return {"kind": "input"}

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """Nothing is filled; values that the encoder cannot read are refused."""
        read = self.reads.reader(())

        def fill(columns: Array, values: Sequence[Any]) -> None:
            read(values)

        return fill


def with_encoder(file: EncoderFile | None, features: Mapping[str, Any]) -> dict[str, Any]:
    """The features of a model with this encoder: the encoded one as it makes it, and last what else it reads.

    Raises
    ------
    ModelError
        If the encoder cannot be, or there is none for an encoded feature.
    """
    if file is None:
        if encoded := [name for name, one in features.items() if isinstance(one, Encoded)]:
            raise ModelError(f"features.{encoded[0]}: expected an [encoder], which makes its values")
        return dict(features)
    check_encoder(file, features)
    bound = {name: one.of(file) if isinstance(one, Encoded) else one for name, one in features.items()}
    others = [one for one in file.inputs if one.kind != "id" and one.name not in features]
    return bound | {one.name: Input(reads=one, origin=one.origin) for one in others}

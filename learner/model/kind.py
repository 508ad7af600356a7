"""What all kinds of features have in common, the JSON that they take, and what is wrong with a value.

A kind's `filler` gives a function of the feature's columns, shape (N, width) and zero, and of the values of its
`sources`, N each, None where there is none; what it does not take raises `FeatureError`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

import msgspec

from learner.belief.gaussian import Array
from learner.limits import MAX_FEATURES, MAX_LIST_LENGTH, MAX_NAME_LENGTH, MAX_NUMBER, MAX_STRING_LENGTH
from learner.model.duration import ModelError
from learner.model.space import Column

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_STRING_LENGTH)]
Number: TypeAlias = Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Scalar: TypeAlias = Number | Text | bool
FeatureValue: TypeAlias = Scalar | Annotated[list[Scalar | None], msgspec.Meta(max_length=MAX_LIST_LENGTH)] | None
"""None is a value that is missing."""
FeatureName: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)]
Features: TypeAlias = Annotated[dict[FeatureName, FeatureValue], msgspec.Meta(max_length=MAX_FEATURES)]
"""What an item, or a request, says of itself, by name."""
Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIST_LENGTH)]
Filler: TypeAlias = Callable[..., None]
Reader: TypeAlias = Callable[[int, Any], str | None]
"""Of the place of an item and its value: the category, None if it has none."""
Found: TypeAlias = dict[str, float | list[float]]
"""What a log said of a feature, by the key of the model that it is the value of."""
TIME = None
"""Among the sources of a feature, the time of the event or request, epoch ms."""

NUMBERS = frozenset((float, int))
_MAX_NAMED, _MAX_NAMED_LENGTH = 10, 32


class ItemError(ValueError):
    """An item, or the context, does not fit the model; the message names the field, never its value.

    Attributes
    ----------
    reason
        ``unknown_feature``, ``unknown_category``, ``bad_feature``, ``non_finite_number`` or ``missing_offset``.
    field
        Such as ``items[0].offset``, ``items[0].features.price`` or ``context.device``.
    """

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


class FeatureError(ItemError):
    """An item's features, or those of the context, do not fit the model."""

    def __init__(self, reason: str, index: int | None, feature: str, detail: str) -> None:
        where = "context" if index is None else f"items[{index}].features"
        super().__init__(reason, f"{where}.{feature}", f"{where}[{feature!r}]: {detail}")
        self._told = reason, feature, detail

    def of_context(self) -> FeatureError:
        """The same of the context."""
        reason, feature, detail = self._told
        return FeatureError(reason, None, feature, detail)


class Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", kw_only=True):
    """What all kinds have in common.

    Names of coefficients are such as ``price``, ``genre=drama``, ``tags#3``, ``taste[0]``, ``price>=20``, ``hour.sin``.

    Attributes
    ----------
    origin
        Whether each item says it, or the context of the request, once; or the catalog, of an item that does not.
    was
        The name that it had in an earlier model, if it was renamed: its coefficients stay what they were.
    """

    origin: Literal["item", "context", "catalog"] = msgspec.field(default="item", name="from")
    was: FeatureName | None = None
    about_others: ClassVar[frozenset[str]] = frozenset()
    """Fields on which what a single column means does not depend."""

    @property
    def width(self) -> int:
        """The number of its columns."""
        return len(self.coefficients(""))

    @property
    def unfitted(self) -> bool:
        """Whether its numbers are to be found by `freshet fit`, and were not yet."""
        return False

    def fitted(self, found: Found) -> Self:
        """The feature with the numbers that were found; raises `TypeError` if they are others than it wants."""
        raise TypeError(f"kind {type(self).__struct_config__.tag!r} wants none")

    def coefficients(self, name: str) -> list[str]:
        """The names of its coefficients."""
        raise NotImplementedError

    def schema(self) -> Any:
        """The type of the JSON that it takes, but for null; what is refused only later is of it too.

        None if it takes no value: it is made from others, or from the time.
        """
        raise NotImplementedError

    def sources(self, name: str) -> tuple[str | None, ...]:
        """Of which features it reads the values, by name, `TIME` for the time; as a rule its own."""
        return (name,)

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """What fills its columns, in a model of these features."""
        raise NotImplementedError

    def reader(self, name: str) -> Reader | None:
        """What reads its values as a category; None if they are none."""
        return None

    def check(self, key: str, features: Mapping[str, Kind]) -> None:
        """Raise `ModelError` if it cannot be, in a model of these features; `key` is where it stands."""

    def plain(self) -> Self:
        """The same columns, of values that come from the item, and as they are."""
        changes: dict[str, Any] = {"origin": "item", "was": None}
        changes |= {"coerce": False} if hasattr(self, "coerce") else {}
        return msgspec.structs.replace(self, **changes)

    def space(self) -> dict[str, Any]:
        """What makes its columns others than those of another feature; defaults are left out."""
        default = {one.name: one.default for one in msgspec.structs.fields(self)}
        said = {name: value for name, value in msgspec.structs.asdict(self.plain()).items() if value != default[name]}
        return {"kind": type(self).__struct_config__.tag, **said}

    def columns(self, name: str) -> list[Column]:
        """What each of its columns means."""
        said = {field: value for field, value in self.space().items() if field not in self.about_others}
        meaning = msgspec.json.encode(said, order="sorted").decode()
        names = self.coefficients(name)
        before = [None] * len(names) if self.was is None else self.coefficients(self.was)
        return [Column(one, meaning, was=was) for one, was in zip(names, before, strict=True)]


def some(names: Collection[str]) -> str:
    """A few of them: a message must not grow with the model, for a request may be answered with thousands."""
    shown = ", ".join(repr(name[:_MAX_NAMED_LENGTH]) for name in islice(names, _MAX_NAMED))
    return f"{shown} and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else shown


def type_name(value: Any) -> str:
    """What JSON calls the type of a value, with its article."""
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def coerced(value: Any) -> float | None:
    """The number that a boolean or a text stands for; None if it stands for none."""
    if isinstance(value, str | bool):
        try:
            return msgspec.convert(float(value), Number)
        except (ValueError, msgspec.ValidationError):
            pass
    return None


def missing_name(name: str) -> str:
    """The coefficient of a value that is missing, where that has a column."""
    return f"{name}=missing"


def require(holds: bool, key: str, value: Any, expected: str) -> None:
    """Raise `ModelError` unless it holds."""
    if not holds:
        raise ModelError(f"{key} = {value!r}: expected {expected}")


def mark_missing(column: Array, values: Sequence[Any]) -> None:
    """Put a 1 where a value is missing."""
    column[:] = [value is None for value in values]

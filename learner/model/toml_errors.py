"""What is wrong with a model specification, in the words of whoever wrote it. Pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from learner.model.duration import ModelError

T = TypeVar("T")

_PLACE = re.compile(r"(.*) - at `\$([^`]*)`", re.DOTALL)
_NAME_PLACE = re.compile(r"(.*) - at `key` in `\$\.([^`]*)`", re.DOTALL)


def read_toml(text: str, source: str, file: type[T], kinds: Iterable[type] = ()) -> T:
    """The struct of a file of TOML, which came from a `source`; for the others see `explain`.

    Raises
    ------
    ModelError
        If it is not TOML, or a key is missing, unknown or out of range.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ModelError(f"{source}: {exc}") from exc
    try:
        return msgspec.convert(document, file)
    except msgspec.ValidationError as exc:
        raise ModelError(f"{source}: {explain(document, exc, file, kinds)}") from exc


def explain(document: Mapping[str, Any], exc: msgspec.ValidationError, file: type, kinds: Iterable[type]) -> str:
    """Name the key, its value and what was expected; of a feature also its name and the valid kinds.

    Parameters
    ----------
    document
        What the TOML holds.
    exc
        What msgspec raised for it.
    file, kinds
        The structs of the whole and of each kind of feature.
    """
    if of_a_name := _NAME_PLACE.fullmatch(str(exc)):
        return f"{of_a_name[2]}: a name: {_lower(of_a_name[1])}"
    by_tag = {one.__struct_config__.tag: one for one in kinds}  # type: ignore[attr-defined]
    what, path = _split(str(exc))
    # msgspec does not say which feature it is.
    if path.startswith("features[...]"):
        for name, given in document["features"].items():
            try:
                msgspec.convert(given, kinds_of(by_tag.values()))
            except msgspec.ValidationError as inner:
                what, below = _split(str(inner))
                own = by_tag.get(given.get("kind")) if isinstance(given, dict) else None
                choices = _or(by_tag) if own is None else None
                return _say(what, f"features.{name}", below, given, own, choices)
    return _say(what, "", path, document, _struct_at(file, path), None)


def kinds_of(kinds: Iterable[type]) -> Any:
    """Their union."""
    union: Any = None
    for one in kinds:
        union = one if union is None else union | one
    return union


def _say(what: str, above: str, path: str, given: Any, struct: Any, kinds: str | None) -> str:
    """A message of msgspec as ours: `path` leads from `given`, which stands at `above`, to what is wrong."""
    place = ".".join(filter(None, [above, path]))
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        key = ".".join(filter(None, [place, missing[1]]))
        return f"{key} is missing" + (f": expected {kinds}" if kinds and missing[1] == "kind" else "")
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        key = ".".join(filter(None, [place, unknown[1]]))
        return f"{key}: no such key; there are {', '.join(_keys(struct))}"
    value = _at(given, path)
    if kinds and path == "kind":
        return f"{place} = {value!r}: expected {kinds}"
    if what.startswith("Invalid ") and (choices := _choices(struct, path)):
        return f"{place} = {value!r}: expected {_or(choices)}"
    return f"{place} = {value!r}: {_lower(what)}"


def _lower(what: str) -> str:
    """What msgspec says, in the words of TOML."""
    return what[:1].lower() + re.sub(r"\bobject\b", "a table", what[1:]).replace(" | null", "").replace("`", "")


def _split(message: str) -> tuple[str, str]:
    found = _PLACE.fullmatch(message)
    return (found[1], found[2].lstrip(".")) if found else (message, "")


def _at(given: Any, path: str) -> Any:
    """The value that a path such as ``prior.earlier[0].mean`` leads to."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        given = given[int(index)] if index else given[key]
    return given


def _struct_at(struct: Any, path: str) -> Any:
    """The struct that a path leads into: the last on the way to it."""
    for key, _ in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        if key and key in get_type_hints(struct):
            inner = [one for one in _parts(get_type_hints(struct)[key]) if isinstance(one, msgspec.StructMeta)]
            struct = inner[0] if inner else struct
    return struct


def _parts(hint: Any) -> list[Any]:
    return [hint] if not get_args(hint) else [part for one in get_args(hint) for part in _parts(one)]


def _keys(struct: Any) -> tuple[str, ...]:
    own: tuple[str, ...] = struct.__struct_encode_fields__
    return own if struct.__struct_config__.tag is None else ("kind", *own)


def _choices(struct: Any, path: str) -> tuple[Any, ...]:
    if struct is None:
        return ()
    names = dict(zip(struct.__struct_encode_fields__, struct.__struct_fields__, strict=True))
    hint = get_type_hints(struct).get(names.get(path.rpartition(".")[2], ""))
    literals = [one for one in (hint, *get_args(hint)) if get_origin(one) is Literal]
    return tuple(choice for one in literals for choice in get_args(one))


def _or(choices: Iterable[Any]) -> str:
    *others, last = [repr(one) for one in choices]
    return f"{', '.join(others)} or {last}" if others else last

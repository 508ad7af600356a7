"""Write docs/reference.md from the code: `python -m docs.reference`. A test compares the two."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from prometheus_client import CollectorRegistry

from learner.events.wire import Reason
from learner.model.catalog_file import CatalogFile
from learner.model.effects_file import EarlierItemPrior, Effects, ItemFile, ItemPrior, UserFile
from learner.model.encoder import EncoderFile, EncoderInput
from learner.model.events_file import ClickRule, EraseRule, EventsFile, ImpressionRule, ItemRule, RewardRule
from learner.model.file import (
    ClickDelay,
    EarlierPrior,
    ExploreRule,
    ModelFile,
    OffsetRule,
    PositionRule,
    Prior,
    QualityRule,
    TargetRule,
)
from service.environment import PREFIX
from service.metrics import FATES, LearnerMetrics, QualityMetrics
from service.model_file import read_model
from service.settings import SECRETS, Settings
from service.web.app import create_app
from service.web.metrics import ServiceMetrics
from service.worker import _monitor_app

PAGE = Path(__file__).with_name("reference.md")
_HEAD = """\
# Reference

Every key of the model, setting, metric and route. Made from the code by `python -m docs.reference`; change it there.
"""
_TABLES = {
    "click_delay": ClickDelay, "effects": Effects, "effects.user": UserFile, "effects.item": ItemFile,
    "effects.item.prior": ItemPrior, "effects.item.prior.earlier": EarlierItemPrior, "offset": OffsetRule,
    "position": PositionRule, "prior": Prior, "prior.earlier": EarlierPrior, "events": EventsFile,
    "events.impression": ImpressionRule, "events.click": ClickRule, "events.rewards": RewardRule,
    "events.item": ItemRule, "events.erase": EraseRule, "catalog": CatalogFile,
    "quality": QualityRule, "explore": ExploreRule, "encoder": EncoderFile, "encoder.inputs": EncoderInput,
    "targets": TargetRule,
}  # fmt: skip
_NOTHING: Any = None  # What the apps would ask only when they are asked.


def page() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *_model(), *_settings(), *_metrics(), *_dead_letters(), *_routes()])


def _model() -> Iterable[str]:
    yield "## The model\n"
    yield (
        "A TOML file, named by `FRESHET_MODEL` or `--model`; [deploy/model.toml](../deploy/model.toml) is the sample.\n"
        "Durations are such as `500ms`, `10s`, `30m`, `12h` or `30d`. Unknown keys are refused.\n"
    )
    yield from _struct(ModelFile)
    for title, struct in _TABLES.items():
        yield f"### `{title}`\n\n{_summary(struct)}\n"
        yield from _struct(struct)
    yield "### `features`\n\nA table by the feature's name; `kind` says which of these it is.\n"
    yield (
        'With `from = "context"` its value is in the `context` of the impression or the request to score, said once.\n'
        "What is made of the time, or of other features, takes no value.\n"
    )
    feature = get_args(get_args(get_type_hints(ModelFile, include_extras=True)["features"])[0])[1]
    for kind in get_args(feature):
        yield f'#### `kind = "{kind.__struct_config__.tag}"`\n\n{_summary(kind)}\n'
        yield from _struct(kind)


def _struct(struct: type) -> Iterable[str]:
    said = _attributes(struct)
    rows = []
    for field in msgspec.inspect.type_info(struct).fields:  # type: ignore[attr-defined]
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        shown = "required" if field.required else _value(default)
        row = [f"`{field.encode_name}`", _words(field.type), shown]
        rows.append([*row, said[field.name]] if said else row)
    yield from _table(["key", "value", "default", *(["meaning"] if said else [])], rows)


def _settings() -> Iterable[str]:
    yield "## Settings\n"
    yield (
        f"Variables of the environment. Each may stand in the file that `{PREFIX}<NAME>_FILE` names, as secrets (\\*)\n"
        "should; `freshet check` prints those in force.\n"
    )
    said = _attributes(Settings)
    rows = []
    for field in msgspec.inspect.type_info(Settings).fields:  # type: ignore[attr-defined]
        name = f"`{PREFIX}{field.name.upper()}`" + (" \\*" if field.name in SECRETS else "")
        rows.append([name, _words(field.type), _value(field.default), said[field.name]])
    yield from _table(["setting", "value", "default", "meaning"], rows)


def _metrics() -> Iterable[str]:
    yield "## Metrics\n"
    yield (
        "In Prometheus' text format at `/metrics`: the learner's on `FRESHET_LEARNER_PORT`, the service's on\n"
        "`FRESHET_PORT`; under `freshet up` both are on one. No label holds a user or an item.\n"
    )
    for title, kept in (
        ("Learner", LearnerMetrics(CollectorRegistry())),
        ("Quality, of every learner", QualityMetrics(CollectorRegistry())),
        ("Service", ServiceMetrics(CollectorRegistry())),
    ):
        yield f"### {title}\n"
        rows = []
        for metric in (one for one in vars(kept).values() if hasattr(one, "describe")):
            (family,) = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            rows.append([f"`{name}`", family.type, labels, family.documentation])
        yield from _table(["metric", "type", "labels", "meaning"], rows)
    yield "### `kind` of `freshet_learner_total`\n"
    yield from _table(["kind", "counts", "look when"], [[f"`{kind}`", *told] for kind, told in FATES.items()])


def _dead_letters() -> Iterable[str]:
    yield "## Reasons of dead letters\n"
    yield "The header `reason` of a dead letter, and the label of `freshet_learner_dead_letters_total`:"
    yield ", ".join(f"`{reason}`" for reason in Reason) + ".\n"


def _routes() -> Iterable[str]:
    yield "## Routes\n"
    yield "`/docs` of a running service has the schemas of what they take and answer.\n"
    settings, model = Settings(api_key="set"), read_model("")
    service = create_app(settings, model, _NOTHING, _NOTHING)
    learner = _monitor_app(settings, _NOTHING, _NOTHING, CollectorRegistry())
    # What the learner answers is what the service does, of itself.
    about_path: dict[str, str] = {}
    for title, app in (("Service", service), ("Learner", learner)):
        yield f"### {title}\n"
        rows = []
        for path, operations in app.openapi()["paths"].items():
            for method, operation in operations.items():
                about = about_path[path] = operation.get("description") or about_path[path]
                key = "yes" if "security" in operation else ""
                statuses = ", ".join(sorted(operation["responses"]))
                row = [f"`{method.upper()} {path}`", " ".join(about.split())]
                rows.append([*row, key, statuses] if title == "Service" else row)
        yield from _table(
            ["route", "what it does", *(["asks for a key", "answers"] if title == "Service" else [])], rows
        )


def _summary(struct: type) -> str:
    """The docstring up to its first section."""
    return re.split(r"\n\n\w+\n-+\n", inspect.getdoc(struct) or "")[0].replace("``", "`")


def _attributes(struct: type) -> dict[str, str]:
    """What the docstring says of each attribute; several may share a text."""
    _, _, section = (inspect.getdoc(struct) or "").partition("Attributes\n----------\n")
    said = {}
    for names, text in re.findall(r"^(\w[\w, ]*)\n((?:    .*\n?|\n)+)", section, re.MULTILINE):
        for name in names.split(", "):
            said[name] = " ".join(text.split()).replace("``", "`")
    return said


def _words(kind: Any) -> str:
    """A type of msgspec for people."""
    i = msgspec.inspect
    match kind:
        case i.UnionType(types=types):
            return " or ".join(_words(one) for one in types if not isinstance(one, i.NoneType))
        case i.IntType() | i.FloatType():
            signs = {">": kind.gt, ">=": kind.ge, "<": kind.lt, "<=": kind.le}
            bounds = [f"{sign} {bound:g}" for sign, bound in signs.items() if bound is not None]
            return " ".join(["whole number" if isinstance(kind, i.IntType) else "number", ", ".join(bounds)]).strip()
        case i.LiteralType(values=values):
            return " or ".join(f"`{value}`" for value in values)
        case i.StrType(pattern=str(pattern)) if choices := re.fullmatch(r"\^\((.*)\)\$", pattern):
            return " or ".join(f"`{value}`" for value in choices[1].split("|"))
        case i.StrType():
            return "text"
        case i.BoolType():
            return "true or false"
        case i.ListType(item_type=i.UnionType()):
            return "list of such"
        case i.ListType(item_type=one):
            what, sign, bounds = _words(one).partition(" >")
            return f"list of {what}s{sign}{bounds}"
        case i.TupleType(item_types=types):
            return f"list of {len(types)} {_words(types[0])}s"
        case i.StructType() | i.DictType():
            return "table"
    return str(kind)


def _value(value: Any) -> str:
    if value in (None, "", msgspec.NODEFAULT) or isinstance(value, msgspec.Struct):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---" for _ in head) + " |"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

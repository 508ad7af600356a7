"""The reference page is what the code says, and the code says something of everything."""

from __future__ import annotations

import re

import msgspec

from docs.reference import PAGE, page
from learner.model.file import ModelFile
from learner.step import apply
from service.environment import PREFIX
from service.metrics import FATES
from service.settings import Settings


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m docs.reference`"


def test_nothing_is_without_a_meaning() -> None:
    heads = {"key", "setting", "metric", "kind", "route"}
    tables = re.findall(r"^\| (\w+) \|(.*)\n\| ---.*\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {head for head, _, _ in tables} == heads
    for head, columns, rows in tables:
        meant = [column.strip() for column in columns.split("|")]
        at = next((meant.index(name) for name in ("meaning", "counts", "what it does") if name in meant), None)
        # Kinds of features say it above their table.
        assert at is not None or head == "key"
        for row in rows.splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[2:-1]]
            assert at is None or cells[at], row


def test_every_table_of_the_model_is_on_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for field in msgspec.inspect.type_info(ModelFile).fields:  # type: ignore[attr-defined]
        kinds = getattr(field.type, "types", (field.type,))
        if any(isinstance(one, msgspec.inspect.StructType) for one in kinds):
            assert f"### `{field.name}`\n" in text


def test_every_setting_and_every_fate_of_an_event_is_on_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in Settings.__struct_fields__:
        assert f"`{PREFIX}{name.upper()}`" in text
    # What the learning step counts, and what the loop around it does.
    assert {*apply.COUNTS, "conflicts", "retries"} <= FATES.keys()

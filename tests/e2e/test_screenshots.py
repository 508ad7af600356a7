"""The pictures that README shows can be taken of the page as it is now."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Browser

from docs.screenshots import FOLDER, SECTIONS, take

README = Path(__file__).parents[2] / "README.md"


def size(picture: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_a_picture_is_taken_of_each_section_that_readme_shows(chromium: Browser, tmp_path: Path) -> None:
    take(chromium, tmp_path, seconds=2)
    shown = re.findall(r"\]\(docs/(live-\S+\.png)\)", README.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(SECTIONS.values()) == sorted(one.name for one in tmp_path.iterdir())
    for name in shown:
        width, height = size(tmp_path / name)
        # As wide as those that are there, and with all that the section has when nothing is learnt yet.
        assert abs(width - size(FOLDER / name)[0]) <= 40
        assert height > 300

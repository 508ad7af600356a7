"""What the README says to type can be typed, after `make up`, in a clone."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path

import pytest

from examples.feed.log import as_lines, events
from service.commands.main import main, parser
from service.model_file import read_model

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "feed" / "events.jsonl.gz"
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*/README.md"))]
TYPED = ".venv/bin/freshet "


def typed(page: Path) -> list[list[str]]:
    lines = [line for line in page.read_text().splitlines() if line.startswith(TYPED)]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_every_command_of_the_readmes_is_one_and_its_files_are_there() -> None:
    commands = [command for page in PAGES for command in typed(page)]
    assert {"fit", "evaluate", "demo", "inspect", "check"} <= {command[0] for command in commands}
    for command in commands:
        arguments = parser(command).parse_args(command)
        for log in getattr(arguments, "logs", []):
            assert (ROOT / log).exists(), command
    for page in PAGES:
        # In a block, where it would be pasted from.
        blocks = page.read_text().split("```sh\n")[1:]
        assert not [
            line for block in blocks for line in block.partition("```")[0].splitlines() if line.startswith("freshet ")
        ]


def test_the_readme_fits_and_evaluates_the_sample_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    fit, evaluate = (next(one for one in typed(PAGES[0]) if one[0] == name) for name in ("fit", "evaluate"))
    assert main(fit) == 0
    assert main([*evaluate, "--brief", "--resamples", "10", "--json", "numbers.json"]) == 0
    assert "data-plot=" in (tmp_path / "report.html").read_text()
    ways = json.loads((tmp_path / "numbers.json").read_text())["ways"]
    frozen = "per user, frozen at the cut"
    area, loss = (
        {name: one["all"][metric]["value"] for name, one in ways.items()} for metric in ("slate_auc", "log_loss")
    )
    assert area["fixed effect"] < min(area[frozen], area["fresh"])
    assert loss["fresh"] < loss[frozen] < loss["fixed effect"]


def test_the_sample_log_is_what_its_script_makes() -> None:
    made = as_lines(events(read_model(""), 100, 28))
    assert gzip.decompress(SAMPLE.read_bytes()) == made
    assert SAMPLE.stat().st_size < 200_000

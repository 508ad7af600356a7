"""The page of `freshet evaluate` in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from learner.evaluation.compare import Result, cut_at, extent, variants
from learner.evaluation.history import read_log
from learner.evaluation.page import as_html
from learner.evaluation.parts import evaluate
from learner.evaluation.report import Evaluation
from learner.evaluation.simulate import Catalogue, World
from learner.events.parse import parse_events
from learner.model.spec import load_model
from service.simulation import Embedded, simulate
from service.static_files import REPORT_SCRIPTS, REPORT_STYLES, head

MODEL = load_model('name = "page"\nattribution_window = "10m"\n[features]\nx = { kind = "numeric" }\n')
# Of each chart its height, and in how many places there is something of its canvas, by column and by row.
DRAWN = """() => [...document.querySelectorAll("[data-plot]")].map(box => {
  const canvas = box.querySelector("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const [columns, rows] = [new Set(), new Set()];
  for (let i = 3; i < data.length; i += 4) if (data[i]) {
    columns.add(((i - 3) / 4) % canvas.width); rows.add(Math.floor((i - 3) / 4 / canvas.width));
  }
  return { height: box.clientHeight, columns: columns.size / canvas.width, rows: rows.size / canvas.height,
           names: [...box.querySelectorAll(".u-legend th")].map(one => one.textContent.trim()) };
})"""


@pytest.fixture(scope="module")
def done() -> tuple[Evaluation, list[Result]]:
    freshet = Embedded(MODEL, np.random.default_rng(0))
    generator = np.random.default_rng(1)
    world = World(MODEL, 30, generator)
    simulate(freshet, world, Catalogue(MODEL, world, generator), "mean", 8)
    log = read_log(parse_events(freshet.log, MODEL).batch, MODEL.window_ms)
    cut = cut_at(log, 0.3)
    results = evaluate([log], variants(MODEL, cut), cut, resamples=20)
    command = f"freshet evaluate {'a-folder-of-a-long-name/' * 20}log.jsonl"
    return Evaluation(MODEL.name, "prior.npz", command, extent(log), extent(log, cut), results), results


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_page_is_drawn_whole_and_asks_for_nothing(
    chromium: Browser, done: tuple[Evaluation, list[Result]], tmp_path: Path, width: int, scheme: Any
) -> None:
    evaluation, results = done
    file = tmp_path / "report.html"
    file.write_text(as_html(evaluation, head(REPORT_STYLES, REPORT_SCRIPTS)), encoding="utf-8")
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text))
    page.goto(file.as_uri())
    charts = page.evaluate(DRAWN)
    assert [chart["names"][1:] for chart in charts] == [
        ["learning with this lag", "per user, frozen at the cut", "frozen prior"],
        ["fresh", "fixed effect"],
        ["fresh", "as promised"],
    ]
    for chart in charts:
        assert chart["height"] > 200
        # From the axis' title to the last point.
        assert chart["columns"] > 0.75
        assert chart["rows"] > 0.8
    assert page.locator("tbody").first.locator("tr").count() == len(results)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    box = page.locator("[data-plot] .u-over").first
    box.hover()
    assert " to " in page.locator("[data-plot] .u-legend").first.inner_text()
    assert (asked, wrong) == ([file.as_uri()], [])
    context.close()

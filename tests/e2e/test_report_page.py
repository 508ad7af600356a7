"""The page of `freshet evaluate` in a real browser, where there is one."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np

from learner.evaluation.compare import cut_at, evaluate, extent, variants
from learner.evaluation.history import read_log
from learner.evaluation.page import as_html
from learner.evaluation.report import Evaluation
from learner.evaluation.simulate import Catalogue, World
from learner.events.parse import parse_events
from learner.model.spec import load_model
from service.simulation import Embedded, simulate

MODEL = load_model('name = "page"\nattribution_window = "10m"\n[features]\nx = { kind = "numeric" }\n')
# Told through the title, since the page itself has no script.
PROBE = """<script>
const boxes = [...document.querySelectorAll("svg")].map(e => e.getBoundingClientRect());
const outside = [...document.querySelectorAll("svg text, svg circle, svg line, svg polyline")].filter(e => {
  const a = e.getBoundingClientRect(), b = e.closest("svg").getBoundingClientRect();
  return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
}).length;
const texts = [...document.querySelectorAll("svg")].map(svg => [...svg.querySelectorAll("text")].map(
  e => e.getBoundingClientRect()));
const overlapping = texts.flatMap(boxes => boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
  a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1))).length;
document.title = JSON.stringify({
  heights: boxes.map(b => b.height), outside, overlapping,
  rows: document.querySelector("tbody").querySelectorAll("tr").length,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  requests: performance.getEntriesByType("resource").length,
});
</script></body>"""


def test_the_page_is_drawn_whole_and_asks_for_nothing(browser: str, tmp_path: Path) -> None:
    freshet = Embedded(MODEL, np.random.default_rng(0))
    generator = np.random.default_rng(1)
    world = World(MODEL, 30, generator)
    simulate(freshet, world, Catalogue(MODEL, world, generator), "mean", 8)
    log = read_log(parse_events(freshet.log, MODEL).batch, MODEL.window_ms)
    cut = cut_at(log, 0.3)
    results = evaluate(log, variants(MODEL, cut), cut, resamples=20)
    file = tmp_path / "report.html"
    command = f"freshet evaluate {'a-folder-of-a-long-name/' * 20}log.jsonl"
    done = Evaluation(MODEL.name, "prior.npz", command, extent(log), extent(log, cut), results)
    file.write_text(as_html(done).replace("</body>", PROBE), encoding="utf-8")
    shell = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    drawn = subprocess.run(
        [*shell, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=90, check=True
    )
    title = re.search(r"<title>(.*?)</title>", drawn.stdout)
    assert title is not None
    seen = json.loads(title[1])
    assert len(seen["heights"]) == 3
    assert min(seen["heights"]) > 50
    assert seen["outside"] == 0
    assert seen["overlapping"] == 0
    assert seen["rows"] == len(results)
    assert seen["overflow"] <= 0
    assert seen["requests"] == 0

"""The live page and the documentation in a real browser, against the real command."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from learner.log import Entry, open_log
from learner.model.experiment import load_experiment
from learner.record.sums import (
    ARM_BUCKETS,
    ARM_FIXED,
    ARM_N,
    ARM_SERVED,
    BINS,
    CELLS,
    CLICKS,
    FIRST_SEGMENT,
    FIRST_WAY,
    GROUPS,
    HOUR_MS,
    LOSS,
    MANY,
    OF_SLATES,
    PER_ARM,
    PER_BIN,
    PER_SEGMENT,
    PER_WAY,
    PER_WAY_AGE,
    PREDICTED,
    SLATES,
    TOTALS,
    UNIT,
    HourSums,
    N,
)
from learner.store import Transaction, open_store
from tests.freshet import Freshet

MODEL = """\
name = "page"
[prior]
intercept_mean = -1.0
[features]
price = { kind = "numeric", mean = 20.0, std = 8.0 }
genre = { kind = "category", values = ["drama", "comedy"], unknown = "ignore" }
kind  = { kind = "category", values = ["long", "short"] }
tags  = { kind = "multi", values = ["new", "sale"] }
more  = { kind = "multi", buckets = 4 }
taste = { kind = "vector", size = 2 }
[effects.item]
"""
SHARE = re.compile(r"(\d+\.\d)\s%")
FOCUSED = "(e => e === document.body ? '' : (e.labels?.[0] ?? e).textContent)(document.activeElement)"
HOSTILE = "<img src=x onerror=alert(1)>"

EXPERIMENT = """
name = "door"
[arms.control]
share = 0.1
holdout = true
[arms.draws]
share = 0.5
policy = "thompson"
"""


@contextmanager
def opened(
    chromium: Browser, service: Freshet, path: str = "/", refused: bool = False, **options: Any
) -> Iterator[Page]:
    """A page in a window of its own; at the end it has asked no other host, and nothing was wrong in it.

    With `refused` the console may say that the service has refused something.
    """
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.goto(f"http://127.0.0.1:{service.port}{path}")
    yield page
    here = f"127.0.0.1:{service.port}"
    assert {urlsplit(url).netloc for url in asked if not url.startswith("data:")} == {here}
    assert [one for one in wrong if not (refused and "Failed to load resource" in one)] == []
    context.close()


@contextmanager
def running(folder: Path, command: str, text: str = MODEL, **settings: Any) -> Iterator[Freshet]:
    """A command with the model of the tests; whatever comes, it ends."""
    model = folder / "model.toml"
    model.write_text(text)
    one = Freshet(folder, command, model=model, **settings)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Freshet]:
    with running(tmp_path_factory.mktemp("up"), "up") as one:
        yield one


def score_of(page: Page, item: str) -> float:
    found = SHARE.search(page.get_by_role("group", name=f"Item {item}").locator(".score").inner_text())
    assert found is not None
    return float(found[1])


def said(page: Page, text: str) -> None:
    expect(page.locator("#said")).to_contain_text(text, timeout=15_000)


def play(page: Page, user: str) -> None:
    """Score a slate for a user, and click item b."""
    page.locator("#user").fill(user)
    page.get_by_role("button", name="Score", exact=True).click()
    said(page, f"Scored for {user}")
    page.get_by_role("group", name="Item b").get_by_role("button", name="Click it").click()
    said(page, "The click on b was learnt")


def test_a_click_raises_the_score_of_what_was_clicked_and_the_page_says_so(chromium: Browser, service: Freshet) -> None:
    with opened(chromium, service) as page:
        page.locator("#user").fill("ann")
        page.get_by_role("button", name="Score", exact=True).click()
        said(page, "Scored for ann")
        before = score_of(page, "b")
        page.get_by_role("group", name="Item b").get_by_role("button", name="Click it").click()
        said(page, "The click on b was learnt")
        assert score_of(page, "b") > before + 1
        said(page, f"to {score_of(page, 'b'):.1f}\u00a0%.")
        assert page.get_by_role("group", name="Item b").get_by_role("button", name="Click it").is_disabled()
        assert page.get_by_role("group", name="Context").count() == 0
        status, body = service.request("/users/ann/posterior")
        assert status == 200
        assert {one["state"] for one in json.loads(body)["outcomes"]} == {"clicked", "settled"}
        # What the form sent is of the model: each feature has its column.
        moved = [one["name"] for one in json.loads(body)["coefficients"] if abs(one["mean"]) > 1e-6]
        assert {"price", "genre=comedy", "kind=short", "tags=sale"} <= set(moved)
        for chart in ("#chart-scores", "#chart-user"):
            assert inked(page, chart)


def inked(page: Page, chart: str) -> bool:
    """Whether something is drawn."""
    return bool(
        page.evaluate(
            """chart => { const c = document.querySelector(chart + " canvas");
            return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some(one => one !== 0) }""",
            chart,
        )
    )


def test_the_stream_is_told_while_it_goes_on(chromium: Browser, service: Freshet) -> None:
    log = open_log(f"sqlite:///{service.output.with_name('freshet.db')}")
    with opened(chromium, service) as page:
        expect(page.locator("#link")).to_have_text("live", timeout=10_000)
        expect(page.locator("#tile-learners")).to_have_text("1 of 1")
        expect(page.locator("#learners")).to_contain_text("events/0")
        expect(page.locator("#chart-fresh")).to_contain_text("Nothing is learnt since")
        play(page, "bea")
        log.append([Entry("events", b"x", f'{{"type": "{HOSTILE}"}}'.encode())])
        expect(page.locator("#tile-fresh")).to_have_text(re.compile("[≤>] "), timeout=10_000)
        expect(page.locator("#letters")).to_contain_text("unknown_type", timeout=10_000)
        assert re.match(
            r"Freshness of \d+ microbatches", page.locator("#chart-fresh").get_attribute("aria-label") or ""
        )
        for chart in ("#chart-rate", "#chart-lag", "#chart-fresh"):
            assert inked(page, chart)
    log.close()


def test_a_belief_is_found_by_id_and_what_is_unknown_is_said(chromium: Browser, service: Freshet) -> None:
    with opened(chromium, service) as page:
        play(page, "cid")
        belief = page.locator("#belief")
        for whose, id, expected in (
            ("a user", "cid", "clicked"), ("an item", "b", "Item b"), ("a user", "nobody", "Nothing is learnt of this"),
            ("a user", HOSTILE, f"User {HOSTILE}"), ("an item", "a/b?c", "Item a/b?c"),
        ):  # fmt: skip
            page.locator("#whose").select_option(whose)
            page.locator("#whom").fill(id)
            page.get_by_role("button", name="Show").click()
            expect(belief).to_contain_text(expected)
            assert inked(page, "#belief [role=img]")
        assert page.locator("img").count() == 0


DEVICE = 'device = { kind = "category", values = ["web", "phone"], from = "context" }\n'


def measured(folder: Path, clicks: int, shadow: str = "", segment: bool = False) -> None:
    """Have a store say of 5,000 outcomes of this hour and of the one before, all promised 0.5, how many were clicked.

    With a segment they are of slates for phones, to which what is served is worse than the fixed effect.
    """
    hour = time.time_ns() // 1_000_000 // HOUR_MS
    sums = []
    for at in (hour - 1, hour):
        cells = np.zeros(CELLS, np.int64)
        cells[[N, CLICKS]] = 5_000, clicks
        for way in range(FIRST_WAY, FIRST_SEGMENT, PER_WAY):
            cells[way + LOSS], cells[way + PREDICTED] = 3_000 * UNIT, 2_500 * UNIT
            cells[way + 2 * PER_WAY_AGE + PER_BIN * (BINS // 2) :][:2] = 5_000 * MANY + clicks, 2_500 * UNIT
        if segment:
            phone = FIRST_SEGMENT + PER_SEGMENT
            cells[phone + N] = 5_000
            for place in (SLATES, phone + OF_SLATES):
                cells[place : place + 3] = 5_000, int(0.1 * 5_000 * UNIT), int(0.04 * 5_000 * UNIT)
        sums.append(HourSums(0, at, cells))
    store = open_store(f"sqlite:///{folder / 'freshet.db'}", 60, **({"shadow": shadow} if shadow else {}))
    assert store.commit([Transaction(0, (), sums=sums)]) == [True]
    store.close()


def test_quality_is_shown_by_segment_and_so_is_where_scores_do_harm(chromium: Browser, tmp_path: Path) -> None:
    measured(tmp_path, 2_000, segment=True)
    text = f"name = 'page'\n[features]\n{DEVICE}[quality]\nsegment = 'device'\n"
    with running(tmp_path, "up", text) as service, opened(chromium, service) as page:
        shown = page.locator("#quality-windows")
        expect(shown).to_contain_text("last hour, device=phone", timeout=15_000)
        expect(shown).not_to_contain_text("device=web")
        expect(shown.get_by_role("alert")).to_contain_text("What is served to slates of device=phone is worse")
        for chart, says in (("#chart-hours", "of 2 hours"), ("#chart-calibration", "0.50 predicted, 0.40 clicked")):
            assert says in (page.locator(chart).get_attribute("aria-label") or "")
            assert inked(page, chart)


def test_quality_is_of_the_model_that_is_chosen(chromium: Browser, tmp_path: Path) -> None:
    measured(tmp_path, 2_000)
    measured(tmp_path, 1_250, shadow="beside")
    shadow = tmp_path / "shadow.toml"
    shadow.write_text(MODEL.replace('"page"', '"beside"'))
    with running(tmp_path, "up", shadow=shadow) as service, opened(chromium, service) as page:
        drawn, windows = page.locator("#chart-calibration"), page.locator("#quality-windows")
        expect(drawn).to_have_attribute("aria-label", re.compile("0.40 clicked"), timeout=15_000)
        choice = page.get_by_label("Of model")
        assert choice.locator("option").all_inner_texts() == ["the one that answers", "page", "beside"]
        choice.select_option("beside")
        expect(drawn).to_have_attribute("aria-label", re.compile("0.25 clicked"))
        expect(windows).to_contain_text("2,500")
        choice.select_option("page")
        expect(drawn).to_have_attribute("aria-label", re.compile("0.40 clicked"))
        expect(windows).to_contain_text("4,000")


def test_a_slate_says_its_context_where_the_model_asks_for_it(chromium: Browser, tmp_path: Path) -> None:
    with running(tmp_path, "up", MODEL.replace("[effects", f"{DEVICE}[effects")) as service:
        with opened(chromium, service) as page:
            context = page.get_by_role("group", name="Context of the slate")
            context.get_by_label("device").select_option("phone")
            play(page, "ann")
            expect(page.get_by_role("group", name="Item b").get_by_label("device")).to_have_count(0)
        _, body = service.request("/users/ann/posterior")
        moved = {one["name"]: abs(one["mean"]) > 1e-6 for one in json.loads(body)["coefficients"]}
        assert (moved["device=phone"], moved["device=web"]) == (True, False)


def test_arms_of_an_experiment_are_shown_with_their_lift(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    experiment = load_experiment(EXPERIMENT)
    hour = np.zeros(CELLS, np.int64)
    hour[N] = 1
    sums = [HourSums(0, time.time_ns() // 1_000_000 // HOUR_MS, hour)]
    for group in range(GROUPS):
        arms = np.zeros((2, PER_ARM), np.int64)
        arms[:, ARM_N], arms[:, ARM_SERVED], arms[:, ARM_FIXED] = 1_000, int(300 * UNIT), int(400 * UNIT)
        # Of each bucket its slates, then its clicks.
        arms[:, ARM_BUCKETS::2], arms[0, ARM_BUCKETS + 1 :: 2], arms[1, ARM_BUCKETS + 1 :: 2] = 100, 10, 20
        sums.append(HourSums(group, TOTALS + experiment.number, arms.ravel()))
    store = open_store(f"sqlite:///{tmp_path / 'freshet.db'}", 60)
    assert store.commit([Transaction(0, (), sums=sums)]) == [True]
    store.close()
    named = {"experiment": tmp_path / "experiment.toml"}
    with running(tmp_path, "up", "name = 'page'\n[features]\n", **named) as service, opened(chromium, service) as page:
        rows = page.locator("#quality-arms tbody tr")
        expect(rows).to_have_count(2, timeout=15_000)
        for row, said in (
            (0, ["control", "10 %", "holdout", "25,600", "2,560", "0.1000", "0.4000"]),
            (1, ["draws", "50 %", "thompson", "25,600", "5,120", "0.2000", "0.3000", "+100.0 % (+"]),
        ):
            for text in said:
                expect(rows.nth(row)).to_contain_text(text)


def test_ids_of_any_kind_are_text_and_never_markup(chromium: Browser, service: Freshet) -> None:
    with opened(chromium, service) as page:
        page.get_by_role("group", name="Item b").get_by_label("item_id").fill(HOSTILE)
        page.locator("#user").fill(HOSTILE)
        page.get_by_role("button", name="Score", exact=True).click()
        said(page, f"Scored for {HOSTILE}")
        page.get_by_role("group", name=f"Item {HOSTILE}").get_by_role("button", name="Click it").click()
        said(page, f"The click on {HOSTILE} was learnt")
        assert page.locator("img").count() == 0


def test_what_the_service_refuses_is_said(chromium: Browser, service: Freshet) -> None:
    with opened(chromium, service, refused=True) as page:
        page.get_by_role("group", name="Item b").get_by_label("taste").fill("1, 2, 3")
        page.get_by_role("button", name="Score", exact=True).click()
        said(page, "expected a list of 2 numbers")
        page.get_by_role("group", name="Item b").get_by_label("taste").fill("1, 2")
        page.get_by_role("group", name="Item b").get_by_label("item_id").fill("a")
        page.get_by_role("button", name="Score", exact=True).click()
        said(page, "Two items have the same item_id")


def test_all_can_be_done_with_the_keyboard(chromium: Browser, service: Freshet) -> None:
    with opened(chromium, service) as page:
        expect(page.get_by_role("group", name="Item c")).to_be_visible()

        def go_to(name: str) -> None:
            for _ in range(80):
                page.keyboard.press("Tab")
                if name in page.evaluate(FOCUSED):
                    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert ring != "none", name
                    return
            raise AssertionError(f"{name} is not reached")

        go_to("Skip to the playground")
        page.keyboard.press("Enter")
        go_to("User")
        page.keyboard.type("eve")
        go_to("Score")
        page.keyboard.press("Enter")
        said(page, "leads with")
        go_to("Click it")
        page.keyboard.press("Space")
        said(page, "The click on a was learnt")
        go_to("Add an item")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.value") == "d"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_is_legible_and_has_names_for_who_does_not_see(
    chromium: Browser, service: Freshet, scheme: Any, width: int
) -> None:
    with opened(chromium, service, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        expect(page.locator("#link")).to_have_text("live", timeout=10_000)
        play(page, f"fay-{scheme}-{width}")
        page.locator("#whom").fill(f"fay-{scheme}-{width}")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#belief")).to_contain_text("Recent outcomes")
        page.get_by_text("All coefficients as a table").click()
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        # Charts follow, too, where a system changes its mind.
        before = page.locator("#chart-rate canvas").evaluate("c => c.toDataURL()")
        page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        page.wait_for_function(
            "before => document.querySelector('#chart-rate canvas').toDataURL() !== before", arg=before
        )


def test_the_page_asks_for_the_key_and_says_which_one_opens_more(chromium: Browser, tmp_path: Path) -> None:
    keys = {"api_key": "client-key", "admin_key": "admin-key"}
    measured(tmp_path, 2_000)
    with running(tmp_path, "up", **keys) as service, opened(chromium, service, refused=True) as page:
        key = page.get_by_label("Key", exact=True)
        key.fill("wrong")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#key-why")).to_contain_text("This key is not taken")
        page.get_by_label("Key", exact=True).fill("client-key")
        page.keyboard.press("Enter")
        expect(page.locator("#link")).to_have_text("live", timeout=10_000)
        expect(page.locator("#quality-windows")).to_contain_text("last hour", timeout=15_000)
        play(page, "gil")
        assert score_of(page, "b") > 0
        expect(page.locator("#chart-user")).to_contain_text("This key may not read it; the admin's may")
        page.locator("#whom").fill("gil")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#belief")).to_contain_text("This key may not read it; the admin's may")
        page.locator("#belief").get_by_role("button", name="Use another key").click()
        page.get_by_label("Key", exact=True).fill("admin-key")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#belief")).to_contain_text("clicked")
        assert re.search("client-key|admin-key", page.content()) is None
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        page.goto(f"http://127.0.0.1:{service.port}/docs")
        expect(page.get_by_text("/users/{user_id}/posterior").first).to_be_visible()


def test_the_page_says_where_a_key_does_not_read_quality(chromium: Browser, service: Freshet) -> None:
    # A proxy may open less than the service does.
    body = {"error": {"code": "forbidden", "message": "not this key"}}
    with opened(chromium, service, refused=True) as page:
        page.route("**/quality*", lambda route: route.fulfill(status=403, json=body))
        page.reload()
        expect(page.locator("#quality-none")).to_contain_text("This key may not read it")
        expect(page.locator("#link")).to_have_text("live", timeout=10_000)


def test_a_service_that_goes_and_comes_back_is_followed(chromium: Browser, tmp_path: Path) -> None:
    with (
        running(tmp_path, "learn") as learner,
        running(tmp_path, "serve") as service,
        opened(chromium, service, refused=True) as page,
    ):
        expect(page.locator("#tile-learners")).to_have_text("1 of 1", timeout=15_000)
        learner.stop()
        expect(page.locator("#no-learner")).to_contain_text("Start one with freshet learn", timeout=15_000)
        expect(page.locator("#tile-learners")).to_have_text("none")
        began = time.monotonic()
        service.stop()
        assert time.monotonic() - began < 5
        expect(page.locator("#link")).to_contain_text("does not answer", timeout=15_000)
        with running(tmp_path, "serve", port=service.port):
            expect(page.locator("#link")).to_have_text("live", timeout=15_000)


def test_the_documentation_is_drawn_without_another_host_and_tries_out(chromium: Browser, service: Freshet) -> None:
    with opened(chromium, service, "/docs") as page:
        page.get_by_text("/health/live").first.click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".live-responses-table").get_by_text('"ok"').first).to_be_visible()

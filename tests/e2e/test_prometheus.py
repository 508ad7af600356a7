"""A real Prometheus on a running learner and scorer: every expression has data, alerts fire in drills and go away."""

from __future__ import annotations

import json
import math
import re
import signal
import sqlite3
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, TopicPartition

from deploy.grafana.dashboard import FILE, PANELS, build
from learner.log import Entry, open_log
from tests.freshet import Freshet
from tests.servers import KafkaServer, PrometheusServer, Server, eventually
from tests.topics import make_topic

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
WINDOW_S = 10
ITEMS = [
    {"item_id": "a", "features": {"price": 9.5, "genre": "drama"}},
    {"item_id": "b", "features": {"price": 30.0, "genre": "comedy"}},
]
SHADOW = (Path(__file__).parents[2] / "deploy" / "model.toml").read_text().replace('name = "feed"', 'name = "beside"')
# No impression has what it needs.
STRANGE = 'name = "beside"\n[features]\nweight = { kind = "numeric" }\n'
EXPRESSIONS = [one for panels in PANELS.values() for *_, expressions in panels for one in expressions]


def slates(n: int, name: str, later_ms: int = 0) -> list[bytes]:
    """Impressions an hour old, or later, each with a click."""
    at = time.time_ns() // 1_000_000 - 3_600_000 + later_ms
    events: list[dict[str, Any]] = []
    for i in range(n):
        ids = {"request_id": f"{name}{i}", "user_id": f"user{i % 40}"}
        events.append({"type": "impression", **ids, "timestamp": at, "items": ITEMS})
        events.append({"type": "click", **ids, "item_id": "b", "timestamp": at + 3_000})
    return [json.dumps(event).encode() for event in events]


class Observed:
    """A learner and a scorer on SQLite, and the rules with seconds for minutes."""

    def __init__(self, prometheus: Server, folder: Path, **more: Any) -> None:
        self.prometheus = prometheus
        self.store = folder / "store.db"
        self.log = more.get("log", f"sqlite:///{folder / 'log.db'}")
        settings = {"store": f"sqlite:///{self.store}", "log": self.log, "store_timeout_s": 0.5, **more}
        self.scorer = Freshet(folder, "serve", **settings)
        self.shadow = folder / "shadow.toml"
        self.shadow.write_text(SHADOW)
        self._learn = partial(Freshet, folder, "learn", shadow=self.shadow, **settings)
        self.learner = self._learn()
        rules = (DEPLOY / "rules.yml").read_text()
        rules = re.sub(r"for: \d+m", "for: 1s", rules)
        rules = re.sub(r"(\[|offset )\d+m", rf"\g<1>{WINDOW_S}s", rules).replace("> 60", "> 3")
        (prometheus.folder / "rules.yml").write_text(rules)
        jobs = "".join(
            f"  - {{job_name: freshet-{name}, static_configs: [{{targets: ['127.0.0.1:{one.port}']}}]}}\n"
            for name, one in (("scorer", self.scorer), ("learner", self.learner))
        )
        (prometheus.folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 500ms, scrape_timeout: 400ms, evaluation_interval: 500ms}\n"
            f"rule_files: [rules.yml]\nscrape_configs:\n{jobs}"
        )
        prometheus.start()
        eventually(self._scraped, 30, "both are scraped")

    def close(self) -> None:
        self.prometheus.stop()
        for one in (self.learner, self.scorer):
            one.process.send_signal(signal.SIGCONT)
            one.stop()

    def restart_learner(self, shadow: str) -> None:
        """Stop it, and start it where it was with another shadow beside its model."""
        self.learner.stop()
        self.shadow.write_text(shadow)
        self.learner = self._learn(port=self.learner.port)

    def append(self, values: list[bytes]) -> None:
        log = open_log(self.log)
        log.append([Entry("events", b"", value) for value in values])
        log.close()

    def score(self) -> None:
        body = {"user_id": "user1", "items": ITEMS, "log_impression": True}
        assert self.scorer.request("/score", json.dumps(body).encode())[0] == 200

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.prometheus.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def values(self, expression: str) -> list[float]:
        """Those that are numbers."""
        found = self.ask("query", query=expression)["result"]
        return [value for one in found if not math.isnan(value := float(one["value"][1]))]

    def _scraped(self) -> bool:
        try:
            return len(self.values("up == 1")) == 2
        except urllib.error.HTTPError:
            return False  # It listens, and is not ready.

    def firing(self, alert: str) -> bool:
        alerts = self.ask("alerts")["alerts"]
        return any(one["labels"]["alertname"] == alert and one["state"] == "firing" for one in alerts)

    def fires(self, alert: str) -> None:
        eventually(lambda: self.firing(alert), 60, f"{alert} fires")

    def goes_away(self, alert: str) -> None:
        eventually(lambda: not self.firing(alert), 60, f"{alert} goes away")


@pytest.fixture(scope="module")
def observed(prometheus: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    one = Observed(prometheus, tmp_path_factory.mktemp("observed"))
    yield one
    one.close()


@pytest.mark.usefixtures("prometheus")
@pytest.mark.parametrize(
    "command", ["check config prometheus.yml", "check rules rules.yml", "test rules rules_test.yml"]
)
def test_what_is_deployed_is_valid_and_each_alert_fires_and_goes_away(command: str) -> None:
    done = subprocess.run(["promtool", *command.split()], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_in_the_rules_tests_and_says_what_it_means_and_what_to_do() -> None:
    rules, tests = ((DEPLOY / name).read_text() for name in ("rules.yml", "rules_test.yml"))
    alerts = re.split(r"- alert: ", rules)[1:]
    assert len(alerts) == 11
    for alert in alerts:
        assert alert.split()[0] in tests
        assert all(f"\n          {key}: " in alert for key in ("summary", "means", "do"))


def test_the_dashboard_is_what_its_script_makes() -> None:
    assert FILE.read_text(encoding="utf-8") == build()


def test_every_expression_of_rules_and_dashboard_has_data(observed: Observed) -> None:
    (group,) = observed.ask("rules")["groups"]
    # Of the rules what they look at, since by themselves they have data only when they fire.
    asked = {found for one in group["rules"] for found in re.findall(r"(?:freshet_\w+|\bup)(?:{[^}]*})?", one["query"])}
    assert len(asked) > 8
    asked |= {one.replace("$__rate_interval", f"{WINDOW_S}s") for one in EXPRESSIONS}
    sent = count()

    def have_data() -> bool:
        # Rates need some traffic all the time.
        number = next(sent)
        # Of so many users that intervals can be told.
        # Their "no"s are due some minutes later, and a slate is scored when its user is seen again.
        observed.append(slates(40, f"data{number}", min(number, 10) * 300_000))
        assert observed.scorer.request("/events", b"\n".join(slates(1, f"posted{number}")))[0] == 202
        observed.score()
        time.sleep(0.5)
        asked.difference_update([one for one in asked if observed.values(one)])
        return not asked

    eventually(have_data, 90, lambda: f"all have data, but {asked}")


def test_dead_letters_are_told_until_there_are_no_more(observed: Observed) -> None:
    observed.append([*slates(20, "letters"), *([b"no JSON"] * 5)])
    observed.fires("FreshetDeadLetters")
    observed.goes_away("FreshetDeadLetters")


def test_clicks_without_impressions_are_told_until_their_share_is_small(observed: Observed) -> None:
    at = time.time_ns() // 1_000_000
    lost = {"type": "click", "user_id": "lost", "item_id": "b", "timestamp": at - 3_600_000}
    seen = {"type": "impression", "request_id": "seen", "user_id": "lost", "timestamp": at, "items": ITEMS}
    # The later event of their user says that no impression comes any more.
    events = [*({**lost, "request_id": f"lost{i}"} for i in range(600)), seen]
    observed.append([json.dumps(event).encode() for event in events])
    observed.fires("FreshetUnmatchedClicks")
    observed.append(slates(14_000, "many"))
    observed.goes_away("FreshetUnmatchedClicks")


def test_a_learner_without_its_store_is_stuck_until_it_is_back(observed: Observed) -> None:
    with sqlite3.connect(observed.store, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        observed.append(slates(5, "stuck"))
        observed.fires("FreshetLearnerStuck")
        assert not observed.firing("FreshetProcessDown")
        other.execute("ROLLBACK")
    other.close()
    observed.goes_away("FreshetLearnerStuck")


def test_a_process_that_stands_still_is_down_and_what_it_learns_late_is_not_fresh(observed: Observed) -> None:
    observed.learner.process.send_signal(signal.SIGSTOP)
    observed.append(slates(5, "late"))
    observed.fires("FreshetProcessDown")
    observed.learner.process.send_signal(signal.SIGCONT)
    observed.goes_away("FreshetProcessDown")
    number = count()

    def late() -> bool:
        observed.learner.process.send_signal(signal.SIGSTOP)
        observed.append(slates(5, f"later{next(number)}"))
        time.sleep(1.5)  # Above the target of a second.
        observed.learner.process.send_signal(signal.SIGCONT)
        time.sleep(1.5)
        return observed.firing("FreshetFreshnessOverTarget")

    eventually(late, 60, "FreshetFreshnessOverTarget fires")
    observed.goes_away("FreshetFreshnessOverTarget")


def test_a_store_that_is_put_back_is_told(observed: Observed) -> None:
    kept = sqlite3.connect(":memory:")
    with sqlite3.connect(observed.store) as now:
        now.backup(kept)
    learnt = sum(observed.values("freshet_learner_messages_total"))
    observed.append(slates(20, "rewound"))
    eventually(lambda: sum(observed.values("freshet_learner_messages_total")) >= learnt + 40, 15, "they are learnt")
    time.sleep(2)  # Positions are brought up once a second.
    with sqlite3.connect(observed.store) as now:
        kept.backup(now)
    now.close()
    kept.close()
    observed.fires("FreshetStoreRewound")
    observed.goes_away("FreshetStoreRewound")


def test_a_shadow_that_is_dropped_is_told_until_the_learner_starts_with_one_that_is_right(observed: Observed) -> None:
    observed.restart_learner(STRANGE)
    observed.append(slates(600, "strange"))
    observed.fires("FreshetShadowDropped")
    observed.restart_learner(SHADOW)
    observed.goes_away("FreshetShadowDropped")


def test_a_prometheus_that_is_missing_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Exception, match="prometheus and promtool not installed"):
        PrometheusServer(tmp_path)


@pytest.fixture
def fresh(prometheus: Server, tmp_path: Path) -> Iterator[Observed]:
    """One that has learnt nothing yet, by a Prometheus of its own."""
    assert isinstance(prometheus, PrometheusServer)
    one = Observed(PrometheusServer(tmp_path), tmp_path)
    yield one
    one.close()


def test_a_lag_that_grows_is_told_until_it_is_worked_off(observed: Observed) -> None:
    number = count()

    def too_many() -> bool:
        observed.append(slates(4_000, f"flood{next(number)}"))
        return observed.firing("FreshetLagGrowing")

    eventually(too_many, 60, "FreshetLagGrowing fires")
    observed.goes_away("FreshetLagGrowing")
    # It goes away where fewer wait than before; then all are learnt.
    eventually(lambda: observed.values("freshet_learner_lag_messages") == [0], 60, "nothing waits")


def hours_ago(hours: float, users: int, name: str, each: int, *clicked: str, every_s: int = 600) -> list[bytes]:
    """Slates of so many users, each so many times, of which some items are clicked at once."""
    begin = time.time_ns() // 1_000_000 - int(hours * 3_600_000)
    events: list[dict[str, Any]] = []
    for k in range(each):
        at = begin + k * every_s * 1_000
        for i in range(users):
            ids = {"request_id": f"{name}{k}-{i}", "user_id": f"{name}{i}", "timestamp": at}
            events += [{"type": "click", **ids, "item_id": one} for one in clicked]
            events.append({"type": "impression", **ids, "items": ITEMS})
    return [json.dumps(event).encode() for event in events]


def test_clicks_that_are_more_than_was_promised_are_told_until_they_are_as_many(fresh: Observed) -> None:
    # The first slate of each is scored when the second one comes.
    users = 400
    fresh.append(hours_ago(6, users, "eager", 1, "a", "b"))
    fresh.append(hours_ago(5, users, "eager", 1))
    fresh.fires("FreshetCalibrationOff")
    promised = 'freshet_quality{model="feed", metric="predicted_over_actual", way="served", users="all", window="1d"}'
    (share,) = fresh.values(promised)
    assert share < 0.5
    # So many others who click nothing that all together click as often as was promised.
    fresh.append(hours_ago(4, round(users * (1 / share - 1)), "quiet", 2))
    fresh.goes_away("FreshetCalibrationOff")
    (share,) = fresh.values(promised)
    assert share == pytest.approx(1, abs=0.1)


def test_tastes_that_turn_over_are_told_until_the_new_ones_are_learnt(fresh: Observed) -> None:
    fresh.append(hours_ago(11, 40, "fickle", 30, "b"))
    fresh.append(hours_ago(6, 40, "fickle", 6, "a"))
    fresh.fires("FreshetServedWorse")
    fresh.append(hours_ago(5, 40, "fickle", 27, "a"))
    fresh.goes_away("FreshetServedWorse")


@pytest.mark.usefixtures("prometheus")
def test_events_that_the_log_drops_unread_are_told(kafka_server: KafkaServer, tmp_path: Path) -> None:
    topic = f"dropped-{time.time_ns()}"
    make_topic(kafka_server, topic)
    settings = {"log": kafka_server.url, "impressions_topic": topic, "clicks_topic": topic, "group": topic}
    observed = Observed(PrometheusServer(tmp_path), tmp_path, **settings)

    def append(n: int, name: str) -> None:
        log = open_log(kafka_server.url)
        log.append([Entry(topic, b"", value) for value in slates(n, name)])
        log.close()

    try:
        append(10, "read")
        eventually(lambda: observed.values("freshet_learner_messages_total") == [20], 30, "they are learnt")
        observed.learner.stop()
        append(10, "unread")
        admin = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
        admin.delete_records({TopicPartition(topic, 0): 35})
        admin.close()
        more = {"store": f"sqlite:///{observed.store}", "port": observed.learner.port}
        observed.learner = Freshet(tmp_path, "learn", **settings, **more)
        observed.fires("FreshetEventsLost")
        assert observed.values("freshet_learner_events_lost_total") == [15]
        observed.goes_away("FreshetEventsLost")
    finally:
        observed.close()

"""Write freshet.json, the dashboard: `python -m deploy.grafana.dashboard`. A test compares the two."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

FILE = Path(__file__).with_name("freshet.json")
_SOURCE = DataSourceRef("prometheus", "prometheus")
_WIDTH, _HEIGHT = 8, 8
"""Three panels a row: Grafana's grid has 24 columns."""


def _rate(counter: str, by: str) -> str:
    return f"sum by ({by}) (rate({counter}[$__rate_interval]))"


def _quantile(q: float, histogram: str, by: str = "") -> str:
    labels = ", ".join(["le", *([by] if by else [])])
    return f"histogram_quantile({q}, {_rate(f'{histogram}_bucket', labels)})"


def _mean(histogram: str, by: str) -> str:
    return f"{_rate(f'{histogram}_sum', by)} / {_rate(f'{histogram}_count', by)}"


def _quality(metric: str, users: str, way: str = ".+") -> str:
    """All learners tell the same."""
    chosen = f'metric="{metric}", users=~"{users}", way=~"{way}", window="1d"'
    return f"max by (model, way, users) (freshet_quality{{{chosen}}})"


PANELS: dict[str, list[tuple[str, str, str, Mapping[str, str]]]] = {
    "Stream": [
        ("Events learnt", "events a second", "cps",
         {_rate("freshet_learner_messages_total", "instance"): "{{instance}}"}),
        ("Lag", "messages still to be polled, by partition", "short",
         {"freshet_learner_partition_lag_messages": "{{partition}}"}),
        ("Freshness", "from the log to the store, oldest message of a microbatch", "s",
         {_quantile(q, "freshet_learner_freshness_seconds"): f"{q:.0%}" for q in (0.5, 0.95, 0.99)}),
        ("Learners", "those that answer, of all that are known; and members of the group", "short",
         {'sum(up{job="freshet-learner"})': "answer", 'count(up{job="freshet-learner"})': "known",
          "max(freshet_learner_group_members)": "in the group"}),
        ("Seconds since a learner's last turn", "it grows while the store or the log is away", "s",
         {"time() - freshet_learner_turned_timestamp_seconds": "{{instance}}"}),
        ("Alerts", "of rules.yml", "short",
         {'count by (alertname) (ALERTS{alertname=~"Freshet.+", alertstate="firing"}) or vector(0)': "{{alertname}}"}),
    ],
    "Learning": [
        ("Time of a microbatch", "mean by stage", "s", {_mean("freshet_learner_stage_seconds", "stage"): "{{stage}}"}),
        ("Size of a microbatch", "messages", "short",
         {_quantile(q, "freshet_learner_batch_messages"): f"{q:.0%}" for q in (0.5, 0.95)}),
        ("What became of events", "a second, by kind: docs/reference.md", "cps",
         {_rate("freshet_learner_total", "kind"): "{{kind}}"}),
        ("Dead letters", "a second, by reason", "cps",
         {_rate("freshet_learner_dead_letters_total", "reason"): "{{reason}}"}),
        ("Shares of the last hour", "a warning above 5 %", "percentunit",
         {"freshet_learner_share": "{{kind}} {{instance}}"}),
        ("Events lost", "dropped by the log before they were read, since the learner's start", "short",
         {"freshet_learner_events_lost_total": "{{instance}}"}),
        ("Users with open windows", "whose impressions may still be clicked, or clicks may still find theirs", "short",
         {"freshet_learner_waiting_users": "{{instance}}"}),
    ],
    "Quality": [
        ("Log loss", "of the last day, by way of predicting", "none",
         {_quality("log_loss", "all"): "{{model}}: {{way}}"}),
        ("Predicted over actual clicks", "of the last day; 1 if calibrated", "none",
         {_quality("predicted_over_actual", "all"): "{{model}}: {{way}}"}),
        ("NDCG@10 in slates", "of the last day", "none",
         {_quality("slate_ndcg", "all"): "{{model}}: {{way}}"}),
        ("Log loss by users", "of the last day, as served, new ones shown less than 50 outcomes; by segment", "none",
         {_quality("log_loss", "new|known|.+=.+", "served"): "{{model}}: {{users}}"}),
        ("Outcomes scored", "in the last day", "short",
         {'max by (model, users) (freshet_quality_outcomes{window="1d"})': "{{model}}: {{users}}"}),
        ("Worse than the fixed effect", "1 where what is served is so by more than chance", "none",
         {"max by (model, segment) (freshet_quality_guardrail)": "{{model}} {{segment}}"}),
    ],
    "Scoring": [
        ("Requests", "a second, by route and status", "reqps",
         {_rate("freshet_http_requests_total", "route, status"): "{{route}} {{status}}"}),
        ("Latency", "99 %, by route", "s", {_quantile(0.99, "freshet_http_request_seconds", "route"): "{{route}}"}),
        ("Time of a score", "mean by stage", "s", {_mean("freshet_score_stage_seconds", "stage"): "{{stage}}"}),
        ("Items scored", "a second, by policy and whether the user is known", "cps",
         {_rate("freshet_items_scored_total", "policy, user_known"): "{{policy}}, known {{user_known}}"}),
        ("Events accepted", "a second", "cps", {_rate("freshet_events_accepted_total", "topic"): "{{topic}}"}),
        ("Impressions not logged", "a second", "cps", {_rate("freshet_impressions_unlogged_total", "job"): "{{job}}"}),
    ],
}  # fmt: skip
"""By row: title, description, unit as Grafana names it, and by PromQL expression its legend."""


def build() -> str:
    """The dashboard as JSON."""
    board = (
        dashboard.Dashboard("Freshet").uid("freshet").tags(["freshet"]).refresh("10s").time("now-1h", "now").readonly()
    )
    numbers = count(1)
    for row, panels in PANELS.items():
        board.with_row(dashboard.Row(row).id(next(numbers)))
        for title, description, unit, expressions in panels:
            panel = timeseries.Panel().id(next(numbers)).title(title).description(description).unit(unit).min(0)
            panel.fill_opacity(10).datasource(_SOURCE).span(_WIDTH).height(_HEIGHT)
            for letter, (expression, legend) in zip(ascii_uppercase, expressions.items(), strict=False):
                query = prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend)
                panel.with_target(query.datasource(_SOURCE))
            board.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(build(), encoding="utf-8")

#!/usr/bin/env bash
# From `docker-compose up` to a score that changes after a click produced from outside, and three learners.
# Needs docker, docker-compose, and a Python with kafka-python: PYTHON=.venv-test/bin/python tests/e2e/compose_check.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
export COMPOSE_PROJECT_NAME=freshet-check
python=${PYTHON:-.venv-test/bin/python}
finish() {
  status=$?
  ((status == 0)) || docker-compose logs --tail 30 learner scorer topics || true
  docker-compose down -v >/dev/null 2>&1 || true
  exit $status
}
trap finish EXIT
# `! command` alone would pass whatever comes: errexit takes no notice of it.
refused() { if "$@" >/dev/null 2>&1; then echo "expected to be refused: $*"; return 1; fi; }
healthy() { # service, how many
  for _ in $(seq 120); do
    up=$(docker ps -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" \
      --filter "label=com.docker.compose.service=$1" --filter health=healthy | wc -l)
    ((up == $2)) && return
    sleep 1
  done
  echo "$1: $up of $2 healthy"
  return 1
}
deploy/make_secrets.sh
docker-compose up -d --build
healthy learner 1
healthy scorer 1
"$python" - <<'P'
import json, time, urllib.request
from kafka import KafkaProducer
items = [{"item_id": "a", "features": {"price": 9.5, "genre": "drama"}},
         {"item_id": "b", "features": {"price": 30.0, "genre": "comedy"}}]
def score():
    body = json.dumps({"user_id": "ann", "items": items}).encode()
    answer = json.load(urllib.request.urlopen("http://127.0.0.1:8000/score", body, timeout=10))
    return {item["item_id"]: item["score"] for item in answer["items"]}, answer["posterior"]
before, first = score()
now = time.time_ns() // 1_000_000
shown = {"type": "impression", "request_id": "r1", "user_id": "ann", "timestamp": now, "items": items}
clicked = {"type": "click", "request_id": "r1", "user_id": "ann", "item_id": "b", "timestamp": now + 2000}
producer = KafkaProducer(bootstrap_servers="127.0.0.1:9092")
producer.send("events", json.dumps(shown).encode(), key=b"ann")
producer.send("events", json.dumps(clicked).encode(), key=b"ann")
producer.flush()
deadline = time.monotonic() + 30
while score()[1]["n_events"] < 2:
    assert time.monotonic() < deadline, "the events were not learnt"
    time.sleep(0.05)
after, last = score()
print(f"b: {before['b']:.4f} -> {after['b']:.4f}, revision {first['revision']} -> {last['revision']}")
assert after["b"] > before["b"] and last["revision"] > first["revision"]
P
docker-compose up -d --no-recreate --scale learner=3
healthy learner 3
# Not root, nothing to write to, no way to become more; and no Redis without the password.
[[ $(docker-compose exec -T scorer id -u) != 0 ]]
refused docker-compose exec -T scorer touch /opt/freshet/x
refused docker-compose exec -T scorer touch /etc/freshet/x
[[ $(docker-compose exec -T scorer grep -E '^(CapEff|NoNewPrivs)' /proc/self/status | tr -d '[:space:]') == \
  CapEff:0000000000000000NoNewPrivs:1 ]]
[[ $(docker-compose exec -T redis redis-cli ping 2>&1) == *NOAUTH* ]]
# Prometheus finds the scorer and all learners, and Grafana its dashboard. An image that is not to be had is said.
has() { docker image inspect "$1" >/dev/null 2>&1 || docker pull -q "$1" >/dev/null 2>&1 || { echo "!!! NOT TESTED: no image $1"; return 1; }; }
if has "${PROMETHEUS_IMAGE:-prom/prometheus:v3.5.0}"; then
  docker-compose --profile observe up -d --no-recreate --scale learner=3 prometheus
  "$python" - <<'P'
import json, time, urllib.request
def asked(path):
    return json.load(urllib.request.urlopen(f"http://127.0.0.1:9090/api/v1/{path}", timeout=10))["data"]
def up():
    try:
        return sum(target["health"] == "up" for target in asked("targets")["activeTargets"])
    except OSError:
        return 0
deadline = time.monotonic() + 90
while up() < 4:
    assert time.monotonic() < deadline, f"{up()} of 4 targets are up"
    time.sleep(1)
alerts = [rule for group in asked("rules")["groups"] for rule in group["rules"] if rule["type"] == "alerting"]
assert alerts and all(rule["health"] in ("ok", "unknown") for rule in alerts), alerts
print(f"prometheus: {up()} targets up, {len(alerts)} alerts")
P
fi
if has "${GRAFANA_IMAGE:-grafana/grafana:11.6.0}"; then
  docker-compose --profile observe up -d --no-recreate --scale learner=3 grafana
  for _ in $(seq 60); do
    curl -sf http://127.0.0.1:3000/api/search 2>/dev/null | grep -q '"title":"Freshet"' && break
    sleep 1
  done
  curl -sf http://127.0.0.1:3000/api/search | grep '"title":"Freshet"' >/dev/null
fi
echo PASS

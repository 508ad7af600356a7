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
echo PASS

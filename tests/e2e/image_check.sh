#!/usr/bin/env bash
# The image on a read-only file system, without any capability and not as root: it becomes ready, learns and scores.
# Needs docker. IMAGE=name:tag takes one that is built already, PYTHON_IMAGE=name:tag another base than the one by digest.
set -euo pipefail
cd "$(dirname "$0")/../.."
image=${IMAGE:-freshet-image-check}
finish() {
  status=$?
  ((status == 0)) || docker logs --tail 30 freshet-image-check || true
  docker rm -f freshet-image-check >/dev/null 2>&1 || true
  exit $status
}
trap finish EXIT
[[ -n ${IMAGE:-} ]] || docker build ${PYTHON_IMAGE:+--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE"} -t "$image" -f deploy/Dockerfile .
# All that may be written to is a file of its own, in memory.
docker run -d --name freshet-image-check --read-only --cap-drop ALL --security-opt no-new-privileges \
  --tmpfs /data:uid=10001 --workdir /data --network none "$image" up >/dev/null
# `! command` alone would pass whatever comes: errexit takes no notice of it.
refused() { if "$@" >/dev/null 2>&1; then echo "expected to be refused: $*"; return 1; fi; }
inside() { docker exec -i freshet-image-check "$@"; }
for _ in $(seq 120); do
  inside python3 -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:8000/health/ready")' 2>/dev/null && break
  sleep 1
done
inside python3 - <<'P'
import json, time, urllib.request
items = [{"item_id": one, "features": {"price": price}} for one, price in (("a", 9.5), ("b", 30.0))]
def ask(path, **body):
    request = urllib.request.Request("http://127.0.0.1:8000" + path, json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request, timeout=10))
ask("/score", user_id="ann", items=items, request_id="r1", log_impression=True)
ask("/events", type="click", request_id="r1", user_id="ann", item_id="b", timestamp=time.time_ns() // 1_000_000)
deadline = time.monotonic() + 60
while (answer := ask("/score", user_id="ann", items=items))["posterior"]["n_events"] < 2:
    assert time.monotonic() < deadline, "the events were not learnt"
    time.sleep(0.05)
assert answer["items"][0]["item_id"] == "b", answer
P
[[ $(inside id -u) == 10001 ]]
[[ $(inside grep -E '^(CapEff|NoNewPrivs)' /proc/1/status | tr -d '[:space:]') == CapEff:0000000000000000NoNewPrivs:1 ]]
for place in / /opt/freshet /etc /tmp; do refused inside touch "$place/x"; done
# No compiler.
for name in cc gcc make; do refused inside sh -c "command -v $name"; done
echo PASS

"""Ten minutes of one learner: whether its memory stays flat."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

from benchmarks.harness import Context, Figure
from benchmarks.http_process import PythonProcess, resident_mb
from benchmarks.workload import freshet_environ, make_topic, shared
from tests.servers import KafkaServer, RedisServer

SECONDS = 600
WARM_S = 120


def measure(context: Context) -> list[Figure]:
    """Resident memory at the end over that after warming up, by a straight line through both."""
    kafka = shared(context, KafkaServer)
    topic = "soak"
    make_topic(kafka, topic)
    environ = freshet_environ(context, shared(context, RedisServer).url(5), kafka.url, topic, "soak")
    learner = context.start(PythonProcess(["service", "learn"], environ))
    load = subprocess.Popen([sys.executable, "-m", "benchmarks.freshness", kafka.bootstrap, topic, str(SECONDS)])
    times, sizes = [], []
    started = time.perf_counter()
    try:
        while (now := time.perf_counter() - started) < SECONDS:
            times.append(now)
            sizes.append(resident_mb(learner.pid))
            time.sleep(2)
    finally:
        load.terminate()
        load.wait()
    warm = np.asarray(times) >= WARM_S
    slope, start = np.polyfit(np.asarray(times)[warm], np.asarray(sizes)[warm], 1)
    return [
        Figure("soak: resident memory of a learner", "MB", [sizes[-1]]),
        Figure(
            "soak: memory after ten minutes over that after two",
            "x",
            [(start + slope * SECONDS) / (start + slope * WARM_S)],
            at_most=1.05,
            note="2,000 impressions of one item a second",
        ),
    ]

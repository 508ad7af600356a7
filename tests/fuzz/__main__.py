"""The long form, `make fuzz`: prints a table; exits with 1 if anything failed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.laws import TARGETS
from tests.fuzz.run import Row, by_atheris, by_hypothesis, by_schemathesis, table
from tests.servers import KafkaServer, Missing, RedisServer

PHASES = "coverage,fuzzing,stateful"


def main() -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=4_000, help="by Hypothesis, for each law (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=50_000, help="by atheris, for each target (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=150, help="by schemathesis, per route (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of everything (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a hundredth of all that")
    arguments = parser.parse_args()
    divisor = 100 if arguments.quick else 1
    rows: list[Row] = []

    def show(row: Row) -> None:
        rows.append(row)
        print(f"{row.target}: {row.cases} cases, {row.failures} failures, {row.seconds:.0f} s", flush=True)
        if row.said:
            print(row.said, flush=True)

    for target in TARGETS:
        show(by_hypothesis(target, arguments.cases // divisor, arguments.seed))
    for name in ("wire", "record"):
        show(by_atheris(name, arguments.runs // divisor, arguments.seed))
    requests = max(2, arguments.requests // divisor)
    show(by_schemathesis("routes: SQLite", requests, arguments.seed, PHASES))
    show(_on_servers(requests, arguments.seed + 1))
    print(table(rows))
    return 1 if any(row.failures for row in rows) else 0


def _on_servers(requests: int, seed: int) -> Row:
    name = "routes: Redis and Kafka"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            redis, kafka = (kind(_made(Path(scratch) / kind.name)) for kind in (RedisServer, KafkaServer))
        except Missing as exc:
            return Row(name, 0, 0, 0.0, f"not run: {exc}")
        try:
            redis.start()
            kafka.start()
            return by_schemathesis(name, requests, seed, PHASES, store=redis.url(), log=kafka.url)
        except Missing as exc:
            return Row(name, 0, 0, 0.0, f"not run: {exc}")
        finally:
            kafka.stop()
            redis.stop()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())

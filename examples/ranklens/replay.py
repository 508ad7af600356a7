"""Replay RankLens against a running Freshet and measure what learning from every click is worth.

For each list of films the service is asked for scores *before* the list's events are sent, once as the user and once as
somebody nobody knows. The first are what Freshet serves, the second the frozen prior.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from scipy.special import expit
from tqdm import tqdm

from examples.ranklens.dataset import DatasetMissing, Slate, Slates, load
from freshet import Client, FreshetError, Item
from learner.evaluation.metrics import auc, log_loss, rank_slates

REPORT_EVERY = 500

Send = Callable[[str, str, bytes], None]


class Measures(NamedTuple):
    """How good one kind of score is; as `learner.evaluation.metrics.METRICS` says."""

    slate_auc: float
    log_loss: float
    pooled_auc: float


class Service(Client):
    """The HTTP service."""

    def scores(self, user_id: str, slate: Slate) -> np.ndarray:
        """Scores of a slate, in the order of its items, shape (n_items,)."""
        ranked = {item.item_id: item.score for item in self.score(user_id, sent(slate)).items}
        return np.array([ranked[item] for item in slate.item_ids])


def sent(slate: Slate) -> list[Item]:
    """The items of a slate, as they are sent."""
    return [
        {"item_id": item, "features": features, "offset": offset}
        for item, features, offset in zip(slate.item_ids, slate.features, slate.offsets.tolist(), strict=True)
    ]


def impression(user_id: str, slate: Slate) -> bytes:
    """The impression event of a slate."""
    event = {"type": "impression", "request_id": slate.request_id, "user_id": user_id, "timestamp": slate.timestamp}
    return msgspec.json.encode({**event, "items": sent(slate)})


def clicks(user_id: str, slate: Slate) -> Iterator[bytes]:
    """The click events of a slate."""
    for place in np.flatnonzero(slate.clicked).tolist():
        event = {"type": "click", "request_id": slate.request_id, "user_id": user_id, "item_id": slate.item_ids[place]}
        yield msgspec.json.encode({**event, "timestamp": slate.clicked_at})


@contextmanager
def sending(over: str, bootstrap: str, service: Service) -> Iterator[Send]:
    """How events are sent: to Kafka by a plain producer, or to POST /events."""
    if over == "http":
        yield lambda topic, user_id, event: (service.events(msgspec.json.decode(event)), None)[1]
        return
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    try:
        producer = KafkaProducer(bootstrap_servers=bootstrap.split(","), linger_ms=0, bootstrap_timeout_ms=5000)
    except KafkaError as exc:
        raise FreshetError(None, "no_answer", f"no Kafka answers at {bootstrap}: {exc}") from exc

    yield lambda topic, user_id, event: (producer.send(topic, event, key=user_id.encode()), None)[1]
    producer.flush()
    producer.close()


def replay(data: Slates, service: Service, send: Send, arguments: argparse.Namespace) -> dict[str, Measures]:
    """Ask and send, in recorded order.

    Returns
    -------
    dict
        For each kind of score how good it is, over the slates after the split.
    """
    # A run of its own: nobody in it is known from an earlier one.
    run = uuid.uuid4().hex[:8]
    slates = data.slates[: arguments.first] if arguments.first else data.slates
    moments = [(slate.timestamp, 0, i) for i, slate in enumerate(slates)]
    moments += [(slate.clicked_at, 1, i) for i, slate in enumerate(slates) if slate.clicked.any()]
    moments.sort()
    kinds = ("fixed effect alone", "frozen prior", "served by Freshet")
    scores: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    labels: list[np.ndarray] = []
    results: dict[str, Measures] = {}
    started, first = time.monotonic(), moments[0][0]
    with tqdm(total=len(slates), unit=" slates", desc="replaying") as bar:
        for moment, kind, i in moments:
            slate = slates[i]
            user_id = f"{run}-{slate.user_id}"
            if arguments.speed:
                ahead = (moment - first) / 1000 / arguments.speed - (time.monotonic() - started)
                time.sleep(max(0.0, ahead))
            if kind == 1:
                for event in clicks(user_id, slate):
                    send(arguments.clicks_topic, user_id, event)
                continue
            if i >= data.split:
                served, prior = service.scores(user_id, slate), service.scores(f"{run}-nobody", slate)
                for name, values in zip(kinds, (expit(slate.offsets), prior, served), strict=True):
                    scores[name].append(values)
                labels.append(slate.clicked)
            send(arguments.impressions_topic, user_id, impression(user_id, slate))
            bar.update()
            if labels and (len(labels) % REPORT_EVERY == 0):
                results = _measure(labels, scores)
                bar.set_postfix_str(
                    f"AUC in slates {results[kinds[2]].slate_auc:.4f}, prior {results[kinds[1]].slate_auc:.4f}"
                )
    return _measure(labels, scores) if labels else results


def _measure(labels: list[np.ndarray], scores: dict[str, list[np.ndarray]]) -> dict[str, Measures]:
    y = np.concatenate(labels).astype(np.float64)
    slate = np.repeat(np.arange(len(labels)), [len(one) for one in labels])

    def of(p: np.ndarray) -> Measures:
        return Measures(float(np.nanmean(rank_slates(slate, y, p)[0])), log_loss(y, p), auc(y, p))

    return {kind: of(np.concatenate(s)) for kind, s in scores.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the replay; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.ranklens.replay", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The learner and the service must run with FRESHET_MODEL=examples/ranklens/model.toml. RankLens: "
        "https://github.com/metarank/ranklens, CC BY-SA 4.0.",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder with impressions.parquet and items.parquet"
    )
    parser.add_argument(
        "--service", default="http://127.0.0.1:8000", help="where freshet serves (default: %(default)s)"
    )
    parser.add_argument(
        "--over", choices=["kafka", "http"], default="kafka", help="how events are sent (default: %(default)s)"
    )
    parser.add_argument("--kafka", default="127.0.0.1:9092", help="bootstrap servers (default: %(default)s)")
    parser.add_argument("--impressions-topic", default="events", help="(default: %(default)s)")
    parser.add_argument("--clicks-topic", default="events", help="(default: %(default)s)")
    parser.add_argument("--speed", type=float, default=0.0, help="times the recorded speed; 0: flat out (default)")
    parser.add_argument("--first", type=int, default=0, help="only so many slates (default: all)")
    arguments = parser.parse_args(argv)
    try:
        data = load(arguments.data)
        service = Service(arguments.service, os.environ.get("FRESHET_API_KEY", ""))
        with sending(arguments.over, arguments.kafka, service) as send:
            results = replay(data, service, send, arguments)
    except (DatasetMissing, FreshetError) as exc:
        print(f"ranklens: {exc}", file=sys.stderr)
        return 2
    print(f"slates after the first {data.split}, each scored before its events were sent:")
    for kind, one in results.items():
        inside, loss, pooled = (f"{value:.4f}" for value in one)
        print(f"  {kind:20s} AUC in slates {inside}   log loss {loss}   pooled AUC {pooled}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

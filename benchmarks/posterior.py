"""Update of a belief by one outcome, against the peers: lambda-learner, bayesianbandits, Vowpal Wabbit, River."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Context, Figure, interleave, ratios, seconds_of
from benchmarks.workload import SLATE_MS, START_MS, click_json, items, model, parsed, step
from learner.belief.compiled import compiled
from learner.belief.gaussian import Array
from learner.belief.update import condition
from learner.events.wire import impression_json

USERS = 1_000


def freshet(d: int, users: int = USERS) -> Callable[[], float]:
    """Microseconds an outcome when each of `users` users has one."""
    generator = np.random.default_rng(0)
    mean = np.zeros((users, d), np.float32)
    # The identity in U D U' form.
    factor = np.zeros((users, d * (d + 1) // 2), np.float32)
    factor[:, [j * (j + 3) // 2 for j in range(d)]] = 1.0
    x = (generator.normal(size=(users, d)) / np.sqrt(d)).astype(np.float32)
    y = generator.random(users) < 0.2
    return lambda: _update_each(mean.copy(), factor.copy(), x, y) / users * 1e6


def _update_each(mean: Any, factor: Any, x: Any, y: Any) -> float:
    """Seconds to condition each user's belief on one outcome, as the compiled loop does."""
    work = np.empty((2, x.shape[1]))
    return seconds_of(lambda: _condition_all(mean, factor, x, y, work[0], work[1]))


@compiled
def _condition_all(mean: Any, factor: Any, x: Any, y: Any, f: Any, gain: Any) -> None:
    for u in range(len(x)):
        condition(mean[u], factor[u], x[u], y[u], 0.0, 1.0, False, f, gain)


def whole_step(hot: bool) -> Callable[[], float]:
    """Microseconds an outcome of a step: 1,000 clicked outcomes of one user, or one each of 1,000.

    The users return: they have a record, with a slate that is still open.
    """
    spec = model()
    generator = random.Random(0)
    names = ["hot"] * USERS if hot else [f"user-{i}" for i in range(USERS)]
    slate = items(generator, 10)
    behind = [impression_json("behind", name, START_MS, slate) for name in dict.fromkeys(names)]
    before = parsed(spec, behind)
    stored = dict(zip(before.user_ids, step(spec, [None] * len(behind), before), strict=True))
    events = []
    for i, name in enumerate(names):
        (shown,) = items(generator, 1)
        at = START_MS + SLATE_MS + i
        events.append(impression_json(f"r{i}", name, at, [shown]))
        events.append(click_json(f"r{i}", name, at, shown["item_id"]))
    batch = parsed(spec, events)
    records = [stored[name] for name in batch.user_ids]
    return lambda: seconds_of(lambda: step(spec, records, batch)) / USERS * 1e6


def measure(context: Context) -> list[Figure]:
    """Freshet and the peers in turn; each peer keeps a model for each of 100 users."""
    contenders: dict[str, Callable[[], float]] = {
        "freshet d=16": freshet(16),
        "freshet d=64": freshet(64),
        "whole step, spread users": whole_step(hot=False),
        "whole step, one hot user": whole_step(hot=True),
    }
    absent = []
    for name, make in PEERS.items():
        try:
            contenders[name] = make()
        except ImportError as exc:
            absent.append(f"{name} ({exc})")
    if absent:
        print("peers not installed:", ", ".join(absent))
    values = interleave(contenders, context.repetitions)
    ours = values["freshet d=16"]
    figures = [
        Figure("posterior: update, d = 16, batches of 1,000 users", "us", ours, at_most=4),
        Figure("posterior: update, d = 64, batches of 1,000 users", "us", values["freshet d=64"], at_most=25),
        Figure(
            "posterior: one hot user of 1,000 outcomes over 1,000 spread ones",
            "x",
            ratios(values["whole step, one hot user"], values["whole step, spread users"]),
            at_most=5,
        ),
        Figure("posterior: whole learning step, spread users", "us", values["whole step, spread users"]),
    ]
    aims = {"bayesianbandits": 1 / 50, "Vowpal Wabbit": 1 / 3}
    for name in (peer for peer in PEERS if peer in values):
        figures.append(Figure(f"posterior: update by {name}", "us", values[name]))
        figures.append(Figure(f"posterior: Freshet over {name}", "x", ratios(ours, values[name]), aims.get(name)))
    return figures


def _outcomes(d: int = 16, n: int = 100) -> tuple[Array, NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(n, d)) / np.sqrt(d), (generator.random(n) < 0.2).astype(int)


def _each(update: Callable[[int], object], n: int) -> Callable[[], float]:
    """Microseconds of the processor for an update, over n of them."""

    def run() -> float:
        started = time.process_time()
        for i in range(n):
            update(i)
        return (time.process_time() - started) / n * 1e6

    return run


def _lambda_learner() -> Callable[[], float]:
    """The papers' own code; full Hessian, no forgetting. Its data sets are sparse matrices."""
    from linkedin.learner.ds.indexed_dataset import IndexedDataset
    from linkedin.learner.ds.indexed_model import IndexedModel
    from linkedin.learner.prediction.hessian_type import HessianType
    from linkedin.learner.prediction.trainer_sequential_bayesian_logistic_loss_with_l2 import (
        TrainerSequentialBayesianLogisticLossWithL2 as Trainer,
    )
    from scipy import sparse

    X, y = _outcomes()
    models = [IndexedModel(np.zeros(16), sparse.identity(16, format="csc")) for _ in X]
    data = [
        IndexedDataset(sparse.csc_matrix(x[None]), np.array([2 * label - 1]), np.ones(1), np.zeros(1))
        for x, label in zip(X, y, strict=True)
    ]

    def update(i: int) -> None:
        trainer = Trainer(
            training_data=data[i], initial_model=models[i], hessian_type=HessianType.FULL, penalty=1.0, delta=1.0
        )
        trainer.train()

    update(0)
    return _each(update, len(X))


def _bayesianbandits() -> Callable[[], float]:
    from bayesianbandits import BayesianGLM

    X, y = _outcomes()
    models = [BayesianGLM(alpha=1.0) for _ in X]
    for one in models:
        one.partial_fit(X[:1], y[:1])
    return _each(lambda i: models[i].partial_fit(X[i : i + 1], y[i : i + 1]), len(X))


def _vowpal_wabbit() -> Callable[[], float]:
    """Lines of text in its own format, made beforehand; users by interaction of namespaces. Keeps no covariance."""
    from vowpalwabbit import Workspace

    X, y = _outcomes(n=2_000)
    lines = [
        f"{2 * label - 1} |u {i % 100} |f " + " ".join(f"{j}:{value:.6f}" for j, value in enumerate(x))
        for i, (x, label) in enumerate(zip(X, y, strict=True))
    ]
    learner = Workspace("--quiet --loss_function logistic --interactions uf -b 18")
    return _each(lambda i: learner.learn(lines[i]), len(X))


def _river() -> Callable[[], float]:
    """A logistic regression by stochastic gradient for each user, of dictionaries made beforehand."""
    from river.linear_model import LogisticRegression

    X, y = _outcomes(n=2_000)
    models = [LogisticRegression() for _ in range(100)]
    rows = [{f"f{j}": value for j, value in enumerate(x.tolist())} for x in X]
    labels = [bool(label) for label in y]
    return _each(lambda i: models[i % 100].learn_one(rows[i], labels[i]), len(X))


PEERS: dict[str, Callable[[], Callable[[], float]]] = {
    "lambda-learner": _lambda_learner,
    "bayesianbandits": _bayesianbandits,
    "Vowpal Wabbit": _vowpal_wabbit,
    "River": _river,
}

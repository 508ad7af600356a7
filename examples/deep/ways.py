"""What `examples.deep` has in common: the command, and what a model is worth on a log."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

from learner.batch.reading import read_events
from learner.evaluation.compare import ITEM_AGE, Result, cut_at, variants
from learner.evaluation.history import Log, read_log
from learner.evaluation.metrics import Measured, Metrics, minus
from learner.evaluation.parts import evaluate
from learner.events.microbatch import joined
from learner.model.spec import Model
from service.commands.main import main as freshet_main
from service.model_file import read_model

COLUMNS = ("log_loss", "slate_ndcg@10", "slate_auc", "pooled_auc")
FIT = ("--keep-covariance", "--keep-half-life")
"""Covariances and half-lives are those of the models."""
NEW = ("AUC of new users", "AUC of items shown 1 to 49 times")


def freshet(*typed: object) -> str:
    """Run the command; returns what it said, and ends the program where it fails."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = freshet_main([str(one) for one in typed])
    if status:
        raise SystemExit(f"freshet {' '.join(map(str, typed))}\n{said.getvalue()}")
    return said.getvalue()


def worth(
    files: Sequence[Path], model: Path, prior: Path | None, share: float, resamples: int, wanted: Collection[str]
) -> dict[str, Result]:
    """How well a model predicts a log from a share of it on, for each wanted way of learning."""
    fitted = read_model(str(model), "" if prior is None else str(prior))
    log = read(files, fitted)
    cut = cut_at(log, share)
    ways = [one for one in variants(fitted, cut, False) if one.name in wanted]
    return {one.name: one for one in evaluate([log], ways, cut, resamples)}


def with_new(result: Result) -> Metrics:
    """Its metrics, and pooled AUC of outcomes of users and items that are new, by the names in `NEW`."""
    of_users = result.parts["user at the cut"].get("unknown", {})
    of_items = result.parts.get(ITEM_AGE, {})
    seldom = next((its for label, its in of_items.items() if label.startswith("few")), {})
    nothing = Measured(np.nan, np.full(len(result.metrics["pooled_auc"].samples), np.nan))
    new = (its.get("pooled_auc", nothing) for its in (of_users, seldom))
    return result.metrics | dict(zip(NEW, new, strict=True))


def read(files: Sequence[Path], model: Model) -> Log:
    """Files as a log, by the features of a model."""
    batch = joined(read_events([str(one) for one in files], model), model.width)
    return read_log(batch, model.window_ms, model.by_item)


def table(results: Mapping[str, Metrics], against: Sequence[str], columns: Sequence[str] = COLUMNS) -> str:
    """Metrics of each way as a table of Markdown, and differences to some of them."""
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, metrics in results.items():
        cells = [metrics[column].estimate() for column in columns]
        lines.append(f"| {name} | " + " | ".join(f"{one.value:.4f}" for one in cells) + " |")
    for other in against:
        for name, metrics in results.items():
            if name != other:
                gaps = minus(metrics, results[other])
                said = (f"{gaps[c].value:+.4f} [{gaps[c].low:+.4f}, {gaps[c].high:+.4f}]" for c in columns)
                lines.append(f"| {name} minus {other} | " + " | ".join(said) + " |")
    return "\n".join(lines)


def mean_gap(values: Sequence[float], others: Sequence[float]) -> str:
    """The mean of paired differences and half of its 95 % interval."""
    gaps = np.subtract(values, others)
    return f"{gaps.mean():+.5f} ±{1.96 * gaps.std(ddof=1) / np.sqrt(len(gaps)):.5f}"

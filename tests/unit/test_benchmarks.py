from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import workload
from benchmarks.against.installed import required
from benchmarks.against.steps import CASES, ROUND, in_turn, paired, prepare
from benchmarks.against.tree import Side, Tree, commit_of
from benchmarks.harness import Figure, as_json, exponent, worse
from learner.record import State, decode_record


def ratio(median: float, **more: float) -> Figure:
    # NumPy's numbers, as percentiles are.
    return Figure("f", "x", [np.float64(median), np.float64(0.9 * median), np.float64(1.1 * median)], **more)


def worse_than(before: Figure, after: Figure, yardstick_s: float = 1.0) -> bool:
    return bool(worse([after], yardstick_s, json.loads(as_json([before], 1.0, quick=False))))


def test_a_power_law_has_its_exponent() -> None:
    sizes = [1.0, 3.0, 10.0, 50.0]
    assert exponent(sizes, [0.2 * n**1.7 for n in sizes]) == pytest.approx(1.7)


def test_more_is_worse_unless_more_is_better() -> None:
    assert worse_than(ratio(1.0), ratio(1.2))
    assert not worse_than(ratio(1.0), ratio(1.1))
    assert not worse_than(ratio(1.0), ratio(0.5))
    assert worse_than(ratio(1.0, at_least=0.5), ratio(0.8, at_least=0.5))
    assert not worse_than(ratio(1.0, at_least=0.5), ratio(1.5, at_least=0.5))


def test_a_slower_machine_is_not_a_regression() -> None:
    def time(us: float) -> Figure:
        return Figure("f", "us", [us])

    assert not worse_than(time(1.0), time(2.0), yardstick_s=2.0)
    assert worse_than(time(1.0), time(2.0))
    # The same time on a machine twice as fast.
    assert worse_than(time(1.0), time(1.0), yardstick_s=0.5)


@pytest.mark.parametrize("unit", ["us/event", "s/100,000 events"])
def test_a_time_of_so_many_events_is_a_time(unit: str) -> None:
    assert not worse_than(Figure("f", unit, [1.0]), Figure("f", unit, [2.0]), yardstick_s=2.0)
    assert worse_than(Figure("f", unit, [1.0]), Figure("f", unit, [2.0]))


def test_an_aim_is_met_by_the_median() -> None:
    assert ratio(1.0, at_most=1.0).met
    assert not ratio(1.0, at_most=0.99).met
    assert ratio(1.0, at_least=1.0).met
    assert ratio(1.0).met is None


def test_visits_come_in_the_order_of_their_times_and_return_while_a_slate_is_open() -> None:
    events = list(workload.visits(50, ROUND + 1, 2, 3))
    assert [one.at for one in events] == sorted(one.at for one in events)
    kinds = Counter(json.loads(one.value)["type"] for one in events)
    assert kinds["impression"] == 50 * (ROUND + 1)
    assert 0.2 < kinds["click"] / kinds["impression"] < 0.4
    # No click without its impression, and before the last round each user has an open one.
    spec = workload.model(3)
    batch = workload.parsed(spec, [one.value for one in events if one.round < ROUND])
    values = workload.step(spec, [None] * len(batch.user_ids), batch)
    assert len(values) == 50
    for user_id, value in zip(batch.user_ids, values, strict=True):
        assert value is not None
        record = decode_record(value, spec, user_id)
        assert len(record.clicks) == 0
        assert State.OPEN in record.outcomes["state"]


def test_a_comparison_asks_each_side_in_turn(tmp_path: Path) -> None:
    """Two processes of the working tree: neither is much faster."""
    sides = {"now": Side(Tree(tmp_path)), "before": Side(Tree(tmp_path))}
    try:
        for side in sides.values():
            side.start()
        name = "one user, one slate of ten"
        assert prepare(tmp_path, name, CASES[name], *sides.values()) == 1
        taken = in_turn(sides, "whole", 1, case=name)
    finally:
        for side in sides.values():
            side.stop()
    ratio, _, now, before = paired(name, taken, "us/event", 1e6, 0.6)
    assert ratio.median == pytest.approx(now.median / before.median)
    assert now.median > 0


def test_a_revision_is_named_in_full_or_refused() -> None:
    assert len(commit_of("HEAD")) == 40
    with pytest.raises(ValueError, match="no revision 'none-of-this-name'"):
        commit_of("none-of-this-name")


def test_what_a_lock_file_names_is_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("numpy==2.3.0 ; python_version > '3' \\\n    --hash=sha256:0==1\n")
    assert required(tmp_path) == ["numpy"]

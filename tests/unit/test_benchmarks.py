from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.harness import Figure, as_json, exponent, worse


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


def test_an_aim_is_met_by_the_median() -> None:
    assert ratio(1.0, at_most=1.0).met
    assert not ratio(1.0, at_most=0.99).met
    assert ratio(1.0, at_least=1.0).met
    assert ratio(1.0).met is None

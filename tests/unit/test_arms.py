"""An experiment: who is in which arm, what is counted of it, and what is said of its lift at any time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.belief.gaussian import Array
from learner.evaluation.metrics import Scored, measure
from learner.model.duration import ModelError
from learner.model.experiment import Experiment, load_experiment
from learner.record.sums import BUCKETS, GROUPS, HourSums
from learner.store.owner import difference, owner_of
from learner.store.recent import RecentStore
from learner.store.redis_keys import shard_of
from service.arms import ALPHA, Clicks, arms_of, lift_of
from tests.rig import Around, once
from tests.unit.test_quality import (
    AS_MEASURED,
    FIXED_EFFECT,
    MODEL,
    N_TURNS,
    STREAM,
    Killed,
    Watched,
    evaluated,
    learnt,
)

TEXT = """
name = "{name}"
[arms.control]
share = 0.2
holdout = true
[arms.new]
share = 0.3
policy = "thompson"
"""
EXPERIMENT = load_experiment(TEXT.format(name="one"))
OTHER_SHARE = TEXT.format(name="one").replace("0.3", "0.4")
USERS = [f"user-{i}" for i in range(20_000)]


def assignment(experiment: Experiment) -> list[str | None]:
    return [experiment.arm_of(user) for user in USERS]


def is_likely(n: int, of: int, share: float) -> bool:
    """Within five standard deviations of a binomial distribution: once in two million if it is one."""
    return bool(abs(n - of * share) < 5 * (of * share * (1 - share)) ** 0.5)


def test_a_user_stays_in_an_arm_and_arms_have_their_shares_of_users() -> None:
    found = assignment(EXPERIMENT)
    assert found == assignment(load_experiment(TEXT.format(name="one")))
    for name, share in (("control", 0.2), ("new", 0.3), (None, 0.5)):
        assert is_likely(found.count(name), len(USERS), share)


def test_an_arm_that_is_added_last_takes_users_from_no_other() -> None:
    wider = load_experiment(TEXT.format(name="one") + "[arms.third]\nshare = 0.5\n")
    assert set(zip(assignment(EXPERIMENT), assignment(wider), strict=True)) == {
        ("control", "control"), ("new", "new"), (None, "third")
    }  # fmt: skip


def test_assignment_in_one_experiment_says_nothing_of_another_nor_of_shards_and_buckets() -> None:
    mine, other = assignment(EXPERIMENT), assignment(load_experiment(TEXT.format(name="two")))
    both = Counter(zip(mine, other, strict=True))
    shares = {"control": 0.2, "new": 0.3, None: 0.5}
    for one, share in shares.items():
        for another, its in shares.items():
            assert is_likely(both[one, another], len(USERS), share * its)
    by_shard = Counter(shard_of(user) for user, arm in zip(USERS, mine, strict=True) if arm == "new")
    for n in by_shard.values():
        assert is_likely(n, len(USERS), 0.3 / GROUPS)
    assert len(by_shard) == GROUPS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = 1", "name = 1: expected str, got int"),
        ('name = "e"\narms = { a = { share = 1 } }', "arms = {'a': {'share': 1}}"),
        ('name = "a/b"\narms = { a = { share = 0.1 }, b = { share = 0.1 } }', "name = 'a/b': expected str matching"),
        ('name = "e"\narms = { a = { share = 0.6 }, b = { share = 0.5 } }', "0.6 + 0.5 = 1.1: expected at most 1"),
        ('name = "e"\narms = { a = { share = 0.5 }, b = {} }', "arms.b.share is missing"),
        ('name = "e"\narms = { a = { share = 0.5 }, b = { share = 2 } }', "arms.b.share = 2: expected float <= 1"),
        ('name = "e"\narms = { a = { share = 0.5 }, b = 0.5 }', "arms.b = 0.5: expected a table with a share"),
        (
            'name = "e"\narms = { a = { share = 0.5 }, b = { share = 0.5, polcy = "ucb" } }',
            "arms.b.polcy: no such key; there are share, policy, model, holdout",
        ),
        (
            'name = "e"\narms = { a = { share = 0.5 }, b = { share = 0.5, policy = "best" } }',
            "arms.b.policy = 'best': policy 'best': expected one of mean",
        ),
        (
            'name = "e"\narms = { a = { share = 0.5 }, b = { share = 0.5, policy = "ucb", holdout = true } }',
            "arms.b.policy: expected none with holdout = true",
        ),
        ("name = ", "e.toml: Invalid value"),
    ],
)
def test_what_is_wrong_with_an_experiment_is_said_by_key_value_and_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(ModelError) as told:
        load_experiment(text, "e.toml")
    assert str(told.value).startswith("e.toml: ")
    assert said in str(told.value)


def test_another_declaration_is_counted_under_another_number_and_tags_are_never_shared() -> None:
    found = [
        EXPERIMENT,
        load_experiment(TEXT.format(name="two")),
        load_experiment(OTHER_SHARE),
    ]
    assert len({one.number for one in found}) == 3
    for one in found:
        assert len(set(one.tags.values())) == 2
        assert all(0 < tag <= 0xFFFF for tag in one.tags.values())


# What is counted.


def in_arms(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same slates, by turns of one arm or the other, of none, and of one that nobody declares."""
    arms, shown, found = ({"arm": "one/control"}, {"arm": "one/new"}, {}, {"arm": "two/new"}), 0, []
    for one in events:
        if one["type"] == "impression":
            one = {**one, **arms[shown % 4]}
            shown += 1
        found.append(one)
    return found


EVENTS = in_arms(STREAM)
WITH_ARMS = replace(MODEL, experiment=EXPERIMENT)


class Counted(Watched):
    def __init__(self, folder: Path, group: str = "g", max_messages: int = 7) -> None:
        super().__init__(folder, WITH_ARMS, group, max_messages)

    def totals(self) -> dict[int, list[int]]:
        return {one.group: one.cells.tolist() for one in self.store.sums(EXPERIMENT.number)}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Counted]:
    one = Counted(tmp_path)
    one.send(*EVENTS)
    yield one
    one.close()


def test_slates_clicks_and_log_loss_of_an_arm_are_those_of_evaluate_on_its_slates(rig: Counted) -> None:
    learnt(rig)
    told = {one.name: one for one in arms_of(EXPERIMENT, rig.store.sums(EXPERIMENT.number))}
    by_way = evaluated(WITH_ARMS, EVENTS)
    arm_of = {(one["user_id"], one["timestamp"]): one.get("arm") for one in EVENTS if one["type"] == "impression"}
    users = list(dict.fromkeys(one["user_id"] for one in EVENTS))
    for name, way in (("control", FIXED_EFFECT), ("new", AS_MEASURED)):
        replayed = by_way[way]
        whose = list(zip(replayed.scored.user.tolist(), replayed.shown_at.tolist(), strict=True))
        chosen = np.array([arm_of[users[user], at] == f"one/{name}" for user, at in whose])
        scored = Scored(*(column[chosen] for column in replayed.scored))
        slates = len({one for one, mine in zip(whose, chosen.tolist(), strict=True) if mine})
        assert (told[name].slates, told[name].clicks) == (slates, scored.y.sum())
        assert told[name].clicks_per_slate == pytest.approx(scored.y.sum() / slates)
        assert told[name].log_loss.value == pytest.approx(measure(scored, resamples=2)["log_loss"].value, abs=1e-9)
        # Twelve users are too few for more.
        assert told[name].lift is None


def test_totals_of_arms_do_not_depend_on_where_microbatches_end(tmp_path: Path, rig: Counted) -> None:
    learnt(rig)
    assert sum(map(sum, rig.totals().values())) > 0
    for size in (1, 50, 10_000):
        other = Counted(tmp_path, f"by-{size}", size)
        other.turns(len(EVENTS) // size + 3)
        assert other.totals() == rig.totals()
        assert other.sums() == rig.sums()
        other.close()


def test_a_learner_that_dies_at_the_worst_moments_counts_no_slate_of_an_arm_twice(tmp_path: Path, rig: Counted) -> None:
    learnt(rig)
    other = Counted(tmp_path, "dies")
    for turn in range(N_TURNS):
        how: dict[str, Any] = {"before": once(Killed())} if turn % 2 else {"after": once(Killed())}
        other.restart(Around(RecentStore(other.store), "commit", **how))
        with pytest.raises(Killed):
            other.turns(1)
        other.restart()
        other.turns(1)
    other.turns(N_TURNS)
    assert other.totals() == rig.totals()
    other.close()


def test_without_an_experiment_nothing_is_counted_of_arms_and_all_else_is_the_same(
    tmp_path: Path, rig: Counted
) -> None:
    learnt(rig)
    plain = Watched(tmp_path, MODEL, "plain")
    learnt(plain)
    assert plain.sums() == rig.sums()
    assert plain.store.sums(EXPERIMENT.number) == []
    plain.close()


def test_learners_of_a_group_are_told_that_their_experiments_differ() -> None:
    owners = [owner_of(one, "g") for one in (MODEL, WITH_ARMS, replace(MODEL, experiment=load_experiment(OTHER_SHARE)))]
    assert difference(owners[1], owners[1]) is None
    assert difference(owners[0], owners[1]) == f"experiment = none there, one {EXPERIMENT.number:08x} here"
    assert difference(owners[1], owners[2]) is not None


# What is said of it, at any time.

HOURS, N_USERS, RUNS = 60, 1_500, 200


def simulated(rng: np.random.Generator, lift: float) -> tuple[Array, Array]:
    """Slates and clicks of two arms' buckets by the hour, added up, shape (HOURS, 2, buckets) each.

    Users come more or less often, and each clicks with a probability of his own: slates of one go together.
    """
    often = rng.lognormal(-2.5, 1.2, N_USERS)
    arm, bucket = rng.integers(0, 2, N_USERS), rng.integers(0, GROUPS * BUCKETS, N_USERS)
    p = rng.beta(2.0, 12.0, N_USERS) * np.where(arm == 1, 1.0 + lift, 1.0)
    slates = rng.poisson(often, (HOURS, N_USERS))
    clicks = rng.binomial(slates, np.minimum(p, 1.0))
    place = (np.arange(HOURS)[:, None] * 2 + arm) * GROUPS * BUCKETS + bucket
    shape = HOURS, 2, GROUPS * BUCKETS

    def added(counts: Array) -> Array:
        found = np.bincount(place.ravel(), counts.ravel().astype(np.float64), np.prod(shape)).reshape(shape)
        return np.asarray(found.cumsum(axis=0))

    return added(slates), added(clicks)


def looked_at(slates: Array, clicks: Array) -> list[tuple[float, float, float, float]]:
    """Of each hour, once there is enough, the lift, its interval, and what a look at that hour alone would give."""
    found = []
    for hour in range(HOURS):
        control, arm = (Clicks(slates[hour, one], clicks[hour, one]) for one in (0, 1))
        if (lift := lift_of(arm, control)) is not None:
            found.append((*lift, 1.96 * (arm.variance + control.variance) ** 0.5))
    return found


def test_between_equal_arms_few_runs_ever_show_a_lift_though_one_looks_every_hour() -> None:
    rng, false, naive = np.random.default_rng(3), 0, 0
    for _ in range(RUNS):
        looks = looked_at(*simulated(rng, 0.0))
        assert len(looks) > HOURS / 2
        false += any(low > 0.0 or high < 0.0 for _, low, high, _ in looks)
        naive += any(abs(np.log1p(value)) > half for value, _, _, half in looks)
    assert false <= ALPHA * RUNS
    # It is not that nobody would be misled: an interval for one look is left by far more of them.
    assert naive > 2 * ALPHA * RUNS


def test_a_true_lift_is_found_and_the_interval_holds_it_all_the_time() -> None:
    rng, found, held, true = np.random.default_rng(4), 0, 0, 0.6
    for _ in range(RUNS):
        looks = looked_at(*simulated(rng, true))
        found += looks[-1][1] > 0.0
        held += all(low < true < high for _, low, high, _ in looks)
    assert found >= 0.9 * RUNS
    assert held >= (1.0 - ALPHA) * RUNS


def test_nothing_is_said_of_a_lift_before_many_clicks_of_many_users() -> None:
    many, few = Clicks(np.full(256, 10.0), np.full(256, 1.0)), Clicks(np.full(256, 10.0), np.full(256, 0.25))
    one_user = Clicks(np.where(np.arange(256) == 0, 1e6, 0.0), np.where(np.arange(256) == 0, 1e5, 0.0))
    assert lift_of(many, many) is not None
    assert lift_of(few, many) is lift_of(many, few) is lift_of(one_user, many) is None


def test_an_experiment_of_no_slates_says_so_with_nulls() -> None:
    told = arms_of(EXPERIMENT, list[HourSums]())
    assert [(one.name, one.policy, one.slates, one.clicks_per_slate) for one in told] == [
        ("control", "holdout", 0, None), ("new", "thompson", 0, None)
    ]  # fmt: skip

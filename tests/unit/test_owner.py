"""Learners of one group whose models are not alike are told, and a change can be rolled out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from learner.model.spec import load_model
from learner.store import Store, open_store
from learner.store.owner import Owner, WrongStore, claim, difference, others, owner_of

BASE = {
    "half_life": '"30d"',
    "attribution_window": '"30m"',
    "max_ahead": '"1h"',
    "max_open": "256",
    "method": '"adf"',
    "click_delay": '{ median = "10s", sigma = 1.2 }',
    "unknown_features": '"reject"',
    "prior.variance": "0.5",
}


def owner(**changed: str) -> Owner:
    keys = {**BASE, **{name.replace("__", "."): value for name, value in changed.items()}}
    text = "\n".join(f"{name} = {value}" for name, value in keys.items() if value)
    return owner_of(load_model(f'name = "feed"\n{text}\n[features]\nx = {{ kind = "numeric" }}\n'), "g")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = open_store(f"sqlite:///{tmp_path / 's.db'}", 60)
    yield one
    one.close()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"half_life": '"10d"'}, "half_life = 30d there, 10d here"),
        ({"half_life": ""}, "half_life = 30d there, none here"),
        ({"effects": '{ user = { max_age = "90d" } }'}, "effects.user.max_age = none there, 90d here"),
        ({"half_life": '["30d", "300 outcomes"]'}, "half_life in outcomes = None there, 300.0 here"),
        ({"half_life": "", "discount": "0.8"}, "half_life = 30d there, none here; discount = None there, 0.8 here"),
        ({"attribution_window": '"90m"'}, "attribution_window = 30m there, 90m here"),
        ({"max_ahead": '"2h"'}, "max_ahead = 1h there, 2h here"),
        ({"max_open": "300"}, "max_open = 256 there, 300 here"),
        ({"method": '"laplace"'}, "method = adf there, laplace here"),
        ({"click_delay": ""}, "click_delay = median 10s, sigma 1.2 there, none here"),
        ({"unknown_features": '"ignore"'}, "unknown_features = reject there, ignore here"),
        ({"prior__variance": "0.6"}, "prior = "),
    ],
)
def test_each_setting_that_is_not_the_feature_space_is_told_by_its_key(
    store: Store, changed: dict[str, str], says: str
) -> None:
    claim(store, owner())
    told = difference(claim(store, owner(**changed)), owner(**changed))
    assert told is not None
    assert told.startswith(says)
    assert ";" not in told.removeprefix(says)


def test_the_learner_that_started_last_says_what_the_others_are_compared_with(store: Store) -> None:
    old, new = owner(), owner(half_life='"10d"')
    claim(store, old)
    assert others(store, old) is None
    assert claim(store, new) == old
    assert (others(store, old), others(store, new)) == ("half_life = 10d there, 30d here", None)
    # A second of the new ones has nothing to be told.
    assert claim(store, new) == new
    # Back again.
    assert claim(store, old) == new
    assert others(store, old) is None


def test_a_store_that_was_emptied_under_a_learner_stays_its_own(store: Store, tmp_path: Path) -> None:
    emptied = open_store(f"sqlite:///{tmp_path / 'other.db'}", 60)
    assert others(emptied, owner()) is None
    with pytest.raises(WrongStore, match=r"'feed'.*'g'.*'shop'"):
        claim(emptied, Owner("shop", "g"))
    claim(store, Owner("shop", "h"))
    with pytest.raises(WrongStore, match=r"'shop'.*'h'.*'feed'"):
        others(store, owner())
    emptied.close()


def test_a_store_of_an_owner_who_did_not_say_how_it_learns_is_taken_as_it_is(store: Store) -> None:
    store.owner(b'["feed","g"]')
    assert difference(claim(store, owner()), owner()) is None
    assert claim(store, owner()) == owner()

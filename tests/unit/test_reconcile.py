"""Beliefs of a store against those that a log makes: the distance, who is beyond it, and who is replaced."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from learner.batch.divergence import divergence
from learner.batch.histories import Histories
from learner.batch.reading import LogAtRest, read_with_raws
from learner.batch.reconciling import Compared, State, compared, replace
from learner.belief.gaussian import Belief, Gaussian, blocks, factorised, joined
from learner.record import decode_record, encode_record
from learner.store import Write, write_alone
from service.commands.main import main
from tests.rig import Rig
from tests.unit.test_rebuild import PLAIN, learn_all, records
from tests.unit.test_side_by_side import SPEC, stream


def random_gaussian(generator: np.random.Generator, d: int, n_dense: int) -> Gaussian:
    A = generator.normal(size=(n_dense, n_dense))
    single = generator.uniform(0.2, 2.0, d - n_dense)
    return Gaussian(generator.normal(size=d), joined(A @ A.T + np.eye(n_dense), single))


def by_moments(p: Gaussian, q: Gaussian) -> float:
    """The textbook's formula, on whole covariances."""
    d = len(p.mean)

    def whole(one: Gaussian) -> np.ndarray:
        dense, single = blocks(one.cov, d)
        S = np.diag(np.concatenate([np.zeros(len(dense)), single]))
        S[: len(dense), : len(dense)] = dense
        return S

    S_p, S_q, apart = whole(p), whole(q), q.mean - p.mean
    P = np.linalg.inv(S_q)
    log_dets = np.linalg.slogdet(S_q)[1] - np.linalg.slogdet(S_p)[1]
    return float(0.5 * (np.trace(P @ S_p) + apart @ P @ apart - d + log_dets))


@pytest.mark.parametrize("n_dense", [6, 3, 0], ids=["full", "block", "diagonal"])
def test_the_divergence_from_factors_is_that_of_the_moments(n_dense: int) -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        p, q = (random_gaussian(generator, 6, n_dense) for _ in range(2))
        assert divergence(factorised(p), factorised(q)) == pytest.approx(by_moments(p, q), rel=1e-9)


def test_the_divergence_of_a_belief_from_itself_is_0_and_a_shift_of_a_seventh_deviation_is_a_hundredth() -> None:
    one = factorised(random_gaussian(np.random.default_rng(1), 5, 5))
    assert divergence(one, one) == pytest.approx(0.0, abs=1e-12)
    unit = Belief(np.zeros(1), np.ones(1))
    assert divergence(unit, Belief(np.full(1, np.sqrt(0.02)), np.ones(1))) == pytest.approx(0.01)


class Reconciled(Rig):
    """A store that has learnt a log, to be held against it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, PLAIN, max_messages=17)
        self.events = stream(300)
        self.send(*self.events)
        learn_all(self)

    def against(self, n_events: int | None = None, meanwhile: Callable[[], object] = lambda: None) -> list[Compared]:
        """The users of the log's first events."""
        with Histories(PLAIN.width) as log:
            with closing(read_with_raws(LogAtRest((self.log_url,), PLAIN, tuple(self.topics)))) as pieces:
                log.read(pieces)
            if n_events is not None:
                log.cut({one: mark._replace(offset=n_events - 1) for one, mark in log.ends.items()})
            found = [one for some in compared(PLAIN, log, self.store) for one in some]
            meanwhile()
            return found

    def spoil(self, user: str, times: int = 1) -> None:
        """Learn the user's clicks once more, as if they had never been learnt."""
        (before,) = self.store.load([user])
        record = decode_record(before or b"", PLAIN, user)
        spoilt = record.settled._replace(mean=record.settled.mean + np.float32(0.5))
        value = encode_record(record._replace(settled=spoilt, revision=record.revision + 1), PLAIN)
        assert write_alone(self.store, [Write(user, before, value)]) == [True]


@pytest.fixture
def rig(tmp_path: Path) -> Reconciled:
    return Reconciled(tmp_path)


def test_a_store_that_has_learnt_the_log_is_at_no_distance(rig: Reconciled) -> None:
    found = rig.against()
    assert len(found) == 9
    assert {one.state for one in found} == {State.SAME}
    assert max(one.distance for one in found) == 0.0
    rig.close()


def test_who_is_beyond_the_distance_is_replaced_and_then_as_the_log_has_them(rig: Reconciled) -> None:
    expected = records(rig.store, PLAIN)
    rig.spoil("u4")
    beyond = [one for one in rig.against() if one.distance > 0.01]
    assert [one.user_id for one in beyond] == ["u4"]
    assert replace(rig.store, PLAIN, beyond) == 1
    assert records(rig.store, PLAIN) == expected
    rig.close()


def test_who_learns_meanwhile_is_left_alone(rig: Reconciled) -> None:
    rig.spoil("u4")
    beyond = [one for one in rig.against(meanwhile=lambda: rig.spoil("u4")) if one.distance > 0.01]
    spoilt = records(rig.store, PLAIN)
    assert replace(rig.store, PLAIN, beyond) == 0
    assert records(rig.store, PLAIN) == spoilt
    rig.close()


def test_who_has_learnt_what_comes_behind_the_log_is_newer_and_never_replaced(rig: Reconciled) -> None:
    found = rig.against(n_events=len(rig.events) // 2)
    assert {one.state for one in found} == {State.NEWER}
    assert all(one.value is None and one.distance > 0.0 for one in found)
    rig.close()


def test_who_has_not_come_so_far_is_older_and_who_has_no_record_is_missing(tmp_path: Path) -> None:
    rig = Reconciled(tmp_path)
    more = [one | {"timestamp": one["timestamp"] + 10**8, "request_id": "x" + one["request_id"]} for one in stream(60)]
    new = {**more[0], "user_id": "new"}
    rig.send(*more, new)
    states = {one.user_id: one for one in rig.against()}
    assert states.pop("new").state is State.MISSING
    assert {one.state for one in states.values()} == {State.OLDER}
    assert all(one.value is None for one in states.values())
    rig.close()


def test_the_command_counts_names_and_replaces(
    rig: Reconciled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = SPEC.format(name="m", half_life="7d", variance=1.0, more="[quality]\nusers = 1.0")
    (tmp_path / "model.toml").write_text(spec)
    monkeypatch.setenv("FRESHET_STORE", f"sqlite:///{tmp_path / 'g.db'}")
    rig.spoil("u4")
    typed = ["reconcile", rig.log_url, "--model", str(tmp_path / "model.toml"), "--max-distance", "0.01"]
    assert main(typed) == 1
    said = capsys.readouterr().out
    assert "9 users of the log, 9 of the same events" in said
    assert "1 further than 0.01 nats; the furthest" in said
    assert "u4" not in said
    assert main([*typed, "--ids"]) == 1
    assert "  u4\n" in capsys.readouterr().out
    assert main([*typed, "--replace"]) == 0
    assert "1 replaced; 0 have learnt meanwhile" in capsys.readouterr().out
    assert main(typed) == 0
    assert "0 further than 0.01 nats; the furthest 0" in capsys.readouterr().out
    rig.send(*stream(3, seed=9))
    assert main([*typed, "--replace"]) == 2
    assert "expected learners that have read all of it" in capsys.readouterr().err
    rig.close()

"""The deep model's core: its loss, its Fisher information, its training and its export."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest
from scipy.special import expit, log_expit

from learner.batch.rows import Rows, log_likelihoods
from learner.deep.examples import Examples, record, windows
from learner.deep.export import ExportError, check, to_onnx
from learner.deep.fitting import Before, Fitting, run
from learner.deep.increment import Anchor, blended, fisher, grown, nothing
from learner.deep.network import (
    CHUNKS,
    SKIP,
    USERS,
    Batch,
    Input,
    Network,
    Weights,
    columns_of,
    effects,
    forward,
    init,
    losses,
)
from learner.deep.state import Trained, decode_checkpoint, decode_trained, encode_checkpoint, encode_trained
from learner.deep.training import Options, begin, information, mean_loss, train
from learner.model.duration import ModelError

NETWORK = Network(
    (
        Input("price", "numeric", 1, 20.0, 5.0),
        Input("genre", "category", 3),
        Input("item_id", "id", 7),
        Input("text", "vector", 2, 0.0, 2.5),
        Input("tags", "multi", 3),
    ),
    (5, 4),
    3,
)
TWO_GENRES = Network((Input("a", "category", 2), Input("b", "category", 2)), (16,), 4)


def records(network: Network, n: int, rng: np.random.Generator) -> Any:
    """Outcomes with inputs of all kinds, of which some are unknown or missing; nobody clicks yet."""
    found = np.zeros(n, record(1 + sum(map(columns_of, network.inputs))))
    at = 1
    for one in network.inputs:
        match one.kind:
            case "numeric":
                missing = rng.random(n) < 0.1
                found["x"][:, at] = np.where(missing, 0.0, rng.normal(one.mean, one.std, n))
                found["x"][:, at + 1] = missing
            case "vector":
                found["x"][:, at : at + one.size] = rng.normal(size=(n, one.size))
            case "multi":
                found["x"][:, at : at + one.size] = rng.random((n, one.size)) < 0.4
            case _:
                found["x"][:, at] = rng.integers(0, one.size + 1, n)
        at += columns_of(one)
    found["weight"] = found["examination"] = 1.0
    return found


def examples(network: Network, n: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    found = records(network, n, rng)
    found["y"] = rng.random(n) < 0.4
    return alone(found, network)


def alone(found: Any, network: Network) -> Examples:
    """Outcomes of no user."""
    return Examples(found, np.arange(len(found))[:, None], network)


def xor(n: int, seed: int, turned: bool = False) -> Examples:
    """What is clicked is one of two categories, but not both; or the other way round."""
    rng = np.random.default_rng(seed)
    found = records(TWO_GENRES, n, rng)
    found["x"][:, 1:] = rng.integers(1, 3, (n, 2))
    differ = found["x"][:, 1] != found["x"][:, 2]
    found["y"] = rng.random(n) < np.where(differ != turned, 0.9, 0.1)
    return alone(found, TWO_GENRES)


def batch_of(some: Examples, size: int | None = None) -> Batch:
    return some.batch(np.arange(len(some)), size or len(some))


def random_weights(network: Network, seed: int = 1) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0.0, 0.4, shape).astype(np.float32) for name, shape in network.shapes.items()}


def by_numpy(weights: Weights, network: Network, inputs: Any) -> tuple[Any, Any]:
    """What a network makes of items, in float64: embedding and log-odds."""
    parts = []
    for one in network.inputs:
        its = np.asarray(inputs[one.name])
        if one.kind == "numeric":
            parts.append(np.clip(np.nan_to_num((its.astype(np.float64) - one.mean) / one.std), -8, 8)[:, None])
        elif one.kind == "vector":
            parts.append(its / one.std)
        elif one.kind == "multi":
            parts.append(its)
        else:
            own = np.vstack([np.zeros(one.width), weights[f"values/{one.name}"]])[its]
            parts.append(weights[f"unknown/{one.name}"] + own)
    first = x = np.hstack(parts)
    for i in range(len(network.hidden)):
        x = np.maximum(x @ weights[f"matrix/{i}"] + weights[f"bias/{i}"], 0.0)
    e = x @ weights["matrix/embedding"] + weights["bias/embedding"] + first @ weights[SKIP]
    return e, (e @ weights["matrix/offset"] + weights["bias/offset"])[:, 0]


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def distance(one: Weights, other: Weights) -> float:
    return float(max(np.abs(one[name] - other[name]).max(initial=0.0) for name in one))


def fitting(network: Network, learnt: Examples, anchor: Anchor, weights: Weights, options: Options) -> Fitting:
    """A training that holds nothing out."""
    none = Examples(learnt._records, np.empty((0, learnt.length), np.intp), network)
    gathered: Any = type("Gathered", (), {"network": network, "learnt": learnt, "held_out": none})
    return Fitting(gathered, Before(), options, anchor, begin(network, weights, none), "this")


def fit(network: Network, learnt: Examples, anchor: Anchor, weights: Weights, options: Options) -> Weights:
    task = fitting(network, learnt, anchor, weights, options)
    return run(task, task.start, lambda n: None, lambda state: None).best


def test_a_network_makes_of_items_what_its_equations_say() -> None:
    weights, batch = random_weights(NETWORK), batch_of(examples(NETWORK, 50))
    passed = forward(weights, NETWORK, batch.inputs)
    embedding, log_odds = by_numpy(weights, NETWORK, batch.inputs)
    np.testing.assert_allclose(passed.embedding, embedding, atol=1e-5)
    np.testing.assert_allclose(passed.log_odds, log_odds, atol=1e-5)


def test_the_loss_of_an_outcome_is_that_of_fit_whatever_its_offset_weight_and_place() -> None:
    rng, n = np.random.default_rng(2), 200
    batch = batch_of(examples(NETWORK, n))._replace(
        offset=rng.normal(size=(n, 1)).astype(np.float32),
        weight=rng.random((n, 1)).astype(np.float32),
        examination=np.where(rng.random(n) < 0.3, 1.0, rng.random(n)).astype(np.float32)[:, None],
    )
    weights = random_weights(NETWORK)
    offset, y, weight, examination = (one[:, 0] for one in batch[1:])
    z = offset + by_numpy(weights, NETWORK, batch.inputs)[1]
    rows = Rows(np.empty((n, 0)), y, offset, weight, np.array([0, n]), examination)
    expected = -weight * log_likelihoods(rows, z)
    np.testing.assert_allclose(losses(weights, NETWORK, batch)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    weights, batch = random_weights(NETWORK), batch_of(examples(NETWORK, 40))
    slopes = jax.grad(lambda w: losses(w, NETWORK, batch).sum())(weights)

    def loss(moved: Weights) -> float:
        z = by_numpy(moved, NETWORK, batch.inputs)[1]
        return -float(log_expit(np.where(batch.y[:, 0] > 0, z, -z)).sum())

    assert not np.asarray(slopes[USERS]).any()
    for name, one in weights.items():
        if name == USERS:
            continue
        at = np.unravel_index(int(np.abs(np.asarray(slopes[name])).argmax()), one.shape)
        high, low = ({k: np.array(v, np.float64) for k, v in weights.items()} for _ in range(2))
        high[name][at] += 1e-5
        low[name][at] -= 1e-5
        assert (loss(high) - loss(low)) / 2e-5 == pytest.approx(float(slopes[name][at]), rel=1e-3, abs=1e-4), name


def test_fisher_information_is_the_curvature_times_the_squared_gradient_of_each_outcome_alone() -> None:
    weights, batch = random_weights(NETWORK), batch_of(examples(NETWORK, 30))
    rng = np.random.default_rng(3)
    batch = batch._replace(weight=rng.random((30, 1)).astype(np.float32), examination=np.full((30, 1), 0.7, np.float32))
    slopes = jax.jacobian(lambda w: forward(w, NETWORK, batch.inputs).log_odds)(weights)
    q = expit(by_numpy(weights, NETWORK, batch.inputs)[1])
    c = (batch.weight * batch.examination)[:, 0] * q * (1.0 - q)
    found = fisher(weights, NETWORK, batch)
    assert found.keys() == NETWORK.shapes.keys()
    for name, one in found.items():
        expected = np.tensordot(c, np.asarray(slopes[name]) ** 2, axes=1)
        np.testing.assert_allclose(one, expected, rtol=1e-3, atol=1e-5, err_msg=name)


def test_fisher_information_of_one_number_and_one_weight_is_as_worked_out_by_hand() -> None:
    network = Network((Input("x", "numeric"),), (), 1)
    weights = {name: np.zeros(shape, np.float32) for name, shape in network.shapes.items()}
    weights["matrix/embedding"][:] = 2.0
    weights["matrix/offset"][:] = 3.0
    one = np.ones((1, 1), np.float32)
    batch = Batch({"x": 0.5 * one[0]}, -3.0 * one, one, 4.0 * one, one)
    found = fisher(weights, network, batch)
    # z = -3 + 3 * (2 * 0.5) = 0, so the curvature is 4 / 4.
    assert float(found["matrix/embedding"][0, 0]) == pytest.approx((3.0 * 0.5) ** 2)
    assert float(found["bias/embedding"][0]) == pytest.approx(3.0**2)
    assert float(found["matrix/offset"][0, 0]) == pytest.approx(1.0)
    assert float(found["bias/offset"][0]) == pytest.approx(1.0)


def of_users(n_windows: int, length: int, seed: int = 0) -> Batch:
    """Outcomes in windows, of which the last ends early."""
    some = examples(NETWORK, n_windows * length, seed)
    places = np.arange(n_windows * length).reshape(n_windows, length)
    places[-1, length // 2 :] = -1
    return batch_of(Examples(some._records, places, NETWORK))


def test_the_effect_of_a_user_is_by_ridge_regression_what_their_outcomes_before_say() -> None:
    weights, batch = random_weights(NETWORK), of_users(3, 16)
    e, z = by_numpy(weights, NETWORK, batch.inputs)
    x, z = np.dstack([np.ones((3, 16, 1)), e.reshape(3, 16, -1)]), z.reshape(3, 16)
    found = effects(weights[USERS], e.astype(np.float32), z.astype(np.float32), batch)
    for w in range(3):
        for first in range(0, 16, 2):
            before = slice(0, first)
            theta, y, real = np.zeros(x.shape[2]), batch.y[w, before], batch.weight[w, before]
            for _ in range(2):
                at = z[w, before] + x[w, before] @ theta
                c = real * np.tanh(0.5 * at) / (2.0 * at)
                precision = np.diag(np.exp(weights[USERS].astype(np.float64))) + (x[w, before].T * c) @ x[w, before]
                theta = np.linalg.solve(precision, x[w, before].T @ (real * (y - 0.5) - c * z[w, before]))
            its = x[w, first : first + 2]
            np.testing.assert_allclose(found.theta[w, first], theta, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(found.mean[w, first : first + 2], its @ theta, rtol=1e-3, atol=1e-4)
            var = np.einsum("ij,jk,ik->i", its, np.linalg.inv(precision), its)
            np.testing.assert_allclose(found.var[w, first : first + 2], var, rtol=1e-3, atol=1e-4)


def test_no_outcome_is_predicted_from_itself_or_from_later_ones() -> None:
    weights, batch, length = random_weights(NETWORK), of_users(1, 32), 32 // CHUNKS
    plain = np.asarray(losses(weights, NETWORK, batch))
    for at in (0, 13, 15):
        y = batch.y.copy()
        y[0, at] = 1.0 - y[0, at]
        turned = np.asarray(losses(weights, NETWORK, batch._replace(y=y)))
        same_chunk = (at // length + 1) * length
        keep = np.arange(same_chunk) != at
        np.testing.assert_array_equal(turned[0, :same_chunk][keep], plain[0, :same_chunk][keep])
        assert not np.array_equal(turned[0, same_chunk:], plain[0, same_chunk:]) or same_chunk >= 16


def test_windows_are_of_one_user_each_and_have_every_outcome_once_in_order() -> None:
    user = np.repeat([3, 4, 9], [5, 1, 8]).astype(np.int32)
    found = windows(user, 4)
    assert [len({*user[row[row >= 0]].tolist()}) for row in found] == [1] * len(found) == [1] * 5
    np.testing.assert_array_equal(found[found >= 0], np.arange(14))
    assert windows(user[:0], 4).shape == (0, 4)


def test_training_starts_from_a_linear_model_of_numbers_vectors_and_lists() -> None:
    network = NETWORK._replace(embedding=8)
    weights, batch = init(network, np.random.default_rng(0)), batch_of(examples(NETWORK, 40))
    passed, its = forward(weights, network, batch.inputs), batch.inputs
    price = np.nan_to_num((its["price"] - 20.0) / 5.0)[:, None]
    linear = np.hstack([price, its["text"] / 2.5, its["tags"]])
    np.testing.assert_allclose(passed.embedding[:, :6], linear, atol=1e-5)
    assert np.asarray(passed.embedding[:, 6:]).std(axis=0).min() > 0.0
    assert not weights["matrix/offset"][:6].any()


def test_what_some_like_and_others_dislike_is_in_the_embedding_where_users_have_effects_and_else_is_not() -> None:
    rng, n = np.random.default_rng(0), 3_200
    found = records(TWO_GENRES, n, rng)
    found["x"][:, 1:] = rng.integers(1, 3, (n, 2))
    found["user"] = np.arange(n) // 32
    differ = found["x"][:, 1] != found["x"][:, 2]
    found["y"] = rng.random(n) < np.where(differ == (found["user"] % 2 == 0), 0.9, 0.1)
    options = Options(epochs=15, learning_rate=1e-2)
    # How much of what users differ in ridge regression finds in the embedding.
    target, found_in = differ - differ.mean(), {}
    for length in (32, 1):
        some = Examples(found, windows(found["user"], length), TWO_GENRES)
        trained = fit(TWO_GENRES, some, nothing(TWO_GENRES, 1.0), init(TWO_GENRES, np.random.default_rng(0)), options)
        e = np.asarray(forward(trained, TWO_GENRES, batch_of(alone(found, TWO_GENRES)).inputs).embedding, np.float64)
        e -= e.mean(axis=0)
        e /= np.sqrt(np.square(e).sum(axis=1).mean())
        theta = np.linalg.solve(e.T @ e + 0.1 * n * np.eye(4), e.T @ target)
        found_in[length] = 1.0 - np.square(target - e @ theta).sum() / np.square(target).sum()
    assert found_in[32] > 0.8 > 0.4 > found_in[1], found_in


def test_fisher_information_of_users_takes_the_effect_that_is_known_before_each_outcome_as_it_is() -> None:
    weights, batch = random_weights(NETWORK), of_users(3, 16)
    e, z = by_numpy(weights, NETWORK, batch.inputs)
    theta = np.asarray(effects(weights[USERS], e.astype(np.float32), z.reshape(3, 16).astype(np.float32), batch).theta)
    theta = theta.reshape(48, -1)
    own = z + theta[:, 0] + (e * theta[:, 1:]).sum(axis=1)
    q = expit(own)
    c = batch.weight.reshape(-1) * q * (1.0 - q)
    # z = x S (w + theta) + ..., so dz/dS is the outer product of x and w + theta.
    slope = weights["matrix/offset"][:, 0] + theta[:, 1:]
    passed = forward(weights, NETWORK, batch.inputs)
    expected = (np.asarray(passed.entered[SKIP]) ** 2).T @ (c[:, None] * slope**2)
    np.testing.assert_allclose(fisher(weights, NETWORK, batch)[SKIP], expected, rtol=1e-3, atol=1e-4)


def test_outcomes_that_only_fill_a_batch_count_for_nothing() -> None:
    weights, some = random_weights(NETWORK), examples(NETWORK, 30)
    exact, filled = batch_of(some), batch_of(some, 64)
    assert float(losses(weights, NETWORK, filled).sum()) == pytest.approx(float(losses(weights, NETWORK, exact).sum()))
    found, expected = fisher(weights, NETWORK, filled), fisher(weights, NETWORK, exact)
    for name, one in expected.items():
        np.testing.assert_allclose(found[name], one, rtol=1e-4, atol=1e-6)


def test_onnx_says_what_the_equations_say_of_unknown_and_missing_values_too() -> None:
    weights, some = random_weights(NETWORK), batch_of(examples(NETWORK, 60)).inputs
    vocabulary = {"genre": list("abc"), "item_id": [f"i{k}" for k in range(7)]}
    data = to_onnx(weights, NETWORK, vocabulary, some, True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    fed = {
        "price": np.array([np.nan, 1e9, 20.0, 20.0], np.float32),
        "genre": np.array([0, 1, 3, 0]),
        "item_id": np.array([0, 7, 0, 3]),
        "text": np.full((4, 2), 0.5, np.float32),
        "tags": np.eye(4, 3, dtype=np.float32),
    }
    embedding, offset = session.run(["embedding", "offset"], fed)
    expected = by_numpy(weights, NETWORK, fed)
    np.testing.assert_allclose(embedding, expected[0], atol=1e-5)
    np.testing.assert_allclose(offset, expected[1], atol=1e-5)
    assert embedding.dtype == offset.dtype == np.float32
    assert [one.name for one in session.get_inputs()] == ["price", "genre", "item_id", "text", "tags"]
    assert '"vocabulary": {"genre": ["a", "b", "c"]' in session.get_modelmeta().custom_metadata_map["freshet"]


def test_what_is_not_what_was_trained_is_not_given_away() -> None:
    weights, some = random_weights(NETWORK), batch_of(examples(NETWORK, 20)).inputs
    data = to_onnx(weights, NETWORK, {}, some, True)
    check(data, weights, NETWORK, some)
    weights["bias/embedding"] = weights["bias/embedding"] + np.float32(1e-4)
    with pytest.raises(ExportError, match="from JAX"):
        check(data, weights, NETWORK, some)


def test_a_network_learns_one_of_two_but_not_both_and_without_hidden_layers_does_not() -> None:
    learnt, later = xor(4_000, 0), xor(2_000, 1)
    options = Options(epochs=15, learning_rate=1e-2)
    found = {}
    for hidden in ((16,), ()):
        network = TWO_GENRES._replace(hidden=hidden)
        start = init(network, np.random.default_rng(0))
        weights = fit(network, alone(learnt._records, network), nothing(network, 1.0), start, options)
        found[hidden] = mean_loss(weights, network, alone(later._records, network))
    # The entropy of 0.9 is .325, and that of one half .693.
    assert found[16,] < 0.36
    assert found[()] > 0.68


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    some, anchor = examples(NETWORK, 300), nothing(NETWORK)
    options = Options(epochs=2)
    one, again = (fit(NETWORK, some, anchor, init(NETWORK, np.random.default_rng(0)), options) for _ in range(2))
    other = fit(NETWORK, some, anchor, init(NETWORK, np.random.default_rng(0)), options._replace(seed=1))
    assert same(one, again)
    assert not same(one, other)


def test_training_that_goes_on_from_a_checkpoint_ends_where_it_would_have() -> None:
    some, held_out = examples(NETWORK, 500), examples(NETWORK, 200, 1)
    start = begin(NETWORK, init(NETWORK, np.random.default_rng(0)), held_out)
    states = list(train(NETWORK, some, held_out, nothing(NETWORK), Options(epochs=4, patience=4), start))
    for killed in (1, 3):
        kept = decode_checkpoint(encode_checkpoint(states[killed - 1], "this"), "file", "this")
        assert kept is not None
        *_, last = train(NETWORK, some, held_out, nothing(NETWORK), Options(epochs=4, patience=4), kept)
        assert same(last.weights, states[-1].weights)
        assert same(last.best, states[-1].best)
        assert last[3:] == states[-1][3:]
    assert decode_checkpoint(encode_checkpoint(states[0], "this"), "file", "another") is None
    assert decode_checkpoint(encode_checkpoint(states[0], "this")[:-100], "file", "this") is None


def test_held_out_loss_that_no_longer_falls_ends_training_and_the_best_weights_stay() -> None:
    # Labels are noise: what is learnt of them is worth nothing on others.
    some, held_out = examples(NETWORK, 200), examples(NETWORK, 300, 1)
    start = begin(NETWORK, init(NETWORK, np.random.default_rng(0)), held_out)
    options = Options(epochs=60, patience=2, learning_rate=2e-2)
    *_, last = train(NETWORK, some, held_out, nothing(NETWORK), options, start)
    assert last.epoch == last.best_epoch + 2 < 60
    assert mean_loss(last.best, NETWORK, held_out) == pytest.approx(last.best_loss)
    assert last.best_loss < mean_loss(last.weights, NETWORK, held_out)


def test_beside_what_is_known_for_sure_weights_stay_and_beside_nothing_they_go() -> None:
    options = Options(epochs=10, learning_rate=1e-2)
    first = fit(TWO_GENRES, xor(3_000, 0), nothing(TWO_GENRES), init(TWO_GENRES, np.random.default_rng(0)), options)
    turned = xor(3_000, 1, turned=True)
    known = Anchor(first, information(first, TWO_GENRES, xor(3_000, 0)))
    loss = {}
    for strength in (0.0, 100.0, 1e6):
        anchor = blended([(known, strength), (nothing(TWO_GENRES), 1e-3)])
        anchor = Anchor(first, {name: np.maximum(one, 1e-3 + strength) for name, one in anchor.precision.items()})
        weights = fit(TWO_GENRES, turned, anchor, first, options)
        loss[strength] = mean_loss(weights, TWO_GENRES, turned)
        if strength == 1e6:
            assert distance(weights, first) < 0.02
    assert loss[0.0] < 0.4
    assert loss[0.0] < loss[100.0] < loss[1e6]


def test_a_blend_is_the_product_of_gaussians() -> None:
    network = Network((Input("x", "numeric"),), (), 1)
    one, other = nothing(network), nothing(network)
    one.mean["bias/offset"][:], one.precision["bias/offset"][:] = 2.0, 3.0
    other.mean["bias/offset"][:], other.precision["bias/offset"][:] = -1.0, 1.0
    found = blended([(one, 0.5), (other, 2.0)])
    assert found.precision["bias/offset"][0] == pytest.approx(0.5 * 3.0 + 2.0 * 1.0)
    assert found.mean["bias/offset"][0] == pytest.approx((1.5 * 2.0 - 2.0) / 3.5)
    assert same(blended([(one, 1.0), (other, 0.0)]).mean, one.mean)


def test_a_new_value_begins_as_the_unknown_and_what_was_known_stays() -> None:
    known = Anchor(random_weights(NETWORK), random_weights(NETWORK))
    more = NETWORK._replace(
        inputs=tuple(one._replace(size=one.size + 2) if one.is_embedded else one for one in NETWORK.inputs)
    )
    weights = grown(known, more).mean
    batch = batch_of(examples(NETWORK, 40)).inputs
    np.testing.assert_array_equal(
        forward(weights, more, batch).log_odds, forward(known.mean, NETWORK, batch).log_odds
    )  # fmt: skip
    unknown = {**batch, "item_id": np.zeros(40, np.int32)}
    new = {**batch, "item_id": np.full(40, 8, np.int32)}
    np.testing.assert_array_equal(forward(weights, more, new).log_odds, forward(weights, more, unknown).log_odds)
    with pytest.raises(ValueError, match="expected"):
        grown(known, NETWORK._replace(embedding=5))


def test_what_is_kept_of_an_encoder_is_read_again_and_what_is_none_is_told() -> None:
    anchor = Anchor(random_weights(NETWORK), nothing(NETWORK).precision)
    trained = Trained(NETWORK, anchor, {"genre": ("a", "b", "c")}, 12, "0123456789abcdef", True)
    data = encode_trained(trained)
    again = decode_trained(data, "encoder.npz")
    assert again.network == NETWORK
    assert same(again.anchor.mean, anchor.mean)
    assert same(again.anchor.precision, anchor.precision)
    assert again == Trained(again.network, again.anchor, trained.vocabulary, 12, trained.encoder, True)
    for bad in (b"", data[:-50], b"PK", encode_checkpoint(begin(NETWORK, anchor.mean, examples(NETWORK, 5)), "x")):
        with pytest.raises(ModelError, match=r"encoder\.npz"):
            decode_trained(bad, "encoder.npz")

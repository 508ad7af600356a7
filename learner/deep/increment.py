"""What a log has taught of weights, as a Gaussian beside the next log's loss. JAX for the Fisher information alone.

arXiv 2108.13299, deep extension: loss on the new data plus 1/2 (w - w')' F (w - w'), w' being the weights before and F
their Fisher information, of which the diagonal is kept (Kirkpatrick et al. 2017, arXiv 1612.00796).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learner.deep.network import SKIP, USERS, Batch, Network, Weights, effects, forward

RIDGE = 30.0
"""Precision of a weight of which no log has said anything."""


class Anchor(NamedTuple):
    """A Gaussian of weights, each independent of the others.

    Attributes
    ----------
    mean, precision
        By name, as of `Network.shapes`.
    """

    mean: Weights
    precision: Weights


def nothing(network: Network, ridge: float = RIDGE) -> Anchor:
    """What is known before any log."""
    shapes = network.shapes
    mean = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    # Effects of users are N(0, 1) for an intercept, and so for e'theta if |e|^2 = d.
    mean[USERS][1:] = np.log(network.embedding)
    return Anchor(mean, {name: np.full(shape, ridge, np.float32) for name, shape in shapes.items()})


def grown(anchor: Anchor, network: Network, ridge: float = RIDGE) -> Anchor:
    """The same of a network whose vocabularies have more values: of these nothing is known, so they are as the unknown.

    Raises
    ------
    ValueError
        If it is of a network of another shape.
    """
    whole = nothing(network, ridge)
    for name, shape in network.shapes.items():
        for mine, known in zip(whole, anchor, strict=True):
            its = known.get(name)
            is_values = name.startswith("values/")
            if (
                its is None
                or its.shape[1:] != shape[1:]
                or (len(its) > len(mine[name]) if is_values else its.shape != shape)
            ):
                raise ValueError(f"weights {name!r}: {None if its is None else its.shape}: expected {shape}")
            mine[name][: len(its)] = its
    return whole


def blended(parts: Sequence[tuple[Anchor, float]]) -> Anchor:
    """What several know together, each with a weight: the product of the Gaussians, each to the power of its weight.

    To keep a share k of what is known is a blend with `nothing`, of weight 1 - k: so nothing is ever known less than
    before any log. A second anchor beside the first (LiRank, arXiv 2402.06859, equation 5) is a blend too.
    """
    parts = [(one, weight) for one, weight in parts if weight > 0.0]
    if len(parts) == 1 and parts[0][1] == 1.0:
        return parts[0][0]
    mean, precision = Weights(), Weights()
    for name in parts[0][0].mean:
        p = sum(weight * one.precision[name].astype(np.float64) for one, weight in parts)
        shift = sum(weight * one.precision[name].astype(np.float64) * one.mean[name] for one, weight in parts)
        precision[name], mean[name] = np.float32(p), np.float32(shift / p)
    return Anchor(mean, precision)


def penalty(weights: Weights, anchor: Anchor) -> Any:
    """1/2 (w - w')' F (w - w')."""
    terms = [jnp.sum(anchor.precision[name] * (weights[name] - anchor.mean[name]) ** 2) for name in weights]
    return 0.5 * sum(terms)


def fisher(weights: Weights, network: Network, batch: Batch) -> Weights:
    """The diagonal of the Fisher information of a batch: of each weight the sum over outcomes of c (dz/dw)^2.

    c = weight * q (1 - q) is the curvature of the loss by z, times e where an item is looked at with chance e. Of a
    matrix dz/dW is the outer product of what enters the layer and the gradient of what leaves it, so that its squares
    add up as one product of matrices; no gradient of a single outcome by all weights is ever made. In windows of
    users z has the effect that is known of the user before each outcome. Of the log precisions of effects none is said.
    """
    n = batch.y.size
    weight, examination, offset = (one.reshape(-1) for one in (batch.weight, batch.examination, batch.offset))
    taps = {one.name: jnp.zeros((n, one.width)) for one in network.inputs if one.is_embedded}
    taps |= {f"layer/{name}": jnp.zeros((n, n_out)) for name, _, n_out in network.layers}

    plain = forward(weights, network, batch.inputs)
    z = batch.offset + plain.log_odds.reshape(batch.y.shape)
    theta = effects(weights[USERS], plain.embedding, z, batch).theta.reshape(n, -1)

    def total(taps: dict[str, Any]) -> Any:
        passed = forward(weights, network, batch.inputs, taps)
        z = passed.log_odds + (passed.embedding * theta[:, 1:]).sum(axis=1) + theta[:, 0]
        return z.sum(), (z, passed)

    slopes, (z, passed) = jax.grad(total, has_aux=True)(taps)
    q = jax.nn.sigmoid(offset + z)
    c = (weight * examination * q * (1.0 - q))[:, None]
    found: Weights = {}
    for one in network.inputs:
        if one.is_embedded:
            its = c * slopes[one.name] ** 2
            found[f"unknown/{one.name}"] = its.sum(axis=0)
            of_values = jnp.zeros((one.size + 1, one.width)).at[batch.inputs[one.name]].add(its)
            found[f"values/{one.name}"] = of_values[1:]
    for name, _, _ in network.layers:
        its = c * slopes[f"layer/{name}"] ** 2
        found[f"matrix/{name}"] = (passed.entered[name] ** 2).T @ its
        found[f"bias/{name}"] = its.sum(axis=0)
        if name == "embedding":
            found[SKIP] = (passed.entered[SKIP] ** 2).T @ its
    return found | {USERS: jnp.zeros_like(weights[USERS])}

"""The encoder's network as pure functions of a dictionary of weights: embeddings, an MLP, log-odds. JAX.

    x = [standardised numbers, embeddings of ids and categories, vectors]
    h = relu(... relu(x W0 + b0) ...),   e = h We + be,   z = e'w + b

e is the output `embedding`, z the output `offset`. The embedding of a value of a vocabulary is that of the unknown and
a deviation of its own, so that a value that is rare, or new, is near the unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Weights: TypeAlias = dict[str, Any]
"""Arrays, float32, by name."""
Inputs: TypeAlias = Mapping[str, Any]
"""Of n items, by input: float32 (n,), NaN where missing; int32 (n,), 0 for unknown; float32 (n, width)."""

FARTHEST = 8.0
"""Standard deviations from the mean at which a number is cut off: one price of a million shall not move a layer."""
# Numbers an embedding has, at most: of an item's id, and of a category.
_OF_ID, _OF_CATEGORY = 16, 8


class Input(NamedTuple):
    """One input.

    Attributes
    ----------
    size
        Of a category or an id the values in its vocabulary, of a vector its width, of a number 1.
    mean, std
        Of a number.
    """

    name: str
    kind: Literal["numeric", "category", "id", "vector"]
    size: int = 1
    mean: float = 0.0
    std: float = 1.0

    @property
    def is_embedded(self) -> bool:
        """Whether it has a vocabulary."""
        return self.kind in ("category", "id")

    @property
    def width(self) -> int:
        """Columns that the first layer sees of it. Of a vocabulary that grows they stay as many."""
        return {"id": _OF_ID, "category": _OF_CATEGORY}.get(self.kind, self.size)


def columns_of(one: Input) -> int:
    """Columns that an input has in an outcome's row: a number is followed by whether it is missing."""
    return {"numeric": 2, "vector": one.size}.get(one.kind, 1)


class Network(NamedTuple):
    """The shape of a network; hashable, so that functions are compiled once for each."""

    inputs: tuple[Input, ...]
    hidden: tuple[int, ...]
    embedding: int

    @property
    def layers(self) -> tuple[tuple[str, int, int], ...]:
        """Of each layer its name, and how many numbers go in and come out; the last two make the outputs."""
        widths = [sum(one.width for one in self.inputs), *self.hidden, self.embedding, 1]
        names = [*map(str, range(len(self.hidden))), "embedding", "offset"]
        return tuple(zip(names, widths[:-1], widths[1:], strict=True))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights, by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for one in self.inputs:
            if one.is_embedded:
                shapes |= {f"unknown/{one.name}": (one.width,), f"values/{one.name}": (one.size, one.width)}
        for name, n_in, n_out in self.layers:
            shapes |= {f"matrix/{name}": (n_in, n_out), f"bias/{name}": (n_out,)}
        return shapes


def init(network: Network, rng: np.random.Generator) -> Weights:
    """Weights to start from: matrices by He et al. (2015), biases and deviations of values 0."""
    weights: Weights = {}
    for name, shape in network.shapes.items():
        kind = name.partition("/")[0]
        scale = {"matrix": np.sqrt(2.0 / max(shape[0], 1)), "unknown": 1.0}.get(kind, 0.0)
        weights[name] = (scale * rng.normal(size=shape)).astype(np.float32)
    return weights


class Passed(NamedTuple):
    """What n items made of a network.

    Attributes
    ----------
    embedding, log_odds
        The outputs, shapes (n, d) and (n,).
    entered
        What each layer was given, shape (n, its width).
    """

    embedding: Any
    log_odds: Any
    entered: dict[str, Any]


def forward(weights: Weights, network: Network, inputs: Inputs, taps: Mapping[str, Any] | None = None) -> Passed:
    """Pass n items through a network.

    Parameters
    ----------
    taps
        By name of an embedded input or of a layer what is added to its result, shape (n, width): the gradient by them
        is that of each item alone.
    """
    taps = taps or {}
    parts = []
    for one in network.inputs:
        part = inputs[one.name]
        if one.kind == "numeric":
            standard = (part - one.mean) / one.std
            part = jnp.clip(jnp.where(jnp.isnan(part), 0.0, standard), -FARTHEST, FARTHEST)[:, None]
        elif one.is_embedded:
            deviations = jnp.pad(weights[f"values/{one.name}"], ((1, 0), (0, 0)))
            part = weights[f"unknown/{one.name}"] + deviations[part] + taps.get(one.name, 0.0)
        parts.append(part)
    x = jnp.concatenate(parts, axis=1)
    entered = {}
    for name, _, _ in network.layers:
        entered[name] = x
        x = x @ weights[f"matrix/{name}"] + weights[f"bias/{name}"] + taps.get(f"layer/{name}", 0.0)
        if name not in ("embedding", "offset"):
            x = jax.nn.relu(x)
    return Passed(entered["offset"], x[:, 0], entered)


class Batch(NamedTuple):
    """Outcomes as the network learns them: n of what `learner.batch.rows.Rows` has.

    Attributes
    ----------
    inputs
        What was shown.
    offset
        Log-odds of an upstream model, 0 where there is none.
    y, weight, examination
        Clicked or not; what it counts for, 0 for one that only fills the batch; how likely it was looked at.
    user
        Whose it is, from 1; 0 for a user without an effect.
    """

    inputs: Inputs
    offset: Any
    y: Any
    weight: Any
    examination: Any
    user: Any


USERS = "users"
"""The name of effects of users among weights: of each an intercept and coefficients on the embedding, (U, 1 + d)."""


def with_users(weights: Weights, batch: Batch, passed: Passed) -> Any:
    """Log-odds of outcomes with effects of users, if weights have these: z + theta_0 + e'theta, shape (n,)."""
    if USERS not in weights:
        return passed.log_odds
    theta = jnp.pad(weights[USERS], ((1, 0), (0, 0)))[batch.user]
    return passed.log_odds + theta[:, 0] + (passed.embedding * theta[:, 1:]).sum(axis=1)


def losses(weights: Weights, network: Network, batch: Batch) -> Any:
    """What each outcome costs, shape (n,): -log P(y) as of `learner.batch.rows.log_likelihoods`, times its weight."""
    z = batch.offset + with_users(weights, batch, forward(weights, network, batch.inputs))
    seen = jnp.minimum(batch.examination, 1.0 - 1e-6)
    unseen = -jnp.log1p(-seen * jax.nn.sigmoid(z))
    no = jnp.where(batch.examination < 1.0, unseen, jax.nn.softplus(z))
    return batch.weight * jnp.where(batch.y > 0, jax.nn.softplus(-z), no)

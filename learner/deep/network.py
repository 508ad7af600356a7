"""The encoder's network as pure functions of a dictionary of weights: embeddings, an MLP, log-odds. JAX.

    x = [standardised numbers, scaled vectors, indicators of lists, embeddings of ids and categories]
    h = relu(... relu(x W0 + b0) ...),   e = x S + h We + be,   z = e'w + b

e is the output `embedding`, z the output `offset`. S, the skip connection (He et al. 2015, arXiv 1512.03385), starts so
that numbers, vectors and lists are in the embedding as they are: training starts from a linear model of them. The
embedding of a value of a vocabulary is that of the unknown and a deviation of its own, so that a value that is rare, or
new, is near the unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Weights: TypeAlias = dict[str, Any]
"""Arrays, float32, by name."""
Inputs: TypeAlias = Mapping[str, Any]
"""Of n items, by input: float32 (n,), NaN where missing; int32 (n,), 0 for unknown; float32 (n, size)."""

FARTHEST = 8.0
"""Standard deviations from the mean at which a number is cut off: one price of a million shall not move a layer."""
# Numbers an embedding has, at most: of an item's id, and of a category.
_OF_ID, _OF_CATEGORY = 16, 8


class Input(NamedTuple):
    """One input.

    Attributes
    ----------
    size
        Of a category or an id the values in its vocabulary, of a vector its width, of a list its values, of a number 1.
    mean, std
        Of a number; of a vector 0, and the root of the mean square of all its numbers.
    """

    name: str
    kind: Literal["numeric", "category", "id", "vector", "multi"]
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
    return {"numeric": 2, "vector": one.size, "multi": one.size}.get(one.kind, 1)


class Network(NamedTuple):
    """The shape of a network; hashable, so that functions are compiled once for each."""

    inputs: tuple[Input, ...]
    hidden: tuple[int, ...]
    embedding: int

    @property
    def layers(self) -> tuple[tuple[str, int, int], ...]:
        """Of each layer its name, and how many numbers go in and come out; the last two make the outputs."""
        widths = [self.entering, *self.hidden, self.embedding, 1]
        names = [*map(str, range(len(self.hidden))), "embedding", "offset"]
        return tuple(zip(names, widths[:-1], widths[1:], strict=True))

    @property
    def entering(self) -> int:
        """How many numbers enter the first layer."""
        return sum(one.width for one in self.inputs)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights, by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for one in self.inputs:
            if one.is_embedded:
                shapes |= {f"unknown/{one.name}": (one.width,), f"values/{one.name}": (one.size, one.width)}
        shapes |= {SKIP: (self.entering, self.embedding)}
        for name, n_in, n_out in self.layers:
            shapes |= {f"matrix/{name}": (n_in, n_out), f"bias/{name}": (n_out,)}
        return shapes | {USERS: (1 + self.embedding,)}


SKIP = "skip"
"""The name of S among weights."""
USERS = "users"
"""The name of the log precisions of effects of users among weights; see `learner.deep.effects`."""


def init(network: Network, rng: np.random.Generator) -> Weights:
    """Weights to start from.

    Matrices are by He et al. (2015), biases 0, deviations of values small. Inputs that are no embeddings go through S
    to numbers of the embedding as they are, or a random projection of them where it has too few; of these log-odds
    know nothing yet. The other numbers of the embedding, and what the log-odds have of them, are random: if these were
    0 too, categories alone would never be told apart.
    """
    weights: Weights = {}
    for name, shape in network.shapes.items():
        kind = name.partition("/")[0]
        scale = {"matrix": np.sqrt(2.0 / max(shape[0], 1)), "unknown": 1.0, "values": 0.3}.get(kind, 0.0)
        weights[name] = (scale * rng.normal(size=shape)).astype(np.float32)
    starts = np.cumsum([0, *(one.width for one in network.inputs)])
    straight = [
        column
        for one, start in zip(network.inputs, starts, strict=False)
        if not one.is_embedded
        for column in range(start, start + one.width)
    ]
    n, d = len(straight), network.embedding
    if n <= d:
        weights[SKIP][straight, np.arange(n)] = 1.0
    else:
        weights[SKIP][straight] = np.linalg.qr(rng.normal(size=(n, d)))[0]
    weights["matrix/embedding"][:, :n] = 0.0
    weights["matrix/offset"][:n] = 0.0
    weights[USERS][1:] = np.log(d)
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
        if one.kind == "vector":
            part = part / one.std
        elif one.kind == "numeric":
            standard = (part - one.mean) / one.std
            part = jnp.clip(jnp.where(jnp.isnan(part), 0.0, standard), -FARTHEST, FARTHEST)[:, None]
        elif one.is_embedded:
            deviations = jnp.pad(weights[f"values/{one.name}"], ((1, 0), (0, 0)))
            part = weights[f"unknown/{one.name}"] + deviations[part] + taps.get(one.name, 0.0)
        parts.append(part)
    first = x = jnp.concatenate(parts, axis=1)
    entered = {SKIP: first}
    for name, _, _ in network.layers:
        entered[name] = x
        x = x @ weights[f"matrix/{name}"] + weights[f"bias/{name}"] + taps.get(f"layer/{name}", 0.0)
        if name == "embedding":
            x = x + first @ weights[SKIP]
        elif name != "offset":
            x = jax.nn.relu(x)
    return Passed(entered["offset"], x[:, 0], entered)


class Batch(NamedTuple):
    """Outcomes as the network learns them: w windows of n outcomes, of a user each, in order of time.

    Attributes
    ----------
    inputs
        What was shown, of w n items.
    offset
        Log-odds of an upstream model, 0 where there is none; shape (w, n), as of all that follow.
    y, weight, examination
        Clicked or not; what it counts for, 0 for one that only fills the batch; how likely it was looked at.
    """

    inputs: Inputs
    offset: Any
    y: Any
    weight: Any
    examination: Any


def losses(weights: Weights, network: Network, batch: Batch) -> Any:
    """What each outcome costs, shape (w, n): -log P(y) as of `learner.batch.rows.log_likelihoods`, times its weight.

    In windows of more than one outcome users have effects, which are known from the outcomes before.
    """
    passed = forward(weights, network, batch.inputs)
    z = batch.offset + passed.log_odds.reshape(batch.y.shape)
    if batch.y.shape[1] > 1:
        of_users = effects(weights[USERS], passed.embedding, z, batch)
        z = (z + of_users.mean) / jnp.sqrt(1.0 + np.pi / 8.0 * of_users.var)
    seen = jnp.minimum(batch.examination, 1.0 - 1e-6)
    unseen = -jnp.log1p(-seen * jax.nn.sigmoid(z))
    no = jnp.where(batch.examination < 1.0, unseen, jax.nn.softplus(z))
    return batch.weight * jnp.where(batch.y > 0, jax.nn.softplus(-z), no)


CHUNKS = 8
"""Into how many parts a window is cut. Of outcomes in one, none is known for the others."""
_STEPS = 2


class Effects(NamedTuple):
    """Effects of users, as they are known from the outcomes before each in its window.

    Attributes
    ----------
    mean, var
        Of what they add to log-odds, shape (w, n).
    theta
        Means of the effects, shape (w, n, 1 + d).
    """

    mean: Any
    var: Any
    theta: Any


def effects(log_precision: Any, embedding: Any, z: Any, batch: Batch) -> Effects:
    """Effects of users on outcomes, given those before in the window.

    An effect theta, an intercept and coefficients on the embedding, is N(0, 1/precision) before the first. Behind each
    chunk its posterior is Gaussian by steps of Jaakkola and Jordan (2000, Statistics and Computing 10), which is ridge
    regression in closed form: the gradient passes through it (Bertinetto et al. 2019, arXiv 1805.08136).

    Parameters
    ----------
    log_precision
        Of theta, shape (1 + d,).
    embedding
        Shape (w n, d).
    z
        Log-odds without effects of users, shape (w, n).
    """
    w, n = z.shape
    x = jnp.concatenate([jnp.ones((w, n, 1)), embedding.reshape(w, n, -1)], axis=2)
    p = x.shape[2]
    k = min(CHUNKS, n)
    chunk = np.arange(n) // (n // k)
    # Which outcomes are known at each chunk, and what they count for, shape (w, k, n).
    count = batch.weight * jnp.where(batch.y > 0, 1.0, batch.examination)
    known = jnp.asarray(chunk < np.arange(k)[:, None], jnp.float32) * count[:, None]
    squares = (x[:, :, :, None] * x[:, :, None, :]).reshape(w, n, p * p)
    before = jnp.diag(jnp.exp(log_precision))
    theta = jnp.zeros((w, k, p))
    for _ in range(_STEPS):
        at = jax.lax.stop_gradient(z[:, None] + theta @ x.transpose(0, 2, 1))
        curvature = known * jnp.where(jnp.abs(at) < 1e-2, 0.25, jnp.tanh(0.5 * at) / (2.0 * at))
        precision = before + (curvature @ squares).reshape(w, k, p, p)
        shift = (known * (batch.y - 0.5)[:, None] - curvature * z[:, None]) @ x
        root = jnp.linalg.cholesky(precision)
        solve = partial(jax.lax.linalg.triangular_solve, root, left_side=True, lower=True)
        theta = jax.lax.stop_gradient(solve(solve(shift[..., None]), transpose_a=True)[..., 0])
    of_chunk = x.reshape(w, k, n // k, p).transpose(0, 1, 3, 2)
    both = solve(jnp.concatenate([shift[..., None], of_chunk], axis=3))
    half, rows = both[..., :1], both[..., 1:]
    mean, var = (half * rows).sum(axis=2), (rows**2).sum(axis=2)
    return Effects(mean.reshape(w, n), var.reshape(w, n), jnp.repeat(theta, n // k, axis=1))

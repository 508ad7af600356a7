"""Training: epochs of Adam on a log's outcomes beside an anchor, stopped early on users held out. JAX and optax.

Everything is a function of the state, the examples and the seed: an epoch that is run again gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from learner.deep.examples import Examples
from learner.deep.increment import Anchor, fisher
from learner.deep.network import Batch, Network, Weights, losses

LARGEST, STEPS = 2048, 64
"""Outcomes a step takes, at most: as many, by powers of 2, as give an epoch so many steps, or more."""
TOGETHER = 8
"""Steps that are compiled as one loop. Behind the last outcome it is filled up with batches that are no steps."""
DROPPED = 0.05
"""How often a value is shown to the network as unknown, so that the unknown has a meaning."""


Moments: TypeAlias = tuple[Any, Any]


class Options(NamedTuple):
    """How to train.

    Attributes
    ----------
    epochs
        Passes over the outcomes, at most.
    patience
        So many epochs without a lower loss on the held-out outcomes end it.
    learning_rate
        Of Adam, at first; it falls to 0 along a cosine over all epochs.
    smallest
        Outcomes a step takes, at least. Beside what is known, the noise of small steps costs more than it finds.
    """

    epochs: int = 10
    patience: int = 3
    learning_rate: float = 2e-3
    seed: int = 0
    smallest: int = 32


class State(NamedTuple):
    """Where training stands after some epochs.

    Attributes
    ----------
    weights
        The latest.
    moments
        Adam's: of each weight the mean of its gradients and of their squares, as one vector.
    best, best_loss
        The weights of the lowest held-out loss, and that loss.
    epoch, best_epoch
        Epochs done, and after how many of them the best was found.
    """

    weights: Weights
    moments: Moments
    best: Weights
    best_loss: float
    epoch: int = 0
    best_epoch: int = 0


def begin(network: Network, weights: Weights, held_out: Examples) -> State:
    """Before the first epoch."""
    zeros = np.zeros(sum(one.size for one in weights.values()), np.float32)
    return State(weights, (zeros, zeros), weights, mean_loss(weights, network, held_out))


def train(
    network: Network,
    learnt: Examples,
    held_out: Examples,
    anchor: Anchor,
    options: Options,
    state: State,
    advance: Callable[[int], object] = lambda n: None,
) -> Iterator[State]:
    """Go on from a state; each epoch gives the next state, until held-out loss has stopped to fall.

    Where nothing is held out, all epochs are gone through, and the last state is the best.

    The loss is the mean over outcomes of -log P(y), and the anchor's penalty over the number of outcomes.

    Parameters
    ----------
    advance
        Called with the number of outcomes gone through.
    """
    size = max(1, batch_size(learnt.n_outcomes, options.smallest) // learnt.length)
    steps = -(-len(learnt) // size)
    anchor = Anchor(*({name: jnp.asarray(one) for name, one in part.items()} for part in anchor))
    while state.epoch < options.epochs and state.epoch - state.best_epoch < options.patience:
        rng = np.random.default_rng([options.seed, state.epoch])
        order = rng.permutation(len(learnt))
        weights, moments = state.weights, state.moments
        for first in range(0, steps, TOGETHER):
            taken = order[first * size : (first + TOGETHER) * size]
            batches = _stacked(learnt, taken, size, rng)
            done = state.epoch * steps + first
            weights, moments = _descend(
                network, learnt.n_outcomes, options.epochs * steps, options.learning_rate, anchor, weights, moments,
                done, batches,
            )  # fmt: skip
            jax.block_until_ready(weights)
            advance(learnt.n_outcomes * len(taken) // len(learnt))
        loss, epoch = mean_loss(weights, network, held_out), state.epoch + 1
        weights, moments = jax.device_get((weights, moments))
        state = State(weights, moments, state.best, state.best_loss, epoch, state.best_epoch)
        if loss < state.best_loss or not len(held_out):
            state = state._replace(best=weights, best_loss=loss, best_epoch=epoch)
        yield state


def batch_size(n: int, smallest: int = 32) -> int:
    """Outcomes a step takes, of N.

    >>> batch_size(1_000), batch_size(10_000), batch_size(1_000_000)
    (32, 128, 2048)
    """
    return min(max(1 << max(n // STEPS, 1).bit_length() - 1, smallest), LARGEST)


def mean_loss(weights: Weights, network: Network, examples: Examples) -> float:
    """The mean of -log P(y) over outcomes, by weight; NaN of none."""
    total, weight = 0.0, 0.0
    for batch in _batches(examples):
        total += float(_total_loss(network, weights, batch))
        weight += float(batch.weight.sum(dtype=np.float64))
    return total / weight if weight else float("nan")


def information(weights: Weights, network: Network, examples: Examples) -> Weights:
    """The diagonal Fisher information of all outcomes; see `learner.deep.increment.fisher`."""
    found = {name: np.zeros(shape) for name, shape in network.shapes.items()}
    for batch in _batches(examples):
        for name, one in _fisher(network, weights, batch).items():
            found[name] += np.asarray(one, np.float64)
    return {name: np.float32(one) for name, one in found.items()}


def _batches(examples: Examples) -> Iterator[Batch]:
    """All outcomes, in order, in batches of one size."""
    size = max(1, LARGEST * TOGETHER // examples.length)
    for first in range(0, len(examples), size):
        yield examples.batch(np.arange(first, min(first + size, len(examples))), size)


def _stacked(examples: Examples, taken: Any, size: int, rng: np.random.Generator) -> Batch:
    """So many batches as are taken together along a first axis, in which some values are unknown."""
    together = examples.batch(taken, TOGETHER * size)
    inputs = {
        name: np.where(rng.random(one.shape) < DROPPED, 0, one) if one.dtype == np.int32 else one
        for name, one in together.inputs.items()
    }
    together = together._replace(inputs=inputs)
    stacked: Batch = jax.tree.map(lambda one: one.reshape(TOGETHER, -1, *one.shape[1:]), together)
    return stacked


_total_loss = jax.jit(lambda network, weights, batch: losses(weights, network, batch).sum(), static_argnames="network")
_fisher = jax.jit(lambda network, weights, batch: fisher(weights, network, batch), static_argnames="network")


@partial(jax.jit, static_argnames="network")
def _descend(
    network: Network, n: Any, steps: Any, rate: Any, anchor: Anchor, weights: Weights, moments: Moments, done: Any,
    batches: Batch,
) -> tuple[Weights, Moments]:  # fmt: skip
    """A step of Adam for each batch, of N outcomes in all; `done` steps have been taken before.

    Weights are one long vector inside: that compiles in a fraction of the time.
    """
    start, named = ravel_pytree(weights)
    adam = optax.scale_by_adam()

    def objective(flat: Any, batch: Batch) -> Any:
        return losses(named(flat), network, batch).sum() / jnp.maximum(1.0, (batch.weight > 0.0).sum())

    def step(carry: Any, batch: Batch) -> Any:
        flat, (mu, nu), number = carry
        slope = jax.grad(objective)(flat, batch) + precision * (flat - mean) / n
        update, (number, mu, nu) = adam.update(slope, optax.ScaleByAdamState(number, mu, nu))
        size = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * number / steps))
        is_step = batch.weight.any()
        return jax.tree.map(partial(jnp.where, is_step), (flat - size * update, (mu, nu), number), carry), None

    (mean, _), (precision, _) = ravel_pytree(anchor.mean), ravel_pytree(anchor.precision)
    (flat, moments, _), _ = jax.lax.scan(step, (start, moments, jnp.asarray(done, jnp.int32)), batches)
    return named(flat), moments

"""What the form of the covariance is worth with a wide category: `python -m examples.categories.simulate`.

Users differ in an intercept and nine numbers, dependently, and in a taste for each of hundreds of values, of which they
are shown some often and most hardly ever. Every outcome is predicted before it is learnt, by the learner's kernel and
under the true prior of users, as far as the form can hold it: what tells the ways apart is what a form loses.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from learner.batch.half_life import Losses, difference
from learner.belief.gaussian import Array, Gaussian, Rows, click_probability, factorised, sigmoid
from learner.belief.update import condition, project
from learner.evaluation.metrics import log_losses
from learner.model.effect import independent
from learner.model.spec import Model, load_model
from service.footprint import footprint

TEXT = """
name = "shop"
covariance = "{}"
[features]
taste = {{ kind = "vector", size = {} }}
brand = {{ {} }}
"""
N_NUMBERS, BUCKETS = 9, 32
FULL, BLOCK, DIAGONAL, HASHED = "full", "block", "diagonal", f"full, hashed into {BUCKETS}"
WAYS: Mapping[str, str] = {FULL: "full", BLOCK: "block", DIAGONAL: "diagonal", HASHED: "full"}
# Of a click and a value; numbers have that of the intercept together.
LEVEL, VARIANCE, OF_VALUES = -2.0, 0.5, 0.5


class Users(NamedTuple):
    """U users who see N outcomes each.

    Attributes
    ----------
    cov
        How they differ in the intercept and the numbers, shape (10, 10).
    numbers, brand
        What they saw, shapes (U, N, 9) and (U, N).
    z
        The true log-odds, shape (U, N).
    clicked
        Shape (U, N).
    """

    cov: Array
    numbers: Array
    brand: Any
    z: Array
    clicked: Any


def drawn(n_users: int, n_outcomes: int, values: int, seed: int) -> Users:
    """Users of the true population, and what they clicked."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(N_NUMBERS + 1, N_NUMBERS + 1))
    cov = root @ root.T
    deviation = np.sqrt(np.diagonal(cov))
    scale = np.sqrt(VARIANCE) * np.append(1.0, np.full(N_NUMBERS, N_NUMBERS**-0.5))
    cov = cov / np.outer(deviation, deviation) * np.outer(scale, scale)
    theta = rng.multivariate_normal(np.append(LEVEL, np.zeros(N_NUMBERS)), cov, n_users)
    taste = np.sqrt(OF_VALUES) * rng.normal(size=(n_users, values))
    numbers = rng.normal(size=(n_users, n_outcomes, N_NUMBERS))
    share = 1.0 / np.arange(1, values + 1)
    brand = rng.choice(values, (n_users, n_outcomes), p=share / share.sum())
    z = theta[:, :1] + np.einsum("uij,uj->ui", numbers, theta[:, 1:]) + np.take_along_axis(taste, brand, axis=1)
    return Users(cov, numbers, brand, z, rng.random(z.shape) < sigmoid(z))


def model_of(way: str, users: Users, values: int) -> Model:
    """The model of a way."""
    names = ", ".join(f'"b{i}"' for i in range(values))
    kind = f'kind = "hashed", buckets = {BUCKETS}' if way == HASHED else f'kind = "category", values = [{names}]'
    return load_model(TEXT.format(WAYS[way], N_NUMBERS, kind))


def prior_of(model: Model, users: Users) -> Gaussian:
    """The true prior, in the model's form."""
    variances = np.append(np.diagonal(users.cov), np.full(model.d - N_NUMBERS - 1, OF_VALUES))
    prior = independent(np.append(LEVEL, np.zeros(model.d - 1)), variances, model.prior.n_dense)
    if model.prior.form == "full":
        prior.cov[: N_NUMBERS + 1, : N_NUMBERS + 1] = users.cov
    elif model.prior.form == "block":
        prior.cov[: (N_NUMBERS + 1) ** 2] = users.cov.ravel()
    return prior


def run(way: str, users: Users, values: int) -> tuple[Model, Losses]:
    """The model, and how it predicts what each user clicked."""
    model = model_of(way, users, values)
    start = factorised(prior_of(model, users))
    total = np.empty(len(users.clicked))
    f, gain = np.empty((2, model.d))
    for user in range(len(total)):
        mean, factor = start.mean.astype(np.float32), start.factor.astype(np.float32)
        seen = zip(users.numbers[user].tolist(), users.brand[user].tolist(), strict=True)
        rows: Rows = model.rows([{"taste": numbers, "brand": f"b{brand}"} for numbers, brand in seen])
        mu, var = np.empty((2, len(rows)))
        for n, (x, clicked) in enumerate(zip(rows, users.clicked[user].tolist(), strict=True)):
            mu[n], var[n] = project(mean, factor, x, f)
            condition(mean, factor, x, clicked, 0.0, 1.0, False, f, gain)
        total[user] = log_losses(users.clicked[user], click_probability(mu, var)).sum()
    return model, Losses(total, np.full(len(total), float(users.clicked.shape[1])))


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=500, help="how many (default: %(default)s)")
    parser.add_argument("--outcomes", type=int, default=300, help="of each user (default: %(default)s)")
    parser.add_argument("--values", type=int, default=300, help="of the category (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    chosen = parser.parse_args()
    users = drawn(chosen.users, chosen.outcomes, chosen.values, chosen.seed)
    known = log_losses(users.clicked.ravel(), sigmoid(users.z).ravel()).mean()
    print(f"{chosen.users} users, {chosen.outcomes} outcomes each, {users.clicked.mean():.3f} clicked; log loss if")
    print(f"  the truth were known: {known:.4f}")
    exact = None
    for way in WAYS:
        model, losses = run(way, users, chosen.values)
        cost = footprint(model)
        exact = exact or losses
        print(
            f"  {way:24s} {losses.mean:.4f}, beyond full {difference(losses, exact)}; {cost.record:,} bytes a user, "
            f"about {cost.outcome_us:.2g} us an outcome",
            flush=True,
        )


if __name__ == "__main__":
    main()

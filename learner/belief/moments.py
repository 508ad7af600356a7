"""Moments of one outcome's tilted density N(z; mu, v) sigma(+-z)^w, by assumed density filtering and by Laplace.

z is the log-odds of a click, mu and v > 0 its mean and variance before the outcome, w the outcome's weight. A "no" of
z is a "yes" of -z, so the arithmetic has only the "yes". Sources: Minka 2001 for assumed density filtering; Lambda
Learner (arXiv 2010.05154, equations 6 to 9) for Laplace.
"""

from __future__ import annotations

from math import asinh, cosh, exp, expm1, hypot, log, log1p, pi, sinh, sqrt

from learner.belief.compiled import compiled

NEWTON_STEPS = 200
# Newton's last step is taken at this residual, relative to the mode; it squares what is left of it.
LAST_RESIDUAL = 1e-7
# Quadrature: spacing in units of the local deviation, at most `MAX_SPACING` of the stretched coordinate, whose centre
# is where sigma(z)^w falls off; `STRETCH` is the half width over which the spacing stays nearly even.
SPACING, MAX_SPACING, STRETCH = 0.9, 0.17, 3.0
# A weight above this makes the fall steeper than the log-odds' own scale; nodes are closer then.
STEEP, CLOSER = 3.0, 0.6
NEGLIGIBLE = 1e-8
# Below this share of the variance, what an outcome takes of it comes from the slopes and not from the moments.
LITTLE = 1e-3
MAX_NODES = 4_000
# Up to this weight, variance and distance of the mean from 0, nodes may be evenly spaced: a standard deviation of the
# tilted density apart, or 1 where that is less. Errors are at most 4e-5, and two exponentials of a node come from the
# node before: 0.29 of the time for w = 1, 0.54 for w < 1.
PLAIN_WEIGHT, PLAIN_VARIANCE, PLAIN_MEAN = 1.0, 16.0, 30.0


@compiled
def sigmoid(z: float) -> float:
    """1 / (1 + e^-z), accurate in both tails."""
    if z >= 0.0:
        return 1.0 / (1.0 + exp(-z))
    e = exp(z)
    return e / (1.0 + e)


@compiled
def log_sigmoid(z: float) -> float:
    """Logarithm of the sigmoid of z."""
    return -log1p(exp(-z)) if z >= 0.0 else z - log1p(exp(z))


@compiled
def no_weight(mu: float, v: float, c: float) -> float:
    """What a missing click weighs as a "no": c (1 - q) / (1 - c q), with q = E[sigma(z)] under N(z; mu, v).

    c is the probability that a wanted item had been clicked by now: that clicks had the time to come, times that the
    item was looked at. The weight is the E-step of "clicked = looked at, in time, and wanted", and makes the slope of
    a "no" that of log(1 - c sigma(z)). Where clicks are rare it is c. q by MacKay's (1992) approximation.
    """
    if c >= 1.0:
        return 1.0
    q = sigmoid(mu / sqrt(1.0 + pi * v / 8.0))
    return c * (1.0 - q) / (1.0 - c * q)


@compiled
def mode(mu: float, v: float, w: float) -> float:
    """Mode of N(z; mu, v) sigma(z)^w: the root of z - mu - v w sigma(-z)."""
    pull = v * w
    # Newton from the sigmoid's inflection, or the end of the bracket nearest to it, approaches the root from one side
    # only: no safeguard is needed.
    z = min(max(0.0, mu), mu + pull)
    for _ in range(NEWTON_STEPS):
        q = sigmoid(-z)
        residual = z - mu - pull * q
        step = residual / (1.0 + pull * q * (1.0 - q))
        z -= step
        if abs(step) <= LAST_RESIDUAL * (1.0 + abs(z)):
            break
    return z


@compiled
def laplace_moments(mu: float, v: float, clicked: bool, w: float) -> tuple[float, float]:
    """Score (mu' - mu) / v and site precision 1/v' - 1/v of the mode mu' and curvature 1/v' of the tilted density."""
    sign = 1.0 if clicked else -1.0
    peak = mode(sign * mu, v, w)
    q = sigmoid(-peak)
    return sign * w * q, w * q * sigmoid(peak)


@compiled
def moderated_no(mu: float, v: float, w: float) -> tuple[float, float]:
    """Score and site precision of a "no" of weight w <= 1 in closed form, in a tenth of the time of `adf_moments`.

    The slopes of w log(1 - q) in mu, with q = E[sigma(z)] by MacKay's (1992) approximation, whose own slope counts less
    where w is small. For v <= 4 and mu <= 0 the score is within 9 % of that of `adf_moments`, or within 0.003, and the
    precision within 35 %.
    """
    k = 1.0 / sqrt(1.0 + pi * v / 8.0)
    q, power = sigmoid(k * mu), k**w
    return -w * q * power, w * q * (1.0 - q) * k * power


@compiled
def plain_moments(mu: float, v: float, w: float) -> tuple[float, float]:
    """Score and site precision of N(z; mu, v) sigma(z)^w by the trapezoidal rule; see `PLAIN_VARIANCE` for where.

    With q = sigma(-z), the score is E[w q] and (v - v') / v^2 = E[w q (1 - q)] - Var[w q] under the tilted density: no
    difference of near numbers.
    """
    pull = v * w
    # Newton's first steps towards the mode: the centre need not be the mode itself.
    centre = min(max(0.0, mu), mu + pull)
    for _ in range(2):
        q = sigmoid(-centre)
        centre -= (centre - mu - pull * q) / (1.0 + pull * q * (1.0 - q))
    q = sigmoid(-centre)
    deviation = sqrt(v / (1.0 + pull * q * (1.0 - q)))
    step = min(1.0, deviation)
    total = first = second = curvature = 0.0
    for side in (1.0, -1.0):
        # e^-z, the Gaussian over that of the centre, and the factors that lead from node to node.
        odds, odds_factor = exp(-centre), exp(-side * step)
        normal, factor = 1.0, exp(-(0.5 * step + side * (centre - mu)) * step / v)
        shrink = exp(-step * step / v)
        for n in range(MAX_NODES):
            # The centre itself is counted on the right.
            if n > 0 or side > 0.0:
                p = 1.0 / (1.0 + odds)
                q = odds * p
                density = normal * p if w == 1.0 else normal * exp(-w * log(1.0 + odds))
                total += density
                first += density * q
                second += density * q * q
                curvature += density * q * p
                t = n * step / deviation
                if density * (1.0 + t * t) < NEGLIGIBLE * total:
                    break
            odds *= odds_factor
            normal *= factor
            factor *= shrink
    score = w * first / total
    lost = max(w * curvature / total - (w * w * second / total - score * score), 0.0)
    return score, lost / (1.0 - lost * v)


@compiled
def adf_moments(mu: float, v: float, clicked: bool, w: float) -> tuple[float, float]:
    """Score (mu' - mu) / v and site precision 1/v' - 1/v for the mean mu' and variance v' of the tilted density.

    Relative error of mean and variance at most 1e-4 for |mu| <= 1,000, w <= 1,000 and v from 1e-12 to 1e8.
    """
    sign = 1.0 if clicked else -1.0
    if w <= PLAIN_WEIGHT and v <= PLAIN_VARIANCE and abs(mu) <= PLAIN_MEAN:
        score, precision = plain_moments(sign * mu, v, w)
        return sign * score, precision
    peak = mode(sign * mu, v, w)
    q_peak = sigmoid(-peak)
    lead = w * q_peak
    deviation = sqrt(v / (1.0 + v * w * q_peak * (1.0 - q_peak)))
    # z = centre + STRETCH sinh(u): even spacing near the fall of sigma(z)^w, geometric away from it.
    centre = log(w) if w > 1.0 else 0.0
    u_peak = asinh((peak - centre) / STRETCH)
    spacing = min(MAX_SPACING, SPACING * deviation / hypot(STRETCH, peak - centre))
    if w > STEEP:
        spacing *= CLOSER
    base, p_peak = log1p(exp(-abs(peak))), sigmoid(peak)
    total = first = second = 0.0
    curvature = slope = slope_2 = 0.0
    for side in (1.0, -1.0):
        # The peak itself is counted on the right.
        n = 0 if side > 0 else 1
        # The stretched coordinate's offset from the peak, exact for small steps.
        half, turn, grown, growth = sinh(u_peak), cosh(u_peak), 0.0, expm1(side * spacing)
        for _ in range(n):
            grown = grown + growth + grown * growth
        while n < MAX_NODES:
            # sinh(u_peak + t) - sinh(u_peak) with e^t - 1 = grown
            shrunk = -grown / (1.0 + grown)
            sinh_t, cosh_1 = 0.5 * (grown - shrunk), 0.5 * (grown + shrunk)
            t = STRETCH * (half * cosh_1 + turn * sinh_t)
            z = peak + t
            e = exp(-abs(z))
            p, q = 1.0 / (1.0 + e), e / (1.0 + e)
            if z < 0.0:
                p, q = q, p
            # w (log sigma(z) - log sigma(peak)) - t lead, without differences of large numbers.
            tilt = w * (base - log1p(e))
            if peak < 0.0:
                tilt += t * w * p_peak - (w * z if z >= 0.0 else 0.0)
            else:
                tilt += (w * z if z < 0.0 else 0.0) - t * lead
            # Times dz / du.
            density = exp(tilt - 0.5 * t * t / v) * (half * sinh_t + turn * (1.0 + cosh_1))
            total += density
            first += density * t
            second += density * t * t
            score = w * (q - q_peak)
            curvature += density * w * q * (1.0 - q)
            slope += density * score
            slope_2 += density * score * score
            if density * (1.0 + t * t / (deviation * deviation)) < NEGLIGIBLE * total:
                break
            grown = grown + growth + grown * growth
            n += 1
    shift = first / total
    remaining = max(second / total - shift * shift, 0.0)
    slope /= total
    if v * curvature < LITTLE * total:
        # (v - v') / v^2 = E[w p q] - Var[w q]: no difference of near numbers.
        lost = max(curvature / total - (slope_2 / total - slope * slope), 0.0)
        return sign * (lead + slope), lost / (1.0 - lost * v)
    return sign * (lead + shift / v), max(1.0 / remaining - 1.0 / v, 0.0)

"""What a model costs: the bytes of a record, and about how long a learner takes for an outcome. Pure."""

from __future__ import annotations

from typing import NamedTuple

from learner.belief.gaussian import factor_size
from learner.limits import MAX_RECORD_BYTES
from learner.model.effect import Effect
from learner.record.layout import HEADER_BYTES, LONG_HEADER_BYTES, plain_layout

# Of the learning step on one core, ten items to an impression, d from 8 to 4,000 and any covariance: within a factor
# of 1.5 of what was measured there. Reading the event comes on top, see docs/scaling.md.
STEP_US, NUMBER_US = 2.0, 0.0035
# Full covariance of so many times the bytes of another: from about 60 coefficients on.
WIDE = 16


class Footprint(NamedTuple):
    """Costs of one effect.

    Attributes
    ----------
    record
        Bytes of a record with nothing open.
    open_impression
        Bytes that each open outcome adds, if most of its row is not 0.
    outcome_us
        About how many microseconds of processor time an outcome takes to be learnt, beside reading it.
    """

    record: int
    open_impression: int
    outcome_us: float

    def __str__(self) -> str:
        return (
            f"{self.record:,} bytes each and at most {self.open_impression:,} for each open outcome, of "
            f"{MAX_RECORD_BYTES >> 20} MiB; an outcome is learnt in about {self.outcome_us:.2g} us, beside reading it"
        )


def footprint(effect: Effect) -> Footprint:
    """What an effect costs for each user, or item, and outcome."""
    return _of(effect.d, effect.prior.n_factor, effect.width)


def told(effect: Effect) -> str:
    """The same for people; of a wide one also what another covariance would cost."""
    return f"{footprint(effect)}{f' ({cheaper})' if (cheaper := advice(effect)) else ''}"


def advice(effect: Effect) -> str:
    """Which other covariance costs a wide effect how much less; empty if none does by far."""
    own = footprint(effect)
    others = {form: _of(effect.d, factor_size(effect.d, k), effect.width) for form, k in effect.forms.items()}
    return "; ".join(
        f"covariance = {form!r}: {other.record:,} bytes, {other.outcome_us:.2g} us"
        for form, other in others.items()
        if WIDE * other.record <= own.record
    )


def _of(d: int, n_factor: int, width: int) -> Footprint:
    idle, one, two = (
        plain_layout(HEADER_BYTES if n == 0 else LONG_HEADER_BYTES, d, n_factor, n, 0, width, 0) for n in (0, 1, 2)
    )
    return Footprint(idle.length, two.end - one.end, STEP_US + NUMBER_US * (d + n_factor))

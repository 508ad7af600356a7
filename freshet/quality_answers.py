"""What the service answers of how good scores are; see `freshet.answers`."""

from __future__ import annotations

import msgspec


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """A number and the half width of its 95 % interval over users; null where nothing can be said."""

    value: float | None
    half_width: float | None


class QualityWay(msgspec.Struct, frozen=True):
    """How good one way to predict clicks is, by metric, and its metrics less those of the fixed effect.

    `log_loss`, `predicted_over_actual`, `slate_auc` and `slate_ndcg` (of the first 10 places) are those of `freshet
    evaluate`. `auc` and `ece` are of all outcomes at once, from bins of the log-odds; segments have none.
    """

    metrics: dict[str, Estimate]
    less_fixed_effect: dict[str, Estimate]


class QualityPart(msgspec.Struct, frozen=True):
    """Outcomes, clicks and slates of both labels that are scored; and how good each way to predict is.

    Ways: the `fixed effect` alone, the `prior`, what was `served`, and `user alone` where items have an effect.
    """

    outcomes: int
    clicks: int
    slates: int
    ways: dict[str, QualityWay]


class CalibrationBin(msgspec.Struct, frozen=True, gc=False):
    """Outcomes of about one probability: how many, their mean prediction, and the share of clicks that came."""

    n: int
    predicted: float
    actual: float


class QualityWindow(msgspec.Struct, frozen=True):
    """How good predictions were of what was shown from `since` to `until`, epoch ms.

    `parts` are `all`, `new` (shown less than 50 outcomes before) and `known` users, and each segment of slates that the
    model declares (`device=phone`); `auc` may be off by `auc_error`.
    """

    since: int
    until: int
    parts: dict[str, QualityPart]
    calibration: dict[str, list[CalibrationBin]]
    auc_error: dict[str, float | None]


class QualityHour(msgspec.Struct, frozen=True):
    """An hour, epoch ms: outcomes shown in it, and the log loss of each way."""

    at: int
    outcomes: int
    log_loss: dict[str, float]


class QualityArm(msgspec.Struct, frozen=True):
    """An arm of the experiment: slates that said `id`, whose labels are due, their clicks, and the log loss of both.

    `policy` is ``holdout`` where users get the fixed effect alone, whose log loss it then is; else it is that of the
    model that the arm is served by. `lift` is by which part its clicks a slate are more than those of the first arm;
    with a chance of 95 % the `interval` holds the true one at all times at once, of all arms. Null where it is too soon
    to tell.
    """

    name: str
    id: str
    share: float
    policy: str
    model: str | None
    slates: int
    clicks: int
    clicks_per_slate: float | None
    log_loss: Estimate
    lift: float | None
    interval: tuple[float, float] | None


class QualityResponse(msgspec.Struct, frozen=True):
    """How good scores of a share of `users` are; `worse_than_fixed_effect` says more so than by chance.

    `worse_in` says where: in which segments of slates that the model declares, `others` being those of none; `all` if
    it declares none.
    Windows end with the newest hour that has scored outcomes: `1h` has that and the one before, `1d` the 24 before,
    `7d` the 168 before. `hours` are the longest's, oldest first. `models` may be asked of: each has its own.
    `arms` are those of the experiment, from its beginning; the first one is what others are compared with.
    """

    model: str
    at: int
    users: float
    worse_than_fixed_effect: bool
    windows: dict[str, QualityWindow]
    hours: list[QualityHour]
    worse_in: list[str] = []
    models: list[str] = []
    arms: list[QualityArm] = []

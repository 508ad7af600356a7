"""The route of how good scores are."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI, Request, Response

from freshet.quality_answers import QualityResponse
from service.arms import with_own_loss
from service.web.http import json_response
from service.web.openapi import of_a_model, responses
from service.web.scorers import Scorers


def add_quality(app: FastAPI, scorers: Scorers) -> None:
    """Add the route."""

    @app.get(
        "/quality",
        responses=responses(QualityResponse, 404, says="How good scores are."),
        openapi_extra=of_a_model(),
    )
    async def measured(request: Request) -> Response:
        """How good scores are: log loss, order in slates and calibration of the last hour, day and week.

        Of the fixed effect alone, the prior and what was served, with 95 % intervals, and what it is better by. Of a
        model that learns beside the served one: what it would have served. Of each arm of an experiment: its clicks a
        slate, and how much more they are than the first one's. Segments have no `auc` and `ece`. It is read from the
        store at most once in ten seconds.
        """
        asked = await scorers.asked(request).quality.now()
        served = {one.model for one in asked.arms} - {asked.model}
        of_models = {one.model.name: (await one.quality.now()).arms for one in scorers.all if one.model.name in served}
        return json_response(
            msgspec.structs.replace(
                asked, models=[one.model.name for one in scorers.all], arms=with_own_loss(asked.arms, of_models)
            )
        )

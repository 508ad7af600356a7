"""Whether a model can be that of the topic and of the store it was started on: told by a sample, once a process.

A learner of the wrong model would dead-letter a whole topic, or give up every user. So it stops as soon as more than
half of its first events or records are another model's.
"""

from __future__ import annotations

from collections import Counter

from learner.events.wire import Reason

SAMPLE = 1_000
LEAST_RECORDS = 20
"""So few foreign records say nothing: a user or two of another model are dead-lettered."""

OF_THE_MODEL = frozenset({Reason.UNKNOWN_FEATURE, Reason.UNKNOWN_CATEGORY, Reason.BAD_FEATURE, Reason.MISSING_OFFSET})

OF_THE_MAPPING = frozenset({Reason.UNKNOWN_TYPE, Reason.BAD_FIELD, Reason.BAD_TIMESTAMP})
"""Of a model that says where events of another shape have what."""


class ModelMismatch(ValueError):
    """The model cannot be the one that the topic's events, or the store's records, are of."""


class ModelCheck:
    """Counts of the first `SAMPLE` messages and of the first `SAMPLE` records, and what was wrong with them."""

    def __init__(self, model_name: str, maps_events: bool = False) -> None:
        self._model_name = model_name
        self._maps_events = maps_events
        self._reasons = OF_THE_MODEL | OF_THE_MAPPING if maps_events else OF_THE_MODEL
        self._messages = self._impressions = self._records = 0
        self._refused: Counter[Reason] = Counter()
        self._foreign = 0

    def events(self, messages: int, impressions: int, refused: Counter[Reason]) -> None:
        """Take a microbatch, before anything of it is learnt or dead-lettered.

        Parameters
        ----------
        messages
            How many it has.
        impressions
            How many could be read. Clicks have no features, and say nothing.
        refused
            The others by reason.

        Raises
        ------
        ModelMismatch
            If more than half of the impressions were refused for what their items have.
        """
        if self._messages >= SAMPLE:
            return
        self._messages += messages
        self._impressions += impressions
        self._refused += Counter({reason: n for reason, n in refused.items() if reason in self._reasons})
        n_refused = self._refused.total()
        # Sooner, if the rest of the sample cannot change it.
        if n_refused > (self._impressions if self._messages >= SAMPLE else SAMPLE / 2):
            what, why = "impressions", "for their features"
            if self._maps_events:
                what, why = "impressions and bad events", "as [events] reads them, or for their features"
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in self._refused.most_common())
            raise ModelMismatch(
                f"model {self._model_name!r} cannot be the topic's: of its first {self._impressions + n_refused:,} "
                f"{what} {n_refused:,} were refused {why} ({reasons}); expected the model.toml that the events are "
                "made for, or another topic; `freshet check --sample` says what it finds in one"
            )

    def records(self, known: int) -> None:
        """Take so many records that could be read."""
        self._records += known

    def foreign(self, why: Exception) -> None:
        """Take a record of another model.

        Raises
        ------
        ModelMismatch
            If more than half of the first records are.
        """
        if self._records + self._foreign >= SAMPLE:
            return
        self._foreign += 1
        if self._foreign >= LEAST_RECORDS and self._foreign > self._records:
            raise ModelMismatch(
                f"model {self._model_name!r} cannot be the store's: of the first {self._records + self._foreign:,} "
                f"records {self._foreign:,} are of another model, the last of them: {why}; expected the model.toml "
                "that they were learnt with, or another store"
            ) from why

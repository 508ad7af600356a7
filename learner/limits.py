"""What of events and requests is taken, wherever they come in: else it is a 4xx over HTTP, a dead letter in the log."""

from __future__ import annotations

from msgspec import MsgspecError

UNREADABLE = (MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec's decoder raises for bytes from outside."""
# Below the 1 MiB of a record that Kafka takes by default, with room for its key and headers.
MAX_EVENT_BYTES = 1_000_000
"""One event, and the body of one `POST /score`."""
MAX_ITEMS = 1_000
"""Items of an impression or a request to score."""
MAX_POSITION = 10_000
"""Rank at which an item is shown."""
MAX_ID_LENGTH = 256
"""Characters of `user_id`, `item_id` and `request_id`."""
MAX_FEATURES = 1_000
"""Features of an item."""
MAX_NAME_LENGTH = 128
"""Characters of a feature's name."""
MAX_STRING_LENGTH = 1_024
"""Characters of a value of a category or multi feature."""
MAX_LIST_LENGTH = 4_096
"""Values of a multi or vector feature. Lists do not nest."""
MAX_NUMBER = 1e30
"""Of a numeric or vector feature, either way: beyond it they hardly fit the 32 bits they have in a record."""
MAX_RECORD_BYTES = 32 << 20
"""The numbers of a user's record, its belief and the rows of `max_open` outcomes: what a learner reads at a time."""
MAX_OFFSET = 1_000
"""Of an item's offset, either way: beyond it a logistic model says nothing more, and sums would overflow."""
MAX_EMBEDDING = 128
"""Numbers of an encoder's embedding."""
MAX_ENCODER_INPUTS = 256
"""Inputs of an encoder."""
MAX_SEGMENTS = 8
"""Of slates, whose quality is counted apart."""
MAX_ARMS = 8
"""Of an experiment."""
MIN_TIMESTAMP_MS = 946_684_800_000
"""Of an event, 2000-01-01 in epoch milliseconds: one before it is in seconds, or from a clock that was never set."""
MAX_TIMESTAMP_MS = 4_102_444_799_999
"""Of an event, the last before 2100-01-01: one beyond it is in microseconds, or would end a user's forgetting."""
MAX_DURATION_MS = 253_402_300_799_999
"""Of a duration in the model, 8,000 years: added to any timestamp it fits 64 bits."""

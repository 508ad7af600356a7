"""Events: the wire format, and what the learner makes of it."""

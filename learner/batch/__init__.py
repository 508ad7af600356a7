"""Learning from a log at rest what is true of all users: the prior, fixed effect, click delay and half-life; and from a store, the prior."""

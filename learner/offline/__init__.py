"""Learning from a log at rest: the population's prior, and what freshness would have been worth."""

"""The HTTP service: scores from the posteriors in the store, events into the log."""

"""The learning step: the labels of each user's events, and the arithmetic they cause, in one compiled loop."""

"""The service: scores from the learner's posteriors over HTTP, and the `freshet` command."""

DISTRIBUTION = "freshet-online"
"""The package's name on an index, where `freshet` is somebody else's."""

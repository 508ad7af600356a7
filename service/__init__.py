"""The service: scores from the learner's posteriors over HTTP, and the `freshet` command."""

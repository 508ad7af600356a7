"""The click model: what `model.toml` says, the features of its items, and the prior fitted on a log."""

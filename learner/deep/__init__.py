"""A deep model that is trained on logs, beside its linear one: the encoder of `[encoder]`."""

"""The `freshet` command: one module a subcommand."""

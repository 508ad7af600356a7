"""What is true of all users: prior, fixed effect, click delay and half-life from a log, a prior from a store."""

"""What freshness would have been worth on a log at rest, and a world of simulated users."""

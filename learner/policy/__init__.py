"""Policies: how scores become an order of items, and with what chance they become which."""

"""Measurements of Freshet against peers and floors, as ratios of one run."""

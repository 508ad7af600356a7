"""The learner: Bayesian click models kept up to date from a log of impressions and clicks."""

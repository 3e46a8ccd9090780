"""Heads on frozen features: logistic regression, nearest neighbours, linear and dense heads and their training."""

"""Metrics of one cell of a comparison."""

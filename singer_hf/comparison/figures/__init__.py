"""Figures of a comparison: every function returns a matplotlib figure and saves nothing."""

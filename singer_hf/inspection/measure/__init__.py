"""Measurements and metrics of an audit."""

"""Frozen features of a model: computed, cached, in windows."""

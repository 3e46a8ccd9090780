"""Frozen features of a model: extracted, loaded in batches, cached on disk, in sliding windows."""

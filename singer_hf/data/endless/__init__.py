"""Endless scenes: labelled synthetic images that the training device draws itself, for runs of any length."""

"""Cleaning of a teacher without a student: where its adapter stands, how it is trained, and what lands on disk."""

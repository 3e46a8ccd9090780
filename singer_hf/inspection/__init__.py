"""Audit of a vision transformer: measurements of its patch tokens, and a report on its artifacts."""

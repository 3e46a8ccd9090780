"""The audit of a vision transformer's tokens: measures and report."""

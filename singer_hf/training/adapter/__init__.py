"""Training of an adapter alone, without a student."""

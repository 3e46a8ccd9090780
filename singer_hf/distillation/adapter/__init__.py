"""Adapters that are trained by their own terms: the objective, alone, or beside a student."""

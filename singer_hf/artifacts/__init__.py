"""Artifact tokens: the outlier rule, metrics of artifacts, and planting of artifacts with known properties."""

"""Quality of frozen features: metrics, heads on features, benchmarks, results."""

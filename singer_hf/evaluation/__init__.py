"""How good frozen features are: probes, nearest neighbours, benchmarks."""

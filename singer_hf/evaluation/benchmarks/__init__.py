"""Benchmarks: their data, their protocol, one model on one benchmark."""

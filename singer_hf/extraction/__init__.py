"""Feature maps and tokens of any vision transformer, raw or refined by its adapters, as tensors or as a dataset."""

from singer_hf.extraction.extract import extract_features

__all__ = ["extract_features"]

"""Files that come with the package and are found by name: configs of models, of runs and of comparisons."""

from singer_hf.configs.lookup import COMPARISONS, MODELS, RUNS, TRAINED, find, hint, listing, shipped_files

__all__ = ["COMPARISONS", "MODELS", "RUNS", "TRAINED", "find", "hint", "listing", "shipped_files"]

"""SiNGER for Hugging Face: see, clean and distil the features of vision transformers."""

from singer_hf.tuner import SingerConfig, SingerLayer, SingerModel
from singer_hf.version import __version__

__all__ = ["SingerConfig", "SingerLayer", "SingerModel", "__version__"]

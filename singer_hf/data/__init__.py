"""Images: datasets, image processors, transforms and drawn scenes."""

from singer_hf.data.datasets import load_image_dataset

__all__ = ["load_image_dataset"]

"""One structural view of any vision transformer: its blocks, its features, how it is loaded."""

from singer_hf.vit.structure import ViTView, view_vit

__all__ = ["ViTView", "view_vit"]

"""Vision transformers: the structural view of any ViT, its features, and how it is loaded."""

from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView

__all__ = ["ViTView", "view_vit"]

"""The demo on drawn scenes, and how its teacher was trained."""

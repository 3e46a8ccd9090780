"""The commands, one file each: what `examples/*.py` start."""

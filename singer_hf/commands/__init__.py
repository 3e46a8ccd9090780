"""The commands of `singer-hf`, one file each."""

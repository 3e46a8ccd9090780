"""The teacher's features of a few crops of each image, kept on disk so that later epochs need no teacher pass."""

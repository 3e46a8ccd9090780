"""Several students of one run: their names, folders, parts of the log and best checkpoints."""

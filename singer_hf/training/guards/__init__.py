"""Guards of a run: lock, settings of a checkpoint, complete checkpoints, finite values, signals."""

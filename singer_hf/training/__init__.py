"""The Trainer: arguments, checkpoints, callbacks, Hub, the card of a run."""

"""Job folders, checkpoints, progress, and the machine."""

"""The parts of a model: part kinds, the lock file of each part, and the lock of a whole checkpoint."""

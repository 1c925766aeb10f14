"""What a model is cut into: part kinds, their locks, and the lock of a whole checkpoint."""

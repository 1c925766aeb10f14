"""Weights to codes and scales and back: pure functions over numpy arrays."""

"""Calibration: tokens, the hidden states they produce in each layer, and calibration-aware rounding."""

HELD_BYTES = 1 << 30
"""Memory for weights in fp32 that are used more than once. It is the same on every machine, so that results are too."""

"""Calibration: tokens, the hidden states they produce in each layer, and calibration-aware rounding."""

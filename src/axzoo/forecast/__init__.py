"""Forecasts of speed, memory and flash on a board, from a model's config.json or the sizes in a matrix.

docs/forecast.md explains the model. `scripts/fit_forecast.py` fits its parameters to published measurements.
"""

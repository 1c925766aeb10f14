"""axzoo builds, checks and runs a zoo of language models for Axera NPUs."""

__version__ = "0.1.0"

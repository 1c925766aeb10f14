"""Shared foundations: errors, atomic files, locks, logging and progress bars, fingerprints, dtypes."""

"""What every other package stands on: errors, atomic files, locks, the log, fingerprints, dtypes."""

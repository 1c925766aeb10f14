"""The verbs of the command line. Each verb is a module."""

"""The matrix: config/zoo.yaml, validated and expanded to the builds that Snakemake plans.

`axzoo.matrix.entries.load_zoo(path)` reads a matrix; `Zoo.builds()` returns its builds with their paths and file names.
This module imports nothing, so that jobs which need one submodule do not import pydantic.
"""

"""The matrix: config/zoo.yaml, validated and expanded to the builds Snakemake plans.

`axzoo.zoo.load.load_zoo(path)` reads a matrix; `Zoo.builds()` lists its builds, each knowing its paths and file names.
Nothing is imported here: compile jobs need `axzoo.zoo.sources` and must not wait for pydantic.
"""

"""The matrix: config/zoo.yaml, validated and expanded to the builds Snakemake plans.

`load_zoo(path)` reads a matrix; `Zoo.builds()` lists its builds, each knowing its paths and file names.
"""

from axzoo.zoo.build import Build
from axzoo.zoo.chips import Chip, ChipTable, load_chips
from axzoo.zoo.load import load_zoo
from axzoo.zoo.models import Defaults, ModelEntry, Zoo
from axzoo.zoo.sources import FolderSource, HubSource, PypiSource, Source

__all__ = [
    "Build",
    "Chip",
    "ChipTable",
    "Defaults",
    "FolderSource",
    "HubSource",
    "ModelEntry",
    "PypiSource",
    "Source",
    "Zoo",
    "load_chips",
    "load_zoo",
]

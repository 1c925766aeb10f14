"""How a model's compiling is cut into jobs, and the memory each takes: from its sizes, before anything is fetched."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

WEIGHTS_PER_JOB = 120_000_000
"""Weights that take about two seconds to compile; starting Python for each of them takes 0.3."""

FEWEST_LAYERS_PER_JOB, MOST_LAYERS_PER_JOB = 4, 16
"""Fewer would spare little, and every batch is one more rule to look a file up in."""


ANY_LAYER, ANY_ENDING = "{layer}", "{together}"
"""Snakemake's wildcards."""

WITH_PREFILL, DECODE_ONLY = "_together", ""
"""How the names of layer files end."""


@dataclass(frozen=True)
class Batch:
    """Layers of one job, the same in each of `models`: their numbers, or any one of them as ANY_LAYER.

    `ending` is that of their files' names. Other than any layer's it is no wildcard: Snakemake finds a file's rule by
    what follows the last wildcard, and looks into every rule for which that is the same.
    """

    layers: tuple[str, ...]
    ending: str
    models: tuple[str, ...]

    @property
    def rule(self) -> str:
        """What its rule is called: layer, layers_0_14, or layers_0_14_decode."""
        if self.layers == (ANY_LAYER,):
            return "layer"
        return f"layers_{self.layers[0]}_{self.layers[-1]}" + ("" if self.ending == WITH_PREFILL else "_decode")

    @property
    def names(self) -> list[str]:
        """The patterns of its layers' files, without suffix."""
        return [self._name(layer) for layer in self.layers]

    @property
    def log_name(self) -> str:
        """What its log is called, in the pattern of the layers' own files."""
        return self._name("-".join(dict.fromkeys((self.layers[0], self.layers[-1]))))

    def _name(self, layers: str) -> str:
        return f"{{stem}}_l{layers}{self.ending}"


_BATCH_RULE = re.compile(r"layers_(\d+)_(\d+)(?:_decode)?")


def stage_of(rule: str) -> tuple[str, int]:
    """The stage that a rule's jobs belong to, and how many parts each of them makes: ("layer", 15) for layers_0_14.

    The inverse of `Batch.rule`. Any other rule is its own stage and makes one part.
    """
    found = _BATCH_RULE.fullmatch(rule)
    return ("layer", int(found[2]) - int(found[1]) + 1) if found else (rule, 1)


def layers_per_job(layer_weights: int) -> int:
    """How many layers of `layer_weights` parameters each share a job, unless the user says otherwise."""
    number = min(MOST_LAYERS_PER_JOB, WEIGHTS_PER_JOB // layer_weights)
    return number if number >= FEWEST_LAYERS_PER_JOB else 1


def split(num_hidden_layers: int, most: int) -> list[tuple[str, ...]]:
    """The layers' numbers, in batches of at most `most`: as few as possible, and as equal as possible."""
    count = math.ceil(num_hidden_layers / most)
    edges = [num_hidden_layers * i // count for i in range(count + 1)]
    return [tuple(map(str, range(*ends))) for ends in pairwise(edges)]


def batches(models: Iterable[tuple[str, int, int, str]]) -> list[Batch]:
    """The batches of models given as (name, num_hidden_layers, layers per job, ending of their files' names), equal
    ones of several models merged; a model with files of both endings is given twice."""
    found: dict[tuple[tuple[str, ...], str], dict[str, None]] = {}
    for name, num_hidden_layers, most, ending in models:
        shared = [(layers, ending) for layers in split(num_hidden_layers, most)]
        for batch in shared if most > 1 else [((ANY_LAYER,), ANY_ENDING)]:
            found.setdefault(batch, {})[name] = None
    return [Batch(*batch, tuple(names)) for batch, names in found.items()]

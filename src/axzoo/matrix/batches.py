"""Which parts share a job, and the Snakemake rule of each batch: its name, and the patterns of its files.

Starting a job takes longer than compiling a small layer, so small layers share jobs. Snakemake's wildcards cannot
count, hence a rule for each batch of indices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from axzoo.parts.kind import PartKind
from axzoo.parts.kinds import KINDS
from axzoo.weights.recipe import Recipe

PARAMETERS_PER_JOB = 120_000_000
"""Parameters that take about two seconds to compile; starting Python for each job takes 0.3."""

FEWEST_PARTS_PER_JOB, MOST_PARTS_PER_JOB = 4, 16
"""Fewer would save little, and every batch is one more rule to look a file up in."""

STEM, ANY_INDEX = "{stem}", "{index}"
"""Snakemake's wildcards."""


@dataclass(frozen=True)
class PartRule:
    """The rule of parts that share a job, the same in each of `models`.

    `indices` are the parts' numbers, or ANY_INDEX alone for a job of any one part; empty for a kind with one part.
    `tails` end the patterns of the files. Snakemake finds a file's rule by what follows the last wildcard, so tails of
    different rules should differ.
    """

    kind: PartKind
    variant: str
    indices: tuple[str, ...]
    tails: tuple[str, ...]
    log_tail: str
    has_stem: bool
    models: tuple[str, ...]

    @property
    def name(self) -> str:
        """layer, post, layers_0_14, layers_0_14_decode; `stage_of` decodes it."""
        is_batch = self.indices not in ((), (ANY_INDEX,))
        base = f"{self.kind.name}s_{self.indices[0]}_{self.indices[-1]}" if is_batch else self.kind.name
        return f"{base}_{self.variant}" if self.variant else base

    @property
    def files(self) -> list[str]:
        """The patterns of the parts' files in a bundle."""
        return [(STEM if self.has_stem else "") + tail for tail in self.tails]

    @property
    def receipts(self) -> list[str]:
        """The patterns of the parts' receipts."""
        return [file.removesuffix(self.kind.suffix) + ".json" for file in self.files]

    @property
    def locks(self) -> list[str]:
        """The patterns of the parts' lock files."""
        names = [f"{self.kind.name}_{index}" for index in self.indices] or [self.kind.name]
        return [f"{name}.json" for name in names]

    @property
    def log_name(self) -> str:
        """The pattern of the rule's log, without suffix: a part's own name, or that of a range of parts."""
        return ((STEM if self.has_stem else "") + self.log_tail).removesuffix(self.kind.suffix)

    @property
    def parts(self) -> int:
        """Parts of one job."""
        return max(1, len(self.indices))


def stage_of(rule: str) -> tuple[str, int]:
    """The stage that a rule's jobs belong to, and how many parts each job makes: layers_0_14 makes 15 of layer."""
    for kind in KINDS:
        batch = re.fullmatch(rf"{kind.name}s_(\d+)_(\d+)(?:_[a-z]+)?", rule)
        if batch:
            return kind.name, int(batch[2]) - int(batch[1]) + 1
        if re.fullmatch(rf"{kind.name}(?:_[a-z]+)?", rule):
            return kind.name, 1
    return rule, 1


def parts_per_job(parameters: int) -> int:
    """How many parts of so many parameters each share a job, unless the user says otherwise."""
    number = min(MOST_PARTS_PER_JOB, PARAMETERS_PER_JOB // parameters)
    return number if number >= FEWEST_PARTS_PER_JOB else 1


def split(count: int, most: int) -> list[tuple[str, ...]]:
    """The numbers below `count` in batches of at most `most`: as few as possible, and as equal as possible."""
    batches = math.ceil(count / most)
    edges = [count * i // batches for i in range(batches + 1)]
    return [tuple(map(str, range(*ends))) for ends in pairwise(edges)]


class Batched(Protocol):
    """A build as far as its rules depend on it; `size_table` is None where its entry states no sizes."""

    @property
    def model(self) -> str: ...
    @property
    def model_type(self) -> str: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def size_table(self) -> Mapping[str, int] | None: ...


def part_rules(builds: Iterable[Batched], most: int | None = None) -> list[PartRule]:
    """The rules of all parts of the builds; equal ones of several models are one. `most` parts share a job, or as many
    as their sizes suggest; a part of unknown size has a job of its own."""
    models: dict[tuple[PartKind, str, tuple[str, ...], tuple[str, ...], str, bool], dict[str, None]] = {}
    for build in builds:
        for kind in KINDS:
            has_stem = bool(kind.stem(build.model_type, build.recipe))
            for indices in _batches(build, kind, most):
                tails = tuple(kind.tail(build.recipe, index) for index in indices or (None,))
                log_tail = kind.tail(build.recipe, "-".join(dict.fromkeys(indices[:1] + indices[-1:])))
                key = kind, kind.variant(build.recipe), indices, tails, log_tail, has_stem
                models.setdefault(key, {})[build.model] = None
    return [PartRule(*key, tuple(names)) for key, names in models.items()]


def _batches(build: Batched, kind: PartKind, most: int | None) -> list[tuple[str, ...]]:
    parts, sizes = kind.ids(build.num_hidden_layers), build.size_table
    if parts[0].index is None:
        return [()]
    number = most or (parts_per_job(kind.parameters(sizes)) if sizes else 1)
    return split(len(parts), number) if number > 1 else [(ANY_INDEX,)]

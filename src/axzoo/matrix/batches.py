"""Batches of parts that share a job, and the Snakemake rule of each batch: its name and file patterns.

Starting a job takes longer than compiling a small layer, so small layers share jobs. Snakemake wildcards cannot express
ranges, so there is one rule per batch of indices.
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
"""Compiling this many parameters takes about two seconds; starting Python for a job takes 0.3 seconds."""

MIN_PARTS_PER_JOB, MAX_PARTS_PER_JOB = 4, 16
"""Smaller batches would save little time, and each batch adds a rule that Snakemake matches files against."""

STEM, ANY_INDEX = "{stem}", "{index}"
"""Snakemake wildcards."""


@dataclass(frozen=True)
class PartRule:
    """The rule of a batch of parts, shared by `models`.

    `indices` are the indices of the parts, or only ANY_INDEX if each job builds one part; empty if the kind has only
    one part. `tails` are the ends of the file patterns. Snakemake looks up rules by the text after the last wildcard,
    so the tails of different rules should differ.
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
        """The rule's name, such as layer, post, layers_0_14 or layers_0_14_decode. `stage_of` parses it."""
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
        return [self.kind.receipt_name(file) for file in self.files]

    @property
    def locks(self) -> list[str]:
        """The patterns of the parts' lock files."""
        names = [f"{self.kind.name}_{index}" for index in self.indices] or [self.kind.name]
        return [f"{name}.json" for name in names]

    @property
    def log_name(self) -> str:
        """The pattern of the log file without suffix, named after the part or the range of parts."""
        return ((STEM if self.has_stem else "") + self.log_tail).removesuffix(self.kind.suffix)

    @property
    def parts(self) -> int:
        """The number of parts per job."""
        return max(1, len(self.indices))


def stage_of(rule: str) -> tuple[str, int]:
    """The stage of a rule's jobs and the number of parts per job: ("layer", 15) for layers_0_14."""
    for kind in KINDS:
        batch = re.fullmatch(rf"{kind.name}s_(\d+)_(\d+)(?:_[a-z]+)?", rule)
        if batch:
            return kind.name, int(batch[2]) - int(batch[1]) + 1
        if re.fullmatch(rf"{kind.name}(?:_[a-z]+)?", rule):
            return kind.name, 1
    return rule, 1


def parts_per_job(parameters: int) -> int:
    """The default number of parts per job, for parts with `parameters` parameters each."""
    number = min(MAX_PARTS_PER_JOB, PARAMETERS_PER_JOB // parameters)
    return number if number >= MIN_PARTS_PER_JOB else 1


def split(count: int, max_size: int) -> list[tuple[str, ...]]:
    """Splits the indices 0 .. count - 1 into as few batches of at most `max_size` as possible, of nearly equal size."""
    batches = math.ceil(count / max_size)
    edges = [count * i // batches for i in range(batches + 1)]
    return [tuple(map(str, range(*ends))) for ends in pairwise(edges)]


class Batched(Protocol):
    """The properties of a build that determine its rules. `size_table` is None if its entry has no `sizes`."""

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


def part_rules(builds: Iterable[Batched], per_job: int | None = None) -> list[PartRule]:
    """The rules for all parts of the builds; models with equal batches share a rule. Up to `per_job` parts share a job;
    by default the number depends on their size, and parts of unknown size do not share jobs."""
    models: dict[tuple[PartKind, str, tuple[str, ...], tuple[str, ...], str, bool], dict[str, None]] = {}
    for build in builds:
        for kind in KINDS:
            has_stem = bool(kind.stem(build.model_type, build.recipe))
            for indices in _batches(build, kind, per_job):
                tails = tuple(kind.tail(build.recipe, index) for index in indices or (None,))
                log_tail = kind.tail(build.recipe, "-".join(dict.fromkeys(indices[:1] + indices[-1:])))
                key = kind, kind.variant(build.recipe), indices, tails, log_tail, has_stem
                models.setdefault(key, {})[build.model] = None
    return [PartRule(*key, tuple(names)) for key, names in models.items()]


def _batches(build: Batched, kind: PartKind, per_job: int | None) -> list[tuple[str, ...]]:
    parts, sizes = kind.ids(build) if kind.is_built(build.recipe) else (), build.size_table
    if not parts:
        return []
    if parts[0].index is None:
        return [()]
    number = per_job or (parts_per_job(kind.parameters(sizes)) if sizes else 1)
    return split(len(parts), number) if number > 1 else [(ANY_INDEX,)]

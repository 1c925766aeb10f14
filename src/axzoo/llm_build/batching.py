"""How many layers share a job of `llm_build`: small ones do, as long as every worker has a job.

Snakemake makes files again whose job is another one than before. So the number is kept beside what decides the layers,
and while that is the same and they are there, another --parallel starts no job.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from axzoo.errors import AxzooError
from axzoo.files import canonical_json, read_json, sha256_of, write_json
from axzoo.fingerprint import fingerprint
from axzoo.zoo.build import Build
from axzoo.zoo.jobs import layers_per_job
from axzoo.zoo.made_from import MADE_FROM

KEPT = Path("config/layers_per_job")
"""One file per bundle, in the project's folder."""


def choose_layers_per_job(project: Path, build: Build, parallel: int) -> int:
    """The number for `parallel` jobs at once, or what these layers were built with. The model's lock must be there."""
    decides = canonical_json(
        {
            "recipe": build.recipe.for_layers(),
            "lock": sha256_of(project / build.locks / MADE_FROM),
            "code": fingerprint("axzoo.backends.host"),
        }
    )
    file = project / KEPT / f"{build.chip}-{build.name}.json"
    kept = _read(file)
    if kept.get("of") == decides and all((project / receipt).exists() for receipt in build.receipt_files):
        return int(kept["layers_per_job"])
    number = min(layers_per_job(build.sizes[0]), math.ceil(build.num_hidden_layers / parallel))
    write_json(file, {"layers_per_job": number, "of": decides})
    return number


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(read_json(file))
    except (AxzooError, TypeError, ValueError):
        return {}

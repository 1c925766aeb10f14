"""What `axzoo doctor` says about the compiler: what it is, what it finds on this machine, and whether it works."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from axzoo.backends.part_job import PartFile, PartJob, build_parts
from axzoo.backends.pulsar2.settings import RECORDED, Settings
from axzoo.backends.pulsar2.tool import find_tool
from axzoo.checkpoint.writing import StreamedTensor, write_streamed
from axzoo.core.errors import AxzooError
from axzoo.core.files import write_json
from axzoo.core.machine import physical_memory
from axzoo.fetch.sources import RECEIPT
from axzoo.model.families import load_family
from axzoo.model.reading import spec_of
from axzoo.parts.kind import PartId
from axzoo.parts.kinds import part_ids
from axzoo.parts.lock import make_lock, write_lock
from axzoo.weights.recipe import Recipe

SAMPLE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""The config.json of a model that the vendor's tool was reported to build in 25 seconds."""

RECIPE = Recipe(prefill_len=64, kv_cache_len=127)

_LEAST_MB = 6000


def diagnose(settings: Settings, chip: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yields (subject, finding). Compiles a tiny slice last. Raises AxzooError at the first thing that does not
    work."""
    yield "compiler", settings.shown
    tool = find_tool(settings)
    yield "tool", f"{tool.name} {tool.version}" + (f", build {tool.build}" if tool.build else "")
    yield "chips", ", ".join(tool.chips) or "it does not say which"
    if tool.chips and chip not in tool.chips:
        raise AxzooError(f"{settings.shown} does not know the chip {chip}: use one of {', '.join(tool.chips)}")
    variables = dict(settings.environment)
    yield "environment", " ".join(f"{name}={value}" for name, value in variables.items()) or f"no {RECORDED[0]}"
    yield "licence", _licence(settings)
    memory = physical_memory() // 1_000_000
    yield "memory", f"{memory} MB" + ("" if memory >= _LEAST_MB else f": few; the vendor's tool needs {_LEAST_MB}")
    write_sample(folder / "sample")
    began = time.monotonic()
    sizes = build_sample(settings, chip, folder)
    yield (
        "slice",
        f"compiled in {time.monotonic() - began:.0f} s: a layer of {sizes[0]} bytes, a post layer of {sizes[1]}",
    )


def _licence(settings: Settings) -> str:
    folder = Path(settings.licence or Path.home() / ".hasplm")
    files = sorted(path.name for path in folder.rglob("*.v2c")) if folder.is_dir() else []
    found = f"{len(files)} .v2c files in {folder}" if files else f"no .v2c file in {folder}"
    if settings.in_container and not settings.licence:
        return "that of the image; `licence` would mount another"
    return found


def write_sample(folder: Path, config: Mapping[str, Any] = SAMPLE) -> None:
    """Writes a checkpoint with random weights, as if it had been fetched. No norm is all ones, and no two rows
    are equal."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    family, generator = load_family("llama"), np.random.default_rng(0)
    spec = spec_of(config, folder / "config.json", ())
    refs = [*family.post_tensors(spec).values(), family.embed_tensor(spec)]
    refs += [ref for layer in range(spec.num_hidden_layers) for ref in family.layer_tensors(spec, layer).values()]
    tensors = []
    for ref in refs:
        values = generator.standard_normal(ref.shape, np.float32) * np.float32(0.05) + np.float32(len(ref.shape) == 1)
        tensors.append(StreamedTensor(ref.name, "F32", ref.shape, lambda values=values: [values]))  # type: ignore[misc]
    write_streamed(folder / "model.safetensors", tensors)
    write_json(folder / RECEIPT, {"source": {"path": "sample"}, "root": ".", "files": {}})


def build_sample(settings: Settings, chip: str, folder: Path) -> tuple[int, int]:
    """Builds the checkpoint in `folder`/sample. Returns the sizes of its layer and of its post layer."""
    sample, locks = folder / "sample", folder / "locks"
    lock = make_lock(sample, "llama", 1)
    write_lock(lock, locks, sample, {"path": "sample"})

    def built(part: PartId) -> int:
        file = PartFile(locks / part.lock_file, folder / f"{part.name}.axmodel", folder / f"{part.name}.json")
        job = PartJob([file], sample / RECEIPT, folder / "store", RECIPE, "pulsar2", chip, None, settings.to_json())
        build_parts(job)
        return file.output.stat().st_size

    layer, post = (part for part in part_ids(lock.spec, RECIPE) if part.kind in ("layer", "post"))
    return built(layer), built(post)
